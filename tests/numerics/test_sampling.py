"""The sampler against the slow reference: filters, penalties, masks, ties, faults, reporting."""

from __future__ import annotations

import ctypes
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sampling_reference import Reading, Row, make_batch, processed_logits, reference_sample

from samebits.numerics.cpu import filters, order, top
from samebits.numerics.cpu.noise import noise_of_words
from samebits.numerics.cpu.pool import Pool
from samebits.numerics.cpu.sampling import SAMPLE, launch_words, settings_tensors
from samebits.numerics.cpu.sampling import sample as sample_on

VOCABULARY = 97
POOL = Pool(1)
sample = partial(sample_on, POOL)
top_tokens = partial(top.top_tokens, POOL)
token_logprobs = partial(top.token_logprobs, POOL)
PROMPT, OUTPUT = (3, 3, 5, 90, 11), (5, 7, 7, 7, 96)


def kernel_probability(scaled: np.float32) -> float:
    return float(filters.probability(np.int32(np.float32(-scaled).view(np.int32) & 0x7FFFFFFF)))


def kernel_noise(word: int) -> float:
    noise = np.empty(1, np.float32)
    noise_of_words(np.array([word], np.uint32), noise)
    return float(noise[0])


KERNEL_FUNCTIONS = Reading(probability=kernel_probability, noise=kernel_noise)

SETTINGS = [
    Row(),
    Row(temperature=0.0),
    Row(temperature=0.7, seed=-1, position=0, sample_index=3),
    Row(top_k=1),
    Row(top_k=5, seed=9),
    Row(top_k=96),
    Row(top_k=97),
    Row(top_k=5000),
    Row(top_p=0.5),
    Row(top_p=0.95, temperature=1.7),
    Row(top_p=1e-30),
    Row(min_p=0.1),
    Row(min_p=1.0),
    Row(top_k=20, top_p=0.8, min_p=0.02, temperature=1.3),
    Row(repetition_penalty=1.3, prompt=PROMPT, output=OUTPUT),
    Row(repetition_penalty=0.5, prompt=PROMPT, output=OUTPUT, temperature=0.0),
    Row(presence_penalty=1.5, output=OUTPUT),
    Row(frequency_penalty=0.75, output=OUTPUT, top_k=10),
    Row(repetition_penalty=1.1, presence_penalty=-2.0, frequency_penalty=0.3, prompt=PROMPT, output=OUTPUT),
    Row(bias={4: 20.0, 8: -20.0}),
    Row(bias={4: 20.0}, forbidden=(4,), temperature=0.0),
    Row(forbidden=tuple(range(1, 97))),
    Row(allowed=frozenset({0, 31, 32, 63, 64, 96})),
    Row(allowed=frozenset(range(0, 97, 3)), forbidden=(3, 6, 9), top_p=0.9),
    Row(allowed=frozenset({50}), temperature=0.0),
]


def random_logits(rows: int, seed: int = 0, distinct: int = 0) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    if distinct:
        values = np.array([-1.5, -0.0, 0.0, 2.0, 2.25, -3.0], np.float32)[: distinct + 1]
        return torch.from_numpy(values[generator.integers(0, len(values), (rows, VOCABULARY))])
    return torch.from_numpy((generator.standard_normal((rows, VOCABULARY)) * 2).astype(np.float32))


