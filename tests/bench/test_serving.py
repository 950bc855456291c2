"""`samebits bench serve`: what is asked, when, and the figures. No figure of a machine is asserted."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engine import write_checkpoint
from live_server import LiveServer, running

from samebits.bench.load.datasets import (
    Lengths,
    Question,
    Speech,
    random_questions,
    shared_prefix_questions,
    sharegpt_questions,
)
from samebits.bench.load.drive import CHAT, COMPLETIONS, Answer, Plan, ask_one, drive
from samebits.bench.load.report import digest, latencies, most_at_once, percentile, summarise
from samebits.cli import main
from samebits.client import AsyncClient
from samebits.errors import ConfigError

IDS = Speech(200, as_text=False)


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with running(write_checkpoint(tmp_path_factory.mktemp("checkpoint"), delay=0.002)) as live:
        yield live


def plan(**changes: Any) -> Plan:
    usual: dict[str, Any] = {
        "endpoint": COMPLETIONS,
        "model": "fake",
        "rate": math.inf,
        "burstiness": 1.0,
        "most": 4,
        "seed": 0,
        "body": {"temperature": 0.8, "seed": 3, "ignore_eos": True},
    }
    return Plan(**usual | changes)


def ask(server: LiveServer, questions: list[Question], **changes: Any) -> list[Answer]:
    return asyncio.run(drive(AsyncClient(server.url), questions, plan(**changes), lambda: None))


def test_random_questions_follow_from_the_seed() -> None:
    lengths = Lengths(40, 12, 0.5)
    made = random_questions(200, lengths, IDS, 7)
    assert made == random_questions(200, lengths, IDS, 7) != random_questions(200, lengths, IDS, 8)
    assert {len(question.prompt) for question in made} <= set(range(20, 61))
    assert {question.output_tokens for question in made} == set(range(6, 19))
    ids = {number for question in made for number in question.prompt}
    assert min(ids) == 100 and max(ids) == 199
    assert len({question.prompt[:4] for question in made}) == 200, "nothing is shared"
    assert {len(q.prompt) for q in random_questions(9, Lengths(40, 12), IDS, 7)} == {40}


def test_shared_prefixes_are_shared() -> None:
    made = shared_prefix_questions(30, 3, 50, Lengths(10, 5), IDS, 0)
    prefixes = [question.prompt[:50] for question in made]
    assert {prefixes.count(prefix) for prefix in prefixes} == {10}
    assert len({question.prompt for question in made}) == 30
    assert prefixes[:3] != prefixes[3:6], "in random order"
    texts = shared_prefix_questions(4, 1, 50, Lengths(10, 5), Speech(1000, as_text=True), 0)
    assert len({str(question.prompt).rsplit(" ", 10)[0] for question in texts}) == 1


def test_sharegpt_file(tmp_path: Path) -> None:
    talks = [
        {"conversations": [{"value": f"question number {number} " + "x " * number}, {"value": "y " * 9}]}
        for number in range(1, 60)
    ]
    talks.append({"conversation": talks.pop()["conversations"]})
    talks += [{"conversations": [{"value": "alone"}]}, {"conversations": []}, {"id": 3}]
    path = tmp_path / "talks.json"
    path.write_text(json.dumps(talks))
    count = lambda text: len(text.split())  # noqa: E731
    made = sharegpt_questions(path, 20, None, count, 1)
    assert (
        made == sharegpt_questions(path, 20, None, count, 1) != sharegpt_questions(path, 20, None, count, 2)
    )
    assert len({question.prompt for question in made}) == 20
    assert {question.output_tokens for question in made} == {9}
    assert {question.output_tokens for question in sharegpt_questions(path, 5, 31, count, 1)} == {31}
    with pytest.raises(
        ConfigError, match=r"talks\.json holds 59 conversations of usual length, fewer than 99"
    ):
        sharegpt_questions(path, 99, None, count, 1)
    for content in ("{", "[1]", '[{"conversations": [{"a": 1}, {"b": 2}]}]'):
        path.write_text(content)
        with pytest.raises(ConfigError, match=r"talks\.json is no file of ShareGPT's format"):
            sharegpt_questions(path, 1, None, count, 1)
    with pytest.raises(ConfigError, match="cannot read"):
        sharegpt_questions(tmp_path / "missing", 1, None, count, 1)


def test_arrivals_are_poisson() -> None:
    gaps = plan(rate=20.0).gaps(4001)
    assert gaps == plan(rate=20.0).gaps(4001) != plan(rate=20.0, seed=1).gaps(4001)
    assert gaps[0] == 0.0
    # An exponential distribution: standard deviation as large as the mean. Bounds of five standard errors.
    assert statistics.mean(gaps[1:]) == pytest.approx(0.05, rel=5 / math.sqrt(4000))
    assert statistics.stdev(gaps[1:]) == pytest.approx(0.05, rel=0.12)
    even = plan(rate=20.0, burstiness=100.0).gaps(4001)[1:]
    assert statistics.stdev(even) == pytest.approx(0.005, rel=0.12)
    assert plan().gaps(3) == [0.0, 0.0, 0.0]


def test_percentiles_are_numpys() -> None:
    values = sorted(random.Random(0).random() for _ in range(57))
    for share in (0, 1, 25, 50, 90, 99, 99.9, 100):
        assert percentile(values, share) == pytest.approx(float(np.percentile(values, share)))
    assert percentile([3.0], 99) == 3.0


def test_figures_of_known_times() -> None:
    first = Answer(10.0, [10.5, 10.6, 10.9], 11.0, "abc", 5, 3, True)
    second = Answer(10.2, [11.2], 11.4, "d", 7, 1, True)
    failed = Answer(10.9, [], 12.0, "", error="no")
    found = latencies([first, second])
    assert found["ttft"] == pytest.approx([500, 1000])
    assert found["itl"] == pytest.approx([100, 300])
    assert found["tpot"] == pytest.approx([200])
    assert found["e2el"] == pytest.approx([1000, 1200])
    result = summarise([first, second, failed], [50, 90])
    assert (result["completed"], result["failed"], result["errors"]) == (2, 1, ["no"])
    assert result["duration_seconds"] == pytest.approx(2.0)
    assert result["output_throughput"] == pytest.approx(2.0)
    assert result["total_throughput"] == pytest.approx(8.0)
    assert result["request_throughput"] == pytest.approx(1.0)
    assert result["ttft_ms"] == pytest.approx({"mean": 750, "p50": 750, "p90": 950, "most": 1000})
    assert result["most_concurrent"] == most_at_once([first, second, failed]) == 3
    assert most_at_once([Answer(0, [], 1), Answer(1, [], 2)]) == 1
    for limits, kept in [
        ({"ttft": 600}, 1),
        ({"ttft": 2000}, 2),
        ({"ttft": 2000, "tpot": 150}, 1),
        ({"e2el": 1}, 0),
    ]:
        assert summarise([first, second, failed], [50], limits)["goodput"] == pytest.approx(kept / 2)


@pytest.mark.parametrize("endpoint", [COMPLETIONS, CHAT])
def test_answers_are_those_of_the_server_in_any_company(fake: LiveServer, endpoint: str) -> None:
    speech = Speech(200, as_text=endpoint == CHAT)
    questions = [
        Question(q.prompt, q.output_tokens) for q in random_questions(24, Lengths(9, 7, 0.5), speech, 0)
    ]
    if endpoint == CHAT:
        fields = {"messages": [{"role": "user", "content": questions[0].prompt}]}
    else:
        fields = {"prompt": list(questions[0].prompt)}
    crowd = ask(fake, questions, endpoint=endpoint, most=24)
    assert not any(answer.error for answer in crowd)
    body = {"max_tokens": questions[0].output_tokens, **plan().body, **fields}
    direct = fake.post(endpoint, body).json()
    choice = direct["choices"][0]
    assert crowd[0].text == (choice["text"] if endpoint == COMPLETIONS else choice["message"]["content"])
    assert crowd[0].prompt_tokens == direct["usage"]["prompt_tokens"]
    for question, answer in zip(questions, crowd, strict=True):
        assert answer.counted and answer.output_tokens == question.output_tokens
        assert answer.sent < answer.times[0] <= answer.times[-1] <= answer.ended
        assert answer.times == sorted(answer.times)
    alone = ask(fake, questions, endpoint=endpoint, most=1)
    assert digest(alone) == digest(crowd)
    assert most_at_once(alone) == 1 < most_at_once(crowd)
    # The inverse: another seed, other answers; another order, another digest.
    assert digest(ask(fake, questions, endpoint=endpoint, body=plan().body | {"seed": 4})) != digest(crowd)
    assert digest(crowd[::-1]) != digest(crowd)


def test_no_more_at_a_time_than_asked_for(fake: LiveServer) -> None:
    answers = ask(fake, random_questions(30, Lengths(5, 4), IDS, 0), most=3)
    assert most_at_once(answers) == 3 and not any(answer.error for answer in answers)


def test_a_failure_costs_no_other(fake: LiveServer) -> None:
    good = random_questions(3, Lengths(5, 4), IDS, 0)
    answers = ask(fake, [good[0], Question((7,) * 5000, 4), good[1], Question((5,), -1), good[2]])
    assert [bool(answer.error) for answer in answers] == [False, True, False, True, False]
    assert "answered 400" in answers[1].error


def test_streams_of_others_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A role first, thoughts, no usage, an error in the middle, an end that does not come, and nonsense."""

    def answer_to(*frames: Any) -> Answer:
        async def stream(self: AsyncClient, path: str, body: bytes) -> Any:
            for frame in frames:
                yield frame if isinstance(frame, bytes) else json.dumps(frame).encode()

        monkeypatch.setattr(AsyncClient, "stream", stream)
        return asyncio.run(ask_one(AsyncClient("http://a"), plan(endpoint=CHAT), Question("x", 3)))

    def piece(finish: str | None = None, **delta: Any) -> dict[str, Any]:
        return {"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], "usage": None}

    whole = answer_to(
        piece(role="assistant", content=""), piece(reasoning_content="hm "), piece(content="a"), piece("stop")
    )
    assert (whole.text, whole.output_tokens, whole.counted, whole.error) == ("hm a", 2, False, "")
    assert answer_to(piece(reasoning="hm "), piece("stop", content="a")).text == "hm a", (
        "vLLM's name of thoughts"
    )
    assert answer_to(piece(content="a")).error == "the answer broke off"
    assert "died" in answer_to(piece(content="a"), {"error": {"message": "died"}}).error
    assert answer_to(b"nonsense").error
    assert "utf-8" in answer_to(b'{"choices": [{"delta": {"content": "\xff"}}]}').error


def test_command_writes_figures_and_a_picture(
    fake: LiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, picture = tmp_path / "load.json", tmp_path / "load.png"
    arguments = ["bench", "serve", "--url", fake.url, "--num-prompts", "12", "--request-rate", "500"]
    arguments += ["--random-input-len", "8", "--random-output-len", "6", "--random-range-ratio", "0.5"]
    more = [
        "--output",
        str(output),
        "--plot",
        str(picture),
        "--save-detailed",
        "--metric-percentiles",
        "50,99.5",
    ]
    assert main([*arguments, *more, "--goodput", "e2el:60000"]) == 0
    shown = capsys.readouterr().out
    assert (
        "12 requests in" in shown
        and "requests/s kept e2el 60000 ms" in shown
        and "time to first token (ttft)" in shown
        and "p99.5" in shown
    )
    written = json.loads(output.read_text())
    results = written["results"]
    assert results["completed"] == 12 and results["failed"] == 0
    assert set(results["itl_ms"]) == {"mean", "p50", "p99.5", "most"}
    assert written["server"]["fingerprint"] == "fake-fingerprint" and written["device"]
    assert len(written["requests"]) == 12
    assert sum(entry["output_tokens"] for entry in written["requests"]) == results["output_tokens"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    # The same questions one at a time: the same answers.
    assert main([*arguments, "--max-concurrency", "1", "--output", str(output)]) == 0
    assert json.loads(output.read_text())["results"]["answers_digest"] == results["answers_digest"]


@pytest.mark.parametrize("name", ["prefix_repetition", "generated-shared-prefix", "sharegpt"])
@pytest.mark.parametrize("backend", ["openai", "openai-chat"])
def test_datasets_by_the_names_of_others(
    name: str, backend: str, fake: LiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "talks.json"
    talk = [
        {"from": "human", "value": "one two three four five"},
        {"from": "gpt", "value": "six seven eight"},
    ]
    path.write_text(json.dumps([{"conversations": talk}] * 9))
    arguments = ["--base-url", fake.url, "--backend", backend, "--dataset-name", name, "--num-prompts", "4"]
    if name == "sharegpt":
        arguments += ["--dataset-path", str(path)]
    else:
        arguments += (
            "--gsp-num-groups 2 --gsp-system-prompt-len 9 --gsp-question-len 3 --gsp-output-len 4".split()
        )
    assert main(["bench", "serve", *arguments]) == 0
    assert "4 requests in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--request-rate 0", "--request-rate must be above 0"),
        ("--burstiness 0", "--burstiness must be above 0"),
        ("--random-range-ratio 2", "--random-range-ratio must lie in"),
        ("--metric-percentiles 50,x", "--metric-percentiles is a list"),
        ("--metric-percentiles 101", "--metric-percentiles must lie in"),
        ("--goodput ttft", "--goodput is a list"),
        ("--goodput itl:3", "--goodput knows"),
        ("--extra-body 3", "--extra-body must be a JSON object"),
        ("--dataset-name sharegpt", "--dataset-path"),
        ("--url ftp://a", "a URL looks like"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: str, words: str, fake: LiveServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "serve", "--url", fake.url, *arguments.split()]) == 2
    assert words in capsys.readouterr().err


def test_a_plot_without_its_library_is_an_error_before_the_run(
    fake: LiveServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    before = fake.engine()["steps"]
    assert main(["bench", "serve", "--url", fake.url, "--plot", "load.png"]) == 2
    assert "pip install 'samebits[plots]'" in capsys.readouterr().err
    assert fake.engine()["steps"] == before


def test_host_port_and_a_path_of_its_own(fake: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    port = fake.url.rsplit(":", 1)[1]
    arguments = ["--host", "localhost", "--port", port, "--num-prompts", "2", "--random-input-len", "9"]
    for endpoint in (COMPLETIONS, CHAT):
        assert main(["bench", "serve", *arguments, "--backend", "vllm", "--endpoint", endpoint]) == 0
        assert "2 requests in" in capsys.readouterr().out
    assert plan(endpoint="/base/v1/chat/completions").is_chat and not plan().is_chat


def test_failed_requests_are_status_1(fake: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--url", fake.url, "--num-prompts", "2", "--num-warmups", "0", "--random-input-len", "9000"]
    assert main(["bench", "serve", *arguments]) == 1
    shown = capsys.readouterr().out
    assert "2 failed" in shown and "FAILED: " in shown
    assert all(len(row) < 400 for row in itertools.islice(shown.splitlines(), 2))
