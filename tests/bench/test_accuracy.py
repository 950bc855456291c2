"""`samebits bench accuracy`: scores, spread and answer sets, of a server that keeps its bits and of one that wavers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from fake_engine import write_checkpoint
from live_server import LiveServer, running

from samebits.bench.accuracy import (
    BUNDLED,
    Exam,
    Problem,
    Trial,
    ask_all,
    final_number,
    read_problems,
    summarise,
)
from samebits.cli import main
from samebits.client import Reply
from samebits.errors import ConfigError, EngineError

PROBLEMS = [Problem(f"question {number}", f"#### {number}", Decimal(number)) for number in range(12)]


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with running(write_checkpoint(tmp_path_factory.mktemp("checkpoint"), delay=0.001)) as live:
        yield live


class Pupil:
    """Answers with the question's number, and with what `wobble` makes of how many are at work."""

    def __init__(self, wobble: bool = False) -> None:
        self.wobble = wobble
        self.bodies: list[dict[str, Any]] = []
        self.at_work = self.most = 0

    async def request(self, method: str, path: str, body: bytes | None = None) -> Reply:
        asked = json.loads(body or b"")
        self.bodies.append(asked)
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        number = asked["messages"][-1]["content"].split()[-1]
        text = f"I think {int(number) + (self.wobble and self.at_work > 1)}"
        await asyncio.sleep(0)
        self.at_work -= 1
        value = {"choices": [{"message": {"content": text}}]}
        return Reply(200, {}, json.dumps(value).encode())


def trials(pupil: Pupil, sizes: tuple[int, ...] = (1, 4, 1, 4)) -> list[Trial]:
    exam = Exam(PROBLEMS, [], {})

    async def run() -> list[Trial]:
        return [await ask_all(pupil, exam, size, repeat, lambda: None) for repeat, size in enumerate(sizes)]

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4 = 7.\n#### 7", "7"),
        ("#### 1,234 apples of 5", "1234"),
        ("#### 3 or #### -4.50", "-4.5"),
        ("first 8, then 9.", "9"),
        ("costs $1,000.25", "1000.25"),
        ("nothing", None),
        ("#### none, though 5", "5"),
        ("", None),
    ],
)
def test_final_number(text: str, number: str | None) -> None:
    assert final_number(text) == (None if number is None else Decimal(number))


def test_a_steady_pupil_has_no_spread() -> None:
    pupil = Pupil()
    done = trials(pupil)
    assert pupil.most == 4
    result = summarise(Exam(PROBLEMS, [], {}), done)
    assert (result["mean"], result["spread"], result["unique_answer_sets"]) == (1.0, 0.0, 1)
    assert result["questions_with_several_answers"] == 0 and result["examples"] == []
    orders = [
        [body["messages"][-1]["content"] for body in pupil.bodies[at : at + 12]] for at in range(0, 48, 12)
    ]
    assert len({tuple(order) for order in orders}) == 4, "each run asks in another order"
    assert all(sorted(order) == sorted(orders[0]) for order in orders)


def test_a_pupil_who_looks_around_is_found_out() -> None:
    """The inverse: answers that follow the load."""
    done = trials(Pupil(wobble=True))
    result = summarise(Exam(PROBLEMS, [], {}), done)
    assert result["spread"] > 0 and result["unique_answer_sets"] > 1
    assert result["questions_with_several_answers"] > 0
    assert len(result["examples"][0]["answers"]) == 2
    assert done[0].digest == done[2].digest


def test_a_server_that_refuses_ends_the_run() -> None:
    class Closed:
        async def request(self, method: str, path: str, body: bytes | None = None) -> Reply:
            return Reply(404, {}, b'{"error": "no such model"}')

    with pytest.raises(EngineError, match=r"answered 404.*no such model"):
        asyncio.run(ask_all(Closed(), Exam(PROBLEMS, [], {}), 3, 0, lambda: None))


def test_bundled_problems_and_bad_files(tmp_path: Path) -> None:
    problems = read_problems(BUNDLED)
    assert len(problems) == 500 and all(problem.result > 0 for problem in problems)
    path = tmp_path / "set.jsonl"
    for line, words in {
        "{": "has no question and answer",
        '{"question": "x"}': "has no question and answer",
        "7": "has no question and answer",
        '{"question": "x", "answer": "many"}': "ends in no number",
    }.items():
        path.write_text('{"question": "a", "answer": "#### 1"}\n' + line)
        with pytest.raises(ConfigError, match=f"set.jsonl:2.*{words}"):
            read_problems(path)
    path.write_text('{"question": "one\u2028two\u0085three", "answer": "#### 1"}\n')
    assert [problem.question for problem in read_problems(path)] == ["one\u2028two\u0085three"]
    with pytest.raises(ConfigError, match="cannot read"):
        read_problems(tmp_path / "missing")


def test_half_a_surrogate_pair_is_an_answer_like_others() -> None:
    assert len({Trial(1, 0, (answer,), 0, 1.0).digest for answer in ("\ud800", "\ud801", "?")}) == 3


def test_command_at_a_url(fake: LiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "accuracy.json"
    arguments = ["--url", fake.url, "--num-questions", "6", "--repeats", "2", "--parallel", "1", "5"]
    more = ["--num-shots", "1", "--temperature", "0.9", "--max-new-tokens", "9", "--output", str(output)]
    assert main(["bench", "accuracy", *arguments, *more]) == 0
    shown = capsys.readouterr().out
    assert "6 questions, 4 runs: mean " in shown and "spread 0.00 points, 1 unique answer sets" in shown
    written = json.loads(output.read_text())
    assert written["results"]["unique_answer_sets"] == 1 and written["asked"]["shots"] == 1
    assert [run["concurrency"] for run in written["runs"]] == [1, 5, 1, 5]
    assert len({run["answers_digest"] for run in written["runs"]}) == 1
    assert written["server"]["fingerprint"] == "fake-fingerprint" and written["commit"]
    # The inverse: other answers, another digest.
    assert main(["bench", "accuracy", *arguments, *more, "--seed", "43"]) == 0
    other = json.loads(output.read_text())
    assert other["runs"][0]["answers_digest"] != written["runs"][0]["answers_digest"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--num-shots", "500"], "--num-shots must lie in"),
        (["--num-questions", "501"], "holds 500 questions"),
        (["--extra-body", "[]"], "--extra-body must be"),
        (["--data-path", "/no/such/file"], "cannot read"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], words: str, fake: LiveServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "accuracy", "--url", fake.url, *arguments]) == 2
    assert words in capsys.readouterr().err


def test_the_committed_result_is_what_the_readme_says() -> None:
    root = Path(__file__).parents[2]
    result = json.loads((root / "results" / "accuracy-bundled.json").read_text())
    figures = result["results"]
    assert figures["spread"] == 0 and figures["unique_answer_sets"] == 1
    assert not result["commit"].endswith("+changes")
    told = (
        f"{figures['questions']} questions, {figures['runs']} runs: mean {100 * figures['mean']:.2f} %, "
        "spread 0.00 points, 1 unique answer sets"
    )
    assert told in " ".join((root / "README.md").read_text().split())
    assert result["command"] in (root / "README.md").read_text()
