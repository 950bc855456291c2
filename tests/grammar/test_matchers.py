"""Masks: what they allow, that they depend on the output alone, and what becomes of a grammar that fails."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pytest
import tokenizers
from grammar_walk import (
    EOS,
    Immediate,
    accepts,
    allowed_ids,
    compiler,
    new_compiler,
    new_matcher,
    text_of,
    tokenizer,
    walk,
)
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from samebits.errors import RequestError
from samebits.grammar.compiler import LIMITS, GrammarCompiler, GrammarError, make_checker, make_compiler
from samebits.grammar.language import (
    Grammar,
    choice_part,
    compose,
    grammar_of,
    native_grammar,
    object_part,
    regex_part,
    schema_part,
    text_part,
)
from samebits.grammar.matchers import GrammarMasks
from samebits.text.tokenizer import Tokenizer

SCHEMA = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "number"}}, "b": {}}}
GRAMMARS = {
    "schema": grammar_of(schema_part(SCHEMA, "x")),
    "object": grammar_of(object_part("x")),
    "regex": grammar_of(regex_part(r"[a-z]{3,9}é+ \d{1,20}", "x")),
    "choice": grammar_of(choice_part(["red", "reddish", 'quo"te\\', "漢\n\t\u0001\x7f字🙂"], "x")),
    "gbnf": grammar_of(text_part('root ::= term ("+" term)*\nterm ::= [0-9]+ | "(" root ")"', "x")),
    "lark": grammar_of(text_part('start: NUM ("+" NUM)*\nNUM: /[0-9]+/\n%ignore / /', "x")),
}


@pytest.mark.parametrize(
    ("name", "text", "fits"),
    [
        ("object", '{"a": [1, {"é": null}]}', True),
        ("object", "[1]", False),
        ("regex", "abcé 12", True),
        ("regex", "abcé 12 ", False),
        ("regex", " abcé 12", False),
        ("choice", "red", True),
        ("choice", "reddish", True),
        ("choice", "redd", False),
        ("choice", 'quo"te\\', True),
        ("choice", "漢\n\t\u0001\x7f字🙂", True),
        ("gbnf", "12+(3+4)", True),
        ("gbnf", "12+(3+4", False),
        ("lark", "1 + 23", True),
        ("lark", "1 + x", False),
    ],
)
@pytest.mark.parametrize("tokens", ["bundled", "tiny"])
def test_what_fits(name: str, text: str, fits: bool, tokens: str) -> None:
    assert accepts(GRAMMARS[name], text, tokens) is fits


@pytest.mark.parametrize(
    ("expression", "text", "fits"),
    [
        (r"^\d+$", "42", True),
        (r"^\d+$", "^42$", False),
        (r"^a|b$", "b", True),
        ("a.c", "a\nc", False),
        ("a/c", "a/c", True),
        (r"(?i)yes", "yEs", True),
        ("a+?b", "aab", True),
        ("é?", "", True),
    ],
)
def test_expressions_match_the_whole_output(expression: str, text: str, fits: bool) -> None:
    assert accepts(grammar_of(regex_part(expression, "x")), text) is fits


@pytest.mark.parametrize(
    ("grammar", "text", "fits"),
    [
        (r'root ::= "\u00e9ab"', "éab", True),
        (r'root ::= "\u00e9ab"', "\ue9ab", False),  # what the library's converter alone makes of it
        (r"root ::= [^\u00e9ab]", "c", True),
        (r"root ::= [^\u00e9ab]", "a", False),
        (r"root ::= [\u00e0-\u00ff]", "é", True),
        (r'root ::= "\U0001F600" [\U0001f600-\U0001f602]', "😀😁", True),
        (r'root ::= "\u0022\u005c" [\u005d]', '"\\]', True),
        (r'root ::= "\\u00e9"', r"\u00e9", True),
        (r'start: "\u00e9ab"', "éab", True),
    ],
)
def test_characters_by_their_numbers(grammar: str, text: str, fits: bool) -> None:
    assert accepts(grammar_of(text_part(grammar, "x")), text) is fits


@pytest.mark.parametrize(
    "grammar",
    [
        'start: %json {"type": "object", "properties": {"a": {"type": "integer"}}}',
        'start: json // "%json {}'
        + '\njson: %json\n{"properties": {"a": {"type": "integer"}}, "type": "object"}',
        'start: "\\\\" | <think> | %json{"properties": {"a": {"type": "integer"}}, "required": ["a"]} # /',
    ],
)
def test_schemas_in_a_grammar_are_enforced_as_others(grammar: str) -> None:
    made = grammar_of(text_part(grammar, "x"))
    assert accepts(made, '{"a": 3}') and not accepts(made, '{"a":  3}')
    assert not accepts(made, '{"a": 3, "\\u0061": "x"}')
    assert native_grammar(made.text, "x").text == made.text


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        ('start: "%json {}" "x"', "%json {}x"),
        (r"start: /%json \{}/", "%json {}"),
        ('start: "a" # %json {}', "a"),
        ('start: "say \\"%json {}"', 'say "%json {}'),
        ('start: %json {"const": "%json {}"}', '"%json {}"'),
    ],
)
def test_words_that_only_look_like_schemas_stay(grammar: str, text: str) -> None:
    assert accepts(grammar_of(text_part(grammar, "x")), text)


@pytest.mark.parametrize("number", ["1e400", "NaN"])
def test_a_schema_in_a_grammar_with_a_number_of_no_double_is_refused(number: str) -> None:
    with pytest.raises(RequestError, match="too large"):
        text_part(f'start: %json {{"const": {number}}}', "x")


@pytest.mark.parametrize("number", [r"\ud83d", r"\U00110000"])
def test_numbers_of_no_character_are_refused(number: str) -> None:
    with pytest.raises(RequestError, match="no character"):
        text_part(f'root ::= "{number}"', "x")


def test_a_choice_may_be_long() -> None:
    names = [f"name {number}" for number in range(4000)]
    grammar = grammar_of(choice_part(names, "x"))
    assert accepts(grammar, "name 3999") and not accepts(grammar, "name 4000")


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (regex_part, "(a"),
        (regex_part, r"\bword"),
        (regex_part, r"(a)\1"),
        (text_part, "start: /a/ missing"),
        (text_part, "start: a\na: @other"),
        (text_part, "start: <|no_such_token|>"),
    ],
)
def test_broken_grammars_do_not_compile(make: Callable[..., Any], value: str) -> None:
    with pytest.raises(GrammarError, match=r"\S"):
        compiler().compile(grammar_of(make(value, "x")).text)


@pytest.mark.parametrize("name", ["bundled", "tiny"])
def test_the_checker_refuses_what_does_not_compile(name: str) -> None:
    """It knows bytes and added tokens alone, and is made at once."""
    known = tokenizer(name)
    checker = make_checker(known.added_tokens, known.vocabulary + 7, EOS[name])
    for grammar in GRAMMARS.values():
        checker.compile(grammar.text)
    token_id = max(known.added_tokens.values())
    text = next(text for text, i in known.added_tokens.items() if i == token_id)
    for lark in (f"start: <[{token_id}]> /a/", f"start: {text} /a/"):
        for made in (checker, compiler(name)):
            made.compile(grammar_of(text_part(lark, "x")).text)
    for lark in ("start: /(a/", "start: missing", "start: <|no_such_token|>", "start: <[9999999]>"):
        for made in (checker, compiler(name)):
            with pytest.raises(GrammarError):
                made.compile(grammar_of(text_part(lark, "x")).text)


EMPTY = [
    grammar_of(regex_part(r"[^\s\S]", "x")),
    grammar_of(text_part("start: A\nA: /a/ & /b/", "x")),
]


@pytest.mark.parametrize("grammar", EMPTY)
def test_a_grammar_that_no_output_meets_is_refused_before_it_runs(grammar: Grammar) -> None:
    """By the checker, which knows bytes alone; and by the engine, with the first mask."""
    checker = make_checker(tokenizer().added_tokens, tokenizer().vocabulary, EOS["bundled"])
    with pytest.raises(GrammarError, match="cannot be written"):
        checker.compile(grammar.text)
    with pytest.raises(RequestError, match="cannot be written"):
        new_matcher(grammar, compiler()).mask().result()


ENDLESS = [
    grammar_of(text_part("start: /a+/ /a+/", "x")),
    grammar_of(text_part("start: /a+/{2,3}", "x")),
    grammar_of(text_part('start: /a+/ /a+/\n%llguidance {"no_forcing": false}', "x")),
    compose('start: @part "a"', {"part": regex_part("a+", "x")}, "x"),
    native_grammar('{"grammars": [{"lark_grammar": "start: /a+/ /a+/"}]}', "x"),
]
"""A greedy lexeme takes all that the next one could begin with, so that one byte is forced for ever."""


@pytest.mark.parametrize("grammar", ENDLESS)
def test_what_is_forced_without_end_takes_no_time_without_end(grammar: Grammar) -> None:
    script = (
        "import sys; from samebits.grammar.compiler import make_checker; "
        "make_checker({}, 300, [2]).compile(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", script, grammar.text], check=True, timeout=60)


def test_what_stands_behind_a_grammar_stands_there_once() -> None:
    for lark, times in (("start: /a/ /b/", 1), ("start: /a/", 0)):
        once = text_part(lark, "x").text
        again = native_grammar(grammar_of(text_part(lark, "x")).text, "x").text
        assert once.count("no_forcing") == again.count("no_forcing") == times


@pytest.mark.parametrize(
    ("make", "value", "words"),
    [
        (text_part, "start: a\na[stop=/x/]: /a/", "stop"),
        (text_part, "start: a\na[capture, max_tokens=3]: /a/", "max_tokens"),
        (text_part, "start: a\n?a[max_tokens=3]: /a/", "max_tokens"),
        (text_part, "start: a\n!a[temperature=0.5]: /a/", "temperature"),
        (text_part, 'start: a\na[suffix="]", max_tokens=3]: /a/', "max_tokens"),
        (text_part, 'start: a\na[suffix=/\\/]/, stop="b"]: /a/', "stop"),
        (text_part, "start: %lark { start[max_tokens=3]: /a/ }", "max_tokens"),
        (text_part, 'start: %json {"type": "object", "if": {}}', "'if'"),
        (text_part, 'start: %json {"const": ' + "[" * 700 + "]" * 700 + "}", "nested"),
        (native_grammar, '{"grammars": [{"name": ' + "[" * 700 + "]" * 700 + "}]}", "nested"),
        (text_part, 'start: %json {"x-guidance": {"lenient": true}}', "x-guidance"),
        (text_part, "root ::= (", "GBNF"),
        (text_part, "begin: /a/", "GBNF"),
        (native_grammar, "{}", "grammars"),
        (native_grammar, '{"grammars": [{"json_schema": {"not": {}}}]}', "'not'"),
        (native_grammar, '{"grammars": [{"lark_grammar": "start: a"}], "max_tokens": 5}', "grammars"),
        (choice_part, [], "at least one"),
        (choice_part, "red", "list"),
        (regex_part, 5, "string"),
        (regex_part, "a" * 70_000, "longer"),
        (text_part, "start: a\n" + "\n" * 70_000, "longer"),
        (choice_part, ["a" * 40_000, "b" * 40_000], "longer"),
    ],
)
def test_what_would_not_be_done_is_refused(make: Callable[..., Any], value: Any, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        make(value, "the_field")
    assert words in str(caught.value) and caught.value.field == "the_field"


def test_words_that_only_look_like_attributes_are_served() -> None:
    for lark in (
        'start: a\na[capture="stop=1"]: /a/',
        'start: a\na[capture]: "stop=["',
        r"start: /\{a[stop=a]/",
    ):
        assert compiler().compile(grammar_of(text_part(lark, "x")).text)


@pytest.mark.parametrize("name", GRAMMARS)
def test_a_reported_grammar_is_the_grammar(name: str) -> None:
    assert native_grammar(GRAMMARS[name].text, "llguidance").text == GRAMMARS[name].text


def masks_along(grammar: Grammar, tokens: list[int], made: GrammarCompiler) -> list[bytes]:
    matcher = new_matcher(grammar, made)
    masks = []
    for token_id in tokens:
        masks.append(matcher.mask().result().tobytes())
        matcher.accept(token_id)
    return [*masks, matcher.mask().result().tobytes()]


@pytest.mark.parametrize("name", GRAMMARS)
def test_masks_are_a_function_of_the_output(name: str) -> None:
    """The same bytes from a compiler that has done nothing yet, and from one that other outputs have used."""
    grammar, used = GRAMMARS[name], new_compiler()
    tokens, _ = walk(grammar, 5, most=40)
    first = masks_along(grammar, tokens, used)
    for seed in range(4):
        for other in GRAMMARS.values():
            masks_along(other, walk(other, seed, most=30)[0], used)
    assert masks_along(grammar, tokens, used) == first == masks_along(grammar, tokens, new_compiler())
    assert len(set(first)) > 1, "and they differ along the way"


def test_outputs_at_the_same_time_do_not_meet() -> None:
    """Many matchers of one compiled grammar in several threads, against each alone."""
    grammar = GRAMMARS["schema"]
    walks = [walk(grammar, seed, most=40)[0] for seed in range(12)]
    expected = [masks_along(grammar, tokens, compiler()) for tokens in walks]
    made = new_compiler()
    with ThreadPoolExecutor(4) as threads, ThreadPoolExecutor(12) as clients:
        source = GrammarMasks(lambda: made, threads)

        def along(tokens: list[int]) -> list[bytes]:
            matcher = source.matcher(grammar.text)
            masks = []
            for token_id in tokens:
                masks.append(matcher.mask().result().tobytes())
                matcher.accept(token_id)
            return [*masks, matcher.mask().result().tobytes()]

        assert list(clients.map(along, walks)) == expected


def test_a_grammar_beyond_its_limits_fails_where_the_library_would_end() -> None:
    """The library's own answer to an error is a mask with nothing but the end: half an output as if it were whole."""
    made = new_compiler(limits={**LIMITS, "step_lexer_fuel": 50})
    grammar = GRAMMARS["object"]
    matcher = new_matcher(grammar, made)
    matcher.accept(allowed_ids(matcher.mask().result())[0])
    with pytest.raises(GrammarError, match="too many"):
        matcher.mask().result()
    own = made.compile(grammar.text).deep_copy()
    own.consume_token(allowed_ids(new_matcher(grammar, compiler()).mask().result())[0])
    mask = np.frombuffer(own.compute_bitmask(), dtype=np.int32)
    assert allowed_ids(mask) == EOS["bundled"]
    assert len(masks_along(grammar, [90], compiler())) == 2, "within the limits it goes on"


