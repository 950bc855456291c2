"""A model over two GPUs: bits, collectives, and ranks that die. Every engine has a process of its own."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
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
SMALL = ["--device", "cuda", "--kv-memory-mib", "2048", "--max-running", "16", "--step-tokens", "512"]

DYING = """
import os, signal, sys, time
from samebits import LLM, SamplingParams
from samebits.engine.build import build_engine
from samebits.errors import EngineError

engines = []
def build(*arguments):
    engines.append(build_engine(*arguments))
    return engines[0]

def main():
    llm = LLM(device="cuda", tensor_parallel=2, kv_memory_mib=2048, max_running=16, step_tokens=512, build=build)
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
    os._exit(0)

if __name__ == "__main__":
    main()
"""


def verify(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "samebits", "verify", *SMALL, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digests of whole generations under `tp-invariant`, on one GPU."""
    path = tmp_path_factory.mktemp("golden") / "one.json"
    done = verify("--numerics", "tp-invariant", "--write-golden", str(path))
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.parametrize("method", ["auto", "two-shot", "push", "gather"])
def test_tp_invariant_has_the_bits_of_one_gpu(kept: Path, method: str) -> None:
    done = verify("--numerics", "tp-invariant", "--tp", "2", "--all-reduce", method, "--golden", str(kept))
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_ranks_on_a_gpu_have_the_bits_of_one(kept: Path) -> None:
    """A degree for which there are too few GPUs: two processes take turns on each."""
    degree = str(min(2 * torch.cuda.device_count(), 8))
    shared = ["--tp", degree, "--ranks-per-gpu", "2"]
    done = verify("--numerics", "tp-invariant", *shared, "--golden", str(kept))
    assert done.returncode == 0, done.stdout + done.stderr


def test_sums_that_products_write_to_their_owners_have_the_bits_of_one_gpu(tmp_path: Path) -> None:
    """Rows of 4,096: chunks of 512 and batches of many rows are pushed, batches of few are not."""
    wide = ["--model", "qwen3-8b-shaped-8-layers", "--load-format", "dummy", "--numerics", "tp-invariant"]
    path = tmp_path / "one.json"
    done = verify(*wide, "--write-golden", str(path))
    assert done.returncode == 0, done.stderr
    for degree in (2, 4, 8):
        if degree <= torch.cuda.device_count():
            done = verify(*wide, "--tp", str(degree), "--golden", str(path))
            assert done.returncode == 0, done.stdout + done.stderr


def test_the_degree_is_no_part_of_the_plan() -> None:
    found = set()
    for degree in ("1", "2"):
        done = verify("single", "--numerics", "tp-invariant", "--tp", degree, "--n-trials", "1", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        found.add(json.loads(done.stdout)["details"]["fingerprint"])
    assert len(found) == 1


def test_exact_has_others(tmp_path: Path) -> None:
    """The inverse: there the degree decides."""
    found = []
    for degree in ("1", "2"):
        path = tmp_path / f"{degree}.json"
        done = verify("--tp", degree, "--write-golden", str(path))
        assert done.returncode == 0, done.stderr
        found.append(json.loads(path.read_text())["digests"])
    assert any(found[1][name] != digest for name, digest in found[0].items())


def test_exact_keeps_its_promise() -> None:
    done = verify("all", "--tp", "2", "--n-trials", "5", "--max-new-tokens", "8")
    assert done.returncode == 0, done.stdout + done.stderr


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
    done = verify("--tp", "2", "--all-reduce", "nccl")
    assert done.returncode not in (0, 1) and "forbids" in done.stderr


def test_a_dying_rank_ends_the_engine_and_says_so(tmp_path: Path) -> None:
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert "told" in done.stdout, done.stderr
