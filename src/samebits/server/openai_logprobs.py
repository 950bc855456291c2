"""Tokens and logprobs as the OpenAI routes write them. Every float is a float32 value, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from samebits.engine.messages import EngineFacts, TokenLogprobs
from samebits.generation.samples import FinishReason, Sample, SampleOutput
from samebits.server.native_format import resolved_parameters, safe_integer
from samebits.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class View:
    """Which parts of a sample a choice shows beside its text."""

    logprobs: int | None
    """this many likely tokens beside each token; None: no logprobs"""
    prompt_logprobs: int | None
    token_ids: bool

    def shows_tokens(self, part: SampleOutput) -> bool:
        """Whether `part` has something to show, though it may have no text."""
        return bool(part.token_ids) and (self.token_ids or self.logprobs is not None)


class TokenNames:
    """What tokens are called in a response."""

    def __init__(self, tokenizer: Tokenizer | None, as_ids: bool = False) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids or tokenizer is None

    def bytes_of(self, token_id: int) -> bytes:
        return b"" if self._tokenizer is None else self._tokenizer.token_bytes(token_id)

    def name(self, token_id: int) -> str:
        """A token's text; `bytes:\\xe2\\x80` where its bytes are no whole characters, `token_id:7` if wanted."""
        if self._as_ids:
            return f"token_id:{token_id}"
        content = self.bytes_of(token_id)
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


class CompletionLogprobs:
    """The `logprobs` object of a completion, or the parts of it in a stream: it counts the text's characters."""

    def __init__(
        self,
        names: TokenNames,
        tokenizer: Tokenizer | None,
        top: int,
        skip_special: bool,
        prompt_ids: Sequence[int] = (),
    ) -> None:
        """`prompt_ids`: what the text goes on behind."""
        self._names = names
        self._top = top
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._prompt_ids = prompt_ids
        self._detokenizer = None if tokenizer is None else tokenizer.detokenizer(skip_special, prompt_ids)
        self._offset = 0

    def object(
        self, positions: Sequence[TokenLogprobs], prompt: Sequence[TokenLogprobs] = (), echo: str = ""
    ) -> dict[str, Any]:
        """Positions that follow those of the last call. Those of the `prompt`, whose text is `echo`, come first."""
        starts = self._starts_in(echo, prompt) if prompt else []
        starts += [self._start_of(at.token_id) for at in positions]
        positions = [*prompt, *positions]
        return {
            "text_offset": starts,
            "token_logprobs": [at.logprob for at in positions],
            "tokens": [self._names.name(at.token_id) for at in positions],
            "top_logprobs": [self._most_likely(at) for at in positions],
        }

    def _starts_in(self, echo: str, prompt: Sequence[TokenLogprobs]) -> list[int]:
        """As `_start_of`, for a prompt and its text, which shows the special tokens that were written in it, and hides
        those that the checkpoint adds. What follows is a text of its own."""
        if self._tokenizer is None:
            return [0] * len(prompt)
        self._detokenizer = self._tokenizer.detokenizer(self._skip_special)
        starts = []
        for at in prompt:
            special = self._tokenizer.special_text(at.token_id)
            starts.append(self._offset if special else self._start_of(at.token_id))
            if special and echo.startswith(special, self._offset):
                self._offset += len(special)
        self._offset = len(echo)
        self._detokenizer = self._tokenizer.detokenizer(self._skip_special, self._prompt_ids)
        return starts

    def _start_of(self, token_id: int) -> int:
        """The character at which a token begins; one that continues an unfinished character begins there."""
        if self._detokenizer is None:
            return 0
        start = self._offset
        shown = len(self._detokenizer.push(token_id))
        self._offset += shown
        try:
            own = len(self._names.bytes_of(token_id).decode("utf-8"))
        except UnicodeDecodeError:
            return start
        return start + max(0, shown - own)

    def _most_likely(self, at: TokenLogprobs) -> dict[str, float] | None:
        """By name, most likely first; where two tokens share a name, the more likely one. The token itself is in it."""
        if at.logprob is None:
            return None
        found: dict[str, float] = {}
        for logprob, token_id in at.top[: self._top]:
            found.setdefault(self._names.name(token_id), logprob)
        found.setdefault(self._names.name(at.token_id), at.logprob)
        return found


def chat_logprobs(names: TokenNames, positions: Sequence[TokenLogprobs], top: int) -> dict[str, Any]:
    """The `logprobs` object of a chat's choice."""
    return {
        "content": [
            _chat_token(names, at.token_id, at.logprob)
            | {"top_logprobs": [_chat_token(names, i, logprob) for logprob, i in at.top[:top]]}
            for at in positions
        ],
        "refusal": None,
    }


def _chat_token(names: TokenNames, token_id: int, logprob: float | None) -> dict[str, Any]:
    return {
        "token": names.name(token_id),
        "logprob": logprob,
        "bytes": list(names.bytes_of(token_id)),
    }


def prompt_logprobs(
    names: TokenNames, positions: Sequence[TokenLogprobs], top: int
) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: per position the likeliest tokens and the prompt's own, by id; null for the first.

    The rank of a token that is not among the likeliest is not known: null.
    """
    listed: list[dict[str, Any] | None] = []
    for at in positions:
        if at.logprob is None:
            listed.append(None)
            continue
        entries = [(token_id, logprob, rank) for rank, (logprob, token_id) in enumerate(at.top[:top], 1)]
        if all(token_id != at.token_id for token_id, _, _ in entries):
            entries.append((at.token_id, at.logprob, None))  # type: ignore[arg-type]
        listed.append(
            {
                str(token_id): {"logprob": logprob, "rank": rank, "decoded_token": names.name(token_id)}
                for token_id, logprob, rank in entries
            }
        )
    return listed


def finish_fields(finish: FinishReason, facts: EngineFacts) -> dict[str, Any]:
    """`finish_reason`, and what matched as vLLM (`stop_reason`: null for the model's own end) and SGLang name it.
    A deadline aborts; `samebits` says so."""
    matched = finish.matched
    own_end = isinstance(matched, int) and matched in facts.eos_token_ids
    return {
        "finish_reason": "abort" if finish.type == "deadline" else finish.type,
        "stop_reason": None if own_end else matched,
        "matched_stop": matched,
    }


def end_fields(sample: Sample, part: SampleOutput, facts: EngineFacts) -> dict[str, Any]:
    """What a choice says besides once it has finished: why, and how to replay it."""
    if part.finish is None:
        return {"finish_reason": None}
    return finish_fields(part.finish, facts) | {"samebits": replay_facts(sample, part)}


def replay_facts(sample: Sample, part: SampleOutput) -> dict[str, Any]:
    """`samebits` in a finished choice: sent to /generate as `sampling_params`, with the prompt's ids, its
    `sampling_params` replay the choice. `message` says why it was aborted, if it was."""
    sampling = sample.request.sampling
    message = part.finish.message if part.finish is not None else ""
    return {
        **({"message": message} if message else {}),
        "seed": safe_integer(sampling.seed),
        "sample_index": sampling.sample_index,
        "sampling_params": resolved_parameters(sample),
        "warnings": part.warnings,
    }
