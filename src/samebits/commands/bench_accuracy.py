"""`samebits bench accuracy`."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samebits.client import listed_model
from samebits.commands.asked import Asked, add_asked, open_asked
from samebits.commands.flags import add_settings, command, positive, quieten
from samebits.config import EngineConfig, ModelConfig
from samebits.errors import ConfigError

if TYPE_CHECKING:
    from samebits.bench.accuracy import Exam, Trial

EXAMPLES = """\
  samebits bench accuracy
  samebits bench accuracy --repeats 4 --parallel 1 8 64 --output results/accuracy.json
  samebits bench accuracy --url http://127.0.0.1:8000 --data-path gsm8k_test.jsonl --num-shots 5
"""


def add_accuracy(kinds: Any) -> None:
    parser = command(
        kinds,
        "accuracy",
        "a benchmark's score, again and again under changing load",
        EXAMPLES,
        run_accuracy,
        "bench accuracy",
    )
    add_asked(parser)
    parser.add_argument(
        "--data-path",
        type=Path,
        metavar="FILE",
        help="in GSM8K's format (default: the bundled word problems)",
    )
    parser.add_argument(
        "--num-questions", type=positive, metavar="N", help="the first so many (default: all)"
    )
    parser.add_argument(
        "--num-shots",
        type=int,
        default=0,
        metavar="N",
        help="worked examples, off the file's end (default: 0)",
    )
    parser.add_argument(
        "--repeats", type=positive, default=3, metavar="N", help="at each concurrency (default: 3)"
    )
    parser.add_argument(
        "--parallel",
        "--concurrency",
        type=positive,
        nargs="+",
        default=[1, 16],
        metavar="N",
        help="questions at a time (default: 1 16)",
    )
    parser.add_argument("--temperature", type=float, default=0.0, metavar="X", help="(default: 0)")
    parser.add_argument("--seed", type=int, default=42, metavar="N", help="of every answer (default: 42)")
    parser.add_argument(
        "--max-new-tokens", type=positive, default=400, metavar="N", help="longest answer (default: 400)"
    )
    parser.add_argument(
        "--extra-body", type=json.loads, default={}, metavar="JSON", help="more fields of each request"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="every figure as JSON (default: none)")
    add_settings(parser, ModelConfig, EngineConfig)


def run_accuracy(options: argparse.Namespace) -> int:
    """Ask everything and tell how far the runs lie apart."""
    from samebits.bench.accuracy import summarise, table_rows, trial_facts
    from samebits.bench.facts import machine, write_result
    from samebits.tables import align

    if not isinstance(options.extra_body, dict):
        raise ConfigError("--extra-body must be a JSON object")
    quieten()
    exam = exam_of(options)
    facts, trials = asyncio.run(run_trials(options, exam))
    result = summarise(exam, trials)
    print("\n".join(align(table_rows(exam, trials))))
    print(
        f"\n{result['questions']} questions, {result['runs']} runs: mean {100 * result['mean']:.2f} %, "
        f"spread {100 * result['spread']:.2f} points, {result['unique_answer_sets']} unique answer sets"
    )
    if result["questions_with_several_answers"]:
        print(f"{result['questions_with_several_answers']} questions got more than one answer")
    if options.output:
        runs = [trial_facts(exam, trial) for trial in trials]
        asked = {"body": exam.body, "shots": len(exam.shots), "data": options.data_path or "bundled"}
        whole = {"benchmark": "accuracy", **machine(), "server": facts, "asked": asked}
        whole["asked"]["data"] = str(whole["asked"]["data"])
        write_result(options.output, whole | {"results": result, "runs": runs})
        print(f"every figure is in {options.output}")
    return 0


def exam_of(options: argparse.Namespace) -> Exam:
    """Problems and examples out of the file. Raises `ConfigError` where it holds too few."""
    from samebits.bench.accuracy import BUNDLED, Exam, read_problems

    path = options.data_path or BUNDLED
    problems = read_problems(path)
    if options.num_shots < 0 or options.num_shots >= len(problems):
        raise ConfigError(
            f"--num-shots must lie in [0, {len(problems) - 1}] for the {len(problems)} of {path}"
        )
    end = len(problems) - options.num_shots
    wanted = options.num_questions or end
    if wanted > end:
        raise ConfigError(f"{path} holds {end} questions besides {options.num_shots} examples, not {wanted}")
    body = {"temperature": options.temperature, "seed": options.seed, "max_tokens": options.max_new_tokens}
    return Exam(problems[:wanted], problems[end:], body | options.extra_body)


async def run_trials(options: argparse.Namespace, exam: Exam) -> tuple[dict[str, str], list[Trial]]:
    """(facts of the server, runs): the concurrencies in turn, so that no run follows one of its own kind."""
    from dataclasses import replace

    from tqdm import tqdm

    from samebits.bench.accuracy import ask_all

    rounds = [(size, repeat) for repeat in range(options.repeats) for size in options.parallel]
    async with open_asked(options) as (server, fingerprint):
        model = await first_model(server)
        exam = replace(exam, body={"model": model, **exam.body})
        total = len(rounds) * len(exam.problems)
        with tqdm(total=total, unit="question", disable=None, file=sys.stderr) as bar:
            trials = [
                await ask_all(server, exam, size, repeat, lambda: bar.update(1)) for size, repeat in rounds
            ]
    facts = {"url": options.url or "in this process", "model": model, "fingerprint": fingerprint}
    return facts, trials


async def first_model(server: Asked) -> str:
    """The model that the server lists first."""
    listed = listed_model((await server.request("GET", "/v1/models")).json())
    if listed is None:
        raise ConfigError("the server's /v1/models lists no model")
    return str(listed["id"])
