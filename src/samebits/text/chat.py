"""Chat templates: messages to the prompt text that the checkpoint was trained on.

Templates run in a sandbox with the conventions of transformers. Nothing in a prompt may come from outside the
request and the checkpoint, so a template cannot read the clock (trap 29): the request gives the date.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from samebits.errors import ModelFileError, RequestError
from samebits.tokenizer_files import read_json_object

_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


class GenerationTag(jinja2.ext.Extension):
    """Lets `{% generation %}` through; trainers mark the assistant's words with it."""

    tags = {"generation"}  # noqa: RUF012  (the base class declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A compiled chat template."""

    def __init__(self, source: str, named_tokens: Mapping[str, str] | None = None, origin: str = "") -> None:
        """`origin` names where the source came from, for errors. Raises `ModelFileError` if it does not parse."""
        self.source = source
        self._named_tokens = dict(named_tokens or {})
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, jinja2.ext.loopcontrols],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ModelFileError(f"{origin or 'the chat template'} does not parse: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        date: datetime | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt of `messages`. `date` is what the template sees as now; `variables` are more of its inputs.

        Raises `RequestError` naming `messages` when the template refuses them.
        """
        values: dict[str, Any] = {**self._named_tokens, **(variables or {})}
        values.update(
            messages=list(messages),
            tools=list(tools) if tools else None,
            documents=list(documents) if documents else None,
            add_generation_prompt=add_generation_prompt,
            strftime_now=lambda format_text: _format_date(date, format_text),
        )
        try:
            return str(self._template.render(values))
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise RequestError(f"the chat template refuses these messages: {error}", "messages") from error


def load_chat_template(folder: str | Path, named_tokens: Mapping[str, str]) -> ChatTemplate | None:
    """The chat template of a checkpoint, or None. Raises `ModelFileError` naming the file."""
    path = Path(folder) / "chat_template.jinja"
    if path.is_file():
        try:
            return ChatTemplate(path.read_text(encoding="utf-8"), named_tokens, str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise ModelFileError(f"cannot read {path}: {error}") from error
    path = Path(folder) / "tokenizer_config.json"
    source = read_json_object(path).get("chat_template")
    if isinstance(source, list):
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    if source is None:
        return None
    if not isinstance(source, str):
        raise ModelFileError(f"{path}: chat_template must be a string or a list with one named 'default'")
    return ChatTemplate(source, named_tokens, f"chat_template of {path}")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML and sorts keys; models were trained on plain JSON.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _format_date(date: datetime | None, format_text: str) -> str:
    if date is None:
        raise jinja2.TemplateError(
            "the template asks for today's date, which is no part of the request; give one as `date`"
        )
    names = {
        "%A": _DAYS[date.weekday()],
        "%a": _DAYS[date.weekday()][:3],
        "%B": _MONTHS[date.month - 1],
        "%b": _MONTHS[date.month - 1][:3],
        "%p": "AM" if date.hour < 12 else "PM",
    }
    for directive, name in names.items():  # strftime would take these from the locale
        format_text = format_text.replace(directive, name)
    return date.strftime(format_text)
