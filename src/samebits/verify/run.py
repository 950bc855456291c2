"""Run modes against a target, tell what happens, sum it up."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from tqdm import tqdm

from samebits.errors import ConfigError
from samebits.tables import align
from samebits.verify.answers import Difference, TokenBits
from samebits.verify.modes import MODES, Outcome, Progress, Settings
from samebits.verify.target import Target, TargetFacts

BAR_DELAY_SECONDS = 2.0


@dataclass(frozen=True)
class Report:
    """Everything that one run of `samebits verify` found."""

    facts: TargetFacts
    settings: Settings
    outcomes: list[Outcome]
    seconds: list[float]

    @property
    def passed(self) -> bool:
        return bool(self.outcomes) and all(outcome.passed for outcome in self.outcomes)


def mode_names(chosen: Sequence[str]) -> list[str]:
    """The modes to run, `all` unfolded. Raises `ConfigError` for a name that is none."""
    names = [name for choice in chosen for name in (MODES if choice == "all" else [choice])]
    for name in names:
        if name not in MODES:
            raise ConfigError(f"unknown mode {name!r}; the modes are {', '.join(MODES)} and all")
    return list(dict.fromkeys(names))


def run(
    target: Target,
    modes: Sequence[str],
    temperatures: Sequence[float],
    settings: Settings,
    say: Callable[[str], None] = print,
    bars: TextIO | None = None,
) -> Report:
    """Run every mode at every temperature. `say` gets the lines as they come; `bars` a progress bar where a
    mode takes longer than two seconds (None: no bars)."""
    report = Report(target.facts(), settings, [], [])
    for name in mode_names(modes):
        for temperature in temperatures:
            start = time.monotonic()
            with _bar(f"{name}, temperature {temperature:g}", bars) as progress:
                outcome = MODES[name](target, settings, temperature, progress)
            report.outcomes.append(outcome)
            report.seconds.append(time.monotonic() - start)
            for line in outcome_lines(outcome):
                say(line)
    return report


@contextmanager
def _bar(title: str, stream: TextIO | None) -> Iterator[Progress]:
    if stream is None:
        yield lambda done, total: None
        return
    with tqdm(desc=title, unit="trial", delay=BAR_DELAY_SECONDS, leave=False, file=stream) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def outcome_lines(outcome: Outcome) -> list[str]:
    """What a person reads of one mode, prompt by prompt."""
    lines = [f"{outcome.mode}, temperature {outcome.temperature:g}"]
    for tally in outcome.tallies:
        lines.append(
            f"  {tally.label}: Total samples: {tally.samples}, Unique samples: {len(tally.unique)}"
            + (f" ({tally.answers} answers compared)" if tally.answers != tally.samples else "")
        )
        if tally.difference is not None:
            lines.append(f"    {tally.differing} of {tally.answers} answers differ; {tally.difference}")
    return lines + [f"  note: {note}" for note in outcome.notes]


def table(report: Report) -> list[str]:
    """The summary, one line a mode and temperature."""
    head = ("mode", "temperature", "prompts", "samples", "answers", "differing", "seconds", "result")
    rows = [head]
    for outcome, seconds in zip(report.outcomes, report.seconds, strict=True):
        rows.append(
            (
                outcome.mode,
                f"{outcome.temperature:g}",
                str(len(outcome.tallies)),
                str(sum(tally.samples for tally in outcome.tallies)),
                str(sum(tally.answers for tally in outcome.tallies)),
                str(sum(not tally.equal for tally in outcome.tallies)),
                f"{seconds:.1f}",
                "same bits" if outcome.passed else "DIFFERENT",
            )
        )
    return align(rows)


def as_json(report: Report) -> dict[str, Any]:
    """The report for machines. Logprobs stand as eight hexadecimal digits of their float32 bits."""
    return {
        "target": report.facts.name,
        "details": report.facts.details,
        "trials": report.settings.trials,
        "seed": report.settings.seed,
        "max_new_tokens": report.settings.max_new_tokens,
        "passed": report.passed,
        "modes": [
            {
                "mode": outcome.mode,
                "temperature": outcome.temperature,
                "passed": outcome.passed,
                "seconds": round(seconds, 3),
                "notes": outcome.notes,
                "prompts": [
                    {
                        "prompt": tally.label,
                        "total_samples": tally.samples,
                        "unique_samples": len(tally.unique),
                        "answers": tally.answers,
                        "differing_answers": tally.differing,
                        "first_difference": _difference_json(tally.difference),
                    }
                    for tally in outcome.tallies
                ],
            }
            for outcome, seconds in zip(report.outcomes, report.seconds, strict=True)
        ],
    }


def _difference_json(difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    return {
        "where": difference.where,
        "position": difference.position,
        "circumstance": difference.circumstance,
        "expected": _token_json(difference.expected),
        "found": _token_json(difference.found),
    }


def _token_json(entry: TokenBits | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    return {"token": entry.token, "logprob_bits": None if entry.bits is None else f"{entry.bits:08x}"}


def bars_stream() -> TextIO | None:
    """Where progress bars may go: standard error, when a person looks at it."""
    return sys.stderr if sys.stderr.isatty() else None
