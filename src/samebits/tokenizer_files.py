"""The files of a checkpoint's tokenizer: tokenizer.json, and what tokenizer_config.json adds to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

from samebits.errors import ModelFileError

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Special tokens that tokenizer_config.json names and chat templates read."""


def read_tokenizer(folder: str | Path) -> tuple[tokenizers.Tokenizer, dict[str, str]] | None:
    """(tokenizer, `eos_token` and its like by name) of the checkpoint in `folder`; None when it has no tokenizer.json.
    Raises `ModelFileError` naming the file."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises nothing more specific
        raise ModelFileError(f"{path} is not a tokenizer that can be read: {error}") from error
    config = read_json_object(Path(folder) / "tokenizer_config.json")
    named = _named_tokens(folder, config)
    try:
        _add_missing_tokens(backend, config, named)
    except ValueError as error:
        path = Path(folder) / "tokenizer_config.json"
        raise ModelFileError(f"{path}: added_tokens_decoder names tokens by their ids: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend, named


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is no such file. Raises `ModelFileError` naming the file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} must hold a JSON object")
    return value


def _content(value: object) -> str | None:
    """Text of a token that is written as a string or as an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _named_tokens(folder: str | Path, config: dict[str, Any]) -> dict[str, str]:
    listed = read_json_object(Path(folder) / "special_tokens_map.json") | config
    found = {name: _content(listed.get(name)) for name in NAMED_TOKENS}
    return {name: text for name, text in found.items() if text is not None}


def _add_missing_tokens(backend: tokenizers.Tokenizer, config: dict[str, Any], named: dict[str, str]) -> None:
    """Add the tokens that tokenizer_config.json lists and tokenizer.json lacks, as transformers does."""
    present = {token.content for token in backend.get_added_tokens_decoder().values()}
    listed = config.get("added_tokens_decoder")
    entries = sorted(listed.items(), key=lambda item: int(item[0])) if isinstance(listed, dict) else []
    for _, entry in entries:
        text = _content(entry)
        if text is not None and text not in present:
            options = {
                name: bool(entry[name])
                for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
                if name in entry
            }
            backend.add_tokens([tokenizers.AddedToken(text, **options)])
            present.add(text)
    missing = [text for text in dict.fromkeys(named.values()) if text not in present]
    backend.add_special_tokens([tokenizers.AddedToken(text, normalized=False) for text in missing])
