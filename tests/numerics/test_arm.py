"""Trap 22: the kernels of `exact`, compiled for 64-bit Arm and run on an emulated core, against the golden digests.

The emulated core is a plain Armv8-A with its Advanced SIMD registers: four lanes instead of eight or sixteen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
import torch
from arm_emulator import TRIPLE, ArmCode, ArmProcessor, EmulatedPool, compile_for_arm
from kernel_ir import host_addresses, math_on_host
from numerics_cases import same_bits
from planted_changes import contracted, split_fused
from torch import Tensor

from samebits.numerics.adversarial import cancelling_product, hashed_floats, wide_rows
from samebits.numerics.batch import RaggedBatch
from samebits.numerics.cpu.environment import FUSED_PROBE, machine
from samebits.numerics.cpu.operators import CpuOperators
from samebits.numerics.probes import EPS, HEADS, probe_digests
from samebits.numerics.rope import rope_table

GOLDEN = json.loads((Path(__file__).parent / "golden_probes.json").read_text())
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FLUSH_TO_ZERO = 1 << 24
CONTEXT = 900  # four splits: one query is cut into partials, which are folded
MATH_COUNT = 2048

pytestmark = pytest.mark.skipif(
    machine() != "x86_64", reason="the modules are made on x86-64; an Arm machine runs the golden test itself"
)


@pytest.fixture(scope="module")
def codes(modules) -> dict[str, ArmCode]:
    return {name: compile_for_arm(text) for name, text in modules.items()}


def emulated(codes: dict[str, ArmCode], control: int = 0) -> EmulatedPool:
    """Arm code in the place of the host's; as many threads as cut the work most finely."""
    addresses = host_addresses()
    by_address = {addresses[name]: code for name, code in codes.items()}
    return EmulatedPool(by_address, threads=3, processor=ArmProcessor(control))


