"""A row's sample is a function of the row alone; and every check here catches the mistake that it is for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from sampling_reference import Reading, Row, make_batch, reference_sample
from test_sampling import KERNEL_FUNCTIONS, SETTINGS, VOCABULARY, random_logits

from samebits.numerics.batch import SampleResult
from samebits.numerics.cpu.pool import Pool
from samebits.numerics.cpu.sampling import SHARED_FROM, sample

Sampler = Callable[[torch.Tensor, Sequence[Row]], SampleResult]
POOLS = {threads: Pool(threads) for threads in (1, 2, 3)}


def kernel(logits: torch.Tensor, rows: Sequence[Row], threads: int = 1) -> SampleResult:
    return sample(POOLS[threads], logits, make_batch(rows, logits.shape[1]), True)


def mutant(**changes: str) -> Sampler:
    reading = replace(KERNEL_FUNCTIONS, **changes)
    return lambda logits, rows: reference_sample(logits, rows, True, reading)


def row_bits(result: SampleResult, row: int) -> tuple[int, int, bytes]:
    assert result.processed_logprobs is not None
    processed = result.processed_logprobs[row].contiguous().numpy().tobytes()
    return int(result.token_ids[row]), int(result.faults[row]), processed


# Checks


def check_alone(sampler: Sampler, logits: torch.Tensor, rows: Sequence[Row]) -> None:
    """Each row gives the same bits alone, in the batch, in the batch reversed, and among copies of itself."""
    count = len(rows)
    together = sampler(logits, rows)
    reversed_batch = sampler(logits.flip(0).contiguous(), rows[::-1])
    for index, row in enumerate(rows):
        expected = row_bits(sampler(logits[index : index + 1], [row]), 0)
        assert row_bits(together, index) == expected
        assert row_bits(reversed_batch, count - 1 - index) == expected
    copies = sampler(logits[:1].repeat(3, 1), [rows[0]] * 3)
    assert {row_bits(copies, index) for index in range(3)} == {row_bits(together, 0)}


def check_reference(sampler: Sampler, logits: torch.Tensor, rows: Sequence[Row]) -> None:
    """The tokens are those of the clause."""
    expected = reference_sample(logits, rows, True, KERNEL_FUNCTIONS)
    assert sampler(logits, rows).token_ids.tolist() == expected.token_ids.tolist()


def check_losers_do_not_matter(sampler: Sampler, logits: torch.Tensor, rows: Sequence[Row]) -> None:
    """Forbidding ids that were not drawn, nor best, leaves the sample: noise belongs to the id."""
    winners = sampler(logits, rows).token_ids.tolist()
    fewer = []
    for index, row in enumerate(rows):
        keep = {winners[index], int(logits[index].argmax())}
        fewer.append(replace(row, forbidden=tuple(i for i in range(0, VOCABULARY, 3) if i not in keep)))
    assert sampler(logits, fewer).token_ids.tolist() == winners


def check_excluded(sampler: Sampler, logits: torch.Tensor, rows: Sequence[Row]) -> None:
    """Of equal lowest logits, only the allowed one can be drawn."""
    lowest = torch.full((1, VOCABULARY), torch.finfo(torch.float32).min)
    drawn = sampler(lowest, [Row(temperature=0.0, allowed=frozenset({VOCABULARY - 1}))])
    assert drawn.token_ids.tolist() == [VOCABULARY - 1]


# Inputs that show the mistakes

PLAIN = [Row(seed=seed, position=9 + seed) for seed in range(12)]
TIES = [Row(temperature=0.0)] * 3 + [Row(top_k=k, seed=k) for k in range(1, 20)]
MIXED = [Row(seed=1), Row(top_p=0.5, seed=2), Row(seed=3, min_p=0.2)]


def border_case() -> tuple[torch.Tensor, list[Row]]:
    """Weights whose float32 sum depends on where it is cut, and shares `top_p` that lie on a border of theirs."""
    logits = (np.random.default_rng(0).random(VOCABULARY) * 0.5).astype(np.float32)
    weights = np.sort(np.exp(logits.astype(np.float64) - logits.max()))[::-1]
    shares = (weights.cumsum() / weights.sum())[10:70]
    rows = [Row(top_p=float(share), seed=seed) for seed, share in enumerate(shares)]
    return torch.from_numpy(logits).repeat(len(rows), 1), rows


def tail_logits(rows: int) -> torch.Tensor:
    """A tail that weighs nothing: a filter at its neutral value would still cut it."""
    logits = random_logits(rows, 8)
    logits[:, 40:] = -60.0
    return logits


CASES = {
    "plain": (random_logits(len(PLAIN), 30), PLAIN),
    "ties": (random_logits(len(TIES), 31, 3), TIES),
    "top_p": border_case(),
    "mixed": (tail_logits(len(MIXED)), MIXED),
    "all": (random_logits(len(SETTINGS), 32), SETTINGS),
}
CHECKS = (check_alone, check_reference, check_excluded)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("check", CHECKS)
def test_the_kernel_passes(check: Callable, case: str) -> None:
    check(kernel, *CASES[case])


def test_noise_belongs_to_the_id() -> None:
    check_losers_do_not_matter(kernel, *CASES["plain"])


@pytest.mark.parametrize("case", CASES)
def test_the_reference_passes(case: str) -> None:
    check_alone(mutant(), *CASES[case])


@pytest.mark.parametrize(
    ("changes", "check", "case"),
    [
        ({"noise_key": "row"}, check_alone, "plain"),
        ({"noise_key": "row"}, check_reference, "plain"),
        ({"noise_key": "step"}, check_alone, "plain"),
        ({"noise_key": "rank"}, check_reference, "plain"),
        ({"noise_key": "rank"}, check_losers_do_not_matter, "plain"),
        ({"ties": "higher"}, check_reference, "ties"),
        ({"top_p_sum": "split"}, check_alone, "top_p"),
        ({"top_p_for": "any"}, check_alone, "mixed"),
        ({"exclusion": "value"}, check_excluded, "plain"),
    ],
)
def test_a_planted_mistake_is_caught(changes: dict[str, str], check: Callable, case: str) -> None:
    with pytest.raises(AssertionError):
        check(mutant(**changes), *CASES[case])


# Properties

ids = some.integers(0, VOCABULARY - 1)
id_lists = some.lists(ids, max_size=6).map(tuple)
any_row = some.builds(
    Row,
    temperature=some.sampled_from([0.0, 1e-30, 0.5, 1.0, 3.0]),
    top_k=some.sampled_from([0, 0, 1, 7, 96, 97, 500]),
    top_p=some.sampled_from([1.0, 1.0, 0.01, 0.6, 0.999]),
    min_p=some.sampled_from([0.0, 0.0, 0.05, 1.0]),
    presence_penalty=some.sampled_from([0.0, 0.7]),
    frequency_penalty=some.sampled_from([0.0, -0.4]),
    repetition_penalty=some.sampled_from([1.0, 1.2]),
    seed=some.sampled_from([0, 1, -1, 1 << 31, 1 << 63, (1 << 64) - 2]),
    position=some.integers(0, 1 << 20),
    sample_index=some.integers(0, (1 << 31) - 1),
    prompt=id_lists,
    output=id_lists,
    bias=some.dictionaries(ids, some.sampled_from([-100.0, -0.5, 4.0]), max_size=4),
    forbidden=id_lists,
    allowed=some.none() | some.frozensets(ids, min_size=1),
)
BAD = [np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 0.0]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    subject=any_row, neighbours=some.lists(any_row, max_size=4), place=some.integers(0, 4), data=some.data()
)
def test_neighbours_never_change_a_bit(subject: Row, neighbours: list[Row], place: int, data) -> None:
    """Neighbours with any settings and any logits (NaN and infinity among them), any place, any threads."""
    place = min(place, len(neighbours))
    rows = [*neighbours[:place], subject, *neighbours[place:]]
    logits = random_logits(len(rows), data.draw(some.integers(0, 99)), data.draw(some.sampled_from([0, 3])))
    expected = row_bits(kernel(logits[place : place + 1], [subject]), 0)
    for index in range(len(rows)):
        if index != place:
            logits[index, data.draw(ids)] = data.draw(some.sampled_from(BAD))
    assert row_bits(kernel(logits, rows, data.draw(some.sampled_from(list(POOLS)))), place) == expected


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_change_a_bit(threads: int) -> None:
    """A batch large enough to be shared."""
    rows = SETTINGS * 8
    logits = random_logits(len(rows), 77)
    assert logits.numel() >= SHARED_FROM
    one, many = kernel(logits, rows), kernel(logits, rows, threads)
    assert [row_bits(one, i) for i in range(len(rows))] == [row_bits(many, i) for i in range(len(rows))]


@pytest.mark.parametrize("flush", [True, False])
def test_flush_to_zero_in_the_calling_thread_does_not_matter(flush: bool) -> None:
    """Subnormal logits, and a temperature that only subnormals can express."""
    rows = [Row(temperature=1e-40, seed=3), Row(temperature=0.0), Row(seed=4)]
    batch = make_batch(rows, VOCABULARY)
    logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(5)) * 1e-40
    expected = sample(POOLS[1], logits, batch, True)
    try:
        if not torch.set_flush_denormal(flush):
            pytest.skip("this processor has no flush-to-zero mode that torch can set")
        result = sample(POOLS[1], logits, batch, True)
    finally:
        torch.set_flush_denormal(False)
    assert [row_bits(result, i) for i in range(3)] == [row_bits(expected, i) for i in range(3)]


def test_the_noise_of_the_reference_is_not_the_kernels_to_the_bit() -> None:
    """Bits are compared with the kernels' own functions because float64 noise, rounded, differs."""
    exact, own = Reading(), KERNEL_FUNCTIONS
    words = np.random.default_rng(3).integers(0, 1 << 32, 200).tolist()
    assert any(np.float32(exact.noise(word)) != np.float32(own.noise(word)) for word in words)
