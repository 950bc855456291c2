"""The tokenizer of a checkpoint, from its tokenizer.json: text to ids and back."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from samebits.errors import RequestError
from samebits.text.detokenize import (
    ByteLevelDetokenizer,
    Detokenizer,
    WindowDetokenizer,
    byte_level_alphabet,
    byte_level_bytes,
)
from samebits.tokenizer_files import read_tokenizer

LONG_TEXT = 20_000
"""characters or tokens from which on encoding and decoding take so long that they let go of Python's lock"""
BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
"""how a vocabulary that falls back to bytes writes one"""


class Tokenizer:
    """Text to token ids and back. Immutable after loading and safe to share between threads."""

    def __init__(self, backend: tokenizers.Tokenizer, named_tokens: dict[str, str] | None = None) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.named_tokens = dict(named_tokens or {})
        """`eos_token` and its like, by name"""
        added = backend.get_added_tokens_decoder()
        self._special_ids = {token_id for token_id, token in added.items() if token.special}
        self._text_by_special = {i: token.content for i, token in added.items() if token.special}
        self._special_by_text = {text: i for i, text in self._text_by_special.items()}
        self.added_tokens = {token.content: i for i, token in added.items()}
        """ids by text of the tokens beside the vocabulary proper, special or not"""
        self._token_bytes = self._read_token_bytes()

    @property
    def vocabulary(self) -> int:
        """Number of ids, added tokens included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of `text`; `add_special_tokens` puts what the checkpoint wants around a plain prompt (such as BOS).

        Raises `RequestError` for text that is not valid Unicode.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(f"text holds a lone surrogate at character {error.start}", "text") from error
        if len(text) <= LONG_TEXT:
            encoding = self._backend.encode(text, add_special_tokens=add_special_tokens)
        else:  # of the library's ways, that of a batch alone lets other threads go on
            [encoding] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(encoding.ids)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`; ids outside the vocabulary have none."""
        if len(token_ids) <= LONG_TEXT:
            return str(self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens))
        [text] = self._backend.decode_batch([list(token_ids)], skip_special_tokens=skip_special_tokens)
        return str(text)

    def token_text(self, token_id: int) -> str:
        """Text of one token by itself, special or not."""
        return self.decode([token_id], skip_special_tokens=False)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for, be they whole characters or not; none outside the vocabulary."""
        if self._token_bytes is not None:
            return self._token_bytes.get(token_id, b"")
        token = self._backend.id_to_token(token_id) or ""
        if BYTE_TOKEN.fullmatch(token):
            return bytes([int(token[3:5], 16)])
        return self.token_text(token_id).encode("utf-8")

    def token_to_id(self, token: str) -> int | None:
        """Id of a vocabulary entry."""
        token_id = self._backend.token_to_id(token)
        return None if token_id is None else int(token_id)

    def special_id(self, text: str) -> int | None:
        """Id of the special token whose text is `text`, if there is one."""
        return self._special_by_text.get(text)

    def special_text(self, token_id: int) -> str:
        """Text of a special token; empty for any other."""
        return self._text_by_special.get(token_id, "")

    def added_id(self, text: str) -> int | None:
        """Id of the added token, special or not, whose text is `text`, if there is one."""
        return self.added_tokens.get(text)

    def detokenizer(self, skip_special_tokens: bool, before: Sequence[int] = ()) -> Detokenizer:
        """A fresh incremental decoder of a text that goes on behind the tokens `before`."""
        if self._token_bytes is None:
            return WindowDetokenizer(lambda ids: self.decode(ids, skip_special_tokens), before)
        table = self._token_bytes
        left_out = self._special_ids if skip_special_tokens else frozenset[int]()
        return ByteLevelDetokenizer(lambda i: table.get(i, b"") if i not in left_out else b"")

    def _read_token_bytes(self) -> dict[int, bytes] | None:
        """Bytes by id when the decoder is plain byte-level, else None."""
        decoder = json.loads(self._backend.to_str()).get("decoder")
        if not decoder or decoder.get("type") != "ByteLevel":
            return None
        alphabet = byte_level_alphabet()
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        return {token_id: byte_level_bytes(token, alphabet) for token, token_id in vocabulary.items()}


def load_tokenizer(folder: str | Path) -> Tokenizer | None:
    """The tokenizer of the checkpoint in `folder`; None when it has no tokenizer.json, as a bare shape for dummy
    weights has none. Raises `ModelFileError` naming the file."""
    found = read_tokenizer(folder)
    return None if found is None else Tokenizer(*found)
