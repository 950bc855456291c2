"""The operators together, as the engine calls them: a small decoder, in one go, in chunks, and as a decode step."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from samebits.config import ModelConfig
from samebits.models import decoder
from samebits.models.load import LoadedModel, load_model
from samebits.numerics.batch import RaggedBatch
from samebits.numerics.cpu.operators import CpuOperators
from samebits.numerics.gpu.buckets import bucket_of
from samebits.numerics.gpu.operators import GpuOperators
from samebits.numerics.gpu.products import ProvenProducts
from samebits.numerics.operators import KvLayer, Operators

PAGE_TOKENS = 64
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "dtype": "float32",
    "eos_token_id": 1,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 1 if os.environ.get("TRITON_INTERPRET") == "1" else 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 160,
}
BOUND = 2e-3
"""Between logits here and on the CPU, in float32: other orders, other exponentials."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


def loaded(folder: Path, operators: Operators) -> LoadedModel:
    return load_model(ModelConfig(model=str(folder), load_format="dummy"), operators)


def batch_of(chunks: list[tuple[int, list[int]]], device: torch.device) -> tuple[RaggedBatch, RaggedBatch]:
    """(on the device with padding rows, on the host without) one request a chunk; request b owns page b, and page
    len(chunks) is the padding's."""
    rows = sum(len(ids) for _, ids in chunks)
    padded = bucket_of(rows)
    positions = [position for start, ids in chunks for position in range(start, start + len(ids))]
    pages = [page for page, (_, ids) in enumerate(chunks) for _ in ids]
    starts = torch.tensor([0, *(len(ids) for _, ids in chunks)], dtype=torch.int32).cumsum(
        0, dtype=torch.int32
    )
    padding = [len(chunks) * PAGE_TOKENS] * (padded - rows)
    slots = [page * PAGE_TOKENS + position for page, position in zip(pages, positions, strict=True)]
    host = RaggedBatch(
        token_ids=torch.tensor([token for _, ids in chunks for token in ids]),
        positions=torch.tensor(positions),
        slots=torch.tensor(slots),
        query_start=starts,
        page_table=torch.arange(len(chunks), dtype=torch.int32)[:, None].contiguous(),
        page_tokens=PAGE_TOKENS,
        row_faults=torch.zeros(rows, dtype=torch.uint8),
    )
    zeros = torch.zeros(padded - rows, dtype=torch.int64)
    device_batch = replace(
        host,
        token_ids=torch.cat((host.token_ids, zeros)).to(device),
        positions=torch.cat((host.positions, zeros)).to(device),
        slots=torch.tensor(slots + padding).to(device),
        query_start=starts.to(device),
        page_table=host.page_table.to(device),
        row_faults=torch.zeros(padded, dtype=torch.uint8, device=device),
    )
    return device_batch, host


def hidden_of(
    model: LoadedModel,
    operators: Operators,
    chunks: list[tuple[int, list[int]]],
    kv: tuple[KvLayer, ...],
    captured: bool = False,
    planned: list[int] | None = None,
    wanted: list[int] | None = None,
) -> Tensor:
    """Hidden states of the real rows, or of the wanted ones; `captured` plans as a captured decode step does, `planned`
    are the rows that a plan takes for wanted."""
    batch, host = batch_of(chunks, operators.device)
    if planned is not None:
        host = replace(host, wanted=torch.tensor(planned))
    batch = operators.share_out(batch, None if captured else host)
    if wanted is not None:
        batch = replace(batch, wanted=torch.tensor(wanted, device=operators.device))
    hidden = decoder.forward(model.spec, model.weights, operators, batch, kv, model.rope)
    assert not batch.row_faults[: host.rows].any()
    return hidden[: host.rows] if wanted is None else hidden


PROMPTS = [[5, 9, 77, 3, 8], [100, 2, 31, 4, 55]]


def check_decoder_agrees_with_the_cpu_and_with_itself(folder: Path, device: torch.device) -> None:
    operators = GpuOperators(device, torch.float32, 256, ProvenProducts(device))
    model = loaded(folder, operators)

    def storage() -> tuple[KvLayer, ...]:
        return operators.allocate_kv(model.spec.layers, 3, PAGE_TOKENS, model.spec.heads)

    whole = hidden_of(model, operators, [(0, prompt) for prompt in PROMPTS], storage())
    kv = storage()
    first = hidden_of(model, operators, [(0, prompt[:4]) for prompt in PROMPTS], kv)
    last = hidden_of(model, operators, [(4, prompt[4:]) for prompt in PROMPTS], kv, captured=True)
    pieces = torch.cat([torch.cat((first[4 * i : 4 * i + 4], last[i : i + 1])) for i in range(2)])
    assert torch.equal(pieces.view(torch.int32), whole.view(torch.int32))

    cpu = CpuOperators(threads=1)
    reference = loaded(folder, cpu)
    _, host = batch_of([(0, prompt) for prompt in PROMPTS], torch.device("cpu"))
    kv = cpu.allocate_kv(reference.spec.layers, 3, PAGE_TOKENS, reference.spec.heads)
    expected = decoder.forward(reference.spec, reference.weights, cpu, host, kv, reference.rope)
    assert (whole.cpu() - expected).abs().max() < BOUND * expected.abs().max()
    # The inverse: another token changes what the rows behind it give.
    changed = [[5, 9, 78, 3, 8], PROMPTS[1]]
    other = hidden_of(model, operators, [(0, prompt) for prompt in changed], storage())
    assert not torch.equal(other[4].view(torch.int32), whole[4].view(torch.int32))
    assert torch.equal(other[5:].view(torch.int32), whole[5:].view(torch.int32))


def check_the_last_layer_computes_what_is_wanted(
    folder: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that nobody wants hold no numbers after the last attention; wanted ones have their bits all the same."""
    operators = GpuOperators(device, torch.float32, 256, ProvenProducts(device))
    model = loaded(folder, operators)
    chunks = [(0, list(range(1, 41))), (0, list(range(50, 61)))]
    wanted = [39, 3, 50, 0]

    def hidden(planned: list[int] | None, wanted: list[int] | None) -> Tensor:
        kv = operators.allocate_kv(model.spec.layers, 3, PAGE_TOKENS, model.spec.heads)
        return hidden_of(model, operators, chunks, kv, planned=planned, wanted=wanted)

    whole = hidden(None, None)[wanted]
    monkeypatch.setattr(torch, "empty_like", lambda like: torch.full_like(like, float("nan")))
    some = hidden(wanted, wanted)
    assert torch.equal(some.view(torch.int32), whole.view(torch.int32))
    # The inverse: the tile of row 39 is left out where a plan does not know of it.
    missing = hidden(wanted[1:], wanted)
    assert missing[0].isnan().all()
    assert torch.equal(missing[1:].view(torch.int32), whole[1:].view(torch.int32))
