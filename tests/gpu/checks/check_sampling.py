"""Given the same logits, the GPU sampler has the bits of the CPU sampler: tokens, faults, processed logprobs."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import fields

import pytest
import torch
from sampling_reference import Row, make_batch

from conftest import INTERPRETED
from samebits.numerics.adversarial import wide_rows
from samebits.numerics.batch import SamplingBatch, TokenLists
from samebits.numerics.cpu.operators import CpuOperators
from samebits.numerics.gpu.log_sum_exp import log_sum_exp, token_logprobs
from samebits.numerics.gpu.sampling import FEW_ROWS, Wants, sample, sampling_workspace
from samebits.numerics.gpu.top import top_tokens
from samebits.numerics.probe_sampling import ROWS, VOCABULARY, probe_batch


@pytest.fixture(scope="module")
def cpu() -> Iterator[CpuOperators]:
    operators = CpuOperators(1)
    yield operators
    operators.close()


def moved(batch: SamplingBatch, device: torch.device) -> SamplingBatch:
    parts = {}
    for entry in fields(batch):
        part = getattr(batch, entry.name)
        if isinstance(part, TokenLists):
            values = None if part.values is None else part.values.to(device)
            part = TokenLists(part.start.to(device), part.ids.to(device), values)
        parts[entry.name] = part if part is None or isinstance(part, TokenLists) else part.to(device)
    return SamplingBatch(**parts)


def random_row(vocabulary: int, choice: random.Random) -> Row:
    def ids(count: int) -> list[int]:
        return [choice.randrange(vocabulary) for _ in range(choice.randrange(count))]

    def maybe(value: float, neutral: float, likely: float = 0.3) -> float:
        return value if choice.random() < likely else neutral

    return Row(
        temperature=choice.choice([0.0, 0.7, 1.0, 1.0, 1e-3, 30.0]),
        top_k=int(maybe(choice.choice([1, 2, 40, vocabulary - 1, vocabulary + 5]), 0)),
        top_p=maybe(choice.choice([0.0, 0.1, 0.9, 0.999]), 1.0),
        min_p=maybe(choice.choice([0.01, 0.3, 1.0]), 0.0),
        presence_penalty=maybe(0.5, 0.0),
        frequency_penalty=maybe(-0.25, 0.0),
        repetition_penalty=maybe(1.3, 1.0),
        seed=choice.getrandbits(64),
        position=choice.randrange(100_000),
        sample_index=choice.randrange(4),
        prompt=ids(300),
        output=ids(40) * 2,
        bias={i: choice.uniform(-5, 5) for i in ids(200)} if choice.random() < 0.3 else {},
        forbidden=ids(5) if choice.random() < 0.3 else [],
        allowed=set(ids(vocabulary)) if choice.random() < 0.2 else None,
    )


def expect_equal(cpu: CpuOperators, logits: torch.Tensor, batch: SamplingBatch, device: torch.device) -> None:
    given, target = logits.to(device), moved(batch, device)
    expected = cpu.sample(logits, batch, True)
    got = sample(given, target, True)
    assert got.token_ids.tolist() == expected.token_ids.tolist()
    assert got.faults.tolist() == expected.faults.tolist()
    processed = got.processed_logprobs.cpu().view(torch.int32)
    assert torch.equal(processed, expected.processed_logprobs.view(torch.int32))
    # The first call's storage was for these rows alone; with room for more, chunks are larger.
    workspace = sampling_workspace(logits.shape[0] + FEW_ROWS, logits.shape[1], device)
    plain = sample(given, target, wants=Wants.of(batch), workspace=workspace)
    assert plain.token_ids.tolist() == expected.token_ids.tolist()
    if not INTERPRETED:
        again = sample(given, target, workspace=workspace)
        assert again.token_ids.tolist() == expected.token_ids.tolist()
        assert again.faults.tolist() == expected.faults.tolist()


@pytest.mark.parametrize("seed", range(2 if INTERPRETED else 8))
def check_random_rows(seed: int, cpu: CpuOperators, device: torch.device) -> None:
    choice = random.Random(seed)
    vocabulary = (301, 2500)[seed % 2] if INTERPRETED else (301, 151_936)[seed % 2]
    count = 9 if INTERPRETED else 64
    rows = [random_row(vocabulary, choice) for _ in range(count)]
    logits = torch.randn((count, vocabulary), generator=torch.Generator().manual_seed(seed)) * 4
    logits[::3] = logits[::3].round()
    logits[1, 5] = float("nan")
    logits[2, 7] = -float("inf")
    expect_equal(cpu, logits, make_batch(rows, vocabulary), device)


@pytest.mark.skipif(INTERPRETED, reason="takes minutes in the interpreter")
def check_probe_rows(cpu: CpuOperators, device: torch.device) -> None:
    expect_equal(cpu, wide_rows(51, ROWS, VOCABULARY, 2), probe_batch(torch.device("cpu")), device)


def check_a_bad_logit_in_any_lane_fails_its_row(cpu: CpuOperators, device: torch.device) -> None:
    vocabulary, count = (301, 9) if INTERPRETED else (5000, 256)
    logits = torch.randn((count, vocabulary), generator=torch.Generator().manual_seed(1))
    for row in range(1, count):
        logits[row, row * (vocabulary // count) + row % 7] = (math.nan, -math.nan, math.inf)[row % 3]
    rows = [Row(temperature=float(row % 2)) for row in range(count)]
    expect_equal(cpu, logits, make_batch(rows, vocabulary), device)
    faults = sample(logits.to(device), moved(make_batch(rows, vocabulary), device)).faults
    assert faults.ne(0).tolist() == [False] + [True] * (count - 1)


def check_the_smallest_temperatures(cpu: CpuOperators, device: torch.device) -> None:
    """Float32 has no inverse of the first two. Logits are usual ones, or so small that distances are moderate ones."""
    heats = (2.0**-149, 1e-40, 5e-39, 2.0**-126)
    logits = torch.randn((2 * len(heats), 301), generator=torch.Generator().manual_seed(3))
    for number, heat in enumerate(heats):
        logits[2 * number + 1] *= 4 * heat
    rows = [Row(temperature=heat, seed=seed) for heat in heats for seed in range(2)]
    batch = make_batch(rows, 301)
    expected = cpu.sample(logits, batch).token_ids
    got = sample(logits.to(device), moved(batch, device), wants=Wants.of(batch)).token_ids
    assert got.tolist() == expected.tolist()
    # Noise decides some of them.
    assert not torch.equal(expected, logits.argmax(1))


@pytest.mark.skipif(INTERPRETED, reason="takes 9 GB")
def check_offsets_beyond_32_bits(device: torch.device) -> None:
    """The last of so many rows that an element's place needs 33 bits."""
    vocabulary = 151_936
    logits = torch.zeros((2**31 // vocabulary + 9, vocabulary), device=device)
    last = torch.randn((5, vocabulary), generator=torch.Generator().manual_seed(2)).to(device)
    logits[-5:] = last
    ids = torch.tensor([0, 7, vocabulary - 1], device=device)
    rows = torch.tensor([0, 2, 4], device=device)
    many, few = log_sum_exp(logits), log_sum_exp(last)
    assert torch.equal(many[-5:].view(torch.int32), few.view(torch.int32))
    far = token_logprobs(logits, many, rows + logits.shape[0] - 5, ids)
    assert torch.equal(far.view(torch.int32), token_logprobs(last, few, rows, ids).view(torch.int32))
    for one, other in zip(top_tokens(logits, 4), top_tokens(last, 4), strict=True):
        assert torch.equal(one[-5:], other)
    # The inverse: the rows whose places have 32 bits less are others.
    assert not torch.equal(many[:5], few)


@pytest.mark.parametrize("vocabulary", [17, 5000])
def check_top_tokens(vocabulary: int, cpu: CpuOperators, device: torch.device) -> None:
    logits = torch.randn((5, vocabulary), generator=torch.Generator().manual_seed(vocabulary))
    logits[1] = logits[1].round()
    logits[2, ::2] = -0.0
    for count in (0, 5, 17):
        expected = cpu.top_tokens(logits, count)
        got = top_tokens(logits.to(device), count)
        assert torch.equal(got[0].cpu(), expected[0])
        assert torch.equal(got[1].cpu().view(torch.int32), expected[1].view(torch.int32))
