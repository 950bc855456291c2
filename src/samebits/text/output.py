"""The text of one sample as its tokens come: detokenized, ended at the first stop, never leaking part of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from samebits.text.detokenize import ByteLevelDetokenizer, Detokenizer
from samebits.text.stop import StopMatcher
from samebits.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextOptions:
    """What a request says about its text."""

    stop: tuple[str, ...] = ()
    min_new_tokens: int = 0
    """stop strings count from this output token on"""
    skip_special_tokens: bool = True
    keep_stop: bool = False
    """leave the stop string or stop token in the text (`no_stop_trim`)"""


class OutputText:
    """Text of a growing output. Tokens are judged one by one (trap 13)."""

    def __init__(
        self, tokenizer: Tokenizer | None, options: TextOptions, prompt_ids: Sequence[int] = ()
    ) -> None:
        """Without a tokenizer the text is empty. It goes on behind the prompt's: some tokenizers write a space ahead
        of a word as a part of it, and leave it out at the beginning of a text."""
        self._options = options
        self._matcher = StopMatcher(options.stop, options.keep_stop)
        self._detokenizer: Detokenizer = ByteLevelDetokenizer(lambda token_id: b"")
        self._special_stops: dict[int, str] = {}
        if tokenizer is not None:
            self._detokenizer = tokenizer.detokenizer(options.skip_special_tokens, prompt_ids)
            found = {tokenizer.special_id(text): text for text in options.stop}
            self._special_stops = {token_id: text for token_id, text in found.items() if token_id is not None}
        self._tokens = 0

    @property
    def matched(self) -> str | None:
        """The stop string that ended the text."""
        return self._matcher.matched

    def push(self, token_id: int) -> str:
        """Text that becomes certain with `token_id`. Once `matched` is set, the output ends with this token.

        A stop string that is a special token ends the output at that token, shown or not.
        """
        self._tokens += 1
        judged = self._tokens >= self._options.min_new_tokens
        if judged and token_id in self._special_stops:
            shown = self.finish()
            if self._options.keep_stop:
                shown += self._detokenizer.push(token_id)
            self._matcher.matched = self._special_stops[token_id]
            return shown
        text = self._detokenizer.push(token_id)
        return self._matcher.push(text) if judged else text

    def finish(self, last_token: int | None = None) -> str:
        """The rest of the text when the output ends without a stop string.

        `last_token` is a stop token that is part of the output; it is shown only with `keep_stop`.
        """
        shown = ""
        if last_token is not None and self._options.keep_stop:
            shown = self.push(last_token)
        if self.matched is not None:
            return shown
        rest = self._matcher.push(self._detokenizer.finish())
        return shown + rest + ("" if self.matched is not None else self._matcher.finish())
