"""What serves a profile on a device, and what is refused with the reason."""

from __future__ import annotations

import pytest
import torch

from samebits.errors import NumericsError
from samebits.numerics.profiles import choose_device, make_operators


def test_auto_is_the_cpu_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda"
    assert choose_device("cpu").type == "cpu"


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(NumericsError, match="no CUDA device"):
        make_operators("exact", "cuda")


@pytest.mark.parametrize(
    ("profile", "split", "words"),
    [
        ("unpinned", 0, "'unpinned' on cuda"),
        ("exact", 100, "multiple of 64"),
        ("exact", -64, "multiple of 64"),
        ("exact", 512, "hold 256 keys"),
        ("torch", 512, "hold 256 keys"),
    ],
)
def test_what_the_cpu_does_not_do_is_refused(profile: str, split: int, words: str) -> None:
    with pytest.raises(NumericsError, match=words):
        make_operators(profile, "cpu", split_tokens=split)


def test_the_contract_s_own_split_may_be_named() -> None:
    assert make_operators("exact", "cpu", split_tokens=256).profile == "exact"
