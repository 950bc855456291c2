"""Compiling Triton kernels for GPUs that this machine does not have, and looking at what came out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import triton
from triton.compiler import ASTSource

from samebits.numerics.gpu.launch import TARGETS

FUSABLE = re.compile(r"\b(?:mul|add|sub)\.(?:ftz\.|sat\.)*f32(?:x2)?\b")
"""A float32 operation without its rounding: the assembler may fuse two of them (trap 1)."""
APPROXIMATE = re.compile(r"\b(?:div\.(?:approx|full)|sqrt\.approx|rcp\.approx|lg2|sin|cos|tanh)\.\S*f32\b")
"""Estimates where a clause wants the IEEE-754 operation. ex2 is the attention clause's own and not in here."""
FLUSHING = re.compile(r"(?<!ex2\.approx)\.ftz\b")


def compile_for(
    target: str,
    kernel: Any,
    arguments: Mapping[str, str],
    constants: Mapping[str, Any],
    **options: Any,
) -> Any:
    """The kernel compiled for a target of TARGETS; `.asm` holds its texts.

    `arguments` gives the run-time arguments' Triton types ("*bf16", "i32", "fp32") by name, `constants` the
    values of the others. Pointers are taken as 16-byte aligned, as the launches promise. Fusion is off unless
    asked for.
    """
    signature = {name: arguments.get(name, "constexpr") for name in kernel.arg_names}
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
    }
    source = ASTSource(kernel, signature, dict(constants), attributes)
    wanted = {"enable_fp_fusion": False, "num_warps": 4, "num_stages": 2, **options}
    return triton.compile(source, target=TARGETS[target], options=wanted)


def fusable_operations(ptx: str) -> list[str]:
    """Float32 products and sums in a PTX text that the assembler is free to fuse."""
    return FUSABLE.findall(ptx)


def estimates(ptx: str) -> list[str]:
    """Approximate divisions, roots and transcendental functions, and flushed subnormals, in a PTX text."""
    return [*APPROXIMATE.findall(ptx), *FLUSHING.findall(ptx)]
