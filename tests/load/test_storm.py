"""A small storm of clients; `storm.py` runs larger ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
from storm import Storm, faults, run

CLIENTS, WAVES = 80, 3


@pytest.fixture(scope="module")
def storm() -> Storm:
    return run(CLIENTS, WAVES)


def test_nothing_is_lost_or_mixed_up(storm: Storm) -> None:
    assert faults(storm) == []
    kinds = {outcome.kind for wave in storm.waves for outcome in wave.outcomes}
    assert kinds == {"steady", "slow", "leaving", "garbage"}
    answered = sum(outcome.reply is not None for wave in storm.waves for outcome in wave.outcomes)
    assert answered > CLIENTS * WAVES * 0.8


def test_an_exchange_a_bit_a_loss_and_a_leak_would_be_seen(storm: Storm) -> None:
    solo = list(storm.solo)
    solo[0], solo[1] = solo[1], solo[0]
    assert any("another answer" in fault for fault in faults(replace(storm, solo=solo)))
    assert any("one answer" in fault for fault in faults(replace(storm, solo=[solo[0], *solo[:-1]])))
    wave = storm.waves[-1]
    number = next(i for i, outcome in enumerate(wave.outcomes) if outcome.kind == "steady")
    outcome = wave.outcomes[number]
    assert outcome.reply is not None
    first = bytearray(outcome.reply.logprobs[0])
    first[0] ^= 1
    flipped = replace(outcome.reply, logprobs=(bytes(first), *outcome.reply.logprobs[1:]))
    for changed in (replace(outcome, reply=flipped), replace(outcome, reply=None)):
        outcomes = [*wave.outcomes[:number], changed, *wave.outcomes[number + 1 :]]
        seen = faults(replace(storm, waves=[*storm.waves[:-1], replace(wave, outcomes=outcomes)]))
        assert seen == [f"wave {WAVES - 1}, steady client {outcome.question}: another answer than alone"]
    heavy = replace(wave, memory_mib={name: mib + 100 for name, mib in wave.memory_mib.items()})
    assert len(faults(replace(storm, waves=[*storm.waves[:-1], heavy]))) == 2
    leaky = replace(wave, left_behind=wave.left_behind | {"requests_running": 1.0}, descriptors=10_000)
    assert len(faults(replace(storm, waves=[*storm.waves[:-1], leaky]))) == 2