@pytest.mark.parametrize("distinct", [0, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_bits_equal_the_reference_that_uses_the_kernels_functions(seed: int, distinct: int) -> None:
    logits = random_logits(len(SETTINGS), seed, distinct)
    result = sample(logits, make_batch(SETTINGS, VOCABULARY), True)
    expected = reference_sample(logits, SETTINGS, True, KERNEL_FUNCTIONS)
    assert result.token_ids.tolist() == expected.token_ids.tolist()
    assert result.faults.tolist() == expected.faults.tolist()
    assert result.processed_logprobs is not None and expected.processed_logprobs is not None
    kept, expected_kept = (r.processed_logprobs > -math.inf for r in (result, expected))
    assert torch.equal(kept, expected_kept)


LARGE = 3001
LARGE_SETTINGS = [
    Row(seed=1),
    Row(seed=2, top_k=3),
    Row(seed=3, top_k=11),
    Row(seed=4, top_k=12),
    Row(seed=5, top_k=700, top_p=0.9),
    Row(seed=6, top_k=2999),
    Row(seed=7, top_p=0.95, temperature=0.3),
    Row(seed=8, min_p=0.3),
    Row(seed=9, temperature=0.05),
]


@pytest.mark.parametrize("distinct", [False, True])
def test_a_vocabulary_of_many_blocks_and_chunks(distinct: bool) -> None:
    """Searches by block, cuts inside ties and skipped chunks (every best id stands in the last one)."""
    generator = np.random.default_rng(6)
    values = generator.standard_normal((len(LARGE_SETTINGS), LARGE)).astype(np.float32) * 3
    values[:, -40:] += 6.0
    if distinct:
        values = np.round(values / 4)
    logits = torch.from_numpy(values)
    result = sample(logits, make_batch(LARGE_SETTINGS, LARGE), True)
    expected = reference_sample(logits, LARGE_SETTINGS, True, KERNEL_FUNCTIONS)
    assert result.token_ids.tolist() == expected.token_ids.tolist()
    assert sample(logits, make_batch(LARGE_SETTINGS, LARGE)).token_ids.tolist() == result.token_ids.tolist()
    assert result.processed_logprobs is not None and expected.processed_logprobs is not None
    kept, expected_kept = (r.processed_logprobs > -math.inf for r in (result, expected))
    assert torch.equal(kept, expected_kept)


@pytest.mark.parametrize("seed", range(4, 8))
def test_agrees_with_float64(seed: int) -> None:
    """Processed logprobs within 2e-6 (float32 rounding of sums up to 20), and the same tokens: the noise that
    decides is far from a tie in these fixed inputs."""
    logits = random_logits(len(SETTINGS), seed)
    result = sample(logits, make_batch(SETTINGS, VOCABULARY), True)
    expected = reference_sample(logits, SETTINGS, True)
    assert result.token_ids.tolist() == expected.token_ids.tolist()
    assert result.processed_logprobs is not None and expected.processed_logprobs is not None
    torch.testing.assert_close(result.processed_logprobs, expected.processed_logprobs, rtol=2e-6, atol=2e-6)


def test_asking_for_processed_logprobs_does_not_change_the_sample() -> None:
    logits = random_logits(len(SETTINGS), 11)
    batch = make_batch(SETTINGS, VOCABULARY)
    before = logits.clone()
    plain, processed = sample(logits, batch), sample(logits, batch, True)
    assert plain.token_ids.tolist() == processed.token_ids.tolist()
    assert plain.processed_logprobs is None
    assert torch.equal(logits.view(torch.int32), before.view(torch.int32))


@pytest.mark.parametrize("top_k", range(1, VOCABULARY + 2))
def test_top_k_keeps_exactly_k_of_four_distinct_values(top_k: int) -> None:
    logits = random_logits(1, top_k, 3)
    processed = sample(logits, make_batch([Row(top_k=top_k)], VOCABULARY), True).processed_logprobs
    assert processed is not None
    kept = set(torch.nonzero(processed[0] > -math.inf).flatten().tolist())
    values = logits[0].tolist()
    ranked = sorted(range(VOCABULARY), key=lambda i: (-(values[i] + 0.0), i))
    assert kept == set(ranked[:top_k])


@pytest.mark.parametrize("top_p", [0.1, 0.25, 0.5, 0.75, 0.999])
def test_top_p_of_equal_weights_keeps_the_smallest_prefix(top_p: float) -> None:
    """64 equal weights: exact arithmetic says how many are kept, the lower ids first."""
    processed = sample(torch.zeros(1, 64), make_batch([Row(top_p=top_p)], 64), True).processed_logprobs
    assert processed is not None
    kept = torch.nonzero(processed[0] > -math.inf).flatten().tolist()
    assert kept == list(range(math.ceil(float(np.float32(top_p)) * 64)))


def test_top_p_one_keeps_tails_that_weigh_nothing() -> None:
    logits = torch.tensor([[0.0, -80.0, -3e38]])
    on, off = (
        sample(logits, make_batch([Row(top_p=p)], 3), True).processed_logprobs for p in (1.0 - 2.0**-24, 1.0)
    )
    assert on is not None and off is not None
    assert torch.isinf(on[0]).tolist() == [False, True, True]
    assert torch.isinf(off[0]).tolist() == [False, False, False]


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-20, 1e-6, 100.0])
@pytest.mark.parametrize("scale", [1e-40, 1.0, 3e38])
def test_tiny_and_huge_temperatures(temperature: float, scale: float) -> None:
    logits = torch.tensor([[-1.0, 0.5, 1.0, 0.99, 1.0]]) * scale
    row = Row(temperature=temperature)
    result = sample(logits, make_batch([row], 5), True)
    expected = reference_sample(logits, [row], True, KERNEL_FUNCTIONS)
    assert result.token_ids.tolist() == expected.token_ids.tolist()
    assert result.faults.tolist() == [0]
    assert result.processed_logprobs is not None and not torch.isnan(result.processed_logprobs).any()
    if scale / temperature > 1e6:
        assert result.token_ids[0] in (2, 4)


