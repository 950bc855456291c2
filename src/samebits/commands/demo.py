"""`samebits demo`: the promise, seen in a few minutes on any machine."""

from __future__ import annotations

import argparse
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from samebits.commands.flags import add_settings, command, open_llm, positive, quieten, settings_of
from samebits.config import EngineConfig, ModelConfig

if TYPE_CHECKING:
    from samebits.verify.target import Target

PROBLEM = (
    "Mia has 29 pencils. She gets 14 boxes with 6 pencils in each box. She gives 37 to Tom. "
    "How many pencils does Mia have left?"
)
CONTRAST = "torch"
TEMPERATURE = 0.8
EXAMPLES = """\
  samebits demo
  samebits demo --question "A train runs 80 km an hour. How far does it run in 3 hours?"
  samebits demo --model path/to/checkpoint
"""


@dataclass(frozen=True)
class Check:
    """A line of the last table."""

    what: str
    compared: str
    same: bool


def add(commands: Any) -> None:
    parser = command(
        commands, "demo", "see the promise kept, and what breaks without it", EXAMPLES, run, "demo"
    )
    parser.add_argument("--question", default=PROBLEM, metavar="TEXT", help="a word problem for the model")
    parser.add_argument(
        "--n-trials", type=positive, default=24, metavar="N", help="batches of each check (default: 24)"
    )
    add_settings(parser, ModelConfig, EngineConfig)


def run(options: argparse.Namespace) -> int:
    started = time.monotonic()
    checks = [
        *ask_the_server(options),
        *show_matrix_rows(options),
        *show_batches(options),
        *run_checks(options),
    ]
    show_table(checks, time.monotonic() - started)
    return 0 if all(check.same for check in checks) else 1


def say(text: str = "") -> None:
    print(text, flush=True)


def title(text: str) -> None:
    say(f"\n{text}\n{'=' * len(text)}")


def ask_the_server(options: argparse.Namespace) -> list[Check]:
    """A server in its own processes answers the question over HTTP, alone and in company."""
    from samebits.commands.demo_server import answer_digest, serving

    title("1. A server answers over HTTP")
    say("starting it (the first time, kernels are compiled, which takes a minute)")
    with serving(settings_of(options, ModelConfig), settings_of(options, EngineConfig)) as served:
        say(f"samebits serve is ready on {served.url}, fingerprint {served.fingerprint}\n")
        prompt = served.prompt(options.question)
        alone = served.ask([prompt])[0]
        say(f"  question  {options.question}")
        say("  answer    " + alone["text"].strip().replace("\n", "\n" + " " * 12))
        say(f"  digest    {answer_digest(alone)} of its token ids and logprob bits")
        others = [served.prompt(f"How much is {number} times {number + 3}?") for number in range(15)]
        crowd = served.ask([*others[:7], prompt, *others[7:]])[7]
        say(f"  again     {answer_digest(crowd)} with 15 other questions in the batch")
    say("\nThe server has drained and stopped.")
    return [
        Check(
            "over HTTP, alone and with 15 neighbours",
            "2 answers",
            answer_digest(crowd) == answer_digest(alone),
        )
    ]


def show_matrix_rows(options: argparse.Namespace) -> list[Check]:
    """One row through one matrix, alone and as one of 256 rows."""
    from samebits.commands.demo_rows import OUT_FEATURES, changed_share

    title("2. Where it comes from: one row of a matrix product, computed alone and among 256")
    threads = settings_of(options, EngineConfig).threads
    others, ours = changed_share(CONTRAST, threads), changed_share("exact", threads)
    say(
        f"  torch.mm         {100 * others:5.1f} % of the row's {OUT_FEATURES} float32 results have other bits"
    )
    say(f"  samebits, exact  {100 * ours:5.1f} %")
    return [Check("a row alone and among 256", f"{OUT_FEATURES} results", ours == 0)]


def show_batches(options: argparse.Namespace) -> list[Check]:
    """The same request in batches of 1 to n, under two numerics profiles."""
    from samebits.verify.modes import Settings, single

    title(f"3. One request, temperature {TEMPERATURE}, in batches of 1 to {options.n_trials}")
    settings = Settings(trials=options.n_trials)
    outcomes = {}
    for profile in (CONTRAST, "exact"):
        with closing(open_target(options, profile)) as target:
            outcome = single(target, settings, TEMPERATURE, lambda done, total: None)
        tally = outcome.tallies[0]
        say(f"  {profile:<6} Total samples: {tally.samples}, Unique samples: {len(tally.unique)}")
        if tally.difference is not None:
            say(
                f"         {tally.differing} of {tally.answers} answers have other bits than the request got alone;"
            )
            say(f"         {tally.difference}")
        outcomes[profile] = outcome
    answers = outcomes["exact"].tallies[0].answers
    return [Check(f"batches of 1 to {options.n_trials}", f"{answers} answers", outcomes["exact"].passed)]


def run_checks(options: argparse.Namespace) -> list[Check]:
    """The other modes of `samebits verify`, shortened."""
    from samebits.verify.modes import Settings
    from samebits.verify.run import bars_stream
    from samebits.verify.run import run as run_modes

    title("4. samebits verify, shortened")
    names = ["mixed", "prefix", "p_vs_d", "radix_cache"]
    settings = Settings(trials=max(1, options.n_trials // 3), max_new_tokens=16)
    with closing(open_target(options, "exact")) as target:
        report = run_modes(target, names, [TEMPERATURE], settings, lambda line: None, bars_stream())
    checks = []
    for outcome in report.outcomes:
        answers = sum(tally.answers for tally in outcome.tallies)
        say(f"  {outcome.mode:<12} {len(outcome.tallies)} prompts, {answers} answers compared")
        for line in [
            *outcome.notes,
            *(str(tally.difference) for tally in outcome.tallies if tally.difference),
        ]:
            say(f"               {line}")
        checks.append(Check(WHAT[outcome.mode], f"{answers} answers", outcome.passed))
    return checks


WHAT = {
    "mixed": "neighbours of other lengths and sampling parameters",
    "prefix": "shared prefixes of 1 to 4097 tokens",
    "p_vs_d": "a generated text, scored as a prompt",
    "radix_cache": "cache cold and warm",
}


def open_target(options: argparse.Namespace, profile: str) -> Target:
    from samebits.verify.local import LocalTarget

    quieten()
    return LocalTarget(open_llm(options, numerics=profile))


def show_table(checks: list[Check], seconds: float) -> None:
    from samebits.tables import align

    title("What was checked")
    rows = [("profile exact", "compared", "result")]
    rows += [(check.what, check.compared, "same bits" if check.same else "DIFFERENT") for check in checks]
    say("\n".join(align(rows)))
    say(f"\n{seconds:.0f} s. Next: samebits serve, samebits verify, samebits generate --help")
