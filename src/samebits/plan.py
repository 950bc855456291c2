"""The plan: everything beside the request that decides the bits, and its fingerprint.

Page size, limits of chunks and batches, threads, graphs and replicas are not in it: they change no bit. The
probe digests say what hardware and software really compute, so two machines with equal fingerprints give
equal bits for equal requests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

FINGERPRINT_PREFIX = "sb1-"
FINGERPRINT_DIGITS = 24
"""Hex digits of the SHA-256: 96 bits, so that no two plans of a fleet meet by chance."""


@dataclass(frozen=True)
class Plan:
    """What decides the bits. All values are plain JSON values; the fingerprint is a function of them alone."""

    contract: Mapping[str, int]
    """constants of the numerics contract, its version among them"""
    profile: str
    """numerics profile"""
    probes: Mapping[str, str]
    """digest of every clause's output on fixed inputs, by clause"""
    model_config: Mapping[str, Any]
    """config.json"""
    dtype: str
    """storage dtype of the weights in use"""
    weights: Mapping[str, str]
    """digest of each shard by its name, or how dummy weights are made"""
    context_length: int
    """longest request in tokens"""
    end_tokens: tuple[int, ...]
    """ids that end a text"""
    sampling_defaults: Mapping[str, float | None]
    """values of the fields that a request leaves blank"""
    tokenizer: Mapping[str, str]
    """digest of each file of the tokenizer and chat template by its name"""
    grammar: str = "none"
    """version and settings of the grammar library"""
    tensor_parallel: int = 1
    """degree; not in the fingerprint of `tp-invariant`, which gives the same bits at every degree"""
    fingerprint: str = field(init=False)
    """`sb1-` and 24 hex digits"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "fingerprint", _fingerprint(self))

    def parts(self) -> dict[str, str]:
        """The parts by name, shortened for people: settings as text, long collections as a digest."""
        parts = {name: _readable(value) for name, value in _ingredients(self).items()}
        return {"fingerprint": self.fingerprint, **parts}


def canonical_json(value: Any) -> bytes:
    """One spelling of a JSON value: keys in order, no spaces, shortest floats, ASCII. NaN is refused."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode()


def _ingredients(plan: Plan) -> dict[str, Any]:
    names = [entry.name for entry in fields(plan) if entry.init]
    if plan.profile == "tp-invariant":
        names.remove("tensor_parallel")
    return {name: getattr(plan, name) for name in names}


def _fingerprint(plan: Plan) -> str:
    ingredients = {
        name: dict(value) if isinstance(value, Mapping) else value
        for name, value in _ingredients(plan).items()
    }
    digest = hashlib.sha256(canonical_json(ingredients)).hexdigest()
    return FINGERPRINT_PREFIX + digest[:FINGERPRINT_DIGITS]


def _readable(value: Any) -> str:
    if isinstance(value, Mapping):
        value = dict(value)
    text = value if isinstance(value, str) else canonical_json(value).decode()
    if len(text) <= 160:
        return text
    return f"sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]} of {len(value)} entries"