def test_zero_temperature_takes_the_lower_of_equal_ids_and_zeros() -> None:
    logits = torch.tensor([[-1.0, -0.0, 0.0, -0.0], [0.0, 3.0, -2.0, 3.0]])
    batch = make_batch([Row(temperature=0.0)] * 2, 4)
    assert sample(logits, batch).token_ids.tolist() == [1, 1]


@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("row", [Row(temperature=0.0), Row(), Row(top_k=3), Row(forbidden=tuple(range(97)))])
def test_a_non_finite_logit_in_any_lane_fails_its_row_alone(bad: float, row: Row) -> None:
    rows = [Row(seed=5), row, Row(temperature=0.0)]
    logits = random_logits(3, 21)
    healthy = sample(logits, make_batch(rows, VOCABULARY), True)
    for lane in range(VOCABULARY):
        broken = logits.clone()
        broken[1, lane] = bad
        result = sample(broken, make_batch(rows, VOCABULARY), lane % 8 == 0)
        assert result.faults.tolist() == [0, 1, 0]
        assert result.token_ids[1] == -1
        assert result.token_ids[[0, 2]].tolist() == healthy.token_ids[[0, 2]].tolist()
        if result.processed_logprobs is not None and healthy.processed_logprobs is not None:
            for other in (0, 2):
                bits = (r.processed_logprobs[other].view(torch.int32) for r in (result, healthy))
                assert torch.equal(*bits)
            assert torch.isinf(result.processed_logprobs[1]).all()


def test_every_nan_payload_is_noticed() -> None:
    patterns = torch.tensor([0x7F800001, 0x7FFFFFFF, -1, -0x7FFFFF, 0x7F800000, -0x800000], dtype=torch.int32)
    for pattern in patterns:
        logits = torch.zeros(1, 40)
        logits.view(torch.int32)[0, 17] = pattern
        for temperature in (0.0, 1.0):
            assert sample(logits, make_batch([Row(temperature=temperature)], 40)).faults.tolist() == [1]


def test_a_penalty_that_overflows_is_a_fault() -> None:
    row = Row(repetition_penalty=1e-30, prompt=(2,))
    result = sample(torch.full((1, 4), 1e20), make_batch([row], 4))
    assert (result.token_ids.tolist(), result.faults.tolist()) == ([-1], [1])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_left_is_a_fault(temperature: float) -> None:
    rows = [
        Row(temperature=temperature, forbidden=tuple(range(97))),
        Row(temperature=temperature, allowed=frozenset()),
        Row(temperature=temperature, allowed=frozenset({96}), forbidden=(96,)),
        Row(temperature=temperature, allowed=frozenset({96}), forbidden=(95,)),
    ]
    result = sample(random_logits(4), make_batch(rows, VOCABULARY))
    assert result.faults.tolist() == [2, 2, 2, 0]
    assert result.token_ids.tolist() == [-1, -1, -1, 96]


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 1.0])
def test_a_forbidden_id_never_ties_with_the_lowest_honest_logit(temperature: float) -> None:
    logits = torch.full((1, 70), torch.finfo(torch.float32).min)
    row = Row(temperature=temperature, allowed=frozenset({69}))
    assert sample(logits, make_batch([row], 70)).token_ids.tolist() == [69]


def test_penalties_read_sets_and_counts_not_order() -> None:
    first = Row(repetition_penalty=1.4, frequency_penalty=0.3, prompt=(1, 2, 2, 9), output=(2, 3, 3, 50))
    second = Row(repetition_penalty=1.4, frequency_penalty=0.3, prompt=(9, 2, 1), output=(3, 50, 3, 2))
    third = Row(repetition_penalty=1.4, frequency_penalty=0.3, prompt=(9, 2, 1), output=(3, 50, 2, 2))
    logits = random_logits(1, 3).repeat(3, 1)
    processed = sample(logits, make_batch([first, second, third], VOCABULARY), True).processed_logprobs
    assert processed is not None
    bits = processed.view(torch.int32)
    assert torch.equal(bits[0], bits[1])
    assert not torch.equal(bits[0], bits[2])


