"""The text side of a running engine's checkpoint: tokenizer and chat template."""

from __future__ import annotations

from dataclasses import dataclass

from samebits.engine.messages import EngineFacts
from samebits.errors import ModelFileError
from samebits.text.chat import ChatTemplate, load_chat_template
from samebits.text.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class TextParts:
    """What turns text into tokens. Either may be missing from a checkpoint."""

    tokenizer: Tokenizer | None
    chat_template: ChatTemplate | None


def load_text_parts(facts: EngineFacts) -> TextParts:
    """Read them from the engine's checkpoint folder. Raises `ModelFileError` naming the file."""
    tokenizer = load_tokenizer(facts.folder)
    if tokenizer is None:
        return TextParts(None, None)
    if tokenizer.vocabulary > facts.vocabulary:
        raise ModelFileError(
            f"{facts.folder}/tokenizer.json has {tokenizer.vocabulary} tokens, but the model only "
            f"{facts.vocabulary}: it belongs to another model"
        )
    return TextParts(tokenizer, load_chat_template(facts.folder, tokenizer.named_tokens))
