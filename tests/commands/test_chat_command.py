"""A chat at a terminal and from a pipe, with a model here or a server elsewhere."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from fake_engine import write_checkpoint
from live_server import LiveServer, running

from samebits.cli import main
from samebits.commands.chat import Conversation, converse
from samebits.commands.remote import connect
from samebits.errors import EngineError

History = list[dict[str, str]]
TEMPLATE = "{# knows </think> #}{{ '<|start|>' + messages[-1].content + '<|end|>' }}"


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes standard input a terminal at which these lines are typed."""

    def type_lines(text: str) -> None:
        lines = iter(text.splitlines())

        def read(prompt: str) -> str:
            try:
                return next(lines)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", read)
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True)

    return type_lines


def parrot(history: History) -> Generator[str, None, None]:
    """Says how often it was spoken to, and what was said last, in two pieces."""
    yield f"{sum(entry['role'] == 'user' for entry in history)}: "
    yield history[-1]["content"]


def test_history_grows_and_is_forgotten(
    typed: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    typed("one\ntwo\n\n/new\nthree\nfour \\\nfive\n/quit\nnever")
    converse(parrot, "")
    assert capsys.readouterr().out == "1: one\n2: two\n1: three\n2: four \nfive\n"


def test_a_system_message_stays(typed: Callable[[str], None]) -> None:
    seen: list[History] = []

    def listen(history: History) -> Generator[str, None, None]:
        seen.append([dict(entry) for entry in history])
        yield "yes"

    typed("one\n/new\ntwo")
    converse(listen, "be brief")
    system = {"role": "system", "content": "be brief"}
    assert seen == [[system, {"role": "user", "content": text}] for text in ("one", "two")]


def test_again_compares(typed: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    typed("/again\none\n/again\ntwo\n/again\n/quit")
    converse(parrot, "")
    same = "(the same, to the last character)"
    assert capsys.readouterr().out.splitlines() == [
        "nothing was asked yet",
        *("1: one", "1: one", same),
        *("2: two", "2: two", same),
    ]
    number = iter(range(9))

    def fickle(history: History) -> Generator[str, None, None]:
        yield str(next(number))

    typed("one\n/again")
    converse(fickle, "")
    assert "ANOTHER" in capsys.readouterr().out


@pytest.mark.parametrize("error", [EngineError("too long"), KeyboardInterrupt()])
def test_a_lost_answer_is_not_the_end_at_a_terminal(
    error: BaseException, typed: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    closed = []

    def breaks(history: History) -> Generator[str, None, None]:
        try:
            yield "part"
            if history[-1]["content"] == "one":
                raise error
            yield f" of {len(history)}"
        finally:
            closed.append(True)

    typed("one\ntwo\n/quit")
    converse(breaks, "")
    shown = capsys.readouterr()
    # What was broken off by hand is part of the conversation; what failed is not.
    failed = isinstance(error, EngineError)
    assert shown.out == ("partpart of 1\n" if failed else "part (broken off)\npart of 3\n")
    assert ("samebits: too long" in shown.err) == failed
    assert len(closed) == 2


def test_a_lost_answer_is_the_end_of_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(history: History) -> Generator[str, None, None]:
        yield "part"
        raise EngineError("gone")

    monkeypatch.setattr(sys, "stdin", io.StringIO("one"))
    with pytest.raises(EngineError, match="gone"):
        converse(breaks, "")
    assert isinstance(Conversation(parrot, []), Conversation)


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A model that says what it is told, behind a template that knows thoughts."""
    folder = write_checkpoint(tmp_path_factory.mktemp("parrot"), parrot=True)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    with running(folder) as live:
        yield live


def test_over_http_thoughts_are_shown(
    thinker: LiveServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "<think>\nlet me see\n</think>\n\nfour"
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    arguments = [
        "--url",
        thinker.url,
        "--temperature",
        "0",
        "--min-new-tokens",
        "1",
        "--max-new-tokens",
        "60",
    ]
    assert main(["chat", *arguments]) == 0
    assert capsys.readouterr().out == text + "\n"


def test_the_servers_words_reach_the_user(
    thinker: LiveServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello " * 5000))
    assert main(["chat", "--url", thinker.url]) == 2
    assert "answered 400" in capsys.readouterr().err


def test_an_answer_that_breaks_off_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(write_checkpoint(tmp_path)) as live:
        server = connect(live.url)
    frames: list[dict[str, object]] = [{"choices": [{"delta": {"content": "part"}, "finish_reason": None}]}]
    monkeypatch.setattr(type(server.client), "stream", lambda self, path, body: (frame for frame in frames))
    with pytest.raises(EngineError, match="broke the answer off"):
        list(server.reply([{"role": "user", "content": "x"}], {}))
    frames.append({"error": {"message": "engine died"}})
    with pytest.raises(EngineError, match="engine died"):
        list(server.reply([{"role": "user", "content": "x"}], {}))
