"""Probes: what the clauses give on this device for fixed inputs. Their digests enter the plan's fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from samebits.numerics.adversarial import (
    cancelling_product,
    hashed_floats,
    hashed_words,
    logit_rows,
    narrow_rows,
    pair_rows,
    subnormal_floats,
    wide_rows,
)
from samebits.numerics.batch import RaggedBatch
from samebits.numerics.operators import HeadLayout, Operators
from samebits.numerics.probe_sampling import probe_sampling
from samebits.numerics.rope import rope_table

HEADS = HeadLayout(query_heads=4, kv_heads=2, head_dim=64)
EPS = 1e-6
# Two splits and a little of a third: a fold, a rescale and a ragged end.
CONTEXT = 530
PAGE_TOKENS = 64
# Twice the lanes of a device's reduction, and a little more.
NORM_WIDTH = 2200


def digest_of(*tensors: Tensor) -> str:
    """sha256 of the bytes of tensors, in their own dtypes."""
    digest = hashlib.sha256()
    for tensor in tensors:
        flat = tensor.contiguous().cpu().view(torch.uint8)
        digest.update(flat.numpy().tobytes())
    return digest.hexdigest()


def probe_digests(operators: Operators, dtypes: Sequence[torch.dtype]) -> dict[str, str]:
    """Digest of every clause's output, by clause name; `dtypes` are the weights' dtypes to probe."""
    digests = forward_digests(operators, dtypes)
    digests["sampling"] = digest_of(*probe_sampling(operators))
    return digests


def forward_digests(operators: Operators, dtypes: Sequence[torch.dtype]) -> dict[str, str]:
    """The digests of the clauses of a forward, and of the log-sum-exp."""
    digests = {}
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        digests[f"gemm {name}"] = _probe_gemm(operators, dtype)
        digests[f"embed {name}"] = _probe_embed(operators, dtype)
    digests["norm"] = _probe_norm(operators)
    digests["rope"] = digest_of(rope_table(4096, 1e6, 64), rope_table(1024, 5e5, 128, "llama3", LLAMA3))
    digests["attention"] = _probe_attention(operators)
    digests["gated activation"] = digest_of(operators.silu_mul(_act(operators, gated_rows())))
    sums = [operators.log_sum_exp(rows.to(operators.device)) for rows in log_sum_exp_rows()]
    digests["log-sum-exp"] = digest_of(*sums)
    return digests


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192.0,
}


def _act(operators: Operators, x: Tensor) -> Tensor:
    return x.to(device=operators.device, dtype=operators.activation_dtype)


def product_inputs(seed: int, dtype: torch.dtype, depth: int = 1152) -> tuple[Tensor, Tensor, Tensor]:
    """(x float32, weight dtype, bias float32) of a product: rows that cancel, and one whose terms and sums are
    subnormal. Every other column has no bias that would hide them."""
    x, weight = cancelling_product(seed, 9, 80, depth, dtype)
    tiny = torch.from_numpy(hashed_floats(seed + 4, (1, depth), (-126, -124)).copy())
    bias = wide_rows(seed + 3, 1, 80)[0]
    bias[::2] = 0.0
    return torch.cat([x, tiny]), weight, bias


def _probe_gemm(operators: Operators, dtype: torch.dtype) -> str:
    x, weight, bias = product_inputs(11, dtype)
    packed = operators.pack_linear(weight.to(operators.device), bias.to(operators.device))
    rows = _act(operators, x)
    return digest_of(operators.linear(rows, packed), operators.logits(rows[:1].contiguous(), packed))


def probe_row_linear(
    operators: Operators, dtypes: Sequence[torch.dtype], depth: int = 1152, with_bias: bool = True
) -> str:
    """Digest of a product that is reduced in leaves, over the whole of K."""
    products = []
    for dtype in dtypes:
        x, weight, bias = product_inputs(16, dtype, depth)
        given = bias.to(operators.device) if with_bias else None
        packed = operators.pack_row_linear(weight.to(operators.device), given)
        products.append(operators.row_linear(_act(operators, x), packed))
    return digest_of(*products)


def _probe_embed(operators: Operators, dtype: torch.dtype) -> str:
    table = wide_rows(15, 32, 64).to(operators.device, dtype)
    return digest_of(operators.embed(torch.tensor([31, 0, 7, 7], device=operators.device), table))


def norm_rows(seed: int) -> Tensor:
    """Rows of nearly equal and of wide terms, and some whose small elements are subnormal when they are scaled."""
    rows = torch.cat([narrow_rows(seed, 24, NORM_WIDTH), wide_rows(seed + 1, 4, NORM_WIDTH)])
    rows[-2:, 8:] = torch.from_numpy(hashed_floats(seed + 2, (2, NORM_WIDTH - 8), (-126, -120)).copy())
    return rows


def _probe_norm(operators: Operators) -> str:
    x, residual = _act(operators, norm_rows(21)), _act(operators, norm_rows(24))
    weight = _act(operators, wide_rows(27, 1, NORM_WIDTH, 2))[0]
    normed = operators.rms_norm(x, weight, EPS)
    return digest_of(normed, *operators.add_rms_norm(x, residual, weight, EPS))


def gated_rows() -> Tensor:
    """[rows, 512]: gates, and what they are multiplied with, which is subnormal or nearly so in one row."""
    rows = wide_rows(31, 8, 512, 5)
    rows[-1, 256:] = torch.from_numpy(hashed_floats(33, (256,), (-126, -122)).copy())
    return rows


def log_sum_exp_rows() -> tuple[Tensor, Tensor, Tensor]:
    """Few terms, where each rounding of a term or a logarithm shows; several blocks; one term, which is subnormal."""
    lonely = torch.full((8, 4), -float("inf"))
    lonely[:, 0] = torch.from_numpy(subnormal_floats(35, (8,)).copy())
    return pair_rows(32, 2048, 8), logit_rows(34, 64, 2600), lonely


def attention_rows() -> Tensor:
    """Packed queries, keys and values of the context. One dimension of the values is nearly subnormal."""
    rows = wide_rows(43, CONTEXT, HEADS.query_width + 2 * HEADS.kv_width, 2)
    rows[:, -1] = torch.from_numpy(hashed_floats(44, (CONTEXT,), (-126, -124)).copy())
    return rows


def _probe_attention(operators: Operators) -> str:
    """Norm, rotation, store and attention of two requests: one from the start, one with a cached context."""
    device = operators.device
    pages = -(-CONTEXT // PAGE_TOKENS)
    order = torch.from_numpy(hashed_words(41, pages).argsort(kind="stable").astype("int32"))
    kv = operators.allocate_kv(1, pages, PAGE_TOKENS, HEADS)[0]
    table = rope_table(CONTEXT, 1e6, HEADS.head_dim).to(device)
    norms = _act(operators, wide_rows(42, 2, HEADS.head_dim, 1))
    outputs = []
    for start, end in ((0, CONTEXT - 3), (CONTEXT - 3, CONTEXT)):
        positions = torch.arange(start, end)
        slots = order[positions // PAGE_TOKENS].to(torch.int64) * PAGE_TOKENS + positions % PAGE_TOKENS
        batch = RaggedBatch(
            token_ids=torch.zeros(end - start, dtype=torch.int64, device=device),
            positions=positions.to(device),
            slots=slots.to(device),
            query_start=torch.tensor([0, end - start], dtype=torch.int32, device=device),
            page_table=order[None].to(device),
            page_tokens=PAGE_TOKENS,
            row_faults=torch.zeros(end - start, dtype=torch.uint8, device=device),
        )
        qkv = attention_rows()[start:end]
        queries = operators.norm_rope_store(
            _act(operators, qkv.contiguous()), HEADS, norms[0], norms[1], EPS, table, batch, kv
        )
        outputs.append(operators.attention(queries, HEADS, HEADS.head_dim**-0.5, batch, kv))
    return digest_of(*outputs)
