"""Kernels that every start of a model launches, named before it launches them, so that they are compiled side by side
while weights are loaded. One that is not named here is compiled when it is launched first.

Their sources are asked for, or the calls that launch them are made on CPU tensors with `Noted` for a start, so that
the rule by which a launch is chosen stands in one place.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from samebits.numerics.contract import CONTRACT
from samebits.numerics.gpu import (
    activation,
    attention,
    embedding,
    log_sum_exp,
    norm,
    rope_store,
    rough_silu,
    sampling,
    top,
)
from samebits.numerics.gpu.attention import AttentionShape
from samebits.numerics.gpu.attention_plan import decode_units
from samebits.numerics.gpu.attention_prefill import default_tile, processors, tile_source
from samebits.numerics.gpu.bindings import compile_behind
from samebits.numerics.gpu.configuration import Noted, Start
from samebits.numerics.gpu.launch import KernelSource
from samebits.numerics.gpu.sampling import FEW_ROWS, Wants, sampling_workspace
from samebits.numerics.operators import HeadLayout
from samebits.numerics.probe_sampling import (
    PAIRS,
    ROWS,
    TIED_ROWS,
    TIED_VOCABULARY,
    VOCABULARY,
    plain_batch,
    probe_batch,
    tied_batch,
)
from samebits.numerics.probes import HEADS, NORM_WIDTH

CPU = torch.device("cpu")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSizes:
    """What the kernels of a model are compiled for."""

    heads: HeadLayout
    hidden: int
    intermediate: int
    vocabulary: int
    normed: bool
    """whether queries and keys are"""
    rotary_dim: int
    page_tokens: int


def compile_foreseen(sizes: ModelSizes, act: torch.dtype, split_tokens: int, device: torch.device) -> None:
    """Begin to compile them, and wait for nothing."""

    def work() -> None:
        try:
            compile_behind(foreseen_sources(sizes, act, split_tokens, processors(device)))
        except Exception:  # each is compiled where it is launched then
            log.warning("no kernels are compiled ahead, so this start takes longer", exc_info=True)

    threading.Thread(target=work, name="samebits-foreseen", daemon=True).start()


def foreseen_sources(
    sizes: ModelSizes, act: torch.dtype, split_tokens: int, multiprocessors: int
) -> list[KernelSource]:
    """What probes, a token, and captured steps launch, products and prefill's fastest tiles aside."""
    pages = dict.fromkeys((CONTRACT.key_block_tokens, sizes.page_tokens))
    shapes = [AttentionShape(sizes.heads, page, split_tokens) for page in pages]
    shapes.append(AttentionShape(HEADS, CONTRACT.key_block_tokens, split_tokens))
    found = [source for shape in shapes for source in attention_sources(shape, act, multiprocessors)]
    noted = Noted()
    launch_rows(sizes, act, noted)
    launch_sampling(sizes.vocabulary, noted)
    return list(dict.fromkeys([*found, *noted.sources]))


