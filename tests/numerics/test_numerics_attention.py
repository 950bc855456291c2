"""Attention clause: prefill = decode = any chunks, any pages, any neighbours; and the splits are absolute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exact_arithmetic import attention_row, rms_norm, rotate
from numerics_cases import (
    EPS,
    Context,
    differing,
    make_batch,
    make_context,
    page_order,
    run_chunks,
    same_bits,
)

from samebits.errors import NumericsError
from samebits.numerics import reference
from samebits.numerics.operators import HeadLayout

SMALL = HeadLayout(query_heads=4, kv_heads=2, head_dim=64)


def exact_inputs(context: Context) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries [tokens, query heads, dim], keys and values repeated to the query heads, by the written clauses."""
    heads = context.heads
    group = heads.query_heads // heads.kv_heads
    rows = context.qkv.numpy().reshape(context.tokens, -1, heads.head_dim)
    edge = heads.query_heads + heads.kv_heads
    table = context.table.numpy()[: context.tokens]
    queries = rotate(rms_norm(rows[:, : heads.query_heads], context.query_norm.numpy(), EPS), table)
    keys = rotate(rms_norm(rows[:, heads.query_heads : edge], context.key_norm.numpy(), EPS), table)
    return queries, keys.repeat(group, axis=1), rows[:, edge:].repeat(group, axis=1)


@pytest.mark.parametrize("heads", [SMALL, HeadLayout(5, 1, 32)])
def test_is_the_written_clause(operators, heads) -> None:
    context = make_context(heads, 600)
    got = run_chunks(operators, context, [600])
    queries, keys, values = exact_inputs(context)
    for row in (0, 1, 15, 16, 63, 64, 65, 200, 255, 256, 257, 319, 511, 512, 599):
        expected = attention_row(
            queries[row], keys[: row + 1], values[: row + 1], np.float32(heads.head_dim**-0.5)
        )
        assert same_bits(got[row], expected.reshape(-1)), row


def test_every_wrong_order_is_noticed(operators) -> None:
    context = make_context(SMALL, 600)
    got = run_chunks(operators, context, [600])
    queries, keys, values = exact_inputs(context)
    mutants = {
        "no splits": {"split": 1 << 20},
        "splits of 128": {"split": 128},
        "splits of 512": {"split": 512},
        "key blocks of 32": {"block": 32},
        "key blocks of 128": {"block": 128},
        "eight lanes": {"lanes": 8},
        "splits from the chunk's start": {"first_split": 100},
        "folded backwards": {"descending": True},
    }
    scale = np.float32(SMALL.head_dim**-0.5)
    for name, choice in mutants.items():
        changed = 0
        for row in (599, 590, 530):
            wrong = attention_row(queries[row], keys[: row + 1], values[: row + 1], scale, **choice)
            changed += differing(got[row], wrong.reshape(-1))
        assert changed > 0, name


LAYOUTS = [
    HeadLayout(8, 4, 64),
    HeadLayout(2, 2, 128),
    HeadLayout(3, 1, 256),
    HeadLayout(4, 1, 32),
    HeadLayout(10, 2, 64),
    HeadLayout(6, 1, 80),
    HeadLayout(7, 1, 64),
    HeadLayout(16, 2, 96),
]


@pytest.mark.parametrize("heads", LAYOUTS, ids=lambda h: f"{h.query_heads}x{h.kv_heads}x{h.head_dim}")
def test_chunks_and_pages_do_not_matter(operators, single, heads) -> None:
    tokens = 530
    context = make_context(heads, tokens)
    whole = run_chunks(operators, context, [tokens], 64)
    assert torch.isfinite(whole).all()
    for cut in (1, 63, 65, 255, 256, 257, 511, 513, 529):
        assert same_bits(run_chunks(single, context, [cut, tokens - cut], 128, seed=cut), whole), cut
    assert same_bits(run_chunks(operators, context, [7] * 75 + [5], 256), whole)


@pytest.mark.parametrize("heads", [HeadLayout(8, 4, 64), HeadLayout(5, 1, 128)])
def test_prefill_is_decode(operators, heads) -> None:
    context = make_context(heads, 300)
    whole = run_chunks(operators, context, [300])
    assert same_bits(run_chunks(operators, context, [1] * 300, 128, seed=5), whole)
    assert same_bits(run_chunks(operators, context, [*range(1, 24), 24]), whole)


def test_one_slot_and_one_position_matter(operators) -> None:
    """The inverse of the tests above: what must change a bit does."""
    context = make_context(SMALL, 300)
    whole = run_chunks(operators, context, [300])
    swapped = context.qkv.clone()
    swapped[[10, 11]] = swapped[[11, 10]]
    later = Context(context.heads, swapped, context.query_norm, context.key_norm, context.table)
    changed = run_chunks(operators, later, [300])
    assert same_bits(changed[:10], whole[:10])
    assert (changed[12:] != whole[12:]).any(dim=1).all()
    shifted = Context(context.heads, context.qkv, context.query_norm, context.key_norm, context.table * 1.001)
    assert differing(run_chunks(operators, shifted, [300])[5:], whole[5:]) > 0


