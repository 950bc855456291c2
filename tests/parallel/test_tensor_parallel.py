"""Whole engines over ranks in processes of their own: bits, fingerprints, and ranks that die."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samebits import LLM, SamplingParams
from samebits.engine import ranks as engine_ranks
from samebits.engine.build import build_engine
from samebits.engine.engine import Engine
from samebits.engine.rank_worker import Logits
from samebits.errors import ConfigError, EngineError, UnsupportedModelError
from samebits.verify import golden
from samebits.verify.local import LocalTarget
from samebits.verify.modes import Settings
from samebits.verify.run import mode_names, run

SETTINGS: dict[str, Any] = {
    "model": "tiny",
    "load_format": "dummy",
    "kv_memory_mib": 64,
    "step_tokens": 96,
    "threads": 1,
}


GOLDEN = Path(__file__).parents[1] / "golden" / "tiny-tp-invariant.json"


@pytest.fixture(scope="module")
def invariant_fingerprint() -> str:
    with LLM(**SETTINGS, numerics="tp-invariant") as llm:
        assert golden.differing(GOLDEN, llm) == []
        return llm.facts.fingerprint


@pytest.mark.parametrize("degree", [2, 4])
def test_tp_invariant_is_one_plan_with_the_same_bits(invariant_fingerprint: str, degree: int) -> None:
    """Every kind of sampling, in one batch, against digests kept from one rank; and every mode of `verify`."""
    with LLM(**SETTINGS, numerics="tp-invariant", tensor_parallel=degree) as llm:
        assert llm.facts.fingerprint == invariant_fingerprint
        assert golden.differing(GOLDEN, llm) == []
        settings = Settings(2, 7, 6, 3)
        report = run(LocalTarget(llm), mode_names(["all"]), [0.8], settings, lambda line: None)
        assert report.passed


def test_exact_is_another_plan_with_other_bits() -> None:
    """The inverse: in `exact` the degree is part of the plan, and the comparison above would see its bits."""
    with LLM(**SETTINGS) as llm:
        alone = llm.facts.fingerprint, golden.digests(llm)
    with LLM(**SETTINGS, tensor_parallel=2) as llm:
        two = llm.facts.fingerprint, golden.digests(llm)
        prompt = list(range(5, 90))
        asked = SamplingParams(max_new_tokens=12, temperature=0.8, ignore_eos=True)
        [solo] = llm.generate(prompt, asked, return_logprob=True)
        batch = llm.generate(
            [[9, 8, 7], prompt, list(range(200))], asked, return_logprob=True, progress=False
        )
    assert two[0] != alone[0]
    assert all(two[1][name] != digest for name, digest in alone[1].items())
    invariant = golden.read(GOLDEN)["digests"]
    assert all(two[1][name] != digest for name, digest in invariant.items())
    assert (batch[1].token_ids, batch[1].logprobs) == (solo.token_ids, solo.logprobs)


def built(**settings: Any) -> tuple[Engine, Any]:
    """An engine of two ranks, and its rank processes."""
    engines: list[Engine] = []

    def build(*arguments: Any) -> Engine:
        engines.append(build_engine(*arguments))
        return engines[0]

    llm = LLM(**{**SETTINGS, "tensor_parallel": 2, **settings}, build=build)
    return engines[0], llm


@pytest.mark.parametrize("busy", [True, False])
def test_a_dying_rank_ends_the_engine_and_says_so(busy: bool) -> None:
    engine, llm = built()
    with llm:
        [process] = engine.runner.ranks._processes
        if busy:
            asked = SamplingParams(max_new_tokens=3000, ignore_eos=True)
            stream = llm.stream([1, 2, 3], asked)
            next(stream)
            os.kill(process.pid, signal.SIGKILL)
            with pytest.raises(EngineError, match="rank 1 ended unexpectedly with exit status -9"):
                list(stream)
        else:
            os.kill(process.pid, signal.SIGKILL)
            deadline = time.monotonic() + 30
            while not llm._engine.failed.is_set() and time.monotonic() < deadline:
                time.sleep(0.1)
        with pytest.raises(EngineError, match="rank 1 ended unexpectedly with exit status -9"):
            llm.generate([1, 2, 3])


def test_a_rank_that_raises_ends_the_engine_with_its_traceback() -> None:
    engine, llm = built()
    with llm:
        engine.runner.ranks.tell(Logits(np.zeros((1, 3), dtype=np.float32)))  # narrower than the model
        deadline = time.monotonic() + 30
        while not llm._engine.failed.is_set() and time.monotonic() < deadline:
            time.sleep(0.1)
        with pytest.raises(EngineError, match=r"rank 1 failed: (?s:.*)Traceback \(most recent call last\)"):
            llm.generate([1, 2, 3])


def test_ranks_leave_with_the_engine() -> None:
    engine, llm = built()
    [process] = engine.runner.ranks._processes
    folder = engine.runner.ranks.meeting.parent
    assert folder.exists()
    left: list[int | None] = []
    engine.runner.ranks.let_go = lambda: left.append(process.exitcode)
    llm.close()
    assert process.exitcode == 0
    assert left == [0], "nothing may wait for ranks that have left"
    assert not folder.exists()


SCRIPT = """
import sys
from samebits import LLM, SamplingParams

