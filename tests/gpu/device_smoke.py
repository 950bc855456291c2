"""A quick look at the engine on a GPU: starts, graphs, bits in company. Prints one line a case."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import msgspec
import torch

from samebits.config import EngineConfig, ModelConfig
from samebits.engine.build import build_engine
from samebits.engine.engine import Engine
from samebits.engine.messages import EngineRequest, LogprobOptions, RequestEvent
from samebits.sampling_params import ResolvedSampling

CASES: dict[str, Callable[[], object]] = {}


def case(run: Callable[[], object]) -> Callable[[], object]:
    CASES[run.__name__] = run
    return run


def engine_of(model: str, load_format: str = "safetensors", numerics: str = "exact", **sizes: Any) -> Engine:
    sizes = {"kv_memory_mib": 512, "max_running": 64, "step_tokens": 1024} | sizes
    config = ModelConfig(
        model=model, load_format=load_format, numerics=numerics, device="cuda", context_length=1024
    )
    return build_engine(config, EngineConfig(**sizes), lambda *news: None)


def requests(count: int, vocabulary: int, wishes: bool, tokens: int = 12) -> list[EngineRequest]:
    made = []
    for number in range(count):
        sampling = ResolvedSampling(
            temperature=0.0 if number % 3 == 0 else 1.0,
            max_new_tokens=tokens,
            ignore_eos=True,
            seed=number,
            **(
                {"top_p": 0.9, "frequency_penalty": 0.3, "min_new_tokens": 2} if wishes and number % 2 else {}
            ),
        )
        logprobs = LogprobOptions(output=True)
        if wishes and number % 2:
            logprobs = LogprobOptions(output=True, top=3, token_ids=[5, 6], prompt_start=0)
        prompt = [(17 * number + 31 * place) % (vocabulary - 1) for place in range(3 + 37 * (number % 11))]
        made.append(EngineRequest(rid=str(number), prompt_ids=prompt, sampling=sampling, logprobs=logprobs))
    return made


def answers(engine: Engine, asked: list[EngineRequest]) -> dict[str, bytes]:
    events: dict[str, list[RequestEvent]] = {}
    for one in asked:
        engine.submit(one)
    while engine.has_work():
        for event in engine.step():
            events.setdefault(event.rid, []).append(event)
    return {
        rid: msgspec.msgpack.encode(
            (
                [token for event in news for token in event.token_ids],
                [logprobs for event in news for logprobs in event.logprobs],
                news[0].prompt_logprobs,
                news[-1].finish,
            )
        )
        for rid, news in events.items()
    }


def compare(left: dict[str, bytes], right: dict[str, bytes]) -> str:
    differing = [rid for rid in left if left[rid] != right[rid]]
    return f"{len(left)} answers, {len(differing)} differ {differing[:5]}"


def solo(engine: Engine, asked: list[EngineRequest]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for one in asked:
        engine.flush_cache()
        found |= answers(engine, [one])
    return found


@case
def torch_profile_eager() -> object:
    engine = engine_of("bundled", numerics="torch")
    asked = requests(9, engine.facts.vocabulary, wishes=True)
    return compare(solo(engine, asked), answers(engine, asked)) + " (differences are expected here)"


@case
def graphs_against_eager_and_solo() -> object:
    lines = []
    for wishes in (False, True):
        captured = engine_of("bundled")
        eager = engine_of("bundled", cuda_graph_max_bs=0)
        simple = engine_of("bundled", loop="simple")
        asked = requests(23, captured.facts.vocabulary, wishes)
        base = answers(eager, asked)
        captured.flush_cache()
        lines.append(f"captured: {compare(base, answers(captured, asked))}")
        lines.append(f"not ahead: {compare(base, answers(simple, asked))}")
        lines.append(f"solo: {compare(base, solo(eager, asked))}")
    return "; ".join(lines)


@case
def tiny_dummy() -> object:
    engine = engine_of("tiny", "dummy")
    asked = requests(23, engine.facts.vocabulary, True)
    return compare(answers(engine, asked), solo(engine, asked))


@case
def big_shape_starts() -> object:
    started = time.perf_counter()
    engine = engine_of("qwen3-8b-shaped-8-layers", "dummy", max_running=8, kv_memory_mib=4096)
    torch.cuda.synchronize()
    built = time.perf_counter() - started
    asked = requests(8, engine.facts.vocabulary, False, tokens=40)
    started = time.perf_counter()
    steps = engine.counters.steps
    first = answers(engine, asked)
    spent = time.perf_counter() - started
    steps = engine.counters.steps - steps
    return f"start {built:.1f} s, {1e3 * spent / steps:.2f} ms a step; {compare(first, solo(engine, asked))}"


@case
def graph_nodes() -> object:
    from cuda.bindings import driver

    engine = engine_of("tiny", "dummy", max_running=4)
    _, graph = engine.loop.runner.graphs.items()[-1]  # type: ignore[attr-defined]
    raw = driver.CUgraph(graph.forward.graph.raw_cuda_graph())
    _, _, count = driver.cuGraphGetNodes(raw, 0)
    _, nodes, _ = driver.cuGraphGetNodes(raw, count)
    names: dict[str, int] = {}
    for node in nodes:
        _, kind = driver.cuGraphNodeGetType(node)
        name = str(kind)
        if kind == driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_KERNEL:
            _, parameters = driver.cuGraphKernelNodeGetParams(node)
            function = parameters.func
            if int(function) == 0 and hasattr(parameters, "kern"):
                _, name = driver.cuKernelGetName(parameters.kern)
            else:
                _, name = driver.cuFuncGetName(function)
        names[str(name)[:90]] = names.get(str(name)[:90], 0) + 1
    return "\n    " + "\n    ".join(f"{count} {name}" for name, count in sorted(names.items()))


@case
def proven_products() -> object:
    import os
    import tempfile

    from samebits.engine.device import build

    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
    build.prepare_operators = BIND
    lines = []
    for _ in range(2):
        started = time.perf_counter()
        engine = engine_of("tiny", "dummy", max_running=8, step_tokens=128)
        lines.append(f"start {time.perf_counter() - started:.1f} s")
        asked = requests(15, engine.facts.vocabulary, True)
        lines.append(compare(answers(engine, asked), solo(engine, asked)))
    return "; ".join(lines)


def main() -> None:
    global BIND
    from samebits.engine.device import build

    BIND = build.prepare_operators
    build.prepare_operators = lambda *given: None
    torch.cuda.set_device(0)
    for name, run in CASES.items():
        if len(sys.argv) > 1 and name not in sys.argv[1:]:
            continue
        started = time.perf_counter()
        try:
            outcome = run()
        except Exception:
            outcome = "FAILED\n" + "".join(traceback.format_exc().splitlines(keepends=True)[-14:])
        print(f"{name} ({time.perf_counter() - started:.1f} s): {outcome}", flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
