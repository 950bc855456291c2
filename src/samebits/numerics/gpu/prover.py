"""The prover: a candidate may serve at a shape and bucket when it gave the reference's bits on every case there.

It knows no operator. An operator brings a reference (the simple kernel that *is* its clause on this device),
candidates, and cases: adversarial inputs on which a wrong order shows. Results are compared as integers, on the
device, in outputs that were filled with a poison before, so that an element nobody wrote differs too. Where both
sides are NaN they count as equal: a NaN's sign and payload are not promised.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from samebits.errors import NumericsError

Tensors = tuple[Tensor, ...]

BIT_VIEWS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
POISON = 0xA5
"""Byte with which outputs are filled before a run."""
FENCE = 4096
"""Bytes of poison on either side of an output."""
MOST_SECONDS = 60.0
"""What a candidate may take for one case before it counts as endless. The slowest reference takes a fraction of one."""


@dataclass(frozen=True)
class Candidate:
    """One way to compute a clause, ready to run at one shape and bucket."""

    name: str
    """Tells it from the operator's other candidates, and finds it again in the proof store."""
    identity: str
    """What runs: the digest of a compiled binary (`sm_90 3f2a...`), or a library's version and algorithm."""
    run: Callable[[Tensors, Tensors], None]
    """run(inputs, outputs): launches on the current stream, never waits for the device, allocates nothing."""


@dataclass(frozen=True)
class Output:
    """What one output of an operator is."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Case:
    """One set of inputs. An input that an operator writes into is named in `written`, and compared as an output."""

    name: str
    inputs: Tensors
    outputs: tuple[Output, ...]
    written: tuple[int, ...] = ()


@dataclass(frozen=True)
class Difference:
    """The first element in which a candidate left the reference."""

    case: str
    output: int
    index: tuple[int, ...]
    got: str
    expected: str

    def __str__(self) -> str:
        place = ", ".join(map(str, self.index))
        return f"case {self.case}, output {self.output} [{place}]: {self.got}, expected {self.expected}"


@dataclass(frozen=True)
class Proof:
    """A candidate gave the reference's bits on every case."""

    candidate: str
    identity: str
    cases: int
    elements: int


@dataclass(frozen=True)
class Rejection:
    """A candidate that may not serve: it gave other bits, or could not run."""

    candidate: str
    identity: str
    difference: Difference | None = None
    error: str = ""

    @property
    def reason(self) -> str:
        return str(self.difference) if self.difference is not None else self.error


@dataclass(frozen=True)
class Fenced:
    """An output full of poison, between two fences of poison that nobody may write."""

    storage: Tensor
    value: Tensor

    def broken(self) -> Tensor:
        """bool: whether a fence was written."""
        fences = torch.cat((self.storage[:FENCE], self.storage[-FENCE:]))
        return (fences != POISON).any()


def fenced(output: Output, device: torch.device) -> Fenced:
    length = prod(output.shape) * output.dtype.itemsize
    storage = torch.full((length + 2 * FENCE,), POISON, dtype=torch.uint8, device=device)
    return Fenced(storage, storage[FENCE : FENCE + length].view(output.dtype).view(output.shape))


class Endless(NumericsError):
    """A kernel that does not end. Nothing else can run on this device in this process, so it is no rejection."""


def wait_for(candidate: Candidate, case: Case, device: torch.device, limit: float = MOST_SECONDS) -> None:
    """Wait for the device. Raises `Endless` where it is at work for more than `limit` seconds."""
    if device.type != "cuda":
        return
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(device))
    start = time.monotonic()
    while not done.query():
        if time.monotonic() - start > limit:
            raise Endless(
                f"candidate {candidate.name} does not end on case {case.name}: {limit:.0f} seconds have passed. "
                "Please report it with the device and its driver"
            )
        time.sleep(20e-6)


@dataclass(frozen=True)
class Run:
    """What a candidate was told to compute; the device may still be at work."""

    outputs: tuple[Fenced, ...]
    written: Tensors
    """copies of the inputs that it writes"""

    @property
    def results(self) -> Tensors:
        return tuple(output.value for output in self.outputs) + self.written

    @property
    def broken_fences(self) -> list[Tensor]:
        """bool of each output"""
        return [output.broken() for output in self.outputs]


def started(candidate: Candidate, case: Case) -> Run:
    """Run a candidate on fresh poisoned outputs, and on copies of the inputs that it writes; does not wait."""
    device = case.inputs[0].device
    inputs = tuple(
        tensor.clone() if index in case.written else tensor for index, tensor in enumerate(case.inputs)
    )
    outputs = tuple(fenced(output, device) for output in case.outputs)
    candidate.run(inputs, tuple(output.value for output in outputs))
    return Run(outputs, tuple(inputs[index] for index in case.written))


