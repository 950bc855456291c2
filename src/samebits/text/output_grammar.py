"""The grammar of an answer: thoughts where the model may think, then calls, or what the answer must look like."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from samebits.grammar.language import Grammar, Part, compose, grammar_of, literal
from samebits.text.reasoning import CLOSE as THOUGHTS_END
from samebits.text.reasoning import OPEN as THOUGHTS_BEGIN
from samebits.text.tool_formats import ToolFormat

ANYTHING = "ANYTHING: /(?s:.*)/"
AFTER_THOUGHTS = r"/\n{0,2}/"
TokenId = Callable[[str], int | None]
"""id of the added token with that text, if there is one"""


class Thoughts(Enum):
    """Whether an answer begins with thoughts. They are free."""

    NONE = 1
    MAY_COME = 2
    ARE_OPEN = 3
    """the prompt has opened them"""


@dataclass(frozen=True)
class CallRules:
    """The calls that an answer may hold, or must."""

    form: ToolFormat
    functions: Mapping[str, Part]
    """arguments by name"""
    forced: bool
    single: bool
    """one call at most"""


def output_grammar(
    token_id: TokenId, thoughts: Thoughts, answer: Part | None, calls: CallRules | None
) -> Grammar | None:
    """The grammar of an answer that is `answer`, or calls; None where anything goes.

    With both, the model chooses. With calls that are not forced and without `answer`, there may be words as well,
    among the calls or instead of them, as the format has it.
    """
    if answer is None and calls is None:
        return None
    if answer is not None and calls is None and thoughts is Thoughts.NONE:
        return grammar_of(answer)
    writer = _Writer(token_id)
    parts: dict[str, Part] = {}
    field = "tools"
    if answer is not None:
        field = answer.field
        if calls is None or not calls.forced:
            parts["answer"] = answer
    body = "@answer"
    if calls is not None:
        parts |= {f"arguments_{i}": part for i, part in enumerate(calls.functions.values())}
        body = writer.calls(calls, with_answer=answer is not None)
    body = writer.thoughts(thoughts) + body
    return compose("\n".join([f"start: {body}", *writer.rules]), parts, field)


class _Writer:
    """Writes rules in Lark."""

    def __init__(self, token_id: TokenId) -> None:
        self._token_id = token_id
        self.rules = [ANYTHING]

    def thoughts(self, thoughts: Thoughts) -> str:
        """What stands before the answer."""
        if thoughts is Thoughts.NONE:
            return ""
        begin, end = self._sign(THOUGHTS_BEGIN), self._sign(THOUGHTS_END)
        opening = f"{begin} " if thoughts is Thoughts.MAY_COME else ""
        lazy = "" if end.startswith("<[") else "[lazy]"
        if opening.startswith("<[") and lazy:
            self.rules += [f"thoughts: {begin} thoughts_rest", f"thoughts_rest[lazy]: ANYTHING {end}"]
        else:
            self.rules.append(f"thoughts{lazy}: {opening}ANYTHING {end}")
        whole = f"thoughts {AFTER_THOUGHTS}"
        return (
            f"({whole})? answered\nanswered: "
            if thoughts is Thoughts.MAY_COME
            else f"{whole} answered\nanswered: "
        )

    def calls(self, rules: CallRules, with_answer: bool) -> str:
        """The answer with calls."""
        form = rules.form
        begin, end, between = self._sign(form.begin), self._sign(form.end), literal(form.between)
        space = r'"\n" ' if form.begin else ""
        back = r' "\n"' if form.begin else ""
        objects = [
            f"{literal(_before_arguments(name, form))} @arguments_{i} {literal('}')}"
            for i, name in enumerate(rules.functions)
        ]
        self.rules.append("object: " + " | ".join(objects))
        self.rules.append(f"call: {begin} {space}object{back} {end}")
        prefix = self._token_id(form.prefix) if form.prefix else None
        first = "call" if prefix is None else f"(<[{prefix}]>)? call"
        self.rules.append(f"calls: {first}" if rules.single else f"calls: {first} ({between} call)*")
        if rules.forced:
            return "calls"
        if with_answer:
            return "calls | @answer"
        return self._mixed(rules, begin, f"{space}object{back} {end}")

    def _mixed(self, rules: CallRules, begin: str, rest: str) -> str:
        """Calls among words or instead of them."""
        often = "?" if rules.single else "*"
        if not rules.form.mixes:
            self.rules.append(r"words: /(\s*[^\s{](?s:.*))?/")
            return "calls | words"
        if begin.startswith("<["):
            return f"(ANYTHING call){often} ANYTHING"
        self.rules += [f"trigger[lazy]: ANYTHING {begin}", "words: ANYTHING"]
        return f"(trigger {rest}){often} words"

    def _sign(self, text: str) -> str:
        """A tag: its token where it has one, else its text."""
        if not text:
            return ""
        token_id = self._token_id(text)
        return literal(text) if token_id is None else f"<[{token_id}]>"


def _before_arguments(name: str, form: ToolFormat) -> str:
    return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{form.arguments}": '
