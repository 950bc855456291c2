"""The benchmarks race equal work, and say what they measured. No figure is asserted."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch

from samebits.bench import facts
from samebits.bench.contenders import Samebits, TransformersOneByOne, TransformersPadded, load_transformers
from samebits.bench.facts import commit, machine, spread
from samebits.bench.kernels import shapes
from samebits.bench.offline import (
    PREFILL_TOKENS,
    Workload,
    floor_tokens_per_second,
    open_samebits,
    race,
    step_weights,
    workloads,
)
from samebits.cli import main
from samebits.config import ModelConfig
from samebits.models.load import read_model_files
from samebits.models.weights import expected_shapes

TINY = ModelConfig(model="tiny", load_format="dummy")


def test_contenders_have_equal_weights_and_do_equal_work() -> None:
    rival = load_transformers(TINY)
    workload = Workload("test", (5, 17, 9), 6, False, ())
    prompts = workload.prompts(1280, 0)
    with open_samebits(TINY, 2) as llm:
        ours = Samebits(llm).run(prompts, 6)
    assert ours == TransformersOneByOne(rival).run(prompts, 6) == TransformersPadded(rival).run(prompts, 6)
    # The inverse: other weights, other tokens.
    with torch.no_grad():
        rival.model.embed_tokens.weight.mul_(-1.0)
    assert TransformersOneByOne(rival).run(prompts, 6) != ours


def test_prompts_are_new_at_each_repeat() -> None:
    workload = workloads(4)[1]
    first, second = workload.prompts(1000, 0), workload.prompts(1000, 1)
    assert first == workload.prompts(1000, 0)
    assert [len(ids) for ids in first] == [len(ids) for ids in second] == list(workload.prompt_tokens)
    assert first != second and len(set(workload.prompt_tokens)) == 16


def test_a_race_is_interleaved_and_its_first_round_is_not_counted() -> None:
    calls: list[str] = []

    class Recording:
        def __init__(self, name: str) -> None:
            self.name = name

        def run(self, prompts: object, new_tokens: int) -> list[list[int]]:
            calls.append(self.name)
            return []

    contenders = {"a": Recording("a"), "b": Recording("b")}
    seconds = race(contenders, Workload("test", (1,), 1, False, ()), 10, 3)
    assert "".join(calls) == "baabbaab"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_floors_count_what_a_step_must_read_and_multiply() -> None:
    files = read_model_files(TINY)
    spec = files.spec
    matrices = [shape for shape in expected_shapes(spec, files.family.names).values() if len(shape) == 2]
    assert step_weights(spec) == sum(out * width for out, width in matrices), (
        "tied: the table is the output layer"
    )
    named = shapes(spec)
    per_layer = sum(out * width for name, (out, width) in named.items() if name != "logits")
    assert spec.layers * per_layer + spec.vocabulary * spec.hidden == step_weights(spec)
    decode, _, prefill = workloads(4)
    memory_bound = floor_tokens_per_second(decode, spec, 2, copy=1e6, multiply=1e30)
    assert memory_bound == pytest.approx(1e6 / (2 * step_weights(spec)))
    bound = floor_tokens_per_second(prefill, spec, 2, copy=1.0, multiply=1e12)
    assert bound < 1e12 / (2 * spec.layers * per_layer)
    assert prefill.tokens == PREFILL_TOKENS


def test_facts_say_where_a_figure_comes_from() -> None:
    facts = machine()
    assert facts["device"] and facts["versions"]["torch"] and facts["command"].startswith("samebits")
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "least": 1.0, "most": 3.0}


def test_a_repository_that_the_package_only_lies_in_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the one of a project that has its virtual environment among its files."""
    monkeypatch.delenv("SAMEBITS_COMMIT", raising=False)

    def git(*arguments: str) -> None:
        settings = ("-c", "user.name=n", "-c", "user.email=e")
        subprocess.run(["git", "-C", str(tmp_path), *settings, *arguments], check=True, capture_output=True)

    git("init")
    git("commit", "--allow-empty", "-m", "of another project")
    source = tmp_path / "facts.py"
    source.write_text("")
    monkeypatch.setattr(facts, "__file__", str(source))
    assert commit() == "unknown"
    git("add", "facts.py")
    git("commit", "-m", "of this one")
    assert re.fullmatch("[0-9a-f]{12}", commit())


def test_kernels_command_writes_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "kernels.json"
    arguments = ["--model", "tiny", "--load-format", "dummy", "--repeats", "1", "--output", str(path)]
    assert main(["bench", "kernels", *arguments]) == 0
    assert "torch.mm" in capsys.readouterr().out
    result = json.loads(path.read_text())
    assert {entry["matrix"] for entry in result["products"]} == set(shapes(read_model_files(TINY).spec))
    assert main(["bench", "kernels", *arguments[:-1], "/dev/null/figures.json"]) == 2


def test_offline_command_writes_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "offline.json"
    arguments = ["--model", "tiny", "--load-format", "dummy", "--repeats", "1", "--decode-tokens", "2"]
    assert main(["bench", "offline", *arguments, "--dtype", "float32", "--output", str(path)]) == 0
    [model] = json.loads(path.read_text())["models"]
    assert [row["workload"] for row in model["workloads"]] == [workload.name for workload in workloads(2)]
    rates = (model["copy_bytes_per_second"], model["multiply_flop_per_second"])
    floor = floor_tokens_per_second(workloads(2)[0], read_model_files(TINY).spec, 4, *rates)
    assert model["workloads"][0]["floor_tokens_per_second"] == floor
    assert "of the floor" in capsys.readouterr().out
