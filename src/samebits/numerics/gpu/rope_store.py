"""Query and key norm, rotation and the KV store, in one kernel.

A row's queries are worked off in groups of heads; its keys and values by one program, which sees all of them before it
stores any: a row with a non-finite key or value stores zeros for all heads and has its fault flag set.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from samebits.errors import NumericsError
from samebits.numerics.contract import CONTRACT
from samebits.numerics.gpu.arithmetic import is_finite
from samebits.numerics.gpu.checks import ACTIVATIONS, check_tensor, result
from samebits.numerics.gpu.configuration import Launch, Start, start
from samebits.numerics.gpu.dependent import wait_ahead
from samebits.numerics.gpu.norm import inverse_root_mean_square
from samebits.numerics.operators import HeadLayout

HEADS_AT_ONCE = 8
MANY_ROWS, MANY_HEADS_AT_ONCE = 1024, 32
"""Where rows fill the card, a program does more of one, so that angles and weights are read less often."""
ROPE_LAUNCH = Launch(warps=4, stages=1)


@triton.jit
def head_places(base, heads, columns, D: tl.constexpr):
    return base + heads[:, None] * D + columns[None, :]


@triton.jit
def normed_part(base, heads, known, columns, limit, scales, weight, D: tl.constexpr, NORMED: tl.constexpr):
    """Columns of some heads as float32 [HEADS, COLUMNS], normed where there is a norm."""
    wanted = known[:, None] & (columns < limit)[None, :]
    value = tl.load(head_places(base, heads, columns, D), mask=wanted, other=0.0).to(tl.float32)
    if NORMED:
        factor = tl.load(weight + columns, mask=columns < limit, other=0.0).to(tl.float32)
        value = factor[None, :] * (value * scales[:, None])
    return value


@triton.jit
def rotated(
    base,
    heads,
    known,
    weight,
    eps,
    rope,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    PART: tl.constexpr,
    NORMED: tl.constexpr,
):
    """(first half, second half) of the rotated columns of some heads, float32 [HEADS, PART], and all columns as they
    are ahead of the rotation, [HEADS, WIDTH], for those behind the halves."""
    columns = tl.arange(0, WIDTH)
    part = tl.arange(0, PART)
    scales = tl.full(heads.shape, 1.0, tl.float32)
    if NORMED and 2 * HALF == WIDTH:
        # The halves are what the first fold adds, so that each element is read once.
        low = normed_part(base, heads, known, part, HALF, scales, weight, D, False)
        high = normed_part(base + HALF, heads, known, part, HALF, scales, weight, D, False)
        zeros = tl.zeros_like(low)
        scales = inverse_root_mean_square(tl.fma(low, low, zeros) + tl.fma(high, high, zeros), PART, D, eps)
        low = tl.load(weight + part).to(tl.float32)[None, :] * (low * scales[:, None])
        high = tl.load(weight + HALF + part).to(tl.float32)[None, :] * (high * scales[:, None])
    else:
        if NORMED:
            wanted = known[:, None] & (columns < D)[None, :]
            whole = tl.load(head_places(base, heads, columns, D), mask=wanted, other=0.0).to(tl.float32)
            # head_dim is at most the number of lanes, so every lane has one element.
            scales = inverse_root_mean_square(tl.fma(whole, whole, tl.zeros_like(whole)), WIDTH, D, eps)
        low = normed_part(base, heads, known, part, HALF, scales, weight, D, NORMED)
        high = normed_part(base + HALF, heads, known, part, HALF, scales, weight + HALF, D, NORMED)
    cosine = tl.load(rope + part, mask=part < HALF, other=0.0)[None, :]
    sine = tl.load(rope + HALF + part, mask=part < HALF, other=0.0)[None, :]
    first, second = low * cosine - high * sine, high * cosine + low * sine
    return first, second, normed_part(base, heads, known, columns, D, scales, weight, D, NORMED)


@triton.jit
def store_heads(
    base,
    heads,
    known,
    first,
    second,
    rest,
    stride,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    PART: tl.constexpr,
):
    """Write rotated halves, and the columns behind them, of heads that lie `stride` elements apart."""
    part = tl.arange(0, PART)
    kind = base.dtype.element_ty
    place = base + (heads.to(tl.int64) * stride)[:, None] + part[None, :]
    wanted = known[:, None] & (part < HALF)[None, :]
    tl.store(place, first.to(kind), mask=wanted)
    tl.store(place + HALF, second.to(kind), mask=wanted)
    if 2 * HALF < D:
        columns = tl.arange(0, WIDTH)
        behind = known[:, None] & ((columns >= 2 * HALF) & (columns < D))[None, :]
        tl.store(base + (heads.to(tl.int64) * stride)[:, None] + columns[None, :], rest.to(kind), mask=behind)


@triton.jit
def all_finite(x, kind: tl.constexpr):
    """Whether every element is finite once it is rounded to the storage type."""
    return tl.min(is_finite(x.to(kind).to(tl.float32)).to(tl.int32)) != 0


@triton.jit
def rotate_queries(
    source, target, heads, weight, eps, angles, COUNT: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    HALF: tl.constexpr, PART: tl.constexpr, NORMED: tl.constexpr,
):  # fmt: skip
    """Norm and rotate some query heads of a row."""
    known = heads < COUNT
    first, second, rest = rotated(source, heads, known, weight, eps, angles, D, WIDTH, HALF, PART, NORMED)
    store_heads(target, heads, known, first, second, rest, D, D, WIDTH, HALF, PART)


@triton.jit
def store_row(
    source, keys, values, fault, heads, weight, eps, angles, COUNT: tl.constexpr, D: tl.constexpr,
    WIDTH: tl.constexpr, HALF: tl.constexpr, PART: tl.constexpr, PAGE: tl.constexpr, NORMED: tl.constexpr,
):  # fmt: skip
    """Norm and rotate a row's keys and store them and its values, or zeros and a fault."""
    known = heads < COUNT
    columns = tl.arange(0, WIDTH)
    first, second, rest = rotated(source, heads, known, weight, eps, angles, D, WIDTH, HALF, PART, NORMED)
    value = normed_part(source + COUNT * D, heads, known, columns, D, 1.0, weight, D, False)
    kind: tl.constexpr = keys.dtype.element_ty
    fine = all_finite(first, kind) & all_finite(second, kind) & all_finite(value, kind)
    if 2 * HALF < D:
        fine = fine & all_finite(rest, kind)
    if not fine:
        tl.store(fault, tl.full((), 1, tl.uint8))
    first, second = tl.where(fine, first, 0.0), tl.where(fine, second, 0.0)
    rest, value = tl.where(fine, rest, 0.0), tl.where(fine, value, 0.0)
    store_heads(keys, heads, known, first, second, rest, PAGE * D, D, WIDTH, HALF, PART)
    places = values + (heads.to(tl.int64) * (PAGE * D))[:, None] + columns[None, :]
    tl.store(places, value.to(kind), mask=known[:, None] & (columns < D)[None, :])


