"""The prover and the proof store, without a GPU: any function on tensors can be a candidate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from samebits.errors import NumericsError
from samebits.numerics.gpu.buckets import BUCKETS, bucket_of, buckets_up_to
from samebits.numerics.gpu.proofs import ProofFile, ProofRecord, ProofStore, TriedRecord
from samebits.numerics.gpu.prover import (
    Candidate,
    Case,
    Endless,
    Output,
    Proof,
    Rejection,
    Tensors,
    Trial,
    first_difference,
)
from samebits.numerics.gpu.roofline import Ceilings

Run = Callable[[Tensors, Tensors], None]
KEY = {"device": "a card", "driver": "1.2", "multiprocessors": "8"}


def doubled(inputs: Tensors, outputs: Tensors) -> None:
    outputs[0].copy_(inputs[0] * 2)


def trial(values: torch.Tensor) -> Trial:
    case = Case("values", (values,), (Output(tuple(values.shape), values.dtype),))
    return Trial.of(Candidate("reference", "r", doubled), [case])


def verdict(run: Run, values: torch.Tensor) -> Proof | Rejection:
    return trial(values).prove(Candidate("candidate", "c", run))


VALUES = torch.tensor([[1.0, -2.0, 3.0], [0.0, 5.0, 6.0]])


def test_equal_bits_are_a_proof() -> None:
    found = verdict(doubled, VALUES)
    assert found == Proof("candidate", "c", cases=1, elements=6)


def test_first_differing_element_is_named() -> None:
    def wrong(inputs: Tensors, outputs: Tensors) -> None:
        doubled(inputs, outputs)
        outputs[0][0, 2] = torch.nextafter(outputs[0][0, 2], torch.tensor(9.0))
        outputs[0][1, 1] = 0

    found = verdict(wrong, VALUES)
    assert isinstance(found, Rejection)
    assert (
        found.reason
        == "case values, output 0 [0, 2]: 0x40c00001 (6.000000476837158), expected 0x40c00000 (6.0)"
    )


def test_negative_zero_is_another_bit_pattern() -> None:
    def negated(inputs: Tensors, outputs: Tensors) -> None:
        doubled(inputs, outputs)
        outputs[0][1, 0] = -0.0

    assert isinstance(verdict(negated, VALUES), Rejection)


def test_nan_equals_nan_of_another_payload_but_no_number() -> None:
    expected = torch.tensor([float("nan"), 1.0])
    other_payload = torch.tensor([0x7FC00001, 0x3F800000], dtype=torch.int32).view(torch.float32)
    assert first_difference("c", [other_payload], [expected]) is None
    assert first_difference("c", [torch.tensor([0.0, 1.0])], [expected]) is not None


def test_an_element_that_nobody_wrote_is_found() -> None:
    def lazy(inputs: Tensors, outputs: Tensors) -> None:
        outputs[0][:, :2] = inputs[0][:, :2] * 2

    found = verdict(lazy, VALUES)
    assert isinstance(found, Rejection)
    assert "[0, 2]: 0xa5a5a5a5" in found.reason


@pytest.mark.parametrize("place", [-1, 6])
def test_a_write_beside_the_output_is_found(place: int) -> None:
    def sprawling(inputs: Tensors, outputs: Tensors) -> None:
        doubled(inputs, outputs)
        out = outputs[0]
        torch.as_strided(out, (1,), (1,), out.storage_offset() + place).fill_(1.0)

    found = verdict(sprawling, VALUES)
    assert isinstance(found, Rejection)
    assert "outside of output 0" in found.error


def test_an_input_that_is_written_is_compared() -> None:
    def incremented(step: int) -> Candidate:
        def run(inputs: Tensors, outputs: Tensors) -> None:
            inputs[0].add_(step)

        return Candidate("in place", "i", run)

    case = Case("values", (VALUES.clone(),), (), written=(0,))
    held = Trial.of(incremented(1), [case])
    assert isinstance(held.prove(incremented(1)), Proof)
    assert isinstance(held.prove(incremented(2)), Rejection)
    assert torch.equal(case.inputs[0], VALUES)


def test_a_candidate_that_raises_is_rejected_with_its_words() -> None:
    def failing(inputs: Tensors, outputs: Tensors) -> None:
        raise RuntimeError("out of shared memory\nmore")

    found = verdict(failing, VALUES)
    assert isinstance(found, Rejection)
    assert found.reason == "RuntimeError: out of shared memory"


def test_a_candidate_that_is_wrong_once_is_rejected_for_good() -> None:
    runs = []

    def unsteady(inputs: Tensors, outputs: Tensors) -> None:
        doubled(inputs, outputs)
        runs.append(1)
        if len(runs) == 1:
            outputs[0].view(-1)[0] += 1

    found = verdict(unsteady, VALUES)
    assert isinstance(found, Rejection)
    assert found.reason == "gave other bits, but not when run again"


def test_a_candidate_that_does_not_end_is_no_rejection() -> None:
    """The device is lost with it: the words must reach whoever started the engine."""

    def endless(inputs: Tensors, outputs: Tensors) -> None:
        raise Endless("candidate spinning does not end")

    with pytest.raises(Endless, match="spinning"):
        verdict(endless, VALUES)


def test_no_case_is_no_proof() -> None:
    with pytest.raises(ValueError, match="at least one case"):
        Trial((), ()).prove(Candidate("candidate", "c", doubled))


def test_buckets_hold_their_rows() -> None:
    for rows in (1, 2, 3, 15, 16, 17, 1025, BUCKETS[-1]):
        bucket = bucket_of(rows)
        assert bucket >= rows
        assert all(smaller < rows for smaller in BUCKETS if smaller < bucket)
    assert buckets_up_to(5) == (1, 2, 4, 8)
    for rows in (0, BUCKETS[-1] + 1):
        with pytest.raises(NumericsError, match="fits no bucket"):
            bucket_of(rows)


def test_share_of_the_roofline() -> None:
    ceilings = Ceilings(bytes_per_second=1e12, operations_per_second=1e14)
    assert ceilings.share(2.0, 10**12, 0) == 0.5
    assert ceilings.share(4.0, 10**12, 2 * 10**14) == 0.5


RECORD = ProofRecord(
    "gemm", "64x64 bf16 to bf16", 16, "tile", "digest", 100, 200,
    (TriedRecord("tile", "digest", 1e-5), TriedRecord("other", "x", None, "case a, output 0 [0]: 1, expected 2")),
)  # fmt: skip


def stored(folder: Path) -> ProofStore:
    store = ProofStore(folder, KEY)
    store.add(RECORD)
    store.save()
    return store


def test_proofs_come_back(tmp_path: Path) -> None:
    stored(tmp_path)
    store = ProofStore(tmp_path, KEY)
    assert store.find("gemm", "64x64 bf16 to bf16", 16) == RECORD
    assert RECORD.seconds == 1e-5


def test_another_key_knows_nothing(tmp_path: Path) -> None:
    stored(tmp_path)
    for name in KEY:
        assert ProofStore(tmp_path, {**KEY, name: "other"}).entries == ()


def test_a_copied_file_is_refused(tmp_path: Path) -> None:
    path = stored(tmp_path).path
    other = ProofStore(tmp_path, {**KEY, "multiprocessors": "7"})
    path.rename(other.path)
    with pytest.raises(NumericsError, match=r"another device or version \(other multiprocessors\)"):
        ProofStore(tmp_path, other.key)


def test_an_edited_file_is_refused(tmp_path: Path) -> None:
    path = stored(tmp_path).path
    content = msgspec.json.decode(path.read_bytes(), type=ProofFile)
    edited = msgspec.structs.replace(
        content, entries=(msgspec.structs.replace(RECORD, chosen="other", identity="x"),)
    )
    path.write_bytes(msgspec.json.encode(edited))
    with pytest.raises(NumericsError, match="changed after it was written"):
        ProofStore(tmp_path, KEY)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = stored(tmp_path).path
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(NumericsError, match="delete it"):
        ProofStore(tmp_path, KEY)
