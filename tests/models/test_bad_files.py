"""Every way in which a checkpoint can be broken, and the message that names the file or tensor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from samebits.errors import ConfigError, ModelFileError, UnsupportedModelError
from samebits.numerics.cpu.operators import CpuOperators

from .checkpoints import load, make_reference, plain_operators, save

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make_reference("qwen3", head_dim=32), tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    return save(make_reference("qwen3", head_dim=32), folder, max_shard_size="300KB")


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], None], file: str = WEIGHTS) -> None:
    tensors = load_file(folder / file)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, folder / file, metadata={"format": "pt"})


def edit_json(folder: Path, file: str, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads((folder / file).read_text())
    change(values)
    (folder / file).write_text(json.dumps(values))


def refused(folder: Path, *fragments: str, kind: type[Exception] = ModelFileError, **settings: Any) -> None:
    """Loading fails with `kind`, and the message holds all the fragments."""
    with pytest.raises(kind) as caught:
        load(folder, plain_operators(), **settings)
    for fragment in fragments:
        assert fragment in str(caught.value)


@pytest.fixture
def folder(single: Path, tmp_path: Path) -> Path:
    return shutil.copytree(single, tmp_path / "model")


@pytest.fixture
def shards(sharded: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sharded, tmp_path / "model")


def test_the_untouched_copies_load(folder: Path, sharded: Path) -> None:
    load(folder, plain_operators())
    load(sharded, plain_operators())


def test_missing_tensor(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop(QUERY))
    refused(folder, QUERY, "missing")


def test_missing_output_of_an_untied_model(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop("lm_head.weight"))
    refused(folder, "lm_head.weight", "missing", "tied")


def test_extra_tensor(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({"model.layers.7.oddity": torch.zeros(2)}))
    refused(folder, WEIGHTS, "model.layers.7.oddity")


def test_bias_that_the_family_does_not_have(folder: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    edit_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(128)}))
    refused(folder, WEIGHTS, name)


def test_misshaped_tensor(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({QUERY: torch.zeros(128, 127)}))
    refused(folder, QUERY, "[128, 127]", "[128, 128]")


@pytest.mark.parametrize(("dtype", "stored"), [(torch.float64, "F64"), (torch.int8, "I8")])
def test_unreadable_dtype(folder: Path, dtype: torch.dtype, stored: str) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({QUERY: tensors[QUERY].to(dtype)}))
    refused(folder, QUERY, stored)
    refused(folder, QUERY, stored, dtype="float32")


def test_dtype_other_than_the_config_says(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({QUERY: tensors[QUERY].bfloat16()}))
    refused(folder, QUERY, "BF16", "float32", "--dtype float32")
    load(folder, plain_operators(), dtype="float32")


def test_value_too_large_for_the_dtype_asked_for(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors[QUERY].view(-1)[3].fill_(1e6))
    refused(folder, QUERY, "float16", dtype="float16")
    load(folder, plain_operators(), dtype="bfloat16")


def test_truncated_file(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-100])
    refused(folder, WEIGHTS, "truncated")
    (folder / WEIGHTS).write_bytes(data[:50])
    refused(folder, WEIGHTS, "truncated")
    (folder / WEIGHTS).write_bytes(b"")
    refused(folder, WEIGHTS, "truncated")


def test_lfs_pointer(folder: Path) -> None:
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(folder, WEIGHTS, "git lfs pull")


def test_no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    refused(folder, str(folder), WEIGHTS)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickle(folder: Path, name: str) -> None:
    (folder / WEIGHTS).rename(folder / name)
    refused(folder, name, "pickle", "Convert")


def test_several_files_without_index(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "a.safetensors")
    load(folder, plain_operators())
    shutil.copy(folder / "a.safetensors", folder / "b.safetensors")
    refused(folder, "2 safetensors files", INDEX)


def test_index_names_a_missing_shard(shards: Path) -> None:
    gone = sorted(shards.glob("*.safetensors"))[1]
    gone.unlink()
    refused(shards, INDEX, gone.name)


def test_tensor_in_two_shards(shards: Path) -> None:
    weight_map = json.loads((shards / INDEX).read_text())["weight_map"]
    other = next(shard for shard in sorted(set(weight_map.values())) if shard != weight_map[QUERY])
    edit_tensors(shards, lambda tensors: tensors.update({QUERY: torch.zeros(128, 128)}), other)
    refused(shards, QUERY, "two shards", other)


def test_index_places_a_tensor_in_the_wrong_shard(shards: Path) -> None:
    weight_map = json.loads((shards / INDEX).read_text())["weight_map"]
    other = next(shard for shard in sorted(set(weight_map.values())) if shard != weight_map[QUERY])
    edit_json(shards, INDEX, lambda index: index["weight_map"].update({QUERY: other}))
    refused(shards, INDEX, QUERY, other)


def test_index_names_a_tensor_that_is_nowhere(shards: Path) -> None:
    shard = sorted(shards.glob("*.safetensors"))[0].name
    edit_json(shards, INDEX, lambda index: index["weight_map"].update({"model.ghost": shard}))
    refused(shards, INDEX, "model.ghost", shard)


def test_index_leaves_a_tensor_out(shards: Path) -> None:
    edit_json(shards, INDEX, lambda index: index["weight_map"].pop(QUERY))
    refused(shards, QUERY, "not listed", INDEX)


@pytest.mark.parametrize("shard", ["../other.safetensors", "model.bin", 3])
def test_index_with_a_shard_that_is_no_file_here(shards: Path, shard: object) -> None:
    edit_json(shards, INDEX, lambda index: index["weight_map"].update({QUERY: shard}))
    refused(shards, INDEX, QUERY, repr(shard))


def test_index_without_map(shards: Path) -> None:
    (shards / INDEX).write_text("{}")
    refused(shards, INDEX, "weight_map")


def test_index_beside_a_single_file(shards: Path) -> None:
    shutil.copy(sorted(shards.glob("*.safetensors"))[0], shards / WEIGHTS)
    refused(shards, WEIGHTS, INDEX)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("{", "line 1"),
        ('{"a": 1,}', "not valid JSON"),
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": 1e999}', "1e999 is too large"),
        (f'{{"a": {"9" * 5000}}}', "cannot be read"),
        ("[" * 200_000, "cannot be read"),
        ("[1]", "must hold a JSON object"),
        (b"\xff\xfe{}", "UTF-8"),
    ],
)
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_broken_json(folder: Path, file: str, text: str | bytes, fragment: str) -> None:
    (folder / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(folder, file, fragment)


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(folder, "config.json", "does not exist")


def test_unknown_architecture(folder: Path) -> None:
    edit_json(folder, "config.json", lambda config: config.update(architectures=["FlyingForCausalLM"]))
    refused(folder, "architectures", "FlyingForCausalLM", "Qwen3ForCausalLM", kind=UnsupportedModelError)
    edit_json(folder, "config.json", lambda config: config.pop("architectures"))
    refused(folder, "architectures", "None")


def test_ignorable_tensors(folder: Path) -> None:
    """Rotary tables of old checkpoints are passed over, and a tied model may store its head a second time."""

    def change(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(16)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    edit_tensors(folder, change)
    edit_json(folder, "config.json", lambda config: config.update(tie_word_embeddings=True))
    load(folder, plain_operators())
    edit_tensors(folder, lambda tensors: tensors["lm_head.weight"].view(-1)[5].add_(1.0))
    refused(folder, "lm_head.weight", "differs", "tie_word_embeddings")
    eight = torch.float8_e4m3fn
    edit_tensors(
        folder, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"].to(eight)})
    )
    refused(folder, "lm_head.weight", "stored as F8_E4M3")


def test_weights_in_use_survive_the_file(folder: Path) -> None:
    """What is read through the map is copied: overwriting the file in place changes no weight in use."""
    model = load(folder, plain_operators())
    before = model.weights.embedding.clone()
    size = (folder / WEIGHTS).stat().st_size
    with (folder / WEIGHTS).open("r+b") as file:
        file.write(b"\0" * size)
    assert torch.equal(model.weights.embedding.view(torch.int32), before.view(torch.int32))


def test_no_such_model(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no such folder", kind=ConfigError)
    with pytest.raises(ConfigError, match="name the folder"):
        (tmp_path / "file").write_text("")
        load(tmp_path / "file", plain_operators())


def test_shape_that_the_profile_does_not_run(tmp_path: Path) -> None:
    folder = save(make_reference("llama", hidden_size=120, head_dim=24), tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"'exact' cannot run this model.*multiple of 16"):
        load(folder, CpuOperators(threads=1))
    load(folder, plain_operators())
