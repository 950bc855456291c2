"""`samebits bench serve`."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
from pathlib import Path
from typing import Any

from samebits.commands.flags import command, positive
from samebits.errors import ConfigError

EXAMPLES = """\
  samebits bench serve --url http://127.0.0.1:30000 --num-prompts 200 --request-rate 8
  samebits bench serve --dataset-name prefix_repetition --max-concurrency 16 --plot load.png
  samebits bench serve --base-url http://host:8000 --backend openai-chat --dataset-name sharegpt --dataset-path FILE
"""
ENDPOINTS = {
    "openai": "/v1/completions",
    "openai-chat": "/v1/chat/completions",
    "vllm": "/v1/completions",
    "vllm-chat": "/v1/chat/completions",
    "sglang-oai": "/v1/completions",
    "sglang-oai-chat": "/v1/chat/completions",
}
DATASETS = {"random": "random", "prefix_repetition": "prefix_repetition", "sharegpt": "sharegpt"}
DATASETS |= {"generated-shared-prefix": "prefix_repetition"}


def add_serve(kinds: Any) -> None:
    """The flags; their names are those of vLLM's and SGLang's benchmarks of serving."""
    parser = command(
        kinds, "serve", "latency and throughput of a server under load", EXAMPLES, run_serve, "bench serve"
    )
    group = parser.add_argument_group("server")
    group.add_argument(
        "--url", "--base-url", metavar="URL", help="where it is (default: http://127.0.0.1:30000)"
    )
    group.add_argument("--host", default="127.0.0.1", help="the same in two parts (default: %(default)s)")
    group.add_argument("--port", type=positive, default=30000, metavar="N", help="(default: %(default)s)")
    group.add_argument(
        "--backend", choices=ENDPOINTS, default="openai", help="how it is asked (default: %(default)s)"
    )
    group.add_argument(
        "--endpoint", metavar="PATH", help="the path, where it is not the usual one of --backend"
    )
    group.add_argument("--model", default="", metavar="NAME", help="(default: the first that it lists)")
    group.add_argument(
        "--api-key",
        default=os.environ.get("SAMEBITS_API_KEY", ""),
        metavar="KEY",
        help="sent as bearer token",
    )
    group = parser.add_argument_group("load")
    number(group, "--num-prompts", 100, "requests")
    group.add_argument(
        "--request-rate",
        type=float,
        default=math.inf,
        metavar="X",
        help="a second; inf: all at once (default)",
    )
    group.add_argument(
        "--burstiness",
        type=float,
        default=1.0,
        metavar="X",
        help="1: Poisson arrivals; less: bursts (default: 1)",
    )
    group.add_argument(
        "--max-concurrency", type=positive, metavar="N", help="requests at a time (default: any number)"
    )
    group.add_argument(
        "--num-warmups", "--warmup-requests", type=int, default=1, metavar="N", help="(default: 1)"
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of prompts and arrivals (default: 0)"
    )
    group.add_argument("--temperature", type=float, default=0.0, metavar="X", help="(default: 0)")
    group.add_argument(
        "--ignore-eos",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="answers of exactly the wanted length (default: but for sharegpt)",
    )
    group.add_argument(
        "--extra-body", type=json.loads, default={}, metavar="JSON", help="more fields of each request"
    )
    add_datasets(parser)
    group = parser.add_argument_group("results")
    group.add_argument(
        "--output", "--output-file", type=Path, metavar="FILE", help="every figure as JSON (default: none)"
    )
    group.add_argument("--save-detailed", action="store_true", help="every request's times and text in it")
    group.add_argument("--plot", type=Path, metavar="FILE", help="a picture, .png or .svg; needs matplotlib")
    group.add_argument(
        "--metric-percentiles", default="50,90,99", metavar="LIST", help="(default: %(default)s)"
    )
    group.add_argument(
        "--goodput",
        nargs="+",
        default=[],
        metavar="NAME:MS",
        help="count the requests that keep these limits, such as ttft:500 tpot:50 e2el:5000",
    )


def add_datasets(parser: argparse.ArgumentParser) -> None:
    """What is asked."""
    group = parser.add_argument_group("dataset")
    group.add_argument("--dataset-name", choices=DATASETS, default="random", help="(default: %(default)s)")
    group.add_argument("--dataset-path", type=Path, metavar="FILE", help="of sharegpt")
    group.add_argument("--sharegpt-output-len", type=positive, metavar="N", help="(default: as in the file)")
    number(group, "--random-input-len", 1024, "tokens of a random prompt")
    number(group, "--random-output-len", 128, "tokens of its answer")
    group.add_argument(
        "--random-range-ratio",
        type=float,
        default=0.0,
        metavar="X",
        help="lengths vary by this share (default: 0)",
    )
    number(
        group, "--prefix-repetition-prefix-len", 512, "tokens of a shared prefix", "--gsp-system-prompt-len"
    )
    number(group, "--prefix-repetition-suffix-len", 128, "tokens after it", "--gsp-question-len")
    number(group, "--prefix-repetition-num-prefixes", 10, "prefixes", "--gsp-num-groups")
    number(group, "--prefix-repetition-output-len", 128, "tokens of an answer", "--gsp-output-len")


def number(group: Any, name: str, default: int, help_text: str, *others: str) -> None:
    group.add_argument(
        name,
        *others,
        type=positive,
        default=default,
        metavar="N",
        help=f"{help_text} (default: {default})",
    )


def run_serve(options: argparse.Namespace) -> int:
    """Measure; returns 1 where a request failed."""
    from samebits.bench.facts import write_result
    from samebits.bench.load.drive import Plan
    from samebits.bench.load.plot import draw
    from samebits.bench.load.report import lines, table_rows
    from samebits.bench.load.run import run
    from samebits.bench.plotting import check_plotting
    from samebits.client import AsyncClient
    from samebits.tables import align

    percentiles = percentiles_of(options.metric_percentiles)
    limits = limits_of(options.goodput)
    check(options)
    if options.plot:
        check_plotting()
    dataset = dataset_of(options)
    ignore_eos = options.dataset_name != "sharegpt" if options.ignore_eos is None else options.ignore_eos
    fields = {"temperature": options.temperature} | ({"ignore_eos": True} if ignore_eos else {})
    plan = Plan(
        endpoint=options.endpoint or ENDPOINTS[options.backend],
        model=options.model,
        rate=options.request_rate,
        burstiness=options.burstiness,
        most=options.max_concurrency or options.num_prompts,
        seed=options.seed,
        body=fields | options.extra_body,
    )
    client = AsyncClient(options.url or f"http://{options.host}:{options.port}", options.api_key)
    result, answers = asyncio.run(
        run(client, plan, dataset, options.num_warmups, percentiles, limits, options.save_detailed)
    )
    print("\n".join([*lines(result["results"]), "", *align(table_rows(result["results"]))]))
    if options.output:
        write_result(options.output, result)
        print(f"\nevery figure is in {options.output}")
    if options.plot:
        draw(answers, f"{result['server']['model']} at {client.url}: {len(answers)} requests", options.plot)
    return 1 if result["results"]["failed"] else 0


def check(options: argparse.Namespace) -> None:
    """Raise `ConfigError` for numbers that make no sense."""
    if not options.request_rate > 0:
        raise ConfigError(f"--request-rate must be above 0, got {options.request_rate:g}")
    if not 0 < options.burstiness < math.inf:
        raise ConfigError(f"--burstiness must be above 0, got {options.burstiness:g}")
    if not 0 <= options.random_range_ratio <= 1:
        raise ConfigError(f"--random-range-ratio must lie in [0, 1], got {options.random_range_ratio:g}")
    if not isinstance(options.extra_body, dict):
        raise ConfigError("--extra-body must be a JSON object")


def dataset_of(options: argparse.Namespace) -> Any:
    """The dataset's options, of the flags that belong to it."""
    from samebits.bench.load.datasets import Lengths
    from samebits.bench.load.run import DatasetOptions

    name = DATASETS[options.dataset_name]
    lengths = Lengths(options.random_input_len, options.random_output_len, options.random_range_ratio)
    if name == "prefix_repetition":
        lengths = Lengths(options.prefix_repetition_suffix_len, options.prefix_repetition_output_len)
    return DatasetOptions(
        name=name,
        count=options.num_prompts,
        lengths=lengths,
        prefixes=options.prefix_repetition_num_prefixes,
        prefix_tokens=options.prefix_repetition_prefix_len,
        path=options.dataset_path,
        sharegpt_output_tokens=options.sharegpt_output_len,
        seed=options.seed,
    )


def percentiles_of(text: str) -> list[float]:
    """`50,90,99` as numbers. Raises `ConfigError`."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--metric-percentiles is a list such as 50,90,99, got {text!r}") from error
    if not all(0 <= share <= 100 for share in found):
        raise ConfigError(f"--metric-percentiles must lie in [0, 100], got {text!r}")
    return found


def limits_of(words: list[str]) -> dict[str, float]:
    """`ttft:500` as a name and milliseconds. Raises `ConfigError`."""
    limits = {}
    for word in words:
        name, _, text = word.partition(":")
        try:
            limits[name] = float(text)
        except ValueError as error:
            raise ConfigError(f"--goodput is a list such as ttft:500 tpot:50, got {word!r}") from error
        if name not in ("ttft", "tpot", "e2el"):
            raise ConfigError(f"--goodput knows ttft, tpot and e2el, got {name!r}")
    return limits