def attention_sources(
    shape: AttentionShape, act: torch.dtype, multiprocessors: int
) -> Iterator[KernelSource]:
    """The clause's reference, and what serves before anything faster is bound."""
    yield attention.reference_source(shape, act)
    yield tile_source(shape, act, default_tile(shape, act))
    for ranges in attention.default_launches(shape, act, 1, multiprocessors):
        yield attention.range_source(shape, act, shape.group, ranges)
    buffers = attention.range_buffers(shape, 1, 1, ranges.programs, 1, CPU)
    table, positions = torch.zeros((1, 1), dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
    units_of_one = decode_units(1, 1, CPU)
    noted = Noted()
    attention.plan_ranges(shape, positions, table, units_of_one, buffers, ranges, noted)
    yield from noted.sources


def launch_rows(sizes: ModelSizes, act: torch.dtype, start: Start) -> None:
    """The short kernels of a layer, of few rows and of many, and those of the probes, handed to `start`."""

    def rows(count: int, width: int) -> Tensor:
        return torch.empty((count, width), dtype=act)

    for count, width in (
        (1, sizes.hidden),
        (norm.MANY_ROWS, sizes.hidden),
        (norm.PREFILL_ROWS, sizes.hidden),
        (1, NORM_WIDTH),
    ):
        x, weight = rows(count, width), rows(1, width)[0]
        norm.rms_norm(x, weight, 1e-6, start=start)
        norm.add_rms_norm(x, x, weight, 1e-6, start=start)
    for heads, normed, rotary_dim in (
        (sizes.heads, sizes.normed, sizes.rotary_dim),
        (HEADS, True, HEADS.head_dim),
    ):
        for count in (1, rope_store.MANY_ROWS):
            qkv = rows(count, heads.query_width + 2 * heads.kv_width)
            launch_rope(qkv, heads, normed, rotary_dim, sizes.page_tokens, start)
    for width in (sizes.intermediate, 256):
        activation.silu_mul(rows(1, 2 * width), start=start)
    if activation.estimates_may_serve(act):
        launch_estimates(rows(1, 2 * sizes.intermediate), start)
    for width in (sizes.hidden, 64):
        embedding.embed(torch.zeros(1, dtype=torch.int64), rows(1, width), start=start)


def launch_estimates(gate_up: Tensor, start: Start) -> None:
    """The activation of many rows by estimates, and what proves them."""
    rough_silu.estimate_errors(CPU, start)
    pairs = torch.empty((1, 2 * activation.BLOCK), dtype=gate_up.dtype)
    for given, rough in ((gate_up, True), (pairs, True), (pairs, False)):
        activation.silu_mul_as(given, None, activation.SILU_LAUNCH, rough, start)


def launch_rope(
    qkv: Tensor, heads: HeadLayout, normed: bool, rotary_dim: int, page_tokens: int, start: Start
) -> None:
    count = qkv.shape[0]
    kv = torch.empty((1, heads.kv_heads, page_tokens, heads.head_dim), dtype=qkv.dtype)
    weight = torch.empty(heads.head_dim, dtype=qkv.dtype) if normed else None
    table = torch.empty((1, 2, rotary_dim // 2))
    places = torch.zeros(count, dtype=torch.int64)
    faults = torch.zeros(count, dtype=torch.uint8)
    rope_store.norm_rope_store(
        qkv, heads, weight, weight, 1e-6, table, places, places, faults, kv, kv, start=start
    )


def launch_sampling(vocabulary: int, start: Start) -> None:
    """The sampling stage of captured steps, and that of the probes, handed to `start`."""
    for count in (1, FEW_ROWS + 1):
        logits = torch.empty((count, vocabulary))
        room = sampling_workspace(max(count, FEW_ROWS), vocabulary, CPU)
        plain = plain_batch(0, count, CPU)
        sampling.sample(logits, plain, wants=Wants(False, False), workspace=room, start=start)
    batch = probe_batch(CPU)
    logits = torch.empty((ROWS, VOCABULARY))
    sampling.sample(logits, batch, True, wants=Wants.of(batch), start=start)
    batch = tied_batch(CPU)
    room = sampling_workspace(FEW_ROWS, TIED_VOCABULARY, CPU)
    tied = torch.empty((TIED_ROWS, TIED_VOCABULARY))
    sampling.sample(tied, batch, wants=Wants.of(batch), workspace=room, start=start)
    pairs = torch.empty((PAIRS, 8))
    sampling.sample(pairs, plain_batch(0, PAIRS, CPU), True, wants=Wants(False, False), start=start)
    top.top_tokens(logits, 20, start)
    lse = log_sum_exp.log_sum_exp(logits, start=start)
    rows = torch.zeros(1, dtype=torch.int64)
    log_sum_exp.token_logprobs(logits, lse, rows, rows, start=start)
