"""A captured chain of kernels that are set up before the one ahead has ended reads nothing stale (trap 10)."""

from __future__ import annotations

import pytest
import torch

from conftest import INTERPRETED
from samebits.numerics.gpu import activation, attention, configuration, norm, rope_store
from samebits.numerics.gpu.attention_plan import decode_units
from samebits.numerics.gpu.attention_shape import AttentionShape, Context
from samebits.numerics.operators import HeadLayout

HEADS = HeadLayout(16, 4, 64)
PAGES_OF_ONE, REPLAYS, LAYERS = 12, 20, 4
WIDTH = HEADS.query_width + 2 * HEADS.kv_width


class Chain:
    """Fixed buffers of a few made-up layers, and the kernels that walk them."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.rows = rows
        act = torch.bfloat16
        self.shape = AttentionShape(HEADS, 64)
        self.units = decode_units(rows, rows, device)
        self.ranges = attention.default_ranges(self.shape, act, 1, rows, 50)
        claims = 4096 if self.ranges.specialised else 0
        self.buffers = attention.range_buffers(
            self.shape, rows, 1, self.ranges.programs, 4096, device, claims
        )
        self.x = torch.zeros(rows, WIDTH, dtype=act, device=device)
        self.positions = torch.zeros(rows, dtype=torch.int64, device=device)
        self.slots = torch.zeros(rows, dtype=torch.int64, device=device)
        pages = attention.kv_shape(rows * PAGES_OF_ONE, 64, HEADS)
        self.keys, self.values = (torch.zeros(pages, dtype=act, device=device) for _ in range(2))
        self.table = torch.arange(rows * PAGES_OF_ONE, dtype=torch.int32, device=device).view(rows, -1)
        self.rope = torch.randn(1024, 2, 32, device=device)
        self.weight = torch.rand(WIDTH, device=device).to(act)
        self.faults = torch.zeros(rows, dtype=torch.uint8, device=device)
        self.normed, self.total = torch.empty_like(self.x), torch.empty_like(self.x)
        self.queries = torch.empty(rows, HEADS.query_heads, HEADS.head_dim, dtype=act, device=device)
        self.attended = torch.empty_like(self.queries)
        self.gated = torch.empty(rows, HEADS.query_width // 2, dtype=act, device=device)
        self.results = torch.empty(LAYERS, *self.gated.shape, dtype=act, device=device)

    def fill(self, number: int) -> None:
        """New inputs, and poison in everything that the kernels write."""
        make = torch.Generator(self.x.device).manual_seed(number)
        self.x.normal_(generator=make)
        self.keys.normal_(generator=make)
        self.values.normal_(generator=make)
        self.positions.random_(0, 64 * PAGES_OF_ONE, generator=make)
        page = self.table.gather(1, (self.positions // 64)[:, None])[:, 0]
        self.slots.copy_(page * 64 + self.positions % 64)
        for written in (self.normed, self.total, self.queries, self.attended, self.gated, self.results):
            written.fill_(float("nan"))

    def run(self) -> None:
        context = Context(self.keys, self.values, self.positions, self.table)
        attention.plan_ranges(self.shape, self.positions, self.table, self.units, self.buffers, self.ranges)
        source = self.x
        for layer in range(LAYERS):
            norm.add_rms_norm(source, self.x, self.weight, 1e-6, out=(self.normed, self.total))
            rope_store.norm_rope_store(
                self.normed, HEADS, self.weight[:64], self.weight[:64], 1e-6, self.rope, self.positions, self.slots,
                self.faults, self.keys, self.values, out=self.queries,
            )  # fmt: skip
            attention.shared(
                self.shape, self.queries, context, self.units, 0.125, self.attended, self.buffers, self.ranges
            )
            activation.silu_mul(self.attended.view(self.rows, -1), out=self.gated)
            norm.rms_norm(self.gated, self.weight[: self.gated.shape[1]], 1e-6, out=self.results[layer])
            source = self.total


@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs one kernel after another")
@pytest.mark.parametrize("rows", [3, 24])
def check_replays_with_new_inputs(rows: int, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows have a kernel of their own on Hopper."""
    chain = Chain(rows, device)
    monkeypatch.setattr(configuration, "dependent_launches", lambda: False)
    expected = []
    for number in range(REPLAYS):
        chain.fill(number)
        chain.run()
        expected.append(chain.results.clone())
    monkeypatch.undo()
    assert configuration.dependent_launches()
    chain.fill(0)
    chain.run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain.run()
    for number in reversed(range(REPLAYS)):
        chain.fill(number)
        graph.replay()
        assert torch.equal(chain.results.view(torch.int16), expected[number].view(torch.int16)), number
    assert not torch.equal(expected[0], expected[1])
    assert not expected[0].isnan().any()
