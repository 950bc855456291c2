"""Every mode passes an honest target, and catches the faults that are its business."""

from __future__ import annotations

import io
import json

import pytest

from samebits.errors import ConfigError, EngineError
from samebits.verify.answers import Answer, TokenBits
from samebits.verify.modes import MODES, Settings
from samebits.verify.run import as_json, mode_names, outcome_lines, run, table

from .fake import FAULTS, FakeTarget

QUICK = Settings(trials=12, max_new_tokens=8)


def check(target: FakeTarget, mode: str, temperature: float, settings: Settings = QUICK):
    return MODES[mode](target, settings, temperature, lambda done, total: None)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("mode", MODES)
def test_an_honest_target_passes(mode: str, temperature: float) -> None:
    outcome = check(FakeTarget(), mode, temperature)
    assert outcome.passed
    assert all(len(tally.unique) == 1 and tally.samples > 0 for tally in outcome.tallies)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("fault", ["batch size", "only the last member", "one bit of one late logprob"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_finds_a_row_that_knows_its_batch(mode: str, fault: str, temperature: float) -> None:
    outcome = check(FakeTarget(fault), mode, temperature)
    assert not outcome.passed
    broken = next(tally for tally in outcome.tallies if not tally.equal)
    assert len(broken.unique) >= 2
    assert broken.difference is not None and broken.difference.where == "output"


@pytest.mark.parametrize(
    ("mode", "fault"),
    [
        ("mixed", "neighbour's parameters"),
        ("p_vs_d", "neighbour's parameters"),
        ("single", "place in the batch"),
        ("prefix", "place in the batch"),
        ("radix_cache", "cache"),
        ("p_vs_d", "prefill is not decode"),
        ("single", "token"),
    ],
)
def test_other_faults_are_found_where_they_show(mode: str, fault: str) -> None:
    assert fault in FAULTS
    assert not check(FakeTarget(fault), mode, 0.0).passed


def test_the_difference_names_position_tokens_and_bits() -> None:
    outcome = check(FakeTarget("one bit of one late logprob"), "single", 0.0)
    difference = outcome.tallies[0].difference
    assert difference is not None and difference.position == 5
    assert difference.expected is not None and difference.found is not None
    assert difference.expected.token == difference.found.token
    assert difference.expected.bits is not None and difference.found.bits == difference.expected.bits ^ 1
    line = outcome_lines(outcome)[-1]
    assert f"0x{difference.expected.bits:08x}" in line and f"0x{difference.found.bits:08x}" in line
    assert "batch of 2, member 1" in line


def test_every_member_of_every_batch_is_compared() -> None:
    outcome = check(FakeTarget(), "single", 0.0, Settings(trials=50, max_new_tokens=1))
    assert outcome.tallies[0].answers == 50 * 51 // 2 and outcome.tallies[0].differing == 0
    broken = check(FakeTarget("place in the batch"), "single", 0.0, Settings(trials=50, max_new_tokens=1))
    assert broken.tallies[0].differing == 47, "one member of each batch of four and more"
    assert "Total samples: 50, Unique samples: 1" in outcome_lines(outcome)[1]


def test_prefixes_share_exactly_the_lengths_named() -> None:
    asked: list[tuple[int, ...]] = []

    class Recording(FakeTarget):
        def generate(self, prompts, sampling, score_prompt=False):
            asked.extend(tuple(ids) for ids in prompts)
            return super().generate(prompts, sampling, score_prompt)

    check(Recording(), "prefix", 0.0)
    shared = {
        next(k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
        for a in set(asked)
        for b in set(asked)
        if a != b
    }
    assert {1, 511, 2048, 4097} <= shared


def test_what_does_not_fit_the_context_is_left_out_and_said() -> None:
    outcome = check(FakeTarget(context_length=1024), "prefix", 0.0)
    assert outcome.passed
    assert [note for note in outcome.notes if "4097" in note]
    assert check(FakeTarget(context_length=1024), "mixed", 0.0).passed


@pytest.mark.parametrize("mode", ["prefix", "radix_cache"])
def test_a_context_without_any_room_is_refused(mode: str) -> None:
    with pytest.raises(ConfigError, match="a context of 24 tokens has no room"):
        check(FakeTarget(context_length=24), mode, 0.0)


@pytest.mark.parametrize("mode", MODES)
def test_an_honest_target_passes_with_answers_of_one_token(mode: str) -> None:
    assert check(FakeTarget(), mode, 0.0, Settings(trials=6, max_new_tokens=1)).passed
    assert not check(FakeTarget("cache"), "radix_cache", 0.0, Settings(trials=6, max_new_tokens=1)).passed


def test_texts_in_place_of_ids_accuse_nobody() -> None:
    """What can be compared without ids is; what cannot is said, and is no difference."""

    class Texts(FakeTarget):
        def generate(self, prompts, sampling, score_prompt=False):
            answers = super().generate(prompts, sampling, score_prompt)
            told = [
                [TokenBits(f"t{entry.token}", entry.bits) for entry in answer.output] for answer in answers
            ]
            return [
                Answer(tuple(output), answer.prompt, answer.cached_tokens)
                for output, answer in zip(told, answers, strict=True)
            ]

    outcome = check(Texts(), "radix_cache", 0.0)
    assert outcome.passed and "one token further was not asked for" in outcome.notes[0]
    assert not check(Texts("cache"), "radix_cache", 0.0).passed
    with pytest.raises(EngineError, match="p_vs_d must score the same tokens"):
        check(Texts(), "p_vs_d", 0.0)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_what_goes_on_in_another_way_with_a_cold_cache_too_is_no_fault_of_the_cache(
    temperature: float,
) -> None:
    """Where noise goes by the number of the draw, or decode is not prefill, one token further is another request."""

    def cause(target: FakeTarget) -> str:
        outcome = check(target, "radix_cache", temperature)
        assert outcome.passed and all(len(tally.unique) == 1 for tally in outcome.tallies)
        return "".join(note for note in outcome.notes if "one token further" in note)

    assert "p_vs_d differs" in cause(FakeTarget("prefill is not decode"))
    assert ("number of the draw" in cause(FakeTarget(noise_by_position=False))) == (temperature > 0)
    assert cause(FakeTarget()) == ""
    for by_position in (True, False):
        broken = FakeTarget("cached beginning", noise_by_position=by_position)
        assert not check(broken, "radix_cache", temperature).passed


def test_a_target_without_a_cache_is_told_apart() -> None:
    assert "no prompt token came from a cache" in check(FakeTarget(cache=False), "radix_cache", 0.0).notes[0]
    assert "warm" in check(FakeTarget(), "radix_cache", 0.0).notes[0]
    assert "does not say" in check(FakeTarget(tells_cached=False), "radix_cache", 0.0).notes[0]


def test_a_mode_that_compared_nothing_does_not_pass() -> None:
    assert not check(FakeTarget(), "single", 0.0, Settings(trials=0)).passed


def test_report_and_table() -> None:
    lines: list[str] = []
    report = run(
        FakeTarget("prefill is not decode"),
        ["all"],
        [0.0],
        Settings(trials=4, max_new_tokens=8),
        lines.append,
    )
    assert [outcome.mode for outcome in report.outcomes] == list(MODES)
    assert not report.passed
    data = json.loads(json.dumps(as_json(report)))
    assert data["passed"] is False
    assert {mode["mode"]: mode["passed"] for mode in data["modes"]}["p_vs_d"] is False
    assert sum("DIFFERENT" in line for line in table(report)) == sum(
        not mode["passed"] for mode in data["modes"]
    )
    assert any("Total samples: 4, Unique samples: 1" in line for line in lines)


def test_mode_names() -> None:
    assert mode_names(["all", "single"]) == list(MODES)
    with pytest.raises(ConfigError, match="unknown mode 'double'"):
        mode_names(["double"])


def test_the_bar_goes_where_it_is_sent() -> None:
    stream = io.StringIO()
    run(FakeTarget(), ["single"], [0.0], Settings(trials=3, max_new_tokens=1), lambda line: None, stream)
    assert "trial" not in stream.getvalue(), "no bar for work under two seconds"
