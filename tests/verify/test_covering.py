"""The covering table holds every pair, and sees a bit that differs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from samebits.verify import covering
from samebits.verify.answers import Answer, TokenBits
from samebits.verify.target import TargetFacts


def test_every_pair_occurs() -> None:
    rows = covering.covering_rows(covering.FACTORS)
    names = list(covering.FACTORS)
    seen = set().union(*(covering.pairs_of(row, names) for row in rows))
    assert seen == covering.all_pairs(covering.FACTORS)
    assert 16 <= len(rows) <= 24
    # The inverse: without any one of the rows some pair is missing, for the last ones at least.
    assert set().union(*(covering.pairs_of(row, names) for row in rows[:-1])) != seen


class FakeTarget:
    """Answers by a hash of the prompt and its seed; `broken` changes what a batch of several gets."""

    def __init__(self, broken: bool) -> None:
        self._broken = broken

    def facts(self) -> TargetFacts:
        return TargetFacts("fake", 1000, {})

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sequence, score_prompt: bool = False
    ) -> list:
        wrong = self._broken and len(prompts) > 1
        return [
            Answer((TokenBits(sum(ids) % 1000 + one.seed, int(wrong and number == 2)),), ())
            for number, (ids, one) in enumerate(zip(prompts, sampling, strict=True))
        ]

    def flush(self) -> bool:
        return True

    def close(self) -> None:
        pass


@pytest.mark.parametrize("broken", [False, True])
def test_a_different_bit_in_company_is_seen(broken: bool) -> None:
    factors = {**covering.FACTORS, "batch": (1, 3), "prompt": (1, 9), "chunk": (4, 8)}
    lines: list[str] = []
    report = covering.run(
        lambda chunk, graph: FakeTarget(broken), 100, covering.CoveringSettings(1), factors, lines.append
    )
    assert report.passed is not broken
    assert any("DIFFERENT" in line for line in lines) is broken
    assert len(lines) == len(report.results) == len(covering.covering_rows(factors))
    assert covering.as_json(report)["passed"] is not broken
    assert len(covering.table(report)) == len(lines) + 2


def test_prompts_of_a_length_differ_early() -> None:
    prompts = [tuple(covering.prompt_ids(number, 129, 1280)) for number in range(256)]
    assert len(set(prompts)) == 256
    assert len({prompt[0] for prompt in prompts}) > 128
