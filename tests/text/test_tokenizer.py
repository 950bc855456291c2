"""The tokenizer agrees with transformers on the same folder; broken folders say what is wrong."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
from tiny_tokenizer import CORPUS, write_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from samebits.errors import ModelFileError, RequestError
from samebits.text.tokenizer import LONG_TEXT, Tokenizer, load_tokenizer

TEXTS = [*CORPUS, "", " ", "\n\n", "<|start|>user\nhi<|end|>", "a<|eos|>b", "tabs\tand   spaces", "🙂" * 5]


def load(folder: Path) -> Tokenizer:
    tokenizer = load_tokenizer(folder)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_as_transformers(folder: Path, text: str) -> None:
    ours, theirs = load(folder), AutoTokenizer.from_pretrained(folder)
    ids = ours.encode(text)
    assert ids == theirs.encode(text)
    for skip in (False, True):
        assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_tokens_that_only_the_configuration_lists(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    size = load(folder).vocabulary
    config["added_tokens_decoder"] = {
        str(size): {"content": "<|extra|>", "special": True, "normalized": False},
        str(size + 1): {"content": "<plain>", "special": False, "normalized": False},
    }
    config["pad_token"] = "<|pad|>"
    path.write_text(json.dumps(config))
    ours, theirs = load(folder), AutoTokenizer.from_pretrained(folder)
    text = "the<|extra|> same <plain>bits<|pad|>"
    ids = ours.encode(text)
    assert ids == theirs.encode(text)
    assert {size, size + 1} < set(ids)
    for skip in (False, True):
        assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)
        assert "".join([*map(ours.detokenizer(skip).push, ids)]) == ours.decode(ids, skip)


def test_post_processor_adds_its_tokens_only_when_asked(folder: Path) -> None:
    tokenizer = load(folder)
    tokenizer._backend.post_processor = TemplateProcessing(
        single="<|start|> $A", special_tokens=[("<|start|>", tokenizer.token_to_id("<|start|>"))]
    )
    assert tokenizer.encode("the")[0] == tokenizer.token_to_id("<|start|>")
    assert tokenizer.encode("the", add_special_tokens=False) == tokenizer.encode("the")[1:]


def test_a_long_text_has_the_ids_of_a_short_one(folder: Path) -> None:
    tokenizer = load(folder)
    tokenizer._backend.post_processor = TemplateProcessing(
        single="<|start|> $A", special_tokens=[("<|start|>", tokenizer.token_to_id("<|start|>"))]
    )
    text = "".join(TEXTS) * (4 * LONG_TEXT // len("".join(TEXTS)))
    for special in (True, False):
        ids = tokenizer.encode(text, special)
        assert len(ids) > LONG_TEXT and ids == tokenizer._backend.encode(text, add_special_tokens=special).ids
        for skip in (True, False):
            assert tokenizer.decode(ids, skip) == tokenizer._backend.decode(ids, skip_special_tokens=skip)


def turns_of_others(work: Callable[[], object]) -> int:
    """How often another thread has its turn while one does `work`."""
    worker = Thread(target=work)
    turns = 0
    worker.start()
    while worker.is_alive():
        time.sleep(0.001)
        turns += 1
    return turns


def test_others_go_on_while_a_long_text_is_read_or_written(folder: Path) -> None:
    """The library's plain ways keep Python's lock to the end, in a thread of their own, too."""
    tokenizer = load(folder)
    text = "the same request " * 40_000
    ids = tokenizer.encode(text)
    for ours, plain in (
        (lambda: tokenizer.encode(text), lambda: tokenizer._backend.encode(text)),
        (lambda: tokenizer.decode(ids * 5), lambda: tokenizer._backend.decode(ids * 5)),
    ):
        assert turns_of_others(ours) > 20 > turns_of_others(plain)


def test_lone_surrogate_is_refused(folder: Path) -> None:
    with pytest.raises(RequestError, match="surrogate") as caught:
        load(folder).encode("a\ud800b")
    assert caught.value.field == "text"


def test_ids_outside_the_vocabulary_have_no_text(folder: Path) -> None:
    tokenizer = load(folder)
    ids = [*tokenizer.encode("the"), tokenizer.vocabulary + 5]
    assert tokenizer.decode(ids) == "the"
    assert "".join(map(tokenizer.detokenizer(True).push, ids)) == "the"


def test_no_tokenizer(tmp_path: Path) -> None:
    assert load_tokenizer(tmp_path) is None


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_broken_files_are_named(folder: Path, name: str) -> None:
    (folder / name).write_text("{ not json")
    with pytest.raises(ModelFileError, match=name):
        load_tokenizer(folder)


def test_added_tokens_that_are_not_named_by_ids(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"x": {"content": "<x>"}}}')
    with pytest.raises(ModelFileError, match=r"tokenizer_config.json: added_tokens_decoder"):
        load_tokenizer(folder)
