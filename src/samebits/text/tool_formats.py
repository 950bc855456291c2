"""The formats in which models call tools: how a call is read, and how it is written in a grammar."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from samebits.text.tool_calls import CLOSE, OPEN, HermesParser, ToolParser
from samebits.text.tool_calls_llama import TAG, LlamaParser


@dataclass(frozen=True)
class ToolFormat:
    """One format."""

    name: str
    parser: Callable[[int | None], ToolParser]
    """makes a reader; calls after the first so many are dropped"""
    signs: tuple[str, ...]
    """a chat template that holds one of these asks for this format"""
    arguments: str
    """what a call names its arguments"""
    prefix: str
    """a token that may stand before all calls"""
    begin: str
    """before a call's object, on a line of its own"""
    end: str
    """after it"""
    between: str
    """between two calls"""
    mixes: bool
    """whether calls may stand among words"""


HERMES = ToolFormat("hermes", HermesParser, (OPEN,), "arguments", "", OPEN, CLOSE, "\n", mixes=True)
LLAMA = ToolFormat(
    "llama3", LlamaParser, (TAG, '"parameters": dictionary'), "parameters", TAG, "", "", "; ", mixes=False
)
TOOL_FORMATS: Mapping[str, ToolFormat] = {
    "hermes": HERMES,
    "qwen": HERMES,
    "qwen25": HERMES,
    "llama3": LLAMA,
    "llama3_json": LLAMA,
}
"""by SGLang's and vLLM's names of their parsers"""


def tool_format(name: str, template_source: str) -> ToolFormat | None:
    """The format of that name; with `auto` the one that a chat template asks for, if it is known here."""
    if name != "auto":
        return TOOL_FORMATS[name]
    found = (form for form in (HERMES, LLAMA) if any(sign in template_source for sign in form.signs))
    return next(found, None)
