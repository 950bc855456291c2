"""A picture of a run: latencies as distributions, and the run over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samebits.bench.load.drive import Answer
from samebits.bench.load.report import METRICS, latencies
from samebits.errors import ConfigError


def draw(answers: Sequence[Answer], title: str, path: Path) -> None:
    """Write the picture; the file's ending names the format. Raises `ConfigError` where it cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    figure.suptitle(title)
    axes: Any = figure.subplots(2, 3).flat
    good = [answer for answer in answers if not answer.error]
    for (name, values), axis in zip(latencies(good).items(), axes, strict=False):
        ordered = sorted(values)
        axis.plot(ordered, [100 * (rank + 1) / len(ordered) for rank in range(len(ordered))])
        axis.set(title=METRICS[name], xlabel="ms", ylabel="% of " + ("gaps" if name == "itl" else "requests"))
        axis.set_ylim(0, 100)
    start = min(answer.sent for answer in answers)
    axis = axes[4]
    times = sorted(moment - start for answer in good for moment in answer.times)
    if times:
        bins = max(1, min(100, int(times[-1] * 4)))
        width = max(times[-1] / bins, 1e-9)
        axis.hist(times, bins=bins, weights=[1 / width] * len(times))
    axis.set(title="pieces of answers a second", xlabel="s")
    axis = axes[5]
    events = sorted(
        [(answer.sent - start, 1) for answer in answers] + [(answer.ended - start, -1) for answer in answers]
    )
    running, steps = 0, []
    for moment, change in events:
        running += change
        steps.append((moment, running))
    axis.step([moment for moment, _ in steps], [count for _, count in steps], where="post")
    axis.set(title="requests at a time", xlabel="s")
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write {path}: {error}") from error
