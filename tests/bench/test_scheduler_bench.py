"""The benchmark of the scheduler measures what it says. No figure is asserted."""

from __future__ import annotations

from samebits.bench.null_model import NullRunner
from samebits.bench.scheduler import Case, cases, loaded_engine, milliseconds_a_step, table_rows


def test_a_loaded_engine_decodes_for_all_and_shares_half_of_every_prompt() -> None:
    engine = loaded_engine(Case(8, 20, "decode"), 4)
    assert (len(engine.scheduler.running), engine.scheduler.waiting_count) == (8, 20)
    before = engine.counters.generated_tokens
    events = engine.step()
    assert len(events) == 8 == engine.counters.generated_tokens - before
    assert engine.counters.cached_tokens == 7 * 128
    runner = engine.runner
    assert isinstance(runner, NullRunner) and runner.seconds > 0 and runner.processor_seconds > 0


def test_requests_come_and_go_in_a_turnover() -> None:
    engine = loaded_engine(Case(16, 0, "turnover"), 8)
    waiting = engine.scheduler.waiting_count
    ended = sum(event.finish is not None for _ in range(16) for event in engine.step())
    assert 8 <= ended <= 32 and waiting - engine.scheduler.waiting_count >= 8


def test_every_case_is_measured_by_both_clocks() -> None:
    assert {(case.running, case.waiting) for case in cases()} >= {(256, 0), (256, 10_000), (1024, 10_000)}
    for kind in ("decode", "turnover"):
        assert all(value > 0 for value in milliseconds_a_step(Case(2, 3, kind), 3))
    row = {
        **vars(Case(2, 3, "decode")),
        "milliseconds": 0.5,
        "processor milliseconds": 0.4,
        "least processor milliseconds": 0.3,
        "least processor microseconds a running request": 150.0,
    }
    assert table_rows({"steps": [row]})[1] == ("decode", "2", "3", "0.500", "0.400", "0.300", "150.00")