def test_a_token_that_does_not_fit_is_an_error() -> None:
    matcher = new_matcher(GRAMMARS["regex"], compiler())
    matcher.mask()
    matcher.accept(tokenizer().encode("{")[0])
    with pytest.raises(GrammarError):
        matcher.mask().result()


def test_after_the_end_only_ends_come() -> None:
    matcher = new_matcher(grammar_of(choice_part(["a"], "x")), compiler())
    matcher.accept(tokenizer().encode("a")[0])
    for _ in range(3):
        assert allowed_ids(matcher.mask().result()) == EOS["bundled"]
        matcher.accept(EOS["bundled"][0])


def test_a_tokenizer_without_an_end_is_refused() -> None:
    with pytest.raises(GrammarError, match="end-of-sequence"):
        make_compiler("{}", 4096, [])
    with pytest.raises(GrammarError, match="tokenizer"):
        make_compiler("{}", 4096, [0])


def test_the_models_vocabulary_may_be_larger() -> None:
    made = new_compiler("tiny", 700 - tokenizer("tiny").vocabulary)
    mask = new_matcher(GRAMMARS["regex"], made).mask().result()
    assert mask.dtype == np.int32 and mask.shape == (22,)
    assert max(allowed_ids(mask)) < tokenizer("tiny").vocabulary


