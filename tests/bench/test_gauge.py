"""Readings beside a benchmark."""

from __future__ import annotations

import threading

from samebits.bench.gauge import gauged


def test_readings_are_medians_of_what_was_read() -> None:
    read = threading.Event()
    values = iter([(1980.0, 100.0), (1440.0, 690.0), (1470.0, 692.0)])

    def next_reading() -> tuple[float, float]:
        found = next(values, None)
        if found is None:
            read.set()
            raise RuntimeError("no more")
        return found

    with gauged(next_reading, interval=0.001) as readings:
        assert read.wait(10)
    assert readings.facts() == {"median MHz": 1470.0, "median W": 690.0}


def test_nothing_is_said_where_nobody_can_tell() -> None:
    def absent() -> tuple[float, float]:
        raise ModuleNotFoundError("pynvml")

    with gauged(absent) as readings:
        pass
    assert readings.facts() == {}
