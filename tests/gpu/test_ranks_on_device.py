"""A model over two GPUs: bits, collectives, and ranks that die. Every engine has a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest
import start_and_report
import torch

from samebits.config import EngineConfig, ModelConfig
from samebits.engine.async_engine import AsyncEngine
from samebits.engine.messages import EngineRequest, LogprobOptions
from samebits.engine.process import ProcessTransport
from samebits.engine.replicas import ReplicaTransport
from samebits.sampling_params import ResolvedSampling

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]
PROGRAM = Path(start_and_report.__file__)
PATIENCE_SECONDS, LIMIT_SECONDS = 75, 90
"""of a start with all that it computes, which takes 10 to 25 s: then it says where it is, and then it is killed"""
SMALL = {"device": "cuda", "kv_memory_mib": 2048, "max_running": 16, "step_tokens": 512}
WIDE = {"model": "qwen3-8b-shaped-8-layers", "load_format": "dummy", "numerics": "tp-invariant"}
WIDE_TEST = "products_write"

DYING = """
import faulthandler, json, os, signal, sys, time
from samebits import LLM, SamplingParams
from samebits.engine.build import build_engine
from samebits.errors import EngineError

engines = []
def build(*arguments):
    engines.append(build_engine(*arguments))
    return engines[0]

def main():
    faulthandler.dump_traceback_later(75)
    settings = json.loads(sys.argv[1])
    llm = LLM(**settings, tensor_parallel=2, build=build)
    stream = llm.stream([1, 2, 3], SamplingParams(max_new_tokens=900, ignore_eos=True))
    next(stream)
    os.kill(engines[0].close_ranks.__self__._processes[0].pid, signal.SIGKILL)
    started = time.monotonic()
    try:
        list(stream)
    except EngineError as error:
        assert "rank 1 ended unexpectedly with exit status -9" in str(error), error
        assert time.monotonic() - started < 20
        print("told", flush=True)
    llm.close()
    assert time.monotonic() - started < 40

if __name__ == "__main__":
    main()
