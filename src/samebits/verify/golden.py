"""Golden digests: whole generations, boiled down to a SHA-256 each, kept in the repository.

They catch what comparing a machine with itself cannot: a change of bits from one version to the next, or from
one machine to another. A digest that changes is a deliberate change of the contract's version, or a defect.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samebits.errors import ConfigError
from samebits.llm import LLM, Completion
from samebits.numerics.contract import CONTRACT_VERSION
from samebits.sampling_params import SamplingParams
from samebits.schedule.messages import TokenLogprobs
from samebits.verify.local import LocalTarget, whole_answer
from samebits.verify.prompts import OPENINGS, long_prompt

TOP_LOGPROBS = 3
NO_LOGPROB = 0xFFFF_FFFF
"""Stands for the logprob that position 0 of a prompt has not; the bits of no number."""


@dataclass(frozen=True)
class Case:
    """A request whose answer is kept."""

    name: str
    prompt: list[int]
    sampling: SamplingParams


def cases(llm: LLM) -> list[Case]:
    """Every kind of sampling, prompts from one token to many chunks and splits."""
    target = LocalTarget(llm)
    short = target.encode(OPENINGS[1])
    code = target.encode(OPENINGS[3])
    kinds: dict[str, dict[str, Any]] = {
        "greedy": {"temperature": 0.0},
        "greedy, stops at the end of sequence": {
            "temperature": 0.0,
            "ignore_eos": False,
            "max_new_tokens": 64,
        },
        "temperature": {},
        "temperature, seed of 64 bits": {"seed": (1 << 64) - 3, "temperature": 1.7},
        "top_k": {"top_k": 5},
        "top_p": {"top_p": 0.8},
        "min_p": {"min_p": 0.1},
        "presence_penalty": {"presence_penalty": 0.7},
        "frequency_penalty": {"frequency_penalty": 0.4},
        "repetition_penalty": {"repetition_penalty": 1.3, "temperature": 0.0},
        "logit_bias": {"logit_bias": {3: 4.0, 5: -4.0, 11: 2.5}},
        "min_new_tokens": {"min_new_tokens": 12, "ignore_eos": False},
        "every filter": {
            "top_k": 40,
            "top_p": 0.9,
            "min_p": 0.02,
            "presence_penalty": 0.3,
            "frequency_penalty": 0.2,
            "repetition_penalty": 1.1,
            "logit_bias": {7: 1.0},
            "seed": 7,
        },
        "four samples": {"n": 4},
        "sample 3 of them, alone": {"sample_index": 3},
    }
    found = [Case(name, short, _sampling(change)) for name, change in kinds.items()]
    found.append(Case("one token", [1], _sampling({})))
    found.append(Case("code", code, _sampling({"temperature": 0.0})))
    for tokens in (257, 1500):
        found.append(
            Case(f"{tokens} tokens", long_prompt(target, tokens, tokens), _sampling({"seed": tokens}))
        )
    return found


def _sampling(change: dict[str, Any]) -> SamplingParams:
    neutral = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 42}
    return SamplingParams(
        **({"temperature": 0.9, "max_new_tokens": 24, "ignore_eos": True} | neutral | change)  # type: ignore[arg-type]
    )


def digests(llm: LLM) -> dict[str, str]:
    """SHA-256 of every case, all answered in one batch: token ids and logprob bits of output, prompt and top tokens."""
    asked = cases(llm)
    answers = llm.generate(
        [case.prompt for case in asked],
        [case.sampling for case in asked],
        progress=False,
        return_logprob=True,
        logprob_start_len=0,
        top_logprobs_num=TOP_LOGPROBS,
    )
    return {
        case.name: digest(answer for answer in answers if answer.prompt_index == index)
        for index, case in enumerate(asked)
    }


def digest(samples: Iterable[Completion]) -> str:
    """SHA-256 of the samples of one request. Raises `EngineError` for one that failed."""
    state = hashlib.sha256()
    for sample in samples:
        whole_answer(sample)
        for entries in (sample.prompt_logprobs or (), sample.logprobs or ()):
            state.update(struct.pack("<q", len(entries)))
            for entry in entries:
                state.update(_bytes(entry))
    return state.hexdigest()


def _bytes(entry: TokenLogprobs) -> bytes:
    parts = [struct.pack("<q", entry.token_id)]
    parts.append(struct.pack("<I", NO_LOGPROB) if entry.logprob is None else struct.pack("<f", entry.logprob))
    parts += [struct.pack("<fq", logprob, token) for logprob, token in entry.top]
    return b"".join(parts)


def write(path: Path, llm: LLM) -> None:
    """Compute the digests and keep them in `path`."""
    kept = {
        "contract_version": CONTRACT_VERSION,
        "model": llm.facts.model,
        "profile": llm.facts.profile,
        "digests": digests(llm),
    }
    try:
        path.write_text(json.dumps(kept, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def differing(path: Path, llm: LLM) -> list[str]:
    """Names of the cases whose digest is not the one that `path` keeps, missing and new ones among them.

    Raises `ConfigError` where the file is of another model, profile or contract version, or is no such file.
    """
    kept = read(path)
    expected = {"contract_version": CONTRACT_VERSION, "model": llm.facts.model, "profile": llm.facts.profile}
    for name, value in expected.items():
        if kept[name] != value:
            raise ConfigError(f"{path} is for {name} {kept[name]!r}, not {value!r}")
    return different_names(kept["digests"], digests(llm))


def different_names(kept: dict[str, str], found: dict[str, str]) -> list[str]:
    return sorted(name for name in kept.keys() | found.keys() if kept.get(name) != found.get(name))


def read(path: Path) -> dict[str, Any]:
    """A file that `write` made. Raises `ConfigError` naming it."""
    try:
        kept: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read golden digests from {path}: {error}") from error
    if not isinstance(kept, dict):
        raise ConfigError(f"{path} holds no golden digests")
    missing: Sequence[str] = sorted({"contract_version", "model", "profile", "digests"} - kept.keys())
    if missing:
        raise ConfigError(f"{path} has no {', '.join(missing)}")
    return kept