def test_penalty_formulas_are_those_of_the_field() -> None:
    row = Row(
        repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25, prompt=(0, 1), output=(1, 2, 2)
    )
    values, _ = processed_logits(np.array([4.0, -4.0, 4.0, 4.0], np.float32), row)
    assert [float(x) for x in values] == [2.0, -8.75, 1.0, 4.0]


# Orders, the most likely tokens, reported logprobs


def test_orders_sort_every_kind_of_float() -> None:
    values = np.array([math.inf, 3e38, 1.0, 1e-45, 0.0, -0.0, -1e-45, -1.0, -3e38, -math.inf], np.float32)
    orders = np.empty(values.shape[0], np.int32)
    order.fill_orders(values.view(np.int32), orders)
    assert orders[4] == orders[5]
    assert (np.diff(np.delete(orders, 5).astype(np.int64)) > 0).all()
    assert (orders < order.EXCLUDED).all()


@pytest.mark.parametrize("vocabulary", [1, 5, 255, 256, 257, 3001])
@pytest.mark.parametrize("distinct", [1, 4, 0])
def test_top_tokens_follow_the_total_order(vocabulary: int, distinct: int) -> None:
    generator = np.random.default_rng(vocabulary)
    values = generator.standard_normal((3, vocabulary)).astype(np.float32)
    if distinct:
        values = np.array([0.0, -0.0, 2.5, -1.0], np.float32)[
            generator.integers(0, distinct, (3, vocabulary))
        ]
    for count in sorted({0, 1, min(20, vocabulary), vocabulary // 2, vocabulary}):
        ids, logits = top_tokens(torch.from_numpy(values), count)
        for row in range(3):
            ranked = sorted(range(vocabulary), key=lambda i: (-values[row, i], i))[:count]
            assert ids[row].tolist() == ranked
            expected = (values[row, ranked] + np.float32(0.0)).view(np.int32)
            assert logits[row].numpy().view(np.int32).tolist() == expected.tolist()


def test_top_tokens_of_broken_rows_are_defined() -> None:
    logits = torch.zeros(1, 300)
    logits.view(torch.int32)[0, :] = -1
    assert top_tokens(logits, 300)[0].tolist() == [list(range(300))]
    with pytest.raises(ValueError, match="count"):
        top_tokens(logits, 301)


def test_token_logprobs_subtract_once_and_have_no_negative_zero() -> None:
    logits = torch.tensor([[1.5, -0.0, 3.0], [0.1, 0.2, 0.3]])
    lse = torch.tensor([0.0, 0.7])
    rows, ids = torch.tensor([0, 0, 1, 0]), torch.tensor([1, 2, 0, 0])
    result = token_logprobs(logits, lse, rows, ids)
    expected = np.array([0.0, 3.0, np.float32(0.1) - np.float32(0.7), 1.5], np.float32)
    assert result.numpy().view(np.int32).tolist() == expected.view(np.int32).tolist()


def test_offsets_beyond_32_bits(tmp_path: Path) -> None:
    """The last of 16,384 rows lies more than 2**31 elements away; the file behind the matrix is a hole."""
    vocabulary, rows = 151_936, 16_384
    matrix = np.memmap(tmp_path / "logits", np.float32, "w+", shape=(rows, vocabulary))
    last = rows - 1
    matrix[last, 151_000] = 500.0
    wanted = torch.tensor([last, last]), torch.tensor([151_000, 3])
    assert token_logprobs(torch.from_numpy(matrix), torch.zeros(rows), *wanted).tolist() == [500.0, 0.0]
    task = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(SAMPLE.address)
    tokens, faults = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.uint8)
    for row in (Row(temperature=0.0), Row(), Row(top_k=2)):
        settings = settings_tensors(make_batch([row] * rows, vocabulary), rows, vocabulary)
        words = launch_words(settings, torch.from_numpy(matrix), tokens, faults, torch.empty(0, vocabulary))
        arguments = np.array(words, np.int64)
        task(arguments.ctypes.data, last)
        assert tokens[last] == 151_000
        tokens[last] = 0