def mixed_batch(operators, contexts, chunk_of, page_tokens=64):
    """Run requests side by side, each in chunks of its own size, all in one batch a step."""
    heads = contexts[0].heads
    needed = [-(-context.tokens // page_tokens) for context in contexts]
    order = page_order(sum(needed) + 3, 17)
    tables = list(order[: sum(needed)].split(needed))
    kv = operators.allocate_kv(1, sum(needed) + 3, page_tokens, heads)[0]
    kv.keys.fill_(float("inf"))
    kv.values.fill_(float("nan"))
    done = [0] * len(contexts)
    outputs = [[] for _ in contexts]
    while any(start < context.tokens for start, context in zip(done, contexts, strict=True)):
        live = [i for i, context in enumerate(contexts) if done[i] < context.tokens]
        spans = [(done[i], min(done[i] + chunk_of[i], contexts[i].tokens)) for i in live]
        batch = make_batch([tables[i] for i in live], spans, page_tokens)
        qkv = torch.cat([contexts[i].qkv[a:b] for i, (a, b) in zip(live, spans, strict=True)])
        first = contexts[0]
        queries = operators.norm_rope_store(
            qkv, heads, first.query_norm, first.key_norm, EPS, first.table, batch, kv
        )
        result = operators.attention(queries, heads, heads.head_dim**-0.5, batch, kv)
        for i, part, (_, end) in zip(live, result.split([b - a for a, b in spans]), spans, strict=True):
            outputs[i].append(part)
            done[i] = end
    return [torch.cat(parts) for parts in outputs]


@pytest.mark.parametrize("heads", [HeadLayout(8, 4, 64), HeadLayout(14, 2, 64)])
def test_neighbours_do_not_matter(operators, crowded, heads) -> None:
    """A long request, short ones and a decode share batches; a tile is cut into splits where it is long."""
    longest = make_context(heads, 2100, seed=1)
    contexts = [longest]
    for seed, tokens in ((2, 1), (3, 65), (4, 300), (5, 17)):
        made = make_context(heads, tokens, seed)
        contexts.append(Context(heads, made.qkv, longest.query_norm, longest.key_norm, longest.table))
    alone = [run_chunks(operators, context, [context.tokens]) for context in contexts]
    for engine, chunk_of in ((operators, [500, 1, 9, 31, 2]), (crowded, [300, 1, 65, 7, 17])):
        together = mixed_batch(engine, contexts, chunk_of)
        for one, other in zip(together, alone, strict=True):
            assert same_bits(one, other)


def test_long_decode_is_cut_into_splits(operators, single, crowded) -> None:
    """One decode row over a long context, on one thread and on many."""
    heads = HeadLayout(4, 1, 64)
    context = make_context(heads, 3000)
    whole = run_chunks(single, context, [3000])
    for engine in (single, operators, crowded):
        assert same_bits(run_chunks(engine, context, [2999, 1], 128), whole)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["key", "value"])
def test_bad_rows_store_zeros_and_are_flagged(operators, bad, part) -> None:
    """Trap 7: earlier rows keep their bits, the bad row has its flag, later rows see zeros."""
    heads = SMALL
    context = make_context(heads, 100)
    clean = run_chunks(operators, context, [100])
    qkv = context.qkv.clone()
    column = heads.query_width + (3 if part == "key" else heads.kv_width + 70)
    qkv[40, column] = bad
    kv = operators.allocate_kv(1, 2, 64, heads)[0]
    batch = make_batch([torch.tensor([1, 0], dtype=torch.int32)], [(0, 100)], 64)
    queries = operators.norm_rope_store(
        qkv, heads, context.query_norm, context.key_norm, EPS, context.table, batch, kv
    )
    assert batch.row_faults.tolist() == [int(row == 40) for row in range(100)]
    assert torch.isfinite(kv.keys).all() and torch.isfinite(kv.values).all()
    assert not kv.values[1, :, 40].any() and not kv.keys[1].view(2, 4, 64, 16)[:, 2, :, 8].any()
    output = operators.attention(queries, heads, heads.head_dim**-0.5, batch, kv)
    assert same_bits(output[:40], clean[:40])
    assert torch.isfinite(output[41:]).all()


def test_largest_finite_values_in_later_rows(operators) -> None:
    """A masked value of the largest finite size is multiplied by nothing."""
    context = make_context(SMALL, 64)
    whole = run_chunks(operators, context, [64])
    qkv = context.qkv.clone()
    qkv[50:, SMALL.query_width + SMALL.kv_width :] = 3.4e38
    later = Context(SMALL, qkv, context.query_norm, context.key_norm, context.table)
    assert same_bits(run_chunks(operators, later, [64])[:50], whole[:50])


def test_accuracy(operators) -> None:
    heads = HeadLayout(8, 4, 64)
    context = make_context(heads, 700)
    got = run_chunks(operators, context, [700])
    rows = context.qkv.view(700, -1, 64)
    queries, keys, values = rows.split([8, 4, 4], dim=1)
    positions = torch.arange(700)
    q = reference.rotate(reference.rms_norm(queries, context.query_norm, EPS), context.table, positions)
    k = reference.rotate(reference.rms_norm(keys, context.key_norm, EPS), context.table, positions)
    expected = reference.attention(q, k, values, heads, 64**-0.5)
    # Scores are below 64 * 2 * 2 / 8 = 32; their chain of 64 roundings and the norm's shift an exponent by
    # less than 32 * 100 * 2**-24, which moves the weighted mean of values by twice that of the largest value.
    bound = 2 * 32 * 100 * reference.ROUNDING * values.abs().max()
    assert (got.double() - expected).abs().max() <= bound


def test_refusals(operators) -> None:
    with pytest.raises(NumericsError, match="page_tokens"):
        operators.allocate_kv(1, 1, 96, SMALL)
    with pytest.raises(NumericsError, match="head_dim"):
        operators.allocate_kv(1, 1, 64, HeadLayout(2, 2, 72))
    with pytest.raises(NumericsError, match="share"):
        operators.allocate_kv(1, 1, 64, HeadLayout(5, 2, 64))
