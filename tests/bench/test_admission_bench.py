"""The benchmark of admission serves what it says, over a model of time that resembles the card. The rule itself is
tested beside the scheduler."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from samebits.bench.admission import AdmissionLoad, Visit, loads, seconds_of, serve, table_rows
from samebits.schedule.scheduler import Chunk

ROOT = Path(__file__).parents[2]
RESULT = json.loads((ROOT / "results" / "admission.json").read_text())


def chunks(number: int, start: int, count: int) -> list[Chunk]:
    """Chunks as far as the model of time looks at them."""
    one = SimpleNamespace(start=start, end=start + count, count=count)
    return cast(list[Chunk], [one] * number)


def test_steps_take_as_long_as_they_took_on_the_card() -> None:
    decode = json.loads((ROOT / "results" / "decode-h200.json").read_text())
    for row in decode["batches"]:
        seconds = seconds_of(chunks(row["batch"], row["context"], 1))
        assert seconds == pytest.approx(row["milliseconds"]["exact"] / 1e3, rel=0.1)
    prefill = json.loads((ROOT / "results" / "prefill-h200.json").read_text())
    for row in prefill["prefill"]:
        prompts = 8192 // row["prompt tokens"]
        seconds = seconds_of(chunks(prompts, 0, row["prompt tokens"]))
        assert 8192 / seconds == pytest.approx(row["tokens per second"]["exact"], rel=0.1)


def test_a_load_is_served_by_the_model_of_time() -> None:
    late = Visit(100.0, 300, 5, 50)
    served = serve(AdmissionLoad("two", (Visit(0.0, 64, 3, 3), late)), None)
    assert served.steps == 3 + 5
    assert served.wanted_tokens == served.computed_tokens == 64 + 2 + 300 + 4
    assert served.first_tokens["1"] == pytest.approx(seconds_of(chunks(1, 0, 300)))
    assert served.seconds == pytest.approx(100 + served.ends["1"])
    assert served.longest_pause == pytest.approx(max(seconds_of(chunks(1, end - 1, 1)) for end in (66, 304)))


def test_the_result_is_of_these_loads() -> None:
    assert [(row["load"], row["requests"]) for row in RESULT["loads"]] == [
        (load.name, len(load.visits)) for load in loads()
    ]
    assert len(table_rows(RESULT)) == 1 + 2 * len(RESULT["loads"])


def documented(row: dict[str, Any]) -> str:
    """A load's row in the documentation: every cell with the rule and without it."""

    def cell(form: str, *names: str) -> str:
        values = [row["foretold"], row["fits at the moment"]]
        for name in names:
            values = [value[name] for value in values]
        return ", ".join(format(value, form) for value in values)

    cells = (
        row["load"],
        cell(",.0f", "total tokens per second"),
        cell("d", "preemptions"),
        cell(".1f", "first token", "median"),
        cell(".0f", "first token", "p99"),
        cell(".0f", "mean seconds of a request"),
        cell(".1f", "longest pause"),
    )
    return "| " + " | ".join(cells) + " |"


def test_the_documented_table_is_the_result() -> None:
    text = (ROOT / "docs" / "scheduling.md").read_text()
    for row in RESULT["loads"]:
        assert documented(row) in text, documented(row)