def main():
    llm = LLM(**{settings}, tensor_parallel=2)
    assert len(llm.generate([[1, 2]], SamplingParams(max_new_tokens=4, ignore_eos=True))[0].token_ids) == 4
    {ending}

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize(
    ("ending", "status"),
    [("pass", 0), ("raise RuntimeError('a mistake')", 1), ("globals()['kept'] = llm", 0)],
)
def test_a_script_that_closes_nothing_ends(tmp_path: Path, ending: str, status: int) -> None:
    """At its end, at its mistake, and with an engine that is referred to until then."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(settings=SETTINGS, ending=ending))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stderr
    assert ("a mistake" in done.stderr) == bool(status)


def test_ranks_leave_with_the_last_reference() -> None:
    engine, llm = built()
    [process] = engine.runner.ranks._processes
    assert process.is_alive()
    del llm
    gc.collect()
    assert process.exitcode == 0


def test_what_never_ends_keeps_no_engine_from_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that waits on a device for ever. The inverse: without a limit closing waits as long."""
    engine, llm = built()
    ranks = engine.runner.ranks
    [process] = ranks._processes
    folder = ranks.meeting.parent
    called, over = threading.Event(), threading.Event()

    def never_returns() -> None:
        called.set()
        over.wait()

    ranks.let_go = never_returns
    try:
        monkeypatch.setattr(engine_ranks, "LET_GO_SECONDS", 0.2)
        llm.close()
        assert called.is_set() and not over.is_set()
        assert process.exitcode == 0 and not folder.exists()
        monkeypatch.setattr(engine_ranks, "LET_GO_SECONDS", 600.0)
        again = threading.Thread(target=ranks.close, daemon=True)
        again.start()
        again.join(0.5)
        assert again.is_alive()
    finally:
        over.set()
    again.join(60)
    assert not again.is_alive()


def test_ranks_are_left_even_if_a_device_has_failed() -> None:
    engine, llm = built()
    [process] = engine.runner.ranks._processes

    def fails() -> None:
        raise RuntimeError("the device failed")

    engine.loop.close = fails  # type: ignore[method-assign]
    llm.close()
    assert process.exitcode == 0


def test_degrees_that_do_not_divide_the_model_are_refused() -> None:
    with pytest.raises((UnsupportedModelError, ConfigError, EngineError), match="its 4 query heads"):
        LLM(**SETTINGS, tensor_parallel=3)


def test_profiles_of_one_rank_are_refused() -> None:
    with pytest.raises((ConfigError, EngineError), match="--numerics torch runs on one rank"):
        LLM(**SETTINGS, tensor_parallel=2, numerics="torch")