"""


class Start:
    """An engine in a process of its own, which has begun to start."""

    def __init__(self, gpu: int | None = None, modes: bool = False, **settings: Any) -> None:
        """`gpu`: the only one that it sees."""
        asked = {"settings": {**SMALL, **settings}, "modes": modes, "patience": PATIENCE_SECONDS}
        here = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(PROGRAM), json.dumps(asked)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **here},
        )

    @cached_property
    def report(self) -> dict[str, Any]:
        """What it computed, once its process has ended by itself."""
        try:
            out, errors = self._process.communicate(timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            _, errors = self._process.communicate()
            pytest.fail(
                f"did not end in {LIMIT_SECONDS} s; where it was after {PATIENCE_SECONDS} s:\n{errors}"
            )
        assert self._process.returncode == 0, errors
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
        return found


@pytest.fixture(scope="module")
def alone(request: pytest.FixtureRequest) -> dict[str, Start]:
    """Engines on one GPU each, by profile and, last, of rows of 4,096; all at once."""
    starts = {"tp-invariant": Start(0, numerics="tp-invariant"), "exact": Start(1)}
    if any(WIDE_TEST in item.name for item in request.session.items):
        starts["wide"] = Start(1, **WIDE)
    return starts


@pytest.fixture(scope="module")
def together() -> Callable[..., Start]:
    """Engines over two GPUs. Several tests look at one."""

    @cache
    def start(numerics: str, all_reduce: str = "auto") -> Start:
        modes = numerics == "exact"
        return Start(modes=modes, numerics=numerics, tensor_parallel=2, all_reduce=all_reduce)

    return start


Together = Callable[..., Start]


@pytest.mark.parametrize("method", ["auto", "two-shot", "push", "gather"])
def test_tp_invariant_has_the_bits_of_one_gpu(
    alone: dict[str, Start], together: Together, method: str
) -> None:
    kept = alone["tp-invariant"].report["digests"]
    assert together("tp-invariant", method).report["digests"] == kept


def test_the_degree_is_no_part_of_the_plan(alone: dict[str, Start], together: Together) -> None:
    one, two = alone["tp-invariant"].report, together("tp-invariant", "auto").report
    assert one["fingerprint"] == two["fingerprint"]


def test_two_ranks_on_a_gpu_have_the_bits_of_one(alone: dict[str, Start]) -> None:
    """A degree for which there are too few GPUs: two processes take turns on each."""
    kept = alone["tp-invariant"].report["digests"]
    degree = min(2 * torch.cuda.device_count(), 8)
    shared = Start(numerics="tp-invariant", tensor_parallel=degree, ranks_per_gpu=2)
    assert shared.report["digests"] == kept


def test_sums_that_products_write_to_their_owners_have_the_bits_of_one_gpu(alone: dict[str, Start]) -> None:
    """Rows of 4,096: chunks of 512 and batches of many rows are pushed, batches of few are not."""
    kept = alone["wide"].report["digests"]
    for degree in (2, 4, 8):
        if degree <= torch.cuda.device_count():
            assert Start(tensor_parallel=degree, **WIDE).report["digests"] == kept


def test_exact_has_others(alone: dict[str, Start], together: Together) -> None:
    """The inverse: there the degree decides."""
    one, two = alone["exact"].report, together("exact").report
    assert one["fingerprint"] != two["fingerprint"]
    assert any(two["digests"][name] != digest for name, digest in one["digests"].items())


def test_exact_keeps_its_promise(together: Together) -> None:
    assert together("exact").report["passed"]


def test_replicas_have_gpus_of_their_own_and_the_same_bits() -> None:
    """`--dp 2`: the same request on both, and each holds the memory of a GPU."""
    model = ModelConfig(device="cuda")
    small = EngineConfig(data_parallel=2, kv_memory_mib=2048, max_running=16, step_tokens=512)
    transports = [ProcessTransport(model, small, replica=replica) for replica in range(2)]
    before = [torch.cuda.mem_get_info(device)[0] for device in range(2)]

    async def answers() -> list[tuple[list[int], list[Any]]]:
        engine = AsyncEngine(ReplicaTransport(transports))
        await engine.start()
        try:
            for device in range(2):
                assert before[device] - torch.cuda.mem_get_info(device)[0] > 2 << 30, device
            sampling = ResolvedSampling(temperature=0.8, seed=5, max_new_tokens=24, ignore_eos=True)
            found = []
            for replica in range(2):
                asked = EngineRequest(
                    rid=f"on {replica}",
                    prompt_ids=list(range(1, 200)),
                    sampling=sampling,
                    logprobs=LogprobOptions(output=True),
                    replica=replica,
                )
                events = [event async for event in engine.stream(asked)]
                tokens = [token for event in events for token in event.token_ids]
                found.append((tokens, [one for event in events for one in event.logprobs or ()]))
            return found
        finally:
            await engine.shutdown()

    one, other = asyncio.run(answers())
    assert one == other and len(one[0]) == 24


def test_sums_of_nccl_are_refused_where_bits_are_promised() -> None:
    asked = ["verify", "--device", "cuda", "--tp", "2", "--all-reduce", "nccl"]
    done = subprocess.run(
        [sys.executable, "-m", "samebits", *asked], capture_output=True, text=True, timeout=LIMIT_SECONDS
    )
    assert done.returncode not in (0, 1) and "forbids" in done.stderr


@pytest.mark.parametrize("method", ["auto", "gather"])
def test_a_dying_rank_ends_the_engine_and_says_so(tmp_path: Path, method: str) -> None:
    """And the process ends by itself, whatever its device was waiting for."""
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    done = subprocess.run(
        [sys.executable, str(script), json.dumps({**SMALL, "all_reduce": method})],
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )
    assert "told" in done.stdout and done.returncode == 0, done.stderr
