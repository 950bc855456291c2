"""Write a trained state as an ordinary Hugging Face checkpoint: bfloat16, sharded."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from training.model import SHAPES
from training.tokenizer import write_json

SHARD_LIMIT = 15 * 1024 * 1024 - 64 * 1024
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def shards(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Cut the tensors, in their order, into shards below the limit."""
    groups: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size + tensor.nbytes > SHARD_LIMIT:
            groups.append({})
            size = 0
        groups[-1][name] = tensor
        size += tensor.nbytes
    return groups


def export(state: Path, model: str, tokenizer: Path, out: Path) -> None:
    """Write the whole checkpoint folder."""
    out.mkdir(parents=True, exist_ok=True)
    loaded = torch.load(state, map_location="cpu")["model"]
    tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in loaded.items()}
    groups = shards(tensors)
    if len(groups) == 1:
        save_file(groups[0], out / "model.safetensors", metadata={"format": "pt"})
    else:
        places = {}
        for index, group in enumerate(groups, 1):
            file = f"model-{index:05d}-of-{len(groups):05d}.safetensors"
            save_file(group, out / file, metadata={"format": "pt"})
            places.update(dict.fromkeys(group, file))
        total = sum(tensor.nbytes for tensor in tensors.values())
        index_file = {"metadata": {"total_size": total}, "weight_map": places}
        write_json(out / "model.safetensors.index.json", index_file)
    for shard in out.glob("*.safetensors"):
        shard.chmod(0o644)
    settings(model, tokenizer, out)


def settings(model: str, tokenizer: Path, out: Path) -> None:
    """Write everything but the weights."""
    shape = SHAPES[model]
    config = shape.config()
    write_json(out / "config.json", config)
    ends = [config["eos_token_id"], config["pad_token_id"]]
    generation = {
        "do_sample": True,
        "eos_token_id": ends,
        "pad_token_id": config["pad_token_id"],
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.95,
    }
    write_json(out / "generation_config.json", generation)
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, out / name)


def main() -> None:
    """Export one model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(SHAPES))
    parser.add_argument("--state", type=Path, required=True, help="state.pt of the training run")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    export(args.state, args.model, args.tokenizer, args.out)


if __name__ == "__main__":
    main()
