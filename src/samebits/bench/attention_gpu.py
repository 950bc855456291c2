"""`samebits bench attention`: the attention kernels on a GPU.

Decode against the time that reading keys and values takes at the measured rate, against a launch that reads as many
bytes and does nothing with them, and against our own kernel with a split count that follows the batch; prefill against
torch's cuDNN and flash attention on dense inputs. Interleaved rounds, random data, shuffled pages.
"""

from __future__ import annotations

import functools
import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from samebits.bench.facts import machine, write_result
from samebits.bench.plotting import check_plotting
from samebits.errors import ConfigError
from samebits.numerics.operators import HeadLayout

if TYPE_CHECKING:
    from samebits.numerics.gpu.attention_prefill import AnyTile

ROUNDS = 9
GRAPH_LAUNCHES = 12
COLD_BYTES = 400_000_000
"""Of keys and values, at least, that lie between two launches that read the same ones, as between two steps of a model:
several times what a second-level cache holds."""
PREFILL_LAUNCHES = 3
CAPACITY = 32768
PAGE_TOKENS = 64

Say = Callable[[str], None]
Work = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """`batch` requests with `tokens` of context each; where `least` is given, with evenly spread contexts from that
    many tokens on, in any order."""

    batch: int
    tokens: int
    least: int | None = None

    @property
    def contexts(self) -> str:
        return f"{self.tokens}" if self.least is None else f"{self.least} to {self.tokens}"

    def lengths(self) -> torch.Tensor:
        """int64 [batch]: tokens of each request's context."""
        least = self.tokens if self.least is None else self.least
        order = torch.randperm(self.batch, generator=torch.Generator().manual_seed(0))
        return torch.linspace(least, self.tokens, self.batch, dtype=torch.float64).long()[order]


DECODES = tuple(
    Setting(*pair)
    for pair in (
        (1, 1024),
        (1, 16384),
        (1, 65536),
        (8, 8192),
        (64, 1024),
        (64, 4096),
        (256, 1024),
        (256, 4096),
        (24, 8192, 4096),
        (32, 8192, 4096),
        (48, 8192, 4096),
        (64, 8192, 4096),
        (96, 8192, 4096),
        (128, 8192, 4096),
    )
)
PREFILLS = tuple(Setting(*pair) for pair in ((8, 2048), (1, 8192), (1, 32768)))
HEADS = HeadLayout(32, 8, 128)


def run(output: Path, say: Say = print) -> dict[str, Any]:
    """Measure; write the figures to `output` and return them. Raises `ConfigError` without a GPU."""
    if not torch.cuda.is_available():
        raise ConfigError("samebits bench attention measures kernels of a GPU, and there is none here")
    from samebits.numerics.gpu.roofline import measure_ceilings

    device = torch.device("cuda", torch.cuda.current_device())
    ceilings = measure_ceilings(device)
    result: dict[str, Any] = {
        "machine": machine() | {"device": torch.cuda.get_device_name(device)},
        "ceilings": ceilings.as_dict(),
        "heads": {"query": HEADS.query_heads, "kv": HEADS.kv_heads, "head_dim": HEADS.head_dim},
        "page_tokens": PAGE_TOKENS,
        "decode": [],
        "prefill": [],
    }
    for setting in DECODES:
        say(f"decode: {setting.batch} x {setting.contexts}")
        result["decode"].append(measure_decode(setting, ceilings.bytes_per_second, device))
    launch = bound_tile(result, device)
    for setting in PREFILLS:
        say(f"prefill: {setting.batch} x {setting.tokens}, {launch.name}")
        result["prefill"].append(measure_prefill(setting, launch, device))
    write_result(output, result)
    return result