def results_of(candidate: Candidate, case: Case) -> Tensors:
    """What a candidate gives for a case. Raises `NumericsError` where it writes beside an output or does not end;
    waits for the device."""
    run = started(candidate, case)
    wait_for(candidate, case, case.inputs[0].device)
    for number, broken in enumerate(run.broken_fences):
        if bool(broken):
            raise NumericsError(f"case {case.name}: wrote outside of output {number}")
    return run.results


def unequal(got: Tensor, expected: Tensor) -> Tensor:
    """bool, elementwise: other bits."""
    view = BIT_VIEWS[got.element_size()]
    return got.view(view) != expected.view(view)


def differing(got: Tensor, expected: Tensor) -> Tensor:
    """bool, elementwise: other bits, and not NaN on both sides."""
    other = unequal(got, expected)
    if got.is_floating_point():
        other &= ~(got.isnan() & expected.isnan())
    return other


def first_difference(case: str, got: Sequence[Tensor], expected: Sequence[Tensor]) -> Difference | None:
    """The lowest index in which two lists of results differ; waits for the device."""
    for number, (left, right) in enumerate(zip(got, expected, strict=True)):
        if left.shape != right.shape or left.dtype != right.dtype:
            raise ValueError(
                f"output {number}: {left.dtype} {left.shape} against {right.dtype} {right.shape}"
            )
        other = differing(left, right)
        if bool(other.any()):
            flat = int(other.view(-1).to(torch.uint8).argmax())
            index = tuple(int(part) for part in torch.unravel_index(torch.tensor(flat), left.shape))
            return Difference(case, number, index, bits(left[index]), bits(right[index]))
    return None


def bits(value: Tensor) -> str:
    """An element's bits in hexadecimal, and its value."""
    width = value.element_size()
    word = int(value.reshape(1).view(BIT_VIEWS[width])) & ((1 << 8 * width) - 1)
    return f"0x{word:0{2 * width}x} ({value.item()!r})"


@dataclass(frozen=True)
class Trial:
    """What candidates of one shape and bucket are held against: cases, and the reference's results on them."""

    cases: tuple[Case, ...]
    expected: tuple[Tensors, ...]

    @staticmethod
    def of(reference: Candidate, cases: Sequence[Case]) -> Trial:
        """The trial of `cases`, with the reference run on each."""
        return Trial(tuple(cases), tuple(results_of(reference, case) for case in cases))

    def prove(self, candidate: Candidate) -> Proof | Rejection:
        """Hold a candidate against the reference. One that raises is rejected with its error's words."""
        if not self.cases:
            raise ValueError("a proof needs at least one case")
        if self._holds(candidate):
            elements = sum(tensor.numel() for results in self.expected for tensor in results)
            return Proof(candidate.name, candidate.identity, len(self.cases), elements)
        return self._rejection(candidate)

    def _holds(self, candidate: Candidate) -> bool:
        """Whether a candidate gives the reference's bits on every case; waits for the device once a case."""
        try:
            for case, expected in zip(self.cases, self.expected, strict=True):
                run = started(candidate, case)
                pairs = list(zip(run.results, expected, strict=True))
                if any(left.shape != right.shape or left.dtype != right.dtype for left, right in pairs):
                    return False
                fences = torch.stack(run.broken_fences) if run.outputs else torch.zeros(1, dtype=torch.bool)
                other = torch.stack([unequal(*pair).any() for pair in pairs]).any()
                wait_for(candidate, case, other.device)
                if bool(fences.any()) or (
                    bool(other) and any(bool(differing(*pair).any()) for pair in pairs)
                ):
                    return False
        except Endless:
            raise
        except Exception:  # `_rejection` meets it again, and keeps its words
            return False
        return True

    def _rejection(self, candidate: Candidate) -> Rejection:
        """Why a candidate does not hold: its first difference or error."""
        for case, expected in zip(self.cases, self.expected, strict=True):
            try:
                found = first_difference(case.name, results_of(candidate, case), expected)
            except Endless:
                raise
            except Exception as error:  # whatever a compiler, driver or library can throw is a rejection
                return Rejection(candidate.name, candidate.identity, error=words_of(error))
            if found is not None:
                return Rejection(candidate.name, candidate.identity, found)
        return Rejection(candidate.name, candidate.identity, error="gave other bits, but not when run again")


def words_of(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def prove(candidate: Candidate, reference: Candidate, cases: Sequence[Case]) -> Proof | Rejection:
    """Hold one candidate against a reference on `cases`. With several candidates, make one `Trial`."""
    return Trial.of(reference, cases).prove(candidate)
