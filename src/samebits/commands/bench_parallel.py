"""`samebits bench parallel`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from samebits.commands.flags import add_settings, command, positive, settings_of
from samebits.config import EngineConfig, ModelConfig
from samebits.errors import ConfigError

SHAPE = "qwen3-32b-shaped"
EXAMPLES = """\
  samebits bench parallel --tp 2                         decode and prefill, Qwen3-32B shape, dummy weights
  samebits bench parallel --tp 2 --model llama-3.1-70b-shaped --load-format dummy --at-once 1
  samebits bench parallel --tp 2 --contenders exact exact@1 unpinned unpinned+one-shot
"""


def add(kinds: Any) -> None:
    parser = command(
        kinds,
        "parallel",
        "a model over several GPUs against NCCL and its floors",
        EXAMPLES,
        run,
        "bench parallel",
    )
    parser.add_argument(
        "--contenders",
        nargs="+",
        default=["exact", "tp-invariant", "unpinned"],
        metavar="PROFILE",
        help="profiles, each perhaps with +COLLECTIVE or @DEGREE (default: exact tp-invariant unpinned)",
    )
    parser.add_argument("--batches", nargs="+", type=positive, default=None, metavar="N")
    parser.add_argument(
        "--repeats", type=positive, default=3, metavar="N", help="interleaved rounds (default: 3)"
    )
    parser.add_argument(
        "--steps", type=positive, default=24, metavar="N", help="steps of a round (default: 24)"
    )
    parser.add_argument(
        "--at-once",
        type=positive,
        default=0,
        metavar="N",
        help="contenders that are open at the same time, where memory does not hold all (default: all)",
    )
    parser.add_argument(
        "--prompt-steps",
        nargs="+",
        type=positive,
        default=None,
        metavar="N",
        help="most tokens of a step while prompts are computed, each measured by itself (default: --step-tokens)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results/parallel.json"),
        metavar="FILE",
        help="(default: %(default)s)",
    )
    add_settings(parser, ModelConfig, EngineConfig)


def run(options: argparse.Namespace) -> int:
    from samebits.bench import parallel
    from samebits.numerics.gpu.buckets import USUAL_STEP
    from samebits.tables import align

    if options.model is None:
        options.model, options.load_format = SHAPE, "dummy"
    model, engine = settings_of(options, ModelConfig), settings_of(options, EngineConfig)
    engine = replace(engine, step_tokens=engine.step_tokens or USUAL_STEP)
    course = parallel.Course(
        options.batches or parallel.BATCHES,
        options.repeats,
        options.steps,
        options.prompt_steps or [engine.step_tokens],
        options.at_once,
    )
    if max(course.prompt_steps) > engine.step_tokens:
        raise ConfigError(f"--prompt-steps: no step holds more than --step-tokens = {engine.step_tokens}")
    contenders = [parallel.contender(text, model.tensor_parallel) for text in options.contenders]
    result = parallel.run(
        model,
        engine,
        contenders,
        course,
        options.output,
        lambda line: print(line, file=sys.stderr, flush=True),
    )
    print("\n".join(align(parallel.table_rows(result))))
    print(f"\nevery figure is in {options.output}")
    return 0
