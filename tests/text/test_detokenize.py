"""Incremental decoding gives the text of decoding at once, and never half a character."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizer import CORPUS, make_sentencepiece_tokenizer, make_tokenizer
from tokenizers import pre_tokenizers

from samebits.text.detokenize import REPLACEMENT, Detokenizer, WindowDetokenizer
from samebits.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer(make_tokenizer(), {"eos_token": "<|eos|>"})
IDS = st.lists(st.integers(0, TOKENIZER.vocabulary - 1), max_size=40)


def stream(detokenizer: Detokenizer, ids: list[int]) -> tuple[list[str], str]:
    """(text of each push, the rest)."""
    return [detokenizer.push(token_id) for token_id in ids], detokenizer.finish()


@settings(max_examples=300, deadline=None)
@given(IDS, st.booleans())
def test_bytes_in_any_order_decode_as_at_once(ids: list[int], skip: bool) -> None:
    parts, rest = stream(TOKENIZER.detokenizer(skip), ids)
    assert "".join(parts) + rest == TOKENIZER.decode(ids, skip)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_valid_text_is_never_cut_inside_a_character(text: str) -> None:
    ids = TOKENIZER.encode(text)
    parts, rest = stream(TOKENIZER.detokenizer(False), ids)
    assert "".join(parts) == text
    assert rest == ""
    assert REPLACEMENT in text or not any(REPLACEMENT in part for part in parts)


def test_decoding_token_by_token_would_break_characters() -> None:
    ids = TOKENIZER.encode("🙂")
    assert len(ids) > 1
    naive = "".join(TOKENIZER.decode([token_id]) for token_id in ids)
    assert naive != "🙂"
    assert REPLACEMENT in naive


def test_unfinished_character_comes_out_at_the_end() -> None:
    ids = TOKENIZER.encode("🙂")[:-1]
    parts, rest = stream(TOKENIZER.detokenizer(False), ids)
    assert parts == [""] * len(ids)
    assert rest == REPLACEMENT == TOKENIZER.decode(ids)


def sentencepiece_like() -> Tokenizer:
    return Tokenizer(make_sentencepiece_tokenizer())


@pytest.mark.parametrize("text", ["the same bits", "café 🙂 the", " the  same ", "日本"])
def test_other_decoders_decode_as_at_once(text: str) -> None:
    tokenizer = sentencepiece_like()
    ids = tokenizer.encode(text)
    detokenizer = tokenizer.detokenizer(False)
    assert isinstance(detokenizer, WindowDetokenizer)
    parts, rest = stream(detokenizer, ids)
    assert "".join(parts) + rest == tokenizer.decode(ids, False)


def test_other_decoders_keep_spaces_between_tokens() -> None:
    tokenizer = sentencepiece_like()
    ids = [tokenizer.token_to_id(piece) for piece in ("▁the", "▁same", "▁bits")]
    known = [token_id for token_id in ids if token_id is not None]
    parts, _ = stream(tokenizer.detokenizer(False), known)
    assert parts == ["the", " same", " bits"]
    assert "".join(tokenizer.decode([token_id]) for token_id in known) == "thesamebits"


@pytest.mark.parametrize(
    ("before", "text"), [("the", " same bits"), ("a€", " b"), ("the sa", "me"), ("日", "本"), ("", "same")]
)
def test_a_text_that_goes_on_keeps_its_first_space(before: str, text: str) -> None:
    tokenizer = sentencepiece_like()
    ids = tokenizer.encode(before + text)
    start = len(tokenizer.encode(before)) if before else 0
    parts, rest = stream(tokenizer.detokenizer(False, ids[:start]), ids[start:])
    assert "".join(parts) + rest == text
    alone, _ = stream(tokenizer.detokenizer(False), ids[start:])
    assert "".join(alone) == text.lstrip(), "without what stands before it"


def test_half_a_character_before_a_text_is_left_alone() -> None:
    tokenizer = sentencepiece_like()
    ids = tokenizer.encode("the €")
    for half in (-2, -1):
        parts, rest = stream(
            tokenizer.detokenizer(False, ids[:half]), [*ids[half:], *tokenizer.encode("the")]
        )
        assert "".join(parts) + rest == REPLACEMENT * -half + " the"


def test_corpus_round_trips() -> None:
    for line in CORPUS:
        assert TOKENIZER.decode(TOKENIZER.encode(line)) == line


def test_byte_level_with_another_pre_tokenizer_is_still_bytes() -> None:
    backend = make_tokenizer()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer = Tokenizer(backend)
    ids = tokenizer.encode("12 日本")
    parts, rest = stream(tokenizer.detokenizer(False), ids)
    assert "".join(parts) + rest == "12 日本"
