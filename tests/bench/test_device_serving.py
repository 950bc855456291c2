"""`samebits bench serving`: the loads, and what is counted. No figure of a machine is asserted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from samebits.bench.device_serving import line_of, percentiles, plot, serve, table_rows
from samebits.bench.loads import MOST_TOKENS, NAMES, Asking, Load, conversations, loads
from samebits.config import EngineConfig, ModelConfig
from samebits.engine.build import build_engine


def test_loads_are_the_same_every_time() -> None:
    assert loads() == loads()
    assert [load.name for load in loads(3)] == list(NAMES)
    assert all(len(load.requests) == 256 for load in loads())


def test_conversations_are_of_the_stated_lengths() -> None:
    load = conversations(20_000)
    facts = load.facts()
    assert 210 < facts["prompt tokens"]["mean"] < 230
    assert 190 < facts["new tokens"]["mean"] < 210
    assert facts["prompt tokens"]["median"] < facts["prompt tokens"]["mean"] / 2  # a long tail
    assert facts["prompt tokens"]["most"] == MOST_TOKENS
    assert conversations(10, seed=1) != conversations(10, seed=2)


def test_every_token_is_counted(tmp_path: Path) -> None:
    config = ModelConfig(model="tiny", load_format="dummy", device="cpu", context_length=256)
    engine = build_engine(config, EngineConfig(kv_pages=16, max_running=4), lambda *news: None)
    opened: Any = SimpleNamespace(engine=engine, runner=SimpleNamespace(busy_and_idle=lambda: (99.0, 1.0)))
    load = Load("some", (Asking(5, 3), Asking(70, 1), Asking(9, 6)))
    found = serve(opened, load, first=7)
    engine.close()
    assert load.tokens == 94
    assert found["requests that ended"] == 3
    assert found["output tokens per second"] == pytest.approx(10 / found["seconds"])
    assert found["total tokens per second"] == pytest.approx(94 / found["seconds"])
    assert found["idle share"] == 0.01
    assert found["time to first token"]["1"] <= found["time to first token"]["100"] <= found["seconds"]
    row = {"profile": "exact", **load.facts(), **found}
    assert "3 of some" in line_of(row)
    assert len({len(cells) for cells in table_rows({"loads": [row, row]})}) == 1
    pytest.importorskip("matplotlib")
    plot({"model": "tiny", "gpu": "none", "loads": [row, row]}, tmp_path / "new" / "plot.png")
    assert (tmp_path / "new" / "plot.png").stat().st_size > 10_000


def test_a_load_that_is_cut_says_so() -> None:
    """What was computed counts, and the engine is free for the next load."""
    config = ModelConfig(model="tiny", load_format="dummy", device="cpu", context_length=256)
    engine = build_engine(config, EngineConfig(kv_pages=16, max_running=4), lambda *news: None)
    opened: Any = SimpleNamespace(engine=engine, runner=SimpleNamespace(busy_and_idle=lambda: (0.0, 0.0)))
    load = Load("long", (Asking(5, 200), Asking(9, 200)))
    found = serve(opened, load, first=0, most_seconds=1e-9)
    assert found["requests that ended"] == 0 and found["output tokens per second"] == 0
    assert not engine.has_work()
    assert serve(opened, Load("short", (Asking(4, 2),)), first=9)["requests that ended"] == 1
    engine.close()
    row = {"profile": "exact", **load.facts(), **found}
    assert not row["time to first token"]
    assert "cut after" in line_of(row) and "0 ended" in line_of(row)
    assert table_rows({"loads": [row]})[1][1] == "0 of 2"


def test_percentiles() -> None:
    assert percentiles([3.0, 1.0, 2.0])["50"] == 2.0
    assert percentiles([]) == {}