def test_special_tokens_are_no_text() -> None:
    free = grammar_of(regex_part("(?s:.*)", "x"))
    allowed = set(allowed_ids(new_matcher(free, compiler()).mask().result()))
    assert allowed & set(range(4087, 4096)) == set(EOS["bundled"])
    assert allowed_ids(new_matcher(free, compiler("tiny")).mask().result())[:4] == [0, 3, 4, 5]


QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = ['{"name": "naïve café", "city": "Zürich", "日本": 42}', "the same request gives the same bits 🙂 "]


@cache
def foreign_tokenizer(kind: str) -> Tokenizer:
    """Tokenizers as Qwen2.5 and Qwen3, and as Llama 2 and Mistral have them."""
    if kind == "qwen":
        made = tokenizers.Tokenizer(models.BPE())
        made.normalizer = normalizers.NFC()
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(QWEN_PATTERN), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=420, show_progress=False, initial_alphabet=alphabet)
        made.train_from_iterator(CORPUS * 5, trainer)
    else:
        bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
        letters = sorted(
            {letter for text in CORPUS for letter in text.replace(" ", "▁") if ord(letter) < 0x3000}
        )
        vocabulary = {token: i for i, token in enumerate(["<unk>", *bytes_, *letters, "th", "▁th", "▁the"])}
        made = tokenizers.Tokenizer(
            models.BPE(
                vocab=vocabulary,
                merges=[("t", "h"), ("▁", "th"), ("▁th", "e")],
                unk_token="<unk>",
                byte_fallback=True,
                fuse_unk=True,
            )
        )
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    made.add_special_tokens(["<|end|>"])
    made.add_tokens(["<tool_call>"])
    return Tokenizer(made)


