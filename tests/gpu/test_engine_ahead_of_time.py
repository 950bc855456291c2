"""Every kernel that a start and a step of the engine launch is described as its compiler wants it, and compiles for
sm_90.

The calls are made for real, on CPU tensors; instead of running, each says which binary it wants. So operators whose
parts were changed apart from each other fail here, and not on a GPU.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
import torch

pytest.importorskip("triton")

from samebits.config import ModelConfig
from samebits.engine.device.inputs import InputSizes, StepInputs, StepShape, ragged
from samebits.engine.device.place import Place
from samebits.engine.device.sampling import plain_constants, sample_plain
from samebits.models import decoder
from samebits.models.load import load_model, read_model_files
from samebits.numerics.gpu import (
    activation,
    attention,
    attention_prefill,
    configuration,
    gated_operator,
    gemm_candidates,
    gemm_operator,
    rough_silu,
)
from samebits.numerics.gpu.buckets import BUCKETS
from samebits.numerics.gpu.foreseen import ModelSizes, foreseen_sources
from samebits.numerics.gpu.gated_operator import GatedOperator, GatedProblem
from samebits.numerics.gpu.gemm_operator import GemmOperator
from samebits.numerics.gpu.gemm_problem import GemmProblem
from samebits.numerics.gpu.launch import TARGETS, KernelSource
from samebits.numerics.gpu.operators import GpuOperators
from samebits.numerics.gpu.products import ProvenProducts
from samebits.numerics.operators import HeadLayout
from samebits.numerics.probe_sampling import VOCABULARY, probe_batch

CPU = torch.device("cpu")
LOADERS = (attention, attention_prefill, configuration, gated_operator, gemm_candidates, gemm_operator)
"""Modules that load binaries."""


@dataclass
class Recorder:
    """Stands for every binary; keeps what was asked for."""

    sources: dict[KernelSource, None] = field(default_factory=dict)
    digest: str = "recorded"

    def __call__(self, source: KernelSource) -> Recorder:
        self.sources[source] = None
        return self

    def launch(self, grid: tuple[int, int, int], *arguments: object) -> None:
        """Nothing runs."""


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    recorder = Recorder()
    for module in LOADERS:
        monkeypatch.setattr(module, "load", recorder)
    for module in (attention, gated_operator, gemm_operator):
        monkeypatch.setattr(module, "target_name", lambda: "sm_90")
    for module in (configuration, gated_operator):
        monkeypatch.setattr(module, "dependent_launches", lambda: True)
    yield recorder


def check_described(source: KernelSource) -> None:
    """The same number of parameters on both sides, and no constant in a run-time argument's place."""
    names = source.function.arg_names
    assert len(names) == len(source.arguments) + len(source.constants), (
        f"{source.name} has the parameters {names}; described are {source.arguments} and {source.constants}"
    )
    if "DEPENDENT" in names:
        assert source.constants[names[len(source.arguments) :].index("DEPENDENT")] == source.dependent


def run_steps(operators: GpuOperators) -> None:
    """A prefill, a decode step as it is captured, plain sampling with and without logprobs, and every other wish."""
    model = load_model(ModelConfig(model="tiny", load_format="dummy", context_length=256), operators)
    kv = operators.allocate_kv(model.spec.layers, 9, 64, model.spec.heads)
    place = Place(CPU)
    inputs = StepInputs(place, InputSizes(64, 8, 8, 4, 64, 8))
    for shape, counts in ((StepShape(32, 2, 2), [20, 5]), (StepShape(2, 2, 2), None)):
        values = inputs.on_device(shape)
        batch = ragged(values, torch.zeros(shape.rows, dtype=torch.int64), 64)
        host = None
        if counts is not None:
            starts = torch.tensor([0, counts[0], sum(counts)], dtype=torch.int32)
            positions = torch.cat([torch.arange(count) for count in counts])
            values.query_start.copy_(starts)
            host = ragged(values, torch.zeros(sum(counts), dtype=torch.int64), 64)
            host = type(host)(**{**vars(host), "positions": positions, "query_start": starts})
        batch = operators.share_out(batch, host)
        hidden = decoder.forward(model.spec, model.weights, operators, batch, kv, model.rope)
        logits = decoder.logits(model.spec, model.weights, operators, hidden[:2].contiguous())
        for with_logprobs in (False, True):
            constants = plain_constants(CPU, 8)
            sample_plain(operators, constants, values, logits, inputs.kept_tokens, with_logprobs)
    wishes = probe_batch(CPU)
    logits = torch.zeros(wishes.rows, VOCABULARY)
    operators.sample(logits, wishes, want_processed=True)
    operators.top_tokens(logits, 20)