def paged(setting: Setting, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random keys and values, and a page table that shuffles their pages."""
    pages = -(-setting.tokens // PAGE_TOKENS)
    shape = (setting.batch * pages, HEADS.kv_heads, PAGE_TOKENS, HEADS.head_dim)
    keys = torch.randn(shape, device=device, dtype=torch.bfloat16)
    values = torch.randn(shape, device=device, dtype=torch.bfloat16)
    table = torch.randperm(setting.batch * pages, device=device).int().view(setting.batch, pages)
    return keys, values, table


def measure_decode(setting: Setting, bytes_per_second: float, device: torch.device) -> dict[str, Any]:
    """Seconds of one launch in a captured chain of them over several layers' keys and values, and the share of the
    measured reading rate. `plain` is the fastest launch that only reads as many bytes."""
    from samebits.numerics.gpu import attention
    from samebits.numerics.gpu.attention_plan import decode_units
    from samebits.numerics.gpu.plain_read import readers

    shape = attention.AttentionShape(HEADS, PAGE_TOKENS)
    lengths = setting.lengths()
    positions = (lengths - 1).to(device)
    moved = 4 * int(lengths.sum()) * HEADS.kv_width
    layers = min(GRAPH_LAUNCHES, -(-COLD_BYTES // moved))
    _, _, table = kept = paged(setting, device)
    stored = [kept, *(paged(setting, device) for _ in range(layers - 1))]
    contexts = [attention.Context(keys, values, positions, table) for keys, values, _ in stored]
    units = decode_units(setting.batch, setting.batch, device)
    queries = torch.randn(
        setting.batch, HEADS.query_heads, HEADS.head_dim, device=device, dtype=torch.bfloat16
    )
    output = torch.empty_like(queries)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    scale = HEADS.head_dim**-0.5

    def ours(pinned: bool) -> Work:
        launch = attention.default_ranges(shape, torch.bfloat16, 1, setting.batch, processors, pinned)
        claims = CAPACITY if launch.specialised else 0
        buffers = attention.range_buffers(shape, setting.batch, 1, launch.programs, CAPACITY, device, claims)
        attention.plan_ranges(shape, positions, table, units, buffers, launch)
        return in_turn(
            [
                functools.partial(
                    attention.shared, shape, queries, context, units, scale, output, buffers, launch, pinned
                )
                for context in contexts
            ]
        )

    read = [readers(torch.zeros(moved // 4, dtype=torch.int32, device=device)) for _ in range(layers)]
    reading = {name: in_turn([one[name] for one in read]) for name in read[0]}
    contenders = {"exact": ours(True), "unpinned": ours(False)} | reading
    graphs = {name: captured(work, GRAPH_LAUNCHES) for name, work in contenders.items()}
    seconds = interleaved(graphs, GRAPH_LAUNCHES)
    seconds["plain"] = min(seconds.pop(name) for name in reading)
    return {
        "batch": setting.batch,
        "tokens": setting.tokens,
        "contexts": setting.contexts,
        "layers": layers,
        "seconds": seconds,
        "bytes": moved,
        "bytes_per_second": moved / seconds["exact"],
        "share": moved / seconds["exact"] / bytes_per_second,
    }


def bound_tile(result: dict[str, Any], device: torch.device) -> AnyTile:
    """The launch that an engine binds for prefill: the fastest of those that are proven here. What became of each
    goes into `result`."""
    from samebits.numerics.gpu import tuner
    from samebits.numerics.gpu.attention_operator import TILES, AttentionOperator, AttentionProblem
    from samebits.numerics.gpu.attention_prefill import tile_launches
    from samebits.numerics.gpu.attention_shape import AttentionShape
    from samebits.numerics.gpu.launch import target_name

    operator = AttentionOperator(device)
    problem = AttentionProblem(AttentionShape(HEADS, PAGE_TOKENS), torch.bfloat16)
    bound = tuner.bind(operator, problem, next(operator.rounds(problem, (TILES,))))
    result["prefill_candidates"] = [
        {
            "name": entry.name,
            "operations_per_second": entry.seconds and bound.operations / entry.seconds,
            "rejection": entry.rejection,
        }
        for entry in bound.tried
    ]
    launches = tile_launches(problem.shape, problem.act, target_name())
    return next(launch for launch in launches if launch.name == bound.candidate.name)


def measure_prefill(setting: Setting, launch: AnyTile, device: torch.device) -> dict[str, Any]:
    """Seconds and operations a second of whole prompts; causal, so half of the score matrix counts. `exact` is what
    the engine runs, `portable` the kernel for every architecture, which gives the same bits."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from samebits.numerics.gpu import attention
    from samebits.numerics.gpu.attention_plan import plan_attention
    from samebits.numerics.gpu.attention_prefill import default_tile, tiles

    keys, values, table = paged(setting, device)
    shape = attention.AttentionShape(HEADS, PAGE_TOKENS)
    positions = torch.arange(setting.tokens, device=device).repeat(setting.batch)
    context = attention.Context(keys, values, positions, table)
    rows = setting.batch * setting.tokens
    queries = torch.randn(rows, HEADS.query_heads, HEADS.head_dim, device=device, dtype=torch.bfloat16)
    start = np.arange(setting.batch + 1, dtype=np.int32) * setting.tokens
    scale = HEADS.head_dim**-0.5
    q, k, v = (
        torch.randn(setting.batch, count, setting.tokens, HEADS.head_dim, device=device, dtype=torch.bfloat16)
        for count in (HEADS.query_heads, HEADS.kv_heads, HEADS.kv_heads)
    )

    def of_ours(launch: AnyTile) -> Work:
        work = plan_attention(start, positions.cpu().numpy(), launch.tokens(shape.group), 1, device)
        assert work.tiles is not None
        return functools.partial(
            tiles, shape, queries, context, work.tiles, scale, torch.empty_like(queries), launch
        )

    def of_torch(backend: Any) -> Work:
        def run_dense() -> None:
            with sdpa_kernel(backend):
                torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        return run_dense

    contenders: dict[str, Work] = {
        "exact": of_ours(launch),
        "portable": of_ours(default_tile(shape, torch.bfloat16)),
    }
    for name, backend in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION)):
        contenders[name] = of_torch(backend)
    graphs = {name: captured(work, PREFILL_LAUNCHES) for name, work in contenders.items()}
    seconds = interleaved(graphs, PREFILL_LAUNCHES)
    operations = 2 * setting.batch * setting.tokens**2 * HEADS.query_width
    return {
        "batch": setting.batch,
        "tokens": setting.tokens,
        "launch": launch.name,
        "seconds": seconds,
        "operations": operations,
        "operations_per_second": {name: operations / taken for name, taken in seconds.items()},
    }


