"""Chat templates render as transformers renders them, and read nothing but the request (trap 29)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizer import CHAT_TEMPLATE, write_tokenizer
from transformers import AutoTokenizer

from samebits.errors import ModelFileError, RequestError
from samebits.text.chat import ChatTemplate, load_chat_template
from samebits.text.tokenizer import load_tokenizer

MESSAGES = [
    {"role": "system", "content": "Be brief & <exact>."},
    {"role": "user", "content": "naïve 日本 {{ 7 * 7 }}"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "again"},
]
TOOLS = [
    {"type": "function", "function": {"name": "add", "description": "adds <b> 'two' é", "parameters": {}}}
]

TOOL_TEMPLATE = """\
{{- eos_token }}
{%- if tools %}
    {{- "# Tools\\n" }}
    {%- for tool in tools %}
        {{- tool | tojson }}
        {{- tool | tojson(indent=2) }}
    {%- endfor %}
{%- endif %}
{%- set state = namespace(count=0) %}
{%- for message in messages %}
    {%- if message.role == 'system' and not loop.first %}{% continue %}{% endif %}
    {%- set state.count = state.count + 1 %}
    {{- '<|start|>' + message.role + '\\n' + message.content | trim + '<|end|>\\n' }}
    {%- if loop.index > 3 %}{% break %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
{{ state.count }}
"""
GENERATION_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}|{% endfor %}"
)
DATE_TEMPLATE = "{{ strftime_now('%A %d %B %Y, %b %a %p') }}{{ messages[0].content }}"


def both(folder: Path, template: str, **options: Any) -> tuple[str, str]:
    """(ours, that of transformers) for one template in a checkpoint folder."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    tokenizer = load_tokenizer(folder)
    assert tokenizer is not None
    ours = load_chat_template(folder, tokenizer.named_tokens)
    assert ours is not None
    theirs = AutoTokenizer.from_pretrained(folder)
    prompt = options.get("add_generation_prompt", True)
    variables = {
        name: value for name, value in options.items() if name not in ("tools", "add_generation_prompt")
    }
    return (
        ours.render(MESSAGES, tools=options.get("tools"), add_generation_prompt=prompt, variables=variables),
        theirs.apply_chat_template(
            MESSAGES, tokenize=False, tools=options.get("tools"), add_generation_prompt=prompt, **variables
        ),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, TOOL_TEMPLATE, GENERATION_TEMPLATE])
@pytest.mark.parametrize(
    "options", [{}, {"add_generation_prompt": False}, {"tools": TOOLS}, {"enable_thinking": False}]
)
def test_as_transformers(folder: Path, template: str, options: dict[str, Any]) -> None:
    ours, theirs = both(folder, template, **options)
    assert ours == theirs
    assert "again" in ours


def test_template_in_a_file_of_its_own_goes_first(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("from the file: {{ messages[0].content }}", encoding="utf-8")
    template = load_chat_template(folder, {})
    assert template is not None
    assert template.render(MESSAGES).startswith("from the file: Be brief")


def test_named_templates(folder: Path) -> None:
    listed = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": listed}))
    template = load_chat_template(folder, {})
    assert template is not None
    assert template.render(MESSAGES) == "yes"


def test_no_template(tmp_path: Path) -> None:
    assert load_chat_template(tmp_path, {}) is None


def test_the_clock_is_no_input() -> None:
    with pytest.raises(RequestError, match="date") as caught:
        ChatTemplate(DATE_TEMPLATE).render(MESSAGES)
    assert caught.value.field == "messages"


def test_the_request_gives_the_date() -> None:
    rendered = ChatTemplate(DATE_TEMPLATE).render(MESSAGES, date=datetime(2026, 11, 2, 13, 5))
    assert rendered.startswith("Monday 02 November 2026, Nov Mon PM")


def test_no_clock_locale_or_hash_seed_changes_a_prompt(folder: Path) -> None:
    program = f"""
import json, sys
from datetime import datetime
sys.path[:0] = json.loads(sys.argv[1])
from samebits.text.chat import ChatTemplate
from samebits.text.tokenizer import load_tokenizer
text = ChatTemplate({TOOL_TEMPLATE + DATE_TEMPLATE!r}).render(
    {MESSAGES!r}, tools={TOOLS!r}, date=datetime(2026, 3, 4)
)
print(load_tokenizer({str(folder)!r}).encode(text))
"""
    found = set()
    for variables in (
        {"PYTHONHASHSEED": "1", "LC_ALL": "C"},
        {"PYTHONHASHSEED": "2", "LC_ALL": "de_DE.UTF-8"},
    ):
        run = subprocess.run(
            [sys.executable, "-c", program, json.dumps(sys.path)],
            env=os.environ | variables | {"TZ": "Asia/Tokyo"},
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(run.stdout)
    assert len(found) == 1
    assert len(json.loads(found.pop())) > 50


def test_raise_exception_names_the_messages() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RequestError, match="roles must alternate"):
        template.render(MESSAGES)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages[0].content.nothing.more }}",
    ],
)
def test_sandbox_and_mistakes_are_refusals(source: str) -> None:
    with pytest.raises(RequestError, match="chat template"):
        ChatTemplate(source).render(MESSAGES)


def test_syntax_error_names_the_file(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(ModelFileError, match=r"chat_template\.jinja"):
        load_chat_template(folder, {})
