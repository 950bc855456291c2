"""The text of a sample: tokens are judged one by one, stops found across borders."""

from __future__ import annotations

from tiny_tokenizer import make_tokenizer

from samebits.text.output import OutputText, TextOptions
from samebits.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer(make_tokenizer())


def run(ids: list[int], options: TextOptions) -> tuple[str, int, str | None]:
    """(text, tokens used, stop string)."""
    output = OutputText(TOKENIZER, options)
    shown = ""
    for number, token_id in enumerate(ids, 1):
        shown += output.push(token_id)
        if output.matched is not None:
            return shown, number, output.matched
    return shown + output.finish(), len(ids), output.matched


def test_stop_inside_and_across_tokens() -> None:
    text = "the same request gives the same bits"
    ids = TOKENIZER.encode(text)
    for start in range(len(text) - 3):
        stop = text[start : start + 3]
        shown, used, matched = run(ids, TextOptions(stop=(stop,)))
        assert matched == stop
        assert shown == text[: text.index(stop)]
        # Without the last token used the stop string is not there yet.
        assert stop not in TOKENIZER.decode(ids[: used - 1])
        assert stop in TOKENIZER.decode(ids[:used])


def test_stop_of_characters_made_of_several_tokens() -> None:
    ids = TOKENIZER.encode("a🙂b🚀c")
    shown, used, matched = run(ids, TextOptions(stop=("🚀",)))
    assert (shown, matched) == ("a🙂b", "🚀")
    assert TOKENIZER.decode(ids[:used]) == "a🙂b🚀"


def test_no_stop_trim_keeps_the_stop_and_nothing_after() -> None:
    ids = TOKENIZER.encode("the same request")
    shown, _, matched = run(ids, TextOptions(stop=("sa",), keep_stop=True))
    assert (shown, matched) == ("the sa", "sa")


def test_special_tokens_hidden_or_shown() -> None:
    end = TOKENIZER.token_to_id("<|end|>")
    assert end is not None
    ids = [*TOKENIZER.encode("the"), end, *TOKENIZER.encode(" same")]
    assert run(ids, TextOptions())[0] == "the same"
    assert run(ids, TextOptions(skip_special_tokens=False))[0] == "the<|end|> same"


def test_a_stop_string_that_is_a_hidden_special_token() -> None:
    end = TOKENIZER.token_to_id("<|end|>")
    assert end is not None
    ids = [*TOKENIZER.encode("the"), end, *TOKENIZER.encode(" same")]
    count = len(TOKENIZER.encode("the")) + 1
    assert run(ids, TextOptions(stop=("<|end|>",))) == ("the", count, "<|end|>")


def test_stops_count_from_the_minimum_on() -> None:
    ids = TOKENIZER.encode("the same the same")
    late = len(TOKENIZER.encode("the same")) + 1
    shown, used, matched = run(ids, TextOptions(stop=("the",), min_new_tokens=late))
    assert (shown, matched) == ("the same ", "the")
    assert used >= late
    assert run(ids, TextOptions(stop=("the",)))[0] == ""


def test_stop_token_is_shown_only_when_kept() -> None:
    same = TOKENIZER.encode(" same")[-1]
    for keep, text in ((False, "the"), (True, "the" + TOKENIZER.decode([same]))):
        output = OutputText(TOKENIZER, TextOptions(keep_stop=keep))
        shown = "".join(output.push(token_id) for token_id in TOKENIZER.encode("the"))
        assert shown + output.finish(last_token=same) == text


def test_partial_stop_is_shown_when_nothing_follows() -> None:
    ids = TOKENIZER.encode("the sam")
    assert run(ids, TextOptions(stop=("same",))) == ("the sam", len(ids), None)
