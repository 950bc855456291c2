"""`samebits chat`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
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
from samebits.errors import RequestError

EXAMPLES = """\
  samebits chat
  samebits chat path/to/checkpoint --temperature 0.7 --system "Answer in one line."
  samebits chat --url http://127.0.0.1:30000
  echo "How much is 12 times 12?" | samebits chat

In a chat, /new starts again and /quit (or the end of the input) leaves.
"""
Reply = Callable[[list[dict[str, str]]], Iterator[str]]


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
    opening = [{"role": "system", "content": system}] if system else []
    history = list(opening)
    for text in read_messages():
        if text == "/quit":
            return
        if text == "/new":
            history = list(opening)
            continue
        history.append({"role": "user", "content": text})
        answer = ""
        for piece in reply(history):
            print(piece, end="", flush=True)
            answer += piece
        print()
        history.append({"role": "assistant", "content": answer})


def read_messages() -> Iterator[str]:
    """Lines of a person at a terminal, with a prompt; else all of standard input as one message."""
    if not sys.stdin.isatty():
        yield sys.stdin.read().strip()
        return
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            print()
            return
        if text:
            yield text
