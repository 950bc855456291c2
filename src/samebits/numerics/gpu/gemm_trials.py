"""Trials of all buckets of a product, cut from one run of the reference at the largest bucket."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from samebits.numerics.gpu.prover import Candidate, Case, Output, Tensors, Trial, results_of

FEW_ROWS, MOST_WINDOWS = 16, 8
"""A bucket of few rows is tried on several stretches of rows, at most so many, for one row pairs its atoms in one
way only."""


@dataclass(frozen=True)
class RowTrials:
    """Cases whose first input, written inputs and outputs have a row for each row of a batch, at the largest row
    count."""

    inputs: dict[str, Tensors]
    expected: dict[str, Tensors]
    output: Callable[[int], tuple[Output, ...]]
    """what the outputs are at a row count"""
    written: tuple[int, ...] = ()
    """inputs that are written, as in a case"""

    @staticmethod
    def of(
        reference: Candidate,
        inputs: dict[str, Tensors],
        output: Callable[[int], tuple[Output, ...]],
        written: tuple[int, ...] = (),
    ) -> RowTrials:
        expected = {
            name: results_of(reference, Case(name, given, output(given[0].shape[0]), written))
            for name, given in inputs.items()
        }
        return RowTrials(inputs, expected, output, written)

    def trial(self, bucket: int) -> Trial:
        """A candidate must give these rows the bits that they have among all rows."""
        cases, expected = [], []
        for name, given in self.inputs.items():
            for start in windows(bucket, given[0].shape[0]):
                rows = slice(start, start + bucket)
                # A stretch of rows gets its own allocation, which starts at an aligned address.
                inputs = tuple(
                    (tensor[rows] if start == 0 else tensor[rows].clone())
                    if place in (0, *self.written)
                    else tensor
                    for place, tensor in enumerate(given)
                )
                title = name if start == 0 else f"{name} from row {start}"
                cases.append(Case(title, inputs, self.output(bucket), self.written))
                expected.append(tuple(full[rows] for full in self.expected[name]))
        return Trial(tuple(cases), tuple(expected))


def windows(bucket: int, rows: int) -> range:
    """First rows of the stretches on which a bucket is tried."""
    count = max(1, min(MOST_WINDOWS, FEW_ROWS // bucket, rows // bucket))
    return range(0, count * bucket, bucket)
