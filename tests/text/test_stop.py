"""Stop strings end the text where reading it character by character would (trap 13)."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from samebits.text.stop import StopMatcher

STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)
PIECES = st.lists(st.text("abc", max_size=5), max_size=12)


def character_by_character(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The definition: the first end of any stop string; of those that end there, the longest."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def run(matcher: StopMatcher, pieces: list[str]) -> str:
    shown = ""
    for piece in pieces:
        shown += matcher.push(piece)
        if matcher.matched is not None:
            return shown
    return shown + matcher.finish()


@settings(max_examples=500, deadline=None)
@given(PIECES, STOPS)
def test_any_cut_gives_the_definition(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    assert (run(matcher, pieces), matcher.matched) == character_by_character("".join(pieces), stops)


@settings(max_examples=200, deadline=None)
@given(PIECES, STOPS)
def test_kept_match_ends_the_text(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops, keep_match=True)
    text, matched = character_by_character("".join(pieces), stops)
    assert run(matcher, pieces) == text + (matched or "")


@settings(max_examples=300, deadline=None)
@given(PIECES, STOPS)
def test_no_part_of_a_stop_string_is_ever_shown(pieces: list[str], stops: list[str]) -> None:
    final, _ = character_by_character("".join(pieces), stops)
    matcher = StopMatcher(stops)
    shown = ""
    for piece in pieces:
        shown += matcher.push(piece)
        assert final.startswith(shown)
        if matcher.matched is not None:
            return


def test_looking_at_each_piece_alone_would_miss_the_border() -> None:
    pieces, stop = ["th", "e en", "d of it"], "end"
    assert not any(stop in piece for piece in pieces)
    matcher = StopMatcher([stop])
    assert run(matcher, pieces) == "the "
    assert matcher.matched == stop


def test_showing_at_once_would_leak() -> None:
    matcher = StopMatcher(["<end>"])
    assert matcher.push("a <en") == "a "
    assert matcher.push("d>b") == ""
    assert matcher.matched == "<end>"


def test_a_false_start_is_shown_later() -> None:
    matcher = StopMatcher(["aab"])
    assert matcher.push("aa") == ""
    assert matcher.push("a") == "a"
    assert matcher.push("c") == "aac"