@pytest.mark.parametrize("kind", ["qwen", "llama2"])
@pytest.mark.parametrize("name", ["schema", "regex", "choice", "gbnf"])
def test_foreign_tokenizers(kind: str, name: str) -> None:
    """What the grammar takes for a token's bytes is what the text shows: random outputs fit, read as text."""
    known = foreign_tokenizer(kind)
    end = known.token_to_id("<|end|>")
    assert end is not None
    made = make_compiler(known._backend.to_str(), known.vocabulary, [end])
    for seed in range(6):
        rng, tokens = np.random.default_rng(seed), []
        matcher = GrammarMasks(lambda: made, Immediate()).matcher(GRAMMARS[name].text)
        while len(tokens) < 120:
            allowed = allowed_ids(matcher.mask().result())
            token_id = end if end in allowed and rng.random() < 0.4 else int(rng.choice(allowed))
            if token_id == end:
                break
            tokens.append(token_id)
            matcher.accept(token_id)
        else:
            continue
        detokenizer = known.detokenizer(skip_special_tokens=True)
        text = "".join(detokenizer.push(token_id) for token_id in tokens) + detokenizer.finish()
        assert accepts(GRAMMARS[name], text), text


@pytest.mark.parametrize("name", ["bundled", "tiny"])
def test_bytes_of_tokens(name: str) -> None:
    known = tokenizer(name)
    library = new_compiler(name).tokenizer
    for token_id in range(known.vocabulary):
        if not library.is_special_token(token_id):
            assert library.decode_bytes([token_id]) == known.token_bytes(token_id)


@pytest.mark.parametrize("name", GRAMMARS)
def test_outputs_are_whole_characters(name: str) -> None:
    for seed in range(10):
        tokens, ended = walk(GRAMMARS[name], seed, most=60)
        if ended:
            text_of(tokens)  # decodes strictly


def test_composed_grammars_share_no_layout() -> None:
    """A schema keeps its own rules of blank space inside a larger grammar."""
    grammar = compose("start: /x+/ @json", {"json": schema_part({"type": "object"}, "x")}, "x")
    assert accepts(grammar, 'xx{"a": 1}')
    assert not accepts(grammar, 'xx {"a": 1}')
    assert json.loads(grammar.text)["grammars"][1]["name"] == "json"
    assert native_grammar(grammar.text, "llguidance").text == grammar.text
