"""An assistant's answer as it comes: thoughts, words and tool calls, each told from the others."""

from __future__ import annotations

from dataclasses import dataclass

from samebits.text.reasoning import ReasoningSplitter
from samebits.text.tool_calls import CallDelta, ToolDelta, ToolParser


@dataclass(frozen=True)
class AnswerDelta:
    """News of an answer: thoughts, then words and calls in the text's order."""

    reasoning: str = ""
    parts: tuple[str | CallDelta, ...] = ()

    @property
    def content(self) -> str:
        """The words."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def calls(self) -> tuple[CallDelta, ...]:
        return tuple(part for part in self.parts if not isinstance(part, str))


class AnswerParser:
    """Takes an answer's text apart, with the parsers that the request asks for."""

    def __init__(self, reasoning: ReasoningSplitter | None = None, tools: ToolParser | None = None) -> None:
        self._reasoning = reasoning
        self._tools = tools

    @property
    def calls(self) -> int:
        """Tool calls so far."""
        return 0 if self._tools is None else self._tools.calls

    def push(self, text: str, last: bool = False) -> AnswerDelta:
        """What is certain once `text` has come. `last`: no more follows."""
        reasoning, words = "", text
        if self._reasoning is not None:
            reasoning, words = self._reasoning.push(text)
            if last:
                more_reasoning, more_words = self._reasoning.finish()
                reasoning, words = reasoning + more_reasoning, words + more_words
        if self._tools is None:
            return AnswerDelta(reasoning, (words,) if words else ())
        found = self._tools.push(words)
        rest = self._tools.finish() if last else ToolDelta()
        return AnswerDelta(reasoning, found.parts + rest.parts)
