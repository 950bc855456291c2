"""The log-sum-exp clause and reported logprobs on a GPU.

Blocks of the vocabulary are summed side by side; one program a row then folds them in ascending order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from samebits.numerics.contract import CONTRACT
from samebits.numerics.gpu.arithmetic import INFINITY, exp, fold_halves, log
from samebits.numerics.gpu.checks import check_tensor, result
from samebits.numerics.gpu.configuration import Launch, Start, start
from samebits.numerics.gpu.dependent import wait_ahead

BLOCK = CONTRACT.vocabulary_block
BLOCK_LAUNCH = Launch(warps=4, stages=1)
FOLD_LAUNCH = Launch(warps=1, stages=1)
PAIRS_AT_ONCE = 128

assert CONTRACT.device_reduction_lanes == BLOCK, "a lane holds one token of a block"


@triton.jit
def finite_base(value):
    """What exponents are taken relative to: the maximum, or 0 where it is -inf (so that -inf gives 0)."""
    return tl.where(value == -INFINITY, 0.0, value)


@triton.jit
def block_partials(logits, partials, vocabulary, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr):
    """Grid (rows, blocks): the block's maximum and its sum of exponentials, float32 [rows, blocks, 2]."""
    wait_ahead(DEPENDENT)
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ids = block * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * vocabulary + ids, mask=ids < vocabulary, other=-INFINITY)
    best = tl.max(x, 0)
    lanes = exp(x - finite_base(best))
    total = fold_halves(tl.reshape(lanes, (1, BLOCK)), BLOCK)
    place = partials + (row * tl.num_programs(1) + block) * 2
    tl.store(place, best)
    tl.store(place + 1 + tl.arange(0, 1), total)


@triton.jit
def fold_partials(partials, lse, blocks, DEPENDENT: tl.constexpr):
    """Grid (rows,)."""
    wait_ahead(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    maximum = tl.full((1,), -INFINITY, tl.float32)
    total = tl.zeros((1,), tl.float32)
    for block in range(0, blocks):
        place = partials + (row * blocks + block) * 2 + tl.arange(0, 1)
        best, part = tl.load(place), tl.load(place + 1)
        joint = tl.maximum(best, maximum)
        base = finite_base(joint)
        total = tl.fma(total, exp(maximum - base), part * exp(best - base))
        maximum = joint
    tl.store(lse + row + tl.arange(0, 1), maximum + log(total))


def log_sum_exp(
    logits: Tensor,
    out: Tensor | None = None,
    workspace: Tensor | None = None,
    launch: Launch = BLOCK_LAUNCH,
    start: Start = start,
) -> Tensor:
    """Log-sum-exp clause. float32 [rows, vocabulary] -> float32 [rows]. `workspace`: float32 of
    `workspace_shape`."""
    rows, vocabulary = check_tensor("logits", logits, (torch.float32,), (None, None)).shape
    lse = result("lse", out, logits, torch.float32, (rows,))
    partials = result("lse workspace", workspace, logits, torch.float32, workspace_shape(rows, vocabulary))
    if rows:
        blocks = partials.shape[1]
        start(block_partials, (rows, blocks), logits, partials, vocabulary, BLOCK=BLOCK, launch=launch)
        start(fold_partials, (rows,), partials, lse, blocks, launch=FOLD_LAUNCH)
    return lse


def workspace_shape(rows: int, vocabulary: int) -> tuple[int, int, int]:
    """Shape of the float32 workspace of `log_sum_exp`."""
    return rows, triton.cdiv(vocabulary, BLOCK), 2


@triton.jit
def logprobs_of_pairs(
    logits, lse, rows, token_ids, logprobs, vocabulary, pairs, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr
):
    """logits[row, id] - lse[row]; the added zero turns -0 into +0."""
    wait_ahead(DEPENDENT)
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows + pair, mask=pair < pairs, other=0).to(tl.int64)
    token_id = tl.load(token_ids + pair, mask=pair < pairs, other=0).to(tl.int64)
    known = (pair < pairs) & (token_id >= 0) & (token_id < vocabulary)
    logit = tl.load(logits + row * vocabulary + token_id, mask=known, other=0.0)
    value = (logit - tl.load(lse + row, mask=known, other=0.0)) + 0.0
    tl.store(logprobs + pair, value, mask=pair < pairs)


def token_logprobs(
    logits: Tensor,
    lse: Tensor,
    rows: Tensor,
    token_ids: Tensor,
    out: Tensor | None = None,
    start: Start = start,
) -> Tensor:
    """Raw logprobs of (row, token) pairs, int64 [n] twice -> float32 [n]. An id outside the vocabulary (a row
    with a fault has -1) gives 0."""
    count, vocabulary = check_tensor("logits", logits, (torch.float32,), (None, None)).shape
    check_tensor("lse", lse, (torch.float32,), (count,))
    pairs = check_tensor("rows", rows, (torch.int64,), (None,)).shape[0]
    check_tensor("token_ids", token_ids, (torch.int64,), (pairs,))
    logprobs = result("logprobs", out, logits, torch.float32, (pairs,))
    if pairs:
        start(
            logprobs_of_pairs,
            (triton.cdiv(pairs, PAIRS_AT_ONCE),),
            logits,
            lse,
            rows,
            token_ids,
            logprobs,
            vocabulary,
            pairs,
            BLOCK=PAIRS_AT_ONCE,
            launch=BLOCK_LAUNCH,
        )
    return logprobs
