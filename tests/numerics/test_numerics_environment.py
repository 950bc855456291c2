"""What surrounds the kernels: control words, instruction sets, threads, processes, the cache, the golden digests."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from numerics_cases import differing, same_bits

from samebits.numerics.adversarial import cancelling_product
from samebits.numerics.cpu import gemm
from samebits.numerics.cpu.environment import machine, read_control
from samebits.numerics.cpu.kernel import compiled
from samebits.numerics.cpu.operators import CpuOperators
from samebits.numerics.cpu.pool import Pool
from samebits.numerics.probes import probe_digests

GOLDEN = json.loads((Path(__file__).parent / "golden_probes.json").read_text())
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
ON_X86 = machine() == "x86_64"


@compiled
def control_word():
    return read_control()


@pytest.fixture
def flush_to_zero():
    if not torch.set_flush_denormal(True):
        pytest.skip("this torch cannot set flush-to-zero on this CPU")
    yield
    torch.set_flush_denormal(False)


def test_probes_are_golden(operators, single, crowded) -> None:
    """A change here is a change of the contract, whose version is raised first, or of what the probes are given."""
    for engine in (operators, single, crowded):
        assert engine.probe_digests(DTYPES) == GOLDEN


def test_flush_to_zero_of_a_library_does_not_matter(operators, single, flush_to_zero) -> None:
    """Trap 22. Workers are started while the flag is set, too."""
    before = control_word()
    fresh = CpuOperators(threads=3)
    for engine in (operators, single, fresh):
        assert engine.probe_digests(DTYPES) == GOLDEN
    assert control_word() == before
    fresh.close()


def test_flush_to_zero_would_be_noticed(flush_to_zero) -> None:
    """The inverse: the same machine code, called without the launcher's control word, gives other bits."""
    # Made from bits, for under flush-to-zero torch itself would write zeros.
    x = torch.full((1, 32), 1 << 19, dtype=torch.int32).view(torch.float32)
    weight = torch.full((16, 32), 0.5)
    packed = gemm.pack_linear(weight, None)
    y = torch.zeros(1, 16)
    words = (x.data_ptr(), packed.panels.data_ptr(), y.data_ptr(), 0, 1, 16, 32, 1, 32, 1, 1)
    arguments = np.array(words, np.int64)
    task = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(gemm.KERNELS["float32"].address)
    task(arguments.ctypes.data, 0)
    right = CpuOperators(threads=1).linear(x, packed)
    assert same_bits(right, torch.full((1, 16), 1 << 23, dtype=torch.int32).view(torch.float32))
    assert differing(y, right) == 16


PROBE_SCRIPT = """
import json, torch
from samebits.numerics import probes
from samebits.numerics.cpu.operators import CpuOperators
print(json.dumps(probes.{function}(CpuOperators(threads=2), [torch.bfloat16])))
"""


def start_script(script: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(not ON_X86, reason="masks x86-64 instruction sets")
def test_instruction_sets_do_not_matter() -> None:
    """Generic x86-64-v3, and AVX with FMA but without AVX2, against the golden digests of the host's own code."""
    generic = start_script(
        PROBE_SCRIPT.format(function="probe_digests"), NUMBA_CPU_NAME="x86-64-v3", NUMBA_CPU_FEATURES=""
    )
    narrow = start_script(
        PROBE_SCRIPT.format(function="forward_digests"),
        NUMBA_CPU_NAME="x86-64",
        NUMBA_CPU_FEATURES="+avx,+fma,+f16c,+popcnt,-avx2",
    )
    for child in (generic, narrow):
        output, errors = child.communicate(timeout=500)
        assert child.returncode == 0, errors
        found = json.loads(output)
        assert len(found) > 6 and found == {name: GOLDEN[name] for name in found}


@pytest.mark.skipif(not ON_X86, reason="masks x86-64 instruction sets")
def test_no_fused_multiply_add_is_refused() -> None:
    script = "from samebits.numerics.cpu.environment import require_fma; require_fma()"
    for name, features in (("x86-64-v3", "-fma"), ("x86-64", ""), ("x86-64-v3", "-f16c")):
        child = start_script(script, NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES=features)
        errors = child.communicate(timeout=300)[1]
        assert child.returncode != 0 and "NumericsError" in errors and "FMA" in errors, errors


def test_calls_from_many_threads(operators, crowded) -> None:
    """Launches take turns; nothing is mixed up."""
    x, weight = cancelling_product(70, 24, 300, 400, torch.bfloat16)
    packed = operators.pack_linear(weight)
    expected = operators.linear(x, packed)
    wrong: list[int] = []

    def call(engine: CpuOperators, rows: int) -> None:
        for _ in range(60):
            if not same_bits(engine.linear(x[:rows].contiguous(), packed), expected[:rows]):
                wrong.append(rows)

    threads = [
        threading.Thread(target=call, args=(engine, rows))
        for engine in (operators, crowded)
        for rows in (1, 5, 24)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def _digests_of_a_child(queue) -> None:
    queue.put(CpuOperators(threads=2).probe_digests([torch.float32])["gemm float32"])


def test_a_spawned_process(operators) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_digests_of_a_child, args=(queue,))
    child.start()
    assert queue.get(timeout=120) == GOLDEN["gemm float32"]
    child.join(timeout=30)
    assert child.exitcode == 0


def test_a_forked_pool_starts_its_own_workers() -> None:
    """The parent's workers do not exist in the child. (Torch's own threads do not survive a fork either.)"""
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    engine = CpuOperators(threads=2)
    expected = engine.probe_digests([torch.float32])
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        torch.set_num_threads(1)
        os._exit(0 if engine.probe_digests([torch.float32]) == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_closed_pool_still_computes() -> None:
    engine = CpuOperators(threads=3)
    before = {thread.name for thread in threading.enumerate() if thread.name.startswith("samebits-numerics")}
    assert before
    engine.close()
    assert engine.probe_digests(DTYPES) == GOLDEN
    assert engine.threads == 1


def test_workers_end_with_their_pool() -> None:
    pool = Pool(4)
    mine = [thread for thread in threading.enumerate() if thread.name.startswith("samebits-numerics")]
    pool.close()
    for thread in mine[-3:]:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_kernels_hold_no_unfused_contraction() -> None:
    """Products and sums of a plain expression stay two instructions (trap 1)."""

    @compiled
    def plain(a, b, c):
        return a * b + c

    one = np.float32(1 + 2**-12)
    assert plain(one, one, -np.float32(one * one)) == 0.0
    text = "\n".join(plain.inspect_asm().values())
    assert "vfmadd" not in text and "fmadd" not in text


def test_probes_notice_each_clause(operators) -> None:
    """The inverse of the golden test: another weight dtype or constant is another digest."""
    assert GOLDEN["gemm bfloat16"] != GOLDEN["gemm float16"] != GOLDEN["gemm float32"]
    assert len(set(GOLDEN.values())) == len(GOLDEN)
    assert set(probe_digests(operators, [torch.bfloat16])) == set(GOLDEN) - {
        name for name in GOLDEN if name.endswith((" float16", " float32"))
    }


def test_compile_reports_progress(operators) -> None:
    seen: list[tuple[str, int, int]] = []
    operators.compile(lambda name, number, total: seen.append((name, number, total)))
    assert [number for _, number, _ in seen] == list(range(len(seen)))
    assert seen[-1][1] == seen[-1][2] == len(seen) - 1
