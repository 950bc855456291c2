"""Prompts and sampling parameters as a program in Python hands them over, which no schema has read before."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from samebits.errors import RequestError
from samebits.sampling_params import SamplingParams

Prompts = str | Iterable[str] | Sequence[int] | Iterable[Sequence[int]]

_NO_LIST = (str, bytes, bytearray, Mapping)
"""to go through these gives characters, bytes or names, which nobody means"""


def list_prompts(prompts: Prompts) -> list[str | list[int]]:
    """The prompts as a list. Raises `RequestError` for anything else than text and token ids."""
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, _NO_LIST) or not isinstance(prompts, Iterable):
        raise RequestError(f"prompts are texts or lists of token ids, got {prompts!r}", "prompts")
    listed: list[Any] = list(prompts)  # once: what a generator has given it does not give again
    # A tensor's row of one number passes for a number.
    one = None if any(getattr(entry, "ndim", 0) for entry in listed[:1]) else _token_ids(listed)
    if one:
        return [one]
    found: list[str | list[int]] = []
    for entry in listed:
        ids = entry if isinstance(entry, str) else _token_ids(entry)
        if ids is None:
            raise RequestError(f"a prompt is a text or a list of token ids, got {entry!r}", "prompts")
        found.append(ids)
    return found


def list_params(given: SamplingParams | Iterable[SamplingParams] | None, size: int) -> list[SamplingParams]:
    """The sampling parameters of each of `size` prompts. Raises `RequestError` naming a field of another type than
    the one that it is declared with."""
    if given is None or isinstance(given, SamplingParams):
        return [_checked_params(given or SamplingParams())] * size
    if isinstance(given, _NO_LIST) or not isinstance(given, Iterable):
        raise RequestError(
            f"sampling_params is one SamplingParams or a list of them, got {given!r}", "sampling_params"
        )
    listed = list(given)
    if len(listed) != size:
        raise RequestError(f"{len(listed)} sampling_params for {size} prompts", "sampling_params")
    return [_checked_params(entry) for entry in listed]


def _token_ids(value: object) -> list[int] | None:
    """The whole numbers in a list, array or tensor of them; None for anything else."""
    if isinstance(value, _NO_LIST) or not isinstance(value, Iterable):
        return None
    try:
        return [operator.index(entry) for entry in value]
    except TypeError:
        return None


def _checked_params(params: object) -> SamplingParams:
    if not isinstance(params, SamplingParams):
        raise RequestError(f"sampling_params must be SamplingParams, got {params!r}", "sampling_params")
    try:
        return msgspec.convert(_plain(msgspec.structs.asdict(params)), SamplingParams)
    except msgspec.ValidationError as error:
        # A text where a list is due would otherwise be taken for a list of its characters.
        field = re.search(r"\$\.(\w+)", str(error))
        raise RequestError(f"sampling_params: {error}", field and field[1]) from error


def _plain(value: Any) -> Any:
    """`value` with Python's numbers in place of those of numpy and torch."""
    if isinstance(value, dict):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value.item() if hasattr(value, "item") else value
