"""A checkpoint folder: its JSON files and its safetensors shards, memory-mapped and checked before use.

Every problem is a `ModelFileError` that names the file or tensor.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from samebits.errors import ModelFileError

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
STORED_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
LFS_POINTER = b"version https://git-lfs"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises `ModelFileError` when it is missing, broken, or holds a name twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ModelFileError(f"{path}: the name {twice!r} stands twice in one object")
        return values

    def refuse_constant(name: str) -> None:
        raise ModelFileError(f"{path}: {name} is not a JSON value")

    def finite(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise ModelFileError(f"{path}: the number {digits[:40]} is too large")
        return value

    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(
            text, object_pairs_hook=unique, parse_constant=refuse_constant, parse_float=finite
        )
    except FileNotFoundError as error:
        holds = "a checkpoint is a folder with config.json, tokenizer.json and *.safetensors"
        raise ModelFileError(f"{path} does not exist; {holds}") from error
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ModelFileError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, brackets as deep
        raise ModelFileError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ModelFileError(f"{path} must hold a JSON object, not a {type(values).__name__}")
    return values


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor."""
    return tensor


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies, and what it is."""

    shard: Path
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    """None for a type that Samebits does not read; `stored_type` names it"""
    stored_type: str


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a folder. Nothing is read before `read` asks for it."""

    folder: Path
    shards: tuple[Path, ...]
    """in ascending order of name"""
    tensors: Mapping[str, StoredTensor]

    def read(
        self, name: str, device: torch.device | str = "cpu", take: Callable[[Tensor], Tensor] = whole
    ) -> Tensor:
        """A copy of what `take` takes of the tensor, in its stored type, through the memory map and straight to
        `device`: what the file becomes afterwards cannot change a weight that is in use, and what is not taken is
        not read."""
        stored = self.tensors[name]
        try:
            with safe_open(stored.shard, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
                return take(tensor).to(device, copy=True)
        except (SafetensorError, OSError) as error:
            raise ModelFileError(f"{stored.shard}: cannot read tensor {name!r}: {error}") from error


def open_checkpoint(folder: Path) -> Checkpoint:
    """List the tensors of a folder's shards. Raises `ModelFileError` for pickles, missing, broken or truncated
    shards, tensors in two shards, and an index that does not say what the shards hold."""
    index_path = folder / INDEX_FILE
    index = _read_index(index_path) if index_path.is_file() else None
    shards = _find_shards(folder, index)
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        for name, stored in _list_tensors(shard).items():
            if name in tensors:
                raise ModelFileError(
                    f"tensor {name!r} stands in two shards: {tensors[name].shard.name} and {shard}"
                )
            tensors[name] = stored
    if index is not None:
        _check_index(index_path, index, tensors)
    return Checkpoint(folder, shards, tensors)


def _read_index(path: Path) -> dict[str, str]:
    """Tensor name -> shard name."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{path}: 'weight_map' must be an object that names a shard for each tensor")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ModelFileError(
                f"{path}: tensor {name!r} has {shard!r} for a shard, not a .safetensors file"
            )
    return weight_map


def _find_shards(folder: Path, index: Mapping[str, str] | None) -> tuple[Path, ...]:
    present = {path.name for path in folder.glob("*.safetensors")}
    if index is not None:
        missing = sorted(set(index.values()) - present)
        if missing:
            raise ModelFileError(f"{folder / INDEX_FILE} names the shard {missing[0]}, which is not there")
        if SINGLE_FILE in present - set(index.values()):
            raise ModelFileError(f"{folder} holds both {SINGLE_FILE} and {INDEX_FILE}; remove the stale one")
        return tuple(folder / name for name in sorted(set(index.values())))
    if SINGLE_FILE in present:
        return (folder / SINGLE_FILE,)
    if len(present) == 1:
        return (folder / present.pop(),)
    if present:
        raise ModelFileError(f"{folder} holds {len(present)} safetensors files and no {INDEX_FILE}")
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise ModelFileError(
            f"{folder / pickles[0]} is a pickle, which can run code when it is read; Samebits reads safetensors "
            "only. Convert it: load it with transformers and call save_pretrained(folder)"
        )
    raise ModelFileError(f"{folder} holds no {SINGLE_FILE} and no {INDEX_FILE}")


def _list_tensors(shard: Path) -> dict[str, StoredTensor]:
    try:
        with shard.open("rb") as file:
            start = file.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            raise ModelFileError(f"{shard} is a Git LFS pointer, not the weights: run 'git lfs pull' there")
        with safe_open(shard, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return {name: _stored(shard, entry) for name, entry in slices.items()}
    except SafetensorError as error:
        raise ModelFileError(
            f"{shard} is not a whole safetensors file (truncated or damaged): {error}"
        ) from error
    except OSError as error:
        raise ModelFileError(f"cannot read {shard}: {error.strerror or error}") from error


def _stored(shard: Path, entry: Any) -> StoredTensor:
    kind = str(entry.get_dtype())
    return StoredTensor(shard, tuple(entry.get_shape()), STORED_DTYPES.get(kind), kind)


def _check_index(path: Path, index: Mapping[str, str], tensors: Mapping[str, StoredTensor]) -> None:
    for name, shard in index.items():
        if name not in tensors:
            raise ModelFileError(f"{path} places tensor {name!r} in {shard}, which does not hold it")
        if tensors[name].shard.name != shard:
            raise ModelFileError(
                f"{path} places tensor {name!r} in {shard}, but it stands in {tensors[name].shard.name}"
            )
    unlisted = sorted(set(tensors) - set(index))
    if unlisted:
        raise ModelFileError(
            f"{tensors[unlisted[0]].shard}: tensor {unlisted[0]!r} is not listed in {path.name}"
        )
