"""`samebits verify`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from samebits.commands import covering, schedules
from samebits.commands.flags import (
    add_settings,
    command,
    given_settings,
    open_llm,
    positive,
    quieten,
    settings_of,
)
from samebits.config import EngineConfig, ModelConfig
from samebits.errors import ConfigError

MODES = ("all", "single", "mixed", "prefix", "p_vs_d", "radix_cache", schedules.MODE, covering.MODE)
APIS = ("auto", "generate", "completions")
EXAMPLES = """\
  samebits verify                                         every mode, in this process, bundled model
  samebits verify single --n-trials 100
  samebits verify all --numerics torch                    the contrast: this one fails
  samebits verify all --url http://127.0.0.1:30000        a running server: ours, or SGLang
  samebits verify mixed --url http://127.0.0.1:8000 --api completions     vLLM, for one
  samebits verify schedules --n-trials 2100               simulated schedules: arrivals, aborts, faults, ...
  samebits verify covering --model qwen3-8b-shaped-8-layers --load-format dummy --max-new-tokens 8
  samebits verify --golden tests/golden/bundled.json      whole generations against kept digests

modes:
  single       one prompt in batches of 1, 2, ... n copies
  mixed        prompts of 1 to 1500 tokens, each with its own sampling parameters, in one batch
  prefix       prompts that share their first 1, 511, 2048 and 4097 tokens
  p_vs_d       a generated text, scored as a prompt, has the logprobs that it had
  radix_cache  cold against warm prefix cache
  schedules    simulated engines, one schedule a trial: aborts, preemptions, flushes, restarts, faults, priorities,
               both loops, any sizes; each request against its run alone. Not part of 'all'
  covering     a table in which every pair of {batch size, prompt length, chunk size, graph or eager, cold or warm
               cache, temperature} occurs; each request against its run alone. For a GPU; not part of 'all'

Token ids and the bits of every logprob are compared, of every member of every batch. Exit status 1: they differ.
"""


def add(commands: Any) -> None:
    parser = command(
        commands,
        "verify",
        "check that the same request gives the same bits",
        EXAMPLES,
        run,
        "verify [MODE ...]",
    )
    parser.add_argument(
        "modes", nargs="*", type=mode, metavar="MODE", help=f"{', '.join(MODES)} (default: all)"
    )
    parser.add_argument(
        "--test-mode",
        action="append",
        default=[],
        choices=MODES,
        help="the same by the name that SGLang uses",
    )
    parser.add_argument(
        "--n-trials", type=positive, default=50, metavar="N", help="batches a mode (default: 50)"
    )
    parser.add_argument(
        "--seed", type=int, default=42, metavar="N", help="seed of requests and batches (default: 42)"
    )
    parser.add_argument(
        "--max-new-tokens", type=positive, default=32, metavar="N", help="length of each sample (default: 32)"
    )
    parser.add_argument(
        "--max-batch",
        type=positive,
        default=8,
        metavar="N",
        help="largest batch, but for single (default: 8)",
    )
    parser.add_argument(
        "--temperature", type=float, nargs="+", default=[0.0, 0.8], metavar="T", help="(default: 0 0.8)"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on standard output, nothing else"
    )
    group = parser.add_argument_group("golden digests (instead of modes; in this process)")
    group.add_argument(
        "--golden", type=Path, metavar="FILE", help="compare whole generations with kept digests"
    )
    group.add_argument("--write-golden", type=Path, metavar="FILE", help="keep the digests of now")
    group = parser.add_argument_group("schedules")
    group.add_argument(
        "--append", type=Path, metavar="FILE", help="add the run to the totals in FILE; no seed counts twice"
    )
    group.add_argument(
        "--reports",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="with --append: run nothing, and add what runs with --json have printed",
    )
    group = parser.add_argument_group("another server")
    group.add_argument(
        "--url", metavar="URL", help="check the server there instead of an engine in this process"
    )
    group.add_argument("--api", choices=APIS, default="auto", help="how it speaks (default: find out)")
    group.add_argument(
        "--api-key", default=os.environ.get("SAMEBITS_API_KEY", ""), help="sent as bearer token"
    )
    covering.add_flags(parser)
    add_settings(parser, ModelConfig, EngineConfig)


def mode(text: str) -> str:
    """The name of a mode, for argparse."""
    if text not in MODES:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(MODES)}")
    return text


def run(options: argparse.Namespace) -> int:
    from samebits.verify.modes import Settings
    from samebits.verify.run import as_json, bars_stream, mode_names, table
    from samebits.verify.run import run as run_modes

    if options.golden or options.write_golden:
        return run_golden(options)
    if schedules.is_asked_for([*options.modes, *options.test_mode]):
        return schedules.run(options)
    if covering.is_asked_for([*options.modes, *options.test_mode]):
        return covering.run(options)
    if options.append or options.reports:
        raise ConfigError(f"--append and --reports are of the mode '{schedules.MODE}'")
    names = mode_names([*options.modes, *options.test_mode] or ["all"])
    if any(temperature < 0 for temperature in options.temperature):
        raise ConfigError("--temperature must not be negative")
    settings = Settings(options.n_trials, options.seed, options.max_new_tokens, options.max_batch)
    say = (lambda line: None) if options.json else (lambda line: print(line, flush=True))
    with closing(open_target(options)) as target:
        facts = target.facts()
        say(f"checking {facts.name}" + "".join(f", {key} {value}" for key, value in facts.details.items()))
        report = run_modes(target, names, options.temperature, settings, say, bars_stream())
    if options.json:
        here = {} if options.url else covering.machine_facts()
        json.dump(here | as_json(report), sys.stdout, indent=2)
        print()
    else:
        print("\n" + "\n".join(table(report)))
        print("\n" + ("Every bit was the same." if report.passed else "Bits differ."))
    return 0 if report.passed else 1


def run_golden(options: argparse.Namespace) -> int:
    """Compare with, or write, golden digests."""
    from samebits.verify import golden

    if options.url or options.modes or options.test_mode:
        raise ConfigError("--golden and --write-golden are of an engine in this process, and take no mode")
    quieten()
    with open_llm(options) as llm:
        if options.write_golden:
            golden.write(options.write_golden, llm)
            return 0
        different = golden.differing(options.golden, llm)
    kept = len(golden.read(options.golden)["digests"])
    for name in different:
        print(f"DIFFERENT  {name}")
    print(f"{kept} digests in {options.golden}, {len(different)} differ")
    return 1 if different else 0


def open_target(options: argparse.Namespace) -> Any:
    """The server of `--url`, else an engine in this process."""
    if options.url:
        from samebits.verify.http import connect

        if given := given_settings(options, ModelConfig, EngineConfig):
            raise ConfigError(
                f"{', '.join(given)}: of an engine in this process, and --url checks another one"
            )
        return connect(options.url, options.api, options.api_key)
    if options.api != "auto":
        raise ConfigError("--api is for --url")
    settings_of(options, ModelConfig)
    from samebits.verify.local import LocalTarget

    quieten()
    return LocalTarget(open_llm(options))