def test_every_launch_is_described_and_compiles(recorder: Recorder) -> None:
    for promises in (True, False):
        run_steps(GpuOperators(CPU, torch.bfloat16, 256, ProvenProducts(CPU), promises))
    assert len(recorder.sources) > 15
    for source in recorder.sources:
        check_described(source)
        source.compile(TARGETS["sm_90"])


def test_every_candidate_of_an_8b_model_is_described(recorder: Recorder) -> None:
    products = [
        GemmProblem(columns, depth, torch.bfloat16, out)
        for columns, depth, out in (
            (6144, 4096, torch.bfloat16),
            (4096, 4096, torch.bfloat16),
            (24576, 4096, torch.bfloat16),
            (4096, 12288, torch.bfloat16),
            (151936, 4096, torch.float32),
        )
    ]
    gemm = GemmOperator(CPU)
    sources = {source for problem in products for source in gemm.sources(problem, BUCKETS)}
    gated = GatedOperator(CPU, lambda problem, bucket: gemm_operator.reference_candidate(problem))
    sources |= set(gated.sources(GatedProblem(12288, 4096, torch.bfloat16), BUCKETS))
    assert len(sources) > 20
    assert {source.name for source in sources} >= {"panel_gemm", "ahead_gemm", "descriptor_gemm"}
    for source in sources:
        check_described(source)


def test_what_a_start_launches_was_foreseen(recorder: Recorder) -> None:
    """But for the references of products, whose shapes are known once the weights are loaded."""
    operators = GpuOperators(CPU, torch.bfloat16, 256, ProvenProducts(CPU))
    operators.probe_digests([torch.bfloat16])
    run_steps(operators)
    launched = {source for source in recorder.sources if source.name != "chain_gemm"}
    recorder.sources.clear()
    spec = read_model_files(ModelConfig(model="tiny", load_format="dummy")).spec
    sizes = ModelSizes(
        spec.heads, spec.hidden, spec.intermediate, spec.vocabulary, spec.qk_norm, spec.rope.rotary_dim, 64
    )
    foreseen = foreseen_sources(sizes, torch.bfloat16, 256, 1)
    assert not recorder.sources  # nothing was launched
    assert launched <= set(foreseen)
    other = foreseen_sources(replace(sizes, hidden=256), torch.bfloat16, 256, 1)
    assert not launched <= set(other)


def test_what_proves_estimates_was_foreseen(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    rough_silu.estimate_errors(CPU)
    monkeypatch.setattr(rough_silu, "estimates_are_near", lambda device: True)
    activation._estimates_proven.__wrapped__(CPU)  # nothing runs, so its answer says nothing
    launched = set(recorder.sources)
    assert len(launched) == 3
    sizes = ModelSizes(HeadLayout(8, 2, 64), 512, 1024, 5000, True, 64, 64)
    for serve in (True, False):
        monkeypatch.setattr(activation, "estimates_may_serve", lambda dtype, serve=serve: serve)
        assert (launched <= set(foreseen_sources(sizes, torch.bfloat16, 256, 1))) == serve


def test_a_parameter_too_many_is_seen(recorder: Recorder) -> None:
    """The inverse: the description of a kernel that gained a parameter."""
    run_steps(GpuOperators(CPU, torch.bfloat16, 256, ProvenProducts(CPU)))
    source = next(iter(recorder.sources))
    fewer = KernelSource(source.function, source.arguments, source.constants[:-1])
    with pytest.raises(AssertionError, match="has the parameters"):
        check_described(fewer)


def test_an_engine_on_a_gpu_does_without_the_cpus_compiler() -> None:
    """numba takes a part of every start."""
    modules = "samebits.engine.build, samebits.engine.device.build, samebits.numerics.gpu.operators"
    code = f"import sys, {modules}; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "triton"} <= set(found.stdout.split())
    assert set(found.stdout.split()).isdisjoint({"numba", "llvmlite", "transformers"})