@triton.jit
def norm_rope_store_rows(
    qkv,
    queries,
    query_weight,
    key_weight,
    eps,
    rope,
    positions,
    slots,
    row_faults,
    keys,
    values,
    QUERY_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    KV_PADDED: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    PART: tl.constexpr,
    PAGE: tl.constexpr,
    HEADS: tl.constexpr,
    NORMED: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid (rows, 1 + groups of HEADS query heads); the first program of a row does its keys and values."""
    wait_ahead(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    source = qkv + row * ((QUERY_HEADS + 2 * KV_HEADS) * D)
    angles = rope + tl.load(positions + row) * (2 * HALF)
    if tl.program_id(1) > 0:
        group = (tl.program_id(1) - 1) * HEADS + tl.arange(0, HEADS)
        target = queries + row * (QUERY_HEADS * D)
        rotate_queries(
            source, target, group, query_weight, eps, angles, QUERY_HEADS, D, WIDTH, HALF, PART, NORMED
        )
    else:
        slot = tl.load(slots + row)
        place = (slot // PAGE * KV_HEADS * PAGE + slot % PAGE) * D
        store_row(
            source + QUERY_HEADS * D, keys + place, values + place, row_faults + row, tl.arange(0, KV_PADDED),
            key_weight, eps, angles, KV_HEADS, D, WIDTH, HALF, PART, PAGE, NORMED,
        )  # fmt: skip


def norm_rope_store(
    qkv: Tensor,
    heads: HeadLayout,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    eps: float,
    rope: Tensor,
    positions: Tensor,
    slots: Tensor,
    row_faults: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor | None = None,
    launch: Launch = ROPE_LAUNCH,
    start: Start = start,
) -> Tensor:
    """See `Operators.norm_rope_store`. keys and values act [pages, kv_heads, page_tokens, head_dim], written at
    `slots` int64 [rows] -> queries act [rows, query_heads, head_dim]."""
    width = heads.query_width + 2 * heads.kv_width
    rows = check_tensor("qkv", qkv, ACTIVATIONS, (None, width)).shape[0]
    shape = (None, heads.kv_heads, None, heads.head_dim)
    page_tokens = check_tensor("keys", keys, (qkv.dtype,), shape).shape[2]
    check_tensor("values", values, (qkv.dtype,), tuple(keys.shape))
    check_tensor("RoPE table", rope, (torch.float32,), (None, 2, None))
    for name, tensor, kind in (
        ("positions", positions, torch.int64),
        ("slots", slots, torch.int64),
        ("row_faults", row_faults, torch.uint8),
    ):
        check_tensor(name, tensor, (kind,), (rows,))
    if (query_norm is None) != (key_norm is None):
        raise NumericsError("query and key norm must be given together")
    if heads.head_dim > CONTRACT.device_reduction_lanes or 2 * rope.shape[2] > heads.head_dim:
        raise NumericsError(f"a RoPE table of {rope.shape[2]} pairs does not fit head_dim {heads.head_dim}")
    queries = result("queries", out, qkv, qkv.dtype, (rows, heads.query_heads, heads.head_dim))
    if rows:
        at_once = MANY_HEADS_AT_ONCE if rows >= MANY_ROWS else HEADS_AT_ONCE
        constants: dict[str, Any] = {
            "QUERY_HEADS": heads.query_heads,
            "KV_HEADS": heads.kv_heads,
            "KV_PADDED": int(triton.next_power_of_2(heads.kv_heads)),
            "D": heads.head_dim,
            "WIDTH": int(triton.next_power_of_2(heads.head_dim)),
            "HALF": rope.shape[2],
            "PART": int(triton.next_power_of_2(rope.shape[2])),
            "PAGE": page_tokens,
            "HEADS": min(at_once, int(triton.next_power_of_2(heads.query_heads))),
            "NORMED": query_norm is not None,
        }
        groups = triton.cdiv(heads.query_heads, constants["HEADS"])
        start(
            norm_rope_store_rows,
            (rows, 1 + groups),
            qkv,
            queries,
            qkv if query_norm is None else query_norm,
            qkv if key_norm is None else key_norm,
            eps,
            rope,
            positions,
            slots,
            row_faults,
            keys,
            values,
            **constants,
            launch=launch,
        )
    return queries