def in_turn(works: Sequence[Work]) -> Work:
    """One piece of work after another, and then from the first on, a piece at each call."""
    pieces = itertools.cycle(works)
    return lambda: next(pieces)()


def captured(work: Work, launches: int) -> Work:
    """A graph of several launches: what the device does counts, not what the host does to ask for it."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(launches):
            work()
    return graph.replay


def interleaved(contenders: dict[str, Work], launches: int) -> dict[str, float]:
    """Median seconds of one launch of each, round by round."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(ROUNDS + 2):
        for name, work in contenders.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            work()
            end.record()
            end.synchronize()
            if number >= 2:
                times[name].append(start.elapsed_time(end) / 1000 / launches)
    return {name: statistics.median(taken) for name, taken in times.items()}


def decode_rows(result: dict[str, Any]) -> list[Sequence[str]]:
    """The decode table as text."""
    rows: list[Sequence[str]] = [
        ("batch", "context", "exact", "unpinned", "plain read", "TB/s", "of reading", "of plain read")
    ]
    for found in result["decode"]:
        rows.append(
            (
                f"{found['batch']}",
                found["contexts"],
                f"{found['seconds']['exact'] * 1e6:.1f} us",
                f"{found['seconds']['unpinned'] * 1e6:.1f} us",
                f"{found['seconds']['plain'] * 1e6:.1f} us",
                f"{found['bytes_per_second'] / 1e12:.2f}",
                f"{found['share']:.0%}",
                f"{found['seconds']['plain'] / found['seconds']['exact']:.0%}",
            )
        )
    return rows


def prefill_rows(result: dict[str, Any]) -> list[Sequence[str]]:
    """The prefill table as text: TFLOP/s."""
    rows: list[Sequence[str]] = [("batch", "prompt", "exact", "portable", "cudnn", "flash", "of cudnn")]
    for found in result["prefill"]:
        rates = found["operations_per_second"]
        rows.append(
            (
                f"{found['batch']}",
                f"{found['tokens']}",
                *(f"{rates[name] / 1e12:.0f}" for name in ("exact", "portable", "cudnn", "flash")),
                f"{rates['exact'] / rates['cudnn']:.2f}x",
            )
        )
    return rows


def plot(result: dict[str, Any], path: Path) -> None:
    """Decode as a share of the reading rate, prefill in TFLOP/s beside torch's kernels. Needs matplotlib."""
    check_plotting()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    decode, prefill = figure.subplots(1, 2)
    names = [f"{found['batch']} x {found['contexts']}" for found in result["decode"]]
    decode.barh(names, [found["share"] for found in result["decode"]])
    decode.set_xlabel("share of the measured reading rate")
    decode.set_title("decode, batch x context")
    names = [f"{found['batch']} x {found['tokens']}" for found in result["prefill"]]
    for number, contender in enumerate(("exact", "cudnn", "flash")):
        rates = [found["operations_per_second"][contender] / 1e12 for found in result["prefill"]]
        prefill.barh(
            [place + 0.27 * number for place in range(len(names))], rates, height=0.25, label=contender
        )
    prefill.set_yticks([place + 0.27 for place in range(len(names))], names)
    prefill.set_xlabel("TFLOP/s")
    prefill.set_title("prefill, batch x prompt")
    prefill.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
