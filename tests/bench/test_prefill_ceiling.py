"""What `samebits bench prefill` prints of the library alone: its work, counted, and its words where a device cannot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.utils.flop_counter import FlopCounterMode

from samebits.bench.kernels import layer_products
from samebits.bench.prefill_ceiling import (
    TIMED_SECONDS,
    WARM_SECONDS,
    WEIGHT_SETS,
    WholePrompts,
    library_facts,
    shape_of_step,
    step_of,
    turns_of,
)
from samebits.config import ModelConfig
from samebits.models.load import read_model_files
from samebits.models.spec import ModelSpec
from samebits.models.weights import expected_shapes


def spec_of(model: str, **changes: Any) -> ModelSpec:
    return replace(read_model_files(ModelConfig(model=model, load_format="dummy")).spec, **changes)


def test_a_layers_products_are_those_of_its_weights() -> None:
    assert layer_products(spec_of("qwen3-8b-shaped")) == {
        "qkv": (6144, 4096),
        "attention output": (4096, 4096),
        "gate and up": (24576, 4096),
        "down": (4096, 12288),
    }
    files = read_model_files(ModelConfig(model="tiny", load_format="dummy"))
    shapes = expected_shapes(files.spec, files.family.names)
    of_layers = sum(
        shape[0] * shape[1] for name, shape in shapes.items() if len(shape) == 2 and ".layers." in name
    )
    products = layer_products(files.spec).values()
    assert files.spec.layers * sum(columns * depth for columns, depth in products) == of_layers


def test_a_step_holds_whole_prompts() -> None:
    found = [shape_of_step(tokens, step) for tokens, step in ((1024, 8448), (2048, 8448), (2048, 16896))]
    assert found == [WholePrompts(8, 1024), WholePrompts(4, 2048), WholePrompts(8, 2048)]
    assert [shape.rows for shape in found if shape] == [8192, 8192, 16384]
    assert shape_of_step(2048, 2048) == WholePrompts(1, 2048)
    assert shape_of_step(2048, 2047) is None


@pytest.mark.parametrize("layers", [1, 3, WEIGHT_SETS + 2])
def test_a_steps_work_is_all_layers_but_the_last_and_its_keys_and_values(layers: int) -> None:
    spec, shape = spec_of("tiny", layers=layers), WholePrompts(2, 16)
    heads = spec.heads
    step = step_of(spec, shape, "cpu", SDPBackend.MATH)
    assert len(step.weights) == min(layers, WEIGHT_SETS)
    assert {weight.dtype for weights in step.weights for weight in weights.values()} == {torch.bfloat16}
    with FlopCounterMode(display=False) as counted:
        step.run()
    products = sum(columns * depth for columns, depth in layer_products(spec).values())
    # This backend computes what the causal mask hides, too.
    attention = 4 * shape.prompts * shape.tokens**2 * heads.query_width
    last = 2 * shape.rows * 2 * heads.kv_width * spec.hidden
    assert counted.get_total_flops() == (layers - 1) * (2 * shape.rows * products + attention) + last


def test_a_steps_products_are_of_its_own_tensors() -> None:
    spec, shape = spec_of("tiny", layers=2), WholePrompts(2, 16)
    step = step_of(spec, shape, "cpu", SDPBackend.MATH)
    step.run()
    gate_up = step.weights[0]["gate and up"]
    inputs = step.inputs[spec.hidden]
    assert torch.equal(step.outputs[2 * spec.intermediate], torch.mm(inputs, gate_up.t()))
    keys_and_values = step.weights[1]["qkv"][spec.heads.query_width :]
    assert torch.equal(step.outputs[2 * spec.heads.kv_width], torch.mm(inputs, keys_and_values.t()))


def test_load_lasts_for_short_steps_and_for_long_ones() -> None:
    for seconds in (1e-4, 0.19, 3.0):
        warming, timed = turns_of(seconds)
        assert WARM_SECONDS <= warming * seconds < WARM_SECONDS + seconds
        assert TIMED_SECONDS <= timed * seconds < TIMED_SECONDS + seconds


def test_the_rate_is_of_the_rows_that_were_computed() -> None:
    said: list[str] = []
    spec = spec_of("qwen3-8b-shaped")

    def measure(given: ModelSpec, shape: WholePrompts) -> dict[str, float]:
        assert (given, shape) == (spec, WholePrompts(4, 2048))
        return {"seconds": 0.128, "median MHz": 1440.0}

    assert library_facts(spec, 2048, 8448, said.append, measure) == {
        "library tokens per second": 8192 / 0.128,
        "library step": {
            "prompts": 4,
            "rows": 8192,
            "dtype": "bfloat16",
            "whole layers": 35,
            "seconds": 0.128,
            "median MHz": 1440.0,
        },
    }
    assert not said


def test_a_device_that_cannot_is_said_to_and_fails_nothing() -> None:
    said: list[str] = []

    def measure(spec: ModelSpec, shape: WholePrompts) -> dict[str, float]:
        raise RuntimeError("No available kernel. Aborting execution.\nand more")

    spec = spec_of("tiny")
    assert library_facts(spec, 1024, 8448, said.append, measure) == {}
    assert library_facts(spec, 1024, 1000, said.append, measure) == {}
    assert said == [
        "1024: no figure of the library alone: No available kernel. Aborting execution.",
        "1024: no figure of the library alone, for a step of 1000 tokens holds no whole prompt",
    ]
