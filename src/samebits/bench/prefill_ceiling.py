"""The library alone at a prefill step: its dense products and its attention, one after another and nothing between.

`samebits bench prefill` prints it beside the engine: what takes `torch.mm` and cuDNN's attention for a step's layers is
no faster, for norms, rotation, activation, the KV store, logits and sampling are all left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from samebits.bench.attention_gpu import captured
from samebits.bench.gauge import gauged
from samebits.bench.kernels import layer_products
from samebits.models.spec import ModelSpec

WEIGHT_SETS = 4
"""Layers with weights of their own, taken in turns: a layer finds none of its weights in the cache."""
WARM_SECONDS, TIMED_SECONDS = 0.5, 1.0
"""A card that was idle is faster at first: its clock follows what it draws."""


@dataclass(frozen=True)
class WholePrompts:
    """A step that holds whole prompts of one length."""

    prompts: int
    tokens: int
    """of each prompt"""

    @property
    def rows(self) -> int:
        return self.prompts * self.tokens


Measure = Callable[[ModelSpec, WholePrompts], dict[str, float]]


def shape_of_step(tokens: int, step_tokens: int) -> WholePrompts | None:
    """As many whole prompts as a step holds; None where it does not hold one."""
    return WholePrompts(step_tokens // tokens, tokens) if step_tokens >= tokens else None


@dataclass(frozen=True)
class Step:
    """Random tensors for a step, and the work on them. No result is handed on: all inputs are drawn, normally
    distributed, for numbers that shrink or grow from layer to layer would draw another power."""

    weights: tuple[dict[str, Tensor], ...]
    """[columns, depth] of each product, a dictionary a set"""
    inputs: dict[int, Tensor]
    """[rows, depth] by depth"""
    outputs: dict[int, Tensor]
    """[rows, columns] by columns"""
    queries: Tensor
    """[prompts, heads, tokens, head_dim], as are `keys` and `values` with their heads"""
    keys: Tensor
    values: Tensor
    layers: int
    backend: SDPBackend

    def run(self) -> None:
        """All layers but the last one, and its keys and values: nothing else of it is needed but for each prompt's
        last row."""
        for layer in range(self.layers - 1):
            weights = self.weights[layer % len(self.weights)]
            self._product(weights["qkv"])
            self._attention()
            for name in ("attention output", "gate and up", "down"):
                self._product(weights[name])
        query_width = self.queries.shape[1] * self.queries.shape[3]
        self._product(self.weights[(self.layers - 1) % len(self.weights)]["qkv"][query_width:])

    def _product(self, weight: Tensor) -> None:
        columns, depth = weight.shape
        torch.mm(self.inputs[depth], weight.t(), out=self.outputs[columns])

    def _attention(self) -> None:
        with sdpa_kernel(self.backend):
            scaled_dot_product_attention(
                self.queries, self.keys, self.values, is_causal=True, enable_gqa=True
            )


def step_of(spec: ModelSpec, shape: WholePrompts, device: str, backend: SDPBackend) -> Step:
    """Tensors in the weights' dtype, which is the activations' on a GPU."""

    def random(*size: int) -> Tensor:
        return torch.randn(size, device=device, dtype=getattr(torch, spec.dtype))

    def of_heads(count: int) -> Tensor:
        return random(shape.prompts, count, shape.tokens, heads.head_dim)

    heads, products = spec.heads, layer_products(spec)
    columns = {count for count, _ in products.values()} | {2 * heads.kv_width}
    depths = {depth for _, depth in products.values()}
    return Step(
        weights=tuple(
            {name: random(*size) for name, size in products.items()}
            for _ in range(min(WEIGHT_SETS, spec.layers))
        ),
        inputs={depth: random(shape.rows, depth) for depth in depths},
        outputs={count: random(shape.rows, count) for count in columns},
        queries=of_heads(heads.query_heads),
        keys=of_heads(heads.kv_heads),
        values=of_heads(heads.kv_heads),
        layers=spec.layers,
        backend=backend,
    )


def turns_of(seconds: float) -> tuple[int, int]:
    """How many replays of so many seconds warm up, and how many are timed."""
    return math.ceil(WARM_SECONDS / seconds), math.ceil(TIMED_SECONDS / seconds)


def seconds_of_step(spec: ModelSpec, shape: WholePrompts) -> dict[str, float]:
    """Seconds of a captured step on the GPU under lasting load, with the card's clock and power meanwhile. Raises
    `RuntimeError` where cuDNN has no attention for the shape or memory is short."""
    # The graph keeps none of these tensors alive, so `step` lives until the last replay has ended.
    step = step_of(spec, shape, "cuda", SDPBackend.CUDNN_ATTENTION)
    with torch.cuda.stream(torch.cuda.current_stream()):  # a capture that fails leaves another stream current
        replay = captured(step.run, 1)
    replay()
    begin, first, warm, end = (torch.cuda.Event(enable_timing=True) for _ in range(4))
    begin.record()
    replay()
    first.record()
    first.synchronize()
    warming, timed = turns_of(begin.elapsed_time(first) / 1e3)
    for _ in range(warming):
        replay()
    warm.record()
    for _ in range(timed):
        replay()
    end.record()
    warm.synchronize()  # the timed replays are queued by then: the wait leaves no gap on the card
    with gauged() as readings:
        end.synchronize()
    return {"seconds": warm.elapsed_time(end) / 1e3 / timed, **readings.facts()}


def library_facts(
    spec: ModelSpec,
    tokens: int,
    step_tokens: int,
    say: Callable[[str], None],
    measure: Measure = seconds_of_step,
) -> dict[str, Any]:
    """Of prompts of one length, for a result; nothing, and a word to `say`, where the device cannot."""
    shape = shape_of_step(tokens, step_tokens)
    if shape is None:
        say(
            f"{tokens}: no figure of the library alone, for a step of {step_tokens} tokens holds no whole prompt"
        )
        return {}
    found: dict[str, float] = {}
    try:
        found = measure(spec, shape)
    except RuntimeError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        say(f"{tokens}: no figure of the library alone: {reason}")
    torch.cuda.empty_cache()  # the engines are measured again
    if not found:
        return {}
    return {
        "library tokens per second": shape.rows / found["seconds"],
        "library step": {
            "prompts": shape.prompts,
            "rows": shape.rows,
            "dtype": spec.dtype,
            "whole layers": spec.layers - 1,
            **found,
        },
    }
