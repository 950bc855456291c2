"""The attention clause's arithmetic in Gluon: `attention_core` for kernels that name their own layouts.

Every function computes what its namesake there computes. Layouts only say which thread holds which element.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from samebits.numerics.contract import CONTRACT

HIDDEN = gl.constexpr(-1.0e30)
"""As in `attention_core`."""
SUM_LANES = gl.constexpr(CONTRACT.device_sum_lanes)
"""As in `attention_core`."""


@gluon.jit
def halves(x, COLUMNS: gl.constexpr):
    """The sum of column j and column j + COLUMNS / 2."""
    parts = gl.permute(gl.reshape(x, (x.shape[0], 2, COLUMNS // 2)), (0, 2, 1))
    low, high = gl.split(parts)
    return low + high


@gluon.jit
def block_sums(weights, KEYS: gl.constexpr):
    """Sum a key block's weights [rows, KEYS] by halving, down to SUM_LANES columns."""
    if KEYS == SUM_LANES:
        return weights
    else:
        return block_sums(halves(weights, KEYS), KEYS // 2)


@gluon.jit
def block_top(scores, KEYS: gl.constexpr):
    """The largest score of each row [rows, KEYS], by halving as far as one thread's columns go."""
    if KEYS == SUM_LANES:
        return gl.max(scores, 1)
    else:
        parts = gl.permute(gl.reshape(scores, (scores.shape[0], 2, KEYS // 2)), (0, 2, 1))
        low, high = gl.split(parts)
        return block_top(gl.maximum(low, high), KEYS // 2)


@gluon.jit
def fold_lanes(lanes, LANES: gl.constexpr = SUM_LANES):
    """The row sum of a split: its lanes folded by halving, across threads."""
    folded = gl.sum(gl.reshape(lanes, (lanes.shape[0], 2, LANES // 2)), axis=1)
    if LANES == 2:
        return gl.sum(folded, axis=1)
    else:
        return fold_lanes(folded, LANES // 2)


@gluon.jit
def soften(scores, top, lanes, visible, factor, MASKED: gl.constexpr, KEYS: gl.constexpr):
    """Weights of a key block, and a split's maximum and lanes after it: (weights, top, lanes, shrink)."""
    if MASKED:
        scores = gl.where(visible, scores, HIDDEN)
    new_top = gl.maximum(top, gl.convert_layout(block_top(scores, KEYS), top.type.layout))
    shift = -(new_top * factor)
    weights = gl.exp2(gl.fma(scores, factor, gl.expand_dims(shift, 1)))
    if MASKED:
        weights = gl.where(visible, weights, 0.0)
    shrink = gl.exp2((top - new_top) * factor)
    sums = gl.convert_layout(block_sums(weights, KEYS), lanes.type.layout)
    wide = gl.convert_layout(shrink, gl.SliceLayout(1, lanes.type.layout))
    lanes = gl.fma(lanes, gl.expand_dims(wide, 1), sums)
    return weights, new_top, lanes, shrink


@gluon.jit
def fold(top, total, acc, split_top, split_lanes, split_acc, factor):
    """Fold one split's partial into those of the splits before it."""
    new_top = gl.maximum(top, split_top)
    keep = gl.exp2((top - new_top) * factor)
    take = gl.exp2((split_top - new_top) * factor)
    split_total = gl.convert_layout(fold_lanes(split_lanes), top.type.layout)
    total = gl.fma(total, keep, split_total * take)
    rows: gl.constexpr = gl.SliceLayout(1, acc.type.layout)
    wide_keep = gl.expand_dims(gl.convert_layout(keep, rows), 1)
    wide_take = gl.expand_dims(gl.convert_layout(take, rows), 1)
    acc = gl.fma(acc, wide_keep, split_acc * wide_take)
    return new_top, total, acc


@gluon.jit
def inverse_of(total):
    """1 / L by an estimate and a correction."""
    estimate = gl.fdiv(gl.full_like(total, 1.0), total)
    return gl.fma(estimate, gl.fma(-total, estimate, 1.0), estimate)


@gluon.jit
def quotient_of(acc, total, inverse):
    """A / L by the inverse and a correction, and -0 made +0."""
    quotient = acc * inverse
    rest = gl.fma(-total, quotient, acc)
    return gl.fma(rest, inverse, quotient) + 0.0


@gluon.jit
def finish(total, acc):
    """The output of finished rows: A / L by an estimate and two corrections, and -0 made +0."""
    rows: gl.constexpr = gl.SliceLayout(1, acc.type.layout)
    inverse = gl.expand_dims(gl.convert_layout(inverse_of(total), rows), 1)
    total = gl.expand_dims(gl.convert_layout(total, rows), 1)
    return quotient_of(acc, total, inverse)


@gluon.jit
def finish_each(total, acc):
    """As `finish`, with a sum for every element."""
    return quotient_of(acc, total, inverse_of(total))
