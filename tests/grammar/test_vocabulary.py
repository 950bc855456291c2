"""Vocabularies that lack bytes: what can be written is written, and what cannot is refused, at the first mask where it
shows there."""

from __future__ import annotations

from itertools import product
from random import Random

import llguidance
import pytest
import tokenizers
from grammar_walk import EOS, allowed_ids, new_matcher, tokenizer
from tokenizers import decoders, models, pre_tokenizers

from samebits.errors import RequestError
from samebits.grammar.compiler import GrammarCompiler, GrammarError, make_checker, make_compiler
from samebits.grammar.language import Grammar, choice_part, grammar_of, regex_part, text_part
from samebits.grammar.vocabulary import completed
from samebits.text.detokenize import byte_level_alphabet

END = 1


def compiler_of(words: list[str], padding: int = 0) -> GrammarCompiler:
    """For the vocabulary `<unk>`, `<eos>`, and these."""
    return make_compiler(tokenizer_of(words), 2 + len(words) + padding, [END])


def tokenizer_of(words: list[str]) -> str:
    stand_in = {byte: character for character, byte in byte_level_alphabet().items()}
    words = ["".join(stand_in[byte] for byte in word.encode()) for word in words]
    ids = {word: token_id for token_id, word in enumerate(["<unk>", "<eos>", *words])}
    merges = [(word[:-1], word[-1]) for word in words if word[:-1] in ids and word[-1] in ids]
    made = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<eos>"])
    return str(made.to_str())


def written(grammar: Grammar, words: list[str], choose: Random) -> str:
    """A walk along the masks to the end. Raises `GrammarError` or `RequestError` where there is no way on."""
    matcher = new_matcher(grammar, compiler_of(words, padding=choose.randrange(40)))
    text = ""
    for _ in range(50):
        allowed = allowed_ids(matcher.mask().result())
        assert all(token_id == END or 2 <= token_id < 2 + len(words) for token_id in allowed)
        taken = choose.choice(allowed)
        if taken == END:
            return text
        matcher.accept(taken)
        text += words[taken - 2]
    raise AssertionError("a walk without an end")


def test_what_the_first_tokens_cannot_write_is_refused_before_it_runs() -> None:
    """By the engine: the checker, which knows all bytes, lets it pass."""
    grammar = grammar_of(choice_part(["cab", "cba"], "x"))
    make_checker({"<eos>": END}, 4, [END]).compile(grammar.text)
    with pytest.raises(RequestError, match="cannot be written"):
        new_matcher(grammar, compiler_of(["a", "b"])).mask().result()


def test_what_cannot_be_finished_ends_where_that_shows() -> None:
    matcher = new_matcher(grammar_of(choice_part(["ac"], "x")), compiler_of(["a", "b"]))
    assert allowed_ids(matcher.mask().result()) == [2]
    matcher.accept(2)
    with pytest.raises(GrammarError, match="cannot be written"):
        matcher.mask().result()


@pytest.mark.parametrize("seed", range(40))
def test_a_choice_is_written_where_there_is_a_way(seed: int) -> None:
    """Against all ways to put tokens together: of single texts, those that can be written are, and no others."""
    choose = Random(seed)
    pieces = ["".join(letters) for size in (1, 2, 3) for letters in product("abc", repeat=size)]
    words = sorted(choose.sample(pieces, 5))
    ways = {"".join(way) for size in range(1, 6) for way in product(words, repeat=size)}
    for _ in range(12):
        text = "".join(choose.choice("abc") for _ in range(choose.randrange(1, 6)))
        grammar = grammar_of(choice_part([text], "x"))
        if text in ways:
            assert written(grammar, words, choose) == text
        else:
            with pytest.raises((GrammarError, RequestError), match="cannot be written"):
                written(grammar, words, choose)


@pytest.mark.parametrize("seed", range(20))
def test_expressions_and_longer_choices(seed: int) -> None:
    choose = Random(seed)
    words = ["a", "bc", "é", "aé", "d"]
    assert set(written(grammar_of(regex_part("(a|bc|é)+d", "x")), words, choose)) <= set("abcéd")
    assert written(grammar_of(choice_part(["axa", "abcd", "aéd"], "x")), words, choose) in ("abcd", "aéd")


def test_special_tokens_keep_their_names() -> None:
    grammar = grammar_of(text_part('start: "a" <eos>', "x"))
    matcher = new_matcher(grammar, compiler_of(["a", "b"]))
    assert allowed_ids(matcher.mask().result()) == [2]
    matcher.accept(2)
    assert allowed_ids(matcher.mask().result()) == [END]


@pytest.mark.parametrize("name", ["bundled", "tiny"])
def test_a_vocabulary_that_lacks_nothing_is_left_alone(name: str) -> None:
    known = tokenizer(name)
    made = llguidance.LLTokenizer(known._backend.to_str(), n_vocab=known.vocabulary + 5, eos_token=EOS[name])
    assert completed(made, known.vocabulary + 5, EOS[name]) is made


def test_the_library_alone_would_write_another_text() -> None:
    """The inverse: what the library makes of a forced text whose first byte no token writes."""
    made = llguidance.LLTokenizer(tokenizer_of(["a", "b"]), n_vocab=4, eos_token=[END])
    mask = new_matcher(grammar_of(choice_part(["cab"], "x")), GrammarCompiler(made, 4)).mask().result()
    assert allowed_ids(mask) == [2], "an a"