def decode_attention(engine: CpuOperators) -> Tensor:
    """Norm, rotation and attention of one row of a request with a long context."""
    pages = -(-CONTEXT // 64)
    kv = engine.allocate_kv(1, pages, 64, HEADS)[0]
    kv.keys.copy_(wide_rows(210, pages, 2 * 64 * 64, 1).view_as(kv.keys))
    kv.values.copy_(wide_rows(211, pages, 2 * 64 * 64, 3).view_as(kv.values))
    batch = RaggedBatch(
        token_ids=torch.zeros(1, dtype=torch.int64),
        positions=torch.tensor([CONTEXT - 1]),
        slots=torch.tensor([CONTEXT - 1]),
        query_start=torch.tensor([0, 1], dtype=torch.int32),
        page_table=torch.arange(pages, dtype=torch.int32)[None],
        page_tokens=64,
        row_faults=torch.zeros(1, dtype=torch.uint8),
    )
    qkv = wide_rows(212, 1, HEADS.query_width + 2 * HEADS.kv_width, 1)
    norms = wide_rows(213, 2, HEADS.head_dim, 1)
    table = rope_table(CONTEXT, 1e6, HEADS.head_dim)
    queries = engine.norm_rope_store(qkv, HEADS, norms[0], norms[1], EPS, table, batch, kv)
    return torch.cat([queries.flatten(), engine.attention(queries, HEADS, 0.125, batch, kv).flatten()])


def subnormal_product(engine: CpuOperators) -> Tensor:
    x = torch.full((1, 32), 1 << 19, dtype=torch.int32).view(torch.float32)
    return engine.linear(x, engine.pack_linear(torch.full((16, 32), 0.5, dtype=torch.bfloat16)))


def cancelling_linear(engine: CpuOperators) -> Tensor:
    x, weight = cancelling_product(214, 5, 37, 300, torch.bfloat16)
    return engine.linear(x, engine.pack_linear(weight, wide_rows(215, 1, 37)[0]))


def norms(engine: CpuOperators) -> Tensor:
    x, residual, weight = wide_rows(216, 40, 300, 0), wide_rows(217, 40, 300, 0), wide_rows(218, 1, 300, 1)[0]
    return torch.cat([engine.rms_norm(x, weight, EPS), *engine.add_rms_norm(x, residual, weight, EPS)])


def small_log_sums(engine: CpuOperators) -> Tensor:
    """Few terms near each other: what one exponential loses is not hidden by a large sum."""
    return engine.log_sum_exp(torch.from_numpy(hashed_floats(220, (300, 5), (-4, -2)).copy()))


CASES: dict[str, Callable[[CpuOperators], Tensor]] = {
    "linear": cancelling_linear,
    "subnormal": subnormal_product,
    "norm": norms,
    "attention": decode_attention,
    "gated activation": lambda engine: engine.silu_mul(wide_rows(219, 6, 200, 2)),
    "log-sum-exp": small_log_sums,
}
KERNELS_OF_CASES = (
    "gemm bfloat16", "norm", "rope and store", "attention", "attention fold", "gated activation", "log-sum-exp", "math",
)  # fmt: skip


def math_results(run: Callable[[int, int], None]) -> Tensor:
    """What `math_task` makes of values of every size, some of them subnormal."""
    x = np.concatenate([hashed_floats(230, (MATH_COUNT - 64,), (-30, 7)), np.zeros(64, np.float32)])
    x[-32:] = np.arange(1, 33, dtype=np.uint32).view(np.float32)
    y = np.zeros((7, MATH_COUNT), np.float32)
    words = np.array([x.ctypes.data, y.ctypes.data, MATH_COUNT], np.int64)
    run(words.ctypes.data, 0)
    return torch.from_numpy(y)


def outcomes(pool: EmulatedPool) -> dict[str, Tensor]:
    engine = CpuOperators(pool=pool)
    found = {name: case(engine) for name, case in CASES.items()}
    code = pool.codes[host_addresses()["math"]]
    return found | {"math": math_results(lambda *words: pool.processor.call(code.entry, *words))}


@pytest.fixture(scope="module")
def expected(single) -> dict[str, Tensor]:
    """What this machine's own code gives."""
    found = {name: case(single) for name, case in CASES.items()}
    return found | {"math": math_results(math_on_host().ctypes)}


def differing(found: dict[str, Tensor], expected: dict[str, Tensor]) -> set[str]:
    return {name for name in expected if not same_bits(found[name], expected[name])}


def test_arm_gives_the_golden_digests(codes) -> None:
    pool = emulated(codes)
    assert probe_digests(CpuOperators(pool=pool), DTYPES) == GOLDEN
    addresses = host_addresses()
    unused = {name for name, address in addresses.items() if address not in pool.launched}
    assert unused == {"attention fold", "math"}  # used below


def test_arm_gives_the_host_bits(codes, expected) -> None:
    """Inputs on which each rounding counts, and the kernel that the probes do not reach."""
    pool = emulated(codes)
    assert differing(outcomes(pool), expected) == set()
    assert host_addresses()["attention fold"] in pool.launched


@pytest.mark.parametrize(
    ("change", "noticed"),
    [
        (split_fused, {"linear", "norm", "attention", "gated activation", "log-sum-exp", "math"}),
        (contracted, {"attention", "math"}),
    ],
)
def test_other_roundings_would_be_noticed(modules, expected, change, noticed) -> None:
    """The inverse: the same kernels, fused elsewhere, differ from the host's in these cases."""
    codes = {name: compile_for_arm(change(modules[name])) for name in KERNELS_OF_CASES}
    assert differing(outcomes(emulated(codes)), expected) == noticed


def test_flush_to_zero_would_be_noticed(codes, expected) -> None:
    """The inverse for the control word: the core honours it, and it matters."""
    assert {"subnormal", "math"} <= differing(outcomes(emulated(codes, FLUSH_TO_ZERO)), expected)


CONTROL_MODULE = """
define void @cfunc.control(i64 %words, i64 %index) {
  %place = inttoptr i64 %words to ptr
  %before = call i64 @llvm.aarch64.get.fpcr()
  %wanted = load i64, ptr %place
  call void @llvm.aarch64.set.fpcr(i64 %wanted)
  %after = call i64 @llvm.aarch64.get.fpcr()
  %second = getelementptr i64, ptr %place, i64 1
  store i64 %before, ptr %place
  store i64 %after, ptr %second
  ret void
}
declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)
"""


def test_the_launcher_can_set_the_control_word() -> None:
    """The two intrinsics by which a launch sets the control word on Arm."""
    words = np.array([0, -1], np.int64)
    processor = ArmProcessor(FLUSH_TO_ZERO)
    code = compile_for_arm(CONTROL_MODULE)
    processor.call(code.entry, words.ctypes.data, 0)
    assert words.tolist() == [FLUSH_TO_ZERO, 0]


def test_arm_fuses_and_widens_in_instructions() -> None:
    """The check at start, which refuses hosts that emulate them, would accept any 64-bit Arm."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(TRIPLE).create_target_machine(cpu="generic", features="+neon")
    text = target.emit_assembly(llvm.parse_assembly(FUSED_PROBE))
    assert "fmla" in text and "fcvtl" in text and re.search(r"\bbl\b", text) is None


def test_a_call_of_a_math_library_is_refused() -> None:
    module = """
    define void @cfunc.sine(i64 %words, i64 %index) {
      %place = inttoptr i64 %words to ptr
      %x = load float, ptr %place
      %y = call float @sinf(float %x)
      store float %y, ptr %place
      ret void
    }
    declare float @sinf(float)
    """
    with pytest.raises(RuntimeError, match="sinf"):
        compile_for_arm(module)
