"""The fingerprint: each ingredient changes it, nothing else does, and two processes agree on it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from samebits.config import EngineConfig, ModelConfig
from samebits.engine.build import parse_default_seed
from samebits.errors import ModelFileError
from samebits.models.load import load_model, make_plan
from samebits.models.weights import STAGE
from samebits.numerics.contract import CONTRACT, constants
from samebits.numerics.cpu.operators import CpuOperators
from samebits.plan import Plan, canonical_json
from samebits.sampling_params import DEFAULT_SEED

from .checkpoints import make_reference, plain_operators, save

PLAN = Plan(
    contract=constants(),
    profile="exact",
    probes={"gemm": "aa", "norm": "bb"},
    model_config={"hidden_size": 128, "rope": {"theta": 10000.0, "kind": "default"}},
    dtype="bfloat16",
    weights={"model.safetensors": "cc"},
    context_length=4096,
    end_tokens=(1, 2),
    sampling_defaults={"temperature": 1.0, "top_k": 0},
    tokenizer={"tokenizer.json": "dd"},
)
CHANGES: dict[str, dict[str, Any]] = {
    "contract version": {"contract": {**constants(), "version": CONTRACT.version + 1}},
    "contract constant": {"contract": {**constants(), "split_tokens": 512}},
    "profile": {"profile": "torch"},
    "probe": {"probes": {"gemm": "ab", "norm": "bb"}},
    "probes swapped": {"probes": {"gemm": "bb", "norm": "aa"}},
    "model config": {"model_config": {"hidden_size": 256, "rope": {"theta": 10000.0, "kind": "default"}}},
    "nested model config": {
        "model_config": {"hidden_size": 128, "rope": {"theta": 10001.0, "kind": "default"}}
    },
    "dtype": {"dtype": "float32"},
    "weights": {"weights": {"model.safetensors": "cd"}},
    "context length": {"context_length": 2048},
    "end tokens": {"end_tokens": (1,)},
    "sampling defaults": {"sampling_defaults": {"temperature": 0.5, "top_k": 0}},
    "tokenizer": {"tokenizer": {"tokenizer.json": "de"}},
    "chat template": {"tokenizer": {"tokenizer.json": "dd", "chat_template.jinja": "ee"}},
    "grammar": {"grammar": "1.0"},
    "tensor parallel": {"tensor_parallel": 2},
}


def test_each_ingredient_changes_the_fingerprint() -> None:
    seen = {PLAN.fingerprint: "the plan itself"}
    for name, change in CHANGES.items():
        fingerprint = replace(PLAN, **change).fingerprint
        assert fingerprint not in seen, f"{name} gives the fingerprint of {seen[fingerprint]}"
        seen[fingerprint] = name


def test_every_field_is_an_ingredient() -> None:
    changed = {name for change in CHANGES.values() for name in change}
    assert changed == {entry.name for entry in fields(Plan) if entry.init}


def test_equal_plans_have_equal_fingerprints_whatever_the_order_of_keys() -> None:
    shuffled = replace(
        PLAN,
        contract=dict(reversed(list(constants().items()))),
        probes={"norm": "bb", "gemm": "aa"},
        model_config={"rope": {"kind": "default", "theta": 10000.0}, "hidden_size": 128},
    )
    assert shuffled.fingerprint == PLAN.fingerprint


def test_degree_is_no_ingredient_under_tp_invariant() -> None:
    one = replace(PLAN, profile="tp-invariant")
    assert replace(one, tensor_parallel=4).fingerprint == one.fingerprint
    assert "tensor_parallel" not in one.parts()


def test_nothing_of_the_engines_settings_is_an_ingredient() -> None:
    ingredients = {entry.name for entry in fields(Plan)}
    assert not ingredients & {entry.name for entry in fields(EngineConfig)}


def test_fingerprint_is_short_and_readable() -> None:
    assert re.fullmatch(r"sb1-[0-9a-f]{24}", PLAN.fingerprint)


def test_parts_are_text_for_people() -> None:
    parts = PLAN.parts()
    assert parts["fingerprint"] == PLAN.fingerprint
    assert parts["profile"] == "exact"
    assert parts["context_length"] == "4096"
    assert all(isinstance(value, str) and len(value) <= 160 for value in parts.values())


def test_numbers_that_json_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"value": float("nan")})


# With files


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save(make_reference("qwen3", head_dim=32), tmp_path_factory.mktemp("plan"))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "model")


def fingerprint(folder: Path, **settings: Any) -> str:
    operators = plain_operators()
    config = ModelConfig(model=str(folder), **settings)
    model = load_model(config, operators, cache=folder.parent / "cache")
    return make_plan(model, operators, parse_default_seed(config.default_seed)).fingerprint


def test_the_folders_place_does_not_matter_but_the_settings_of_the_model_do(
    original: Path, folder: Path
) -> None:
    base = fingerprint(folder)
    assert fingerprint(original) == base
    different = [
        # A request that names no seed is answered with another one.
        fingerprint(folder, default_seed="random"),
        fingerprint(folder, default_seed="43"),
        fingerprint(folder, dtype="bfloat16"),
        fingerprint(folder, context_length=256),
        fingerprint(folder, load_format="dummy"),
        fingerprint(folder, load_format="dummy", dummy_seed=1),
    ]
    assert len({base, *different}) == 1 + len(different)


def test_profile_and_probes_are_those_of_the_operators(folder: Path) -> None:
    operators = CpuOperators(threads=1)
    model = load_model(ModelConfig(model=str(folder)), operators, cache=folder.parent / "cache")
    plan = make_plan(model, operators, DEFAULT_SEED)
    assert plan.profile == "exact"
    assert plan.probes == operators.probe_digests([torch.float32])
    assert plan.probes
    assert plan.fingerprint != fingerprint(folder)


def change_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 2
    save_file(tensors, folder / "model.safetensors")


def change_config(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))


FILE_CHANGES: dict[str, Callable[[Path], object]] = {
    "weight": change_weight,
    "config": lambda folder: change_config(folder, rms_norm_eps=1e-5),
    "tokenizer": lambda folder: (folder / "tokenizer.json").write_text('{"version": "2.0"}'),
    "chat template": lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}"),
    "sampling": lambda folder: (folder / "generation_config.json").write_text('{"temperature": 0.5}'),
    "end token": lambda folder: (folder / "generation_config.json").write_text('{"eos_token_id": 5}'),
}


@pytest.mark.parametrize("change", FILE_CHANGES)
def test_each_file_changes_the_fingerprint(folder: Path, change: str) -> None:
    before = fingerprint(folder)
    FILE_CHANGES[change](folder)
    assert fingerprint(folder) != before


def test_weights_that_are_replaced_while_they_are_loaded_are_refused(folder: Path) -> None:
    """Else the fingerprint would be of the old ones, and the model of both."""

    def replace_shard(stage: str, done: int, total: int) -> None:
        if (stage, done) == (STAGE, 2):
            change_weight(folder)

    config, operators = ModelConfig(model=str(folder)), plain_operators()
    with pytest.raises(ModelFileError, match="was replaced while the model was loaded"):
        load_model(config, operators, replace_shard, cache=folder.parent / "cache")
    load_model(config, operators, cache=folder.parent / "cache")


def test_order_of_keys_and_other_files_do_not_matter(folder: Path) -> None:
    before = fingerprint(folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(dict(reversed(list(values.items()))), indent=7))
    (folder / "README.md").write_text("a model card")
    assert fingerprint(folder) == before


def test_sampling_defaults_none_leaves_the_file_out(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"temperature": 0.5, "eos_token_id": 2}')
    first = fingerprint(folder, sampling_defaults="none")
    (folder / "generation_config.json").write_text('{"temperature": 0.7, "eos_token_id": 2}')
    assert fingerprint(folder, sampling_defaults="none") == first
    assert fingerprint(folder) != first


def test_two_processes_agree(folder: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "import torch\n"
        "from samebits.numerics.torch_profile.operators import torch_operators\n"
        "from samebits.config import ModelConfig\n"
        "from samebits.models.load import load_model, make_plan\n"
        "operators, folder = torch_operators(torch.device('cpu'), torch.float32), Path(sys.argv[1])\n"
        "model = load_model(ModelConfig(model=str(folder)), operators, cache=folder.parent / 'other cache')\n"
        "print(make_plan(model, operators, 42).fingerprint)"
    )
    there = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "77"},
    ).stdout.strip()
    assert there == fingerprint(folder)
