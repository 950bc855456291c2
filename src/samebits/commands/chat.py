"""`samebits chat`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from typing import Any

from samebits.commands.flags import (
    add_model_argument,
    add_sampling,
    add_settings,
    command,
    given_sampling,
    open_llm,
    sampling_of,
)
from samebits.config import EngineConfig, ModelConfig
from samebits.errors import RequestError, SamebitsError

EXAMPLES = """\
  samebits chat
  samebits chat path/to/checkpoint --temperature 0.7 --system "Answer in one line."
  samebits chat --url http://127.0.0.1:30000
  echo "How much is 12 times 12?" | samebits chat

In a chat, /help tells what can be typed. From a pipe, all of standard input is one message.
"""
COMMANDS = """\
/again  ask the last question again, and see whether the answer is the same
/new    forget the conversation
/quit   leave; so does the end of the input
A line that ends with a backslash goes on in the next one. Ctrl-C breaks an answer off."""
Reply = Callable[[list[dict[str, str]]], Generator[str, None, None]]


def add(commands: Any) -> None:
    parser = command(commands, "chat", "talk with a model", EXAMPLES, run, "chat [MODEL]")
    add_model_argument(parser)
    parser.add_argument("--system", default="", metavar="TEXT", help="a system message")
    parser.add_argument(
        "--url", metavar="URL", help="talk with the server there instead of a model in this process"
    )
    parser.add_argument(
        "--api-key", default=os.environ.get("SAMEBITS_API_KEY", ""), help="sent as bearer token"
    )
    add_sampling(parser)
    add_settings(parser, ModelConfig, EngineConfig)


def run(options: argparse.Namespace) -> int:
    params = sampling_of(options)
    if params.n != 1:
        raise RequestError("a chat has one answer: --n must be 1", "n")
    with ExitStack() as stack:
        reply: Reply
        if options.url:
            from samebits.commands.remote import connect

            server = connect(options.url, options.api_key)
            reply = lambda messages: server.reply(messages, given_sampling(options))  # noqa: E731
        else:
            llm = stack.enter_context(open_llm(options))
            reply = lambda messages: llm.stream_chat(messages, params)  # noqa: E731
        converse(reply, options.system)
    return 0


def converse(reply: Reply, system: str) -> None:
    """Read messages from standard input and write the answers as they come, until the input ends."""
    talk = Conversation(reply, [{"role": "system", "content": system}] if system else [])
    for text in read_messages():
        match text:
            case "/quit":
                return
            case "/help":
                print(COMMANDS)
            case "/new":
                talk.forget()
            case "/again":
                talk.repeat()
            case _:
                talk.say(text)


class Conversation:
    """What was said so far. At a terminal, an error or Ctrl-C costs one answer and not the conversation."""

    def __init__(self, reply: Reply, opening: Sequence[dict[str, str]]) -> None:
        self._reply = reply
        self._opening = list(opening)
        self._history = list(opening)

    def forget(self) -> None:
        """Start again."""
        self._history = list(self._opening)

    def say(self, text: str) -> None:
        """Ask and print the answer. A message without an answer is not remembered."""
        self._history.append({"role": "user", "content": text})
        answer = self._answer(self._history)
        if answer:
            self._history.append({"role": "assistant", "content": answer})
        else:
            self._history.pop()

    def repeat(self) -> None:
        """Ask the last question again, and tell whether the answer is the same."""
        if self._history[-1:] == self._opening[-1:]:
            print("nothing was asked yet")
            return
        answer = self._answer(self._history[:-1])
        same = answer == self._history[-1]["content"]
        print("(the same, to the last character)" if same else "(this answer is ANOTHER one)")

    def _answer(self, history: list[dict[str, str]]) -> str:
        """The answer, printed as it comes; what there is of it where it breaks off at a terminal."""
        answer = ""
        try:
            with closing(self._reply(history)) as pieces:
                for piece in pieces:
                    print(piece, end="", flush=True)
                    answer += piece
            print()
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            print(" (broken off)")
        except SamebitsError as error:
            if not sys.stdin.isatty():
                raise
            print(f"\nsamebits: {error}", file=sys.stderr)
            return ""
        return answer


def read_messages() -> Iterator[str]:
    """Messages of a person at a terminal, with a prompt; else all of standard input as one message."""
    if not sys.stdin.isatty():
        yield sys.stdin.read().strip()
        return
    with suppress(ImportError):
        import readline  # noqa: F401  # lines can be edited, and called back
    while True:
        try:
            text = input("> ")
            while text.endswith("\\"):
                text = text[:-1] + "\n" + input("… ")
        except EOFError:
            print()
            return
        if text.strip():
            yield text.strip()
