"""Batches: OpenAI's format in and out, and runs that are killed lose and repeat nothing."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_engine import write_checkpoint
from live_server import LiveServer, running

from samebits.cli import main
from samebits.client import AsyncClient, Reply, ServerGoneError
from samebits.commands import batch_run
from samebits.commands.batch import BatchRequest, answer_line, open_answers, read_answers, read_batch
from samebits.errors import ConfigError

OK = Reply(200, {"x-request-id": "abc"}, b'{"system_fingerprint": "f", "choices": []}')


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), delay=0.004)
    with running(folder) as live:
        yield live


def line(custom_id: str, **body: Any) -> dict[str, Any]:
    body = {"prompt": f"request {custom_id}", "max_tokens": 12, "temperature": 0.9, **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    return path


def answers_of(path: Path) -> dict[str, dict[str, Any]]:
    """Answers by id; each line whole, each id once."""
    data = path.read_bytes()
    assert not data or data.endswith(b"\n")
    listed = [json.loads(entry) for entry in data.splitlines()]
    found = {answer["custom_id"]: answer for answer in listed}
    assert len(found) == len(listed)
    return found


def text_of(answer: dict[str, Any]) -> str:
    return str(answer["response"]["body"]["choices"][0]["text"])


def command(batch: Path, output: Path, url: str, *more: str) -> list[str]:
    return ["generate", "--batch", str(batch), "--output", str(output), "--url", url, *more]


def test_every_line_is_answered_in_the_format(
    fake: LiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    batch = write(
        tmp_path / "in.jsonl",
        [
            line("good"),
            {"custom_id": "chat", "method": "POST", "url": "/v1/chat/completions", "body": chat},
            line("bad value", max_tokens=-1),
            line("streams", stream=True),
            line("get") | {"method": "GET"},
            line("nowhere") | {"url": "/v1/nowhere"},
            line("no body") | {"body": None},
        ],
    )
    for _ in range(2):
        assert main(command(batch, tmp_path / "out.jsonl", fake.url)) == 0
        assert "7 requests are answered, 5 of them with a refusal" in capsys.readouterr().err
    found = answers_of(tmp_path / "out.jsonl")
    assert set(found) == {request.custom_id for request in read_batch(str(batch))}
    good = found["good"]
    assert good["response"]["status_code"] == 200 and good["error"] is None
    assert len(good["response"]["request_id"]) == 32
    assert good["response"]["body"]["usage"]["completion_tokens"] == 12
    refused = found["bad value"]
    assert refused["error"] is None and refused["response"]["status_code"] == 400
    assert refused["response"]["body"]["error"]["param"] == "max_tokens"
    for name, words in (("streams", "stream"), ("get", "POST"), ("nowhere", "url"), ("no body", "body")):
        assert found[name]["response"] is None
        assert found[name]["error"]["code"] == "invalid_request" and words in found[name]["error"]["message"]
    direct = fake.post("/v1/completions", line("good")["body"]).json()
    assert text_of(good) == direct["choices"][0]["text"]


def test_killed_runs_lose_and_repeat_nothing(fake: LiveServer, tmp_path: Path) -> None:
    """Runs are killed at random moments until one ends. What stood in the file stays, byte for byte."""
    names = [f"line {number}" for number in range(160)]
    batch = write(tmp_path / "in.jsonl", [line(name) for name in names])
    output, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    arguments = command(batch, output, fake.url, "--max-concurrency", "3")
    source = random.Random(5)
    before, kills = b"", 0
    for _ in range(60):
        process = subprocess.Popen(
            [sys.executable, "-m", "samebits", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        lines_before = before.count(b"\n")
        wanted = lines_before + source.randrange(1, 40)
        while process.poll() is None and output_lines(output) < wanted:
            time.sleep(0.002)
        time.sleep(source.random() * 0.01)
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait()
        after = output.read_bytes()
        assert after.startswith(before)
        if source.random() < 0.5 and len(after) > len(before):
            # A kill in the middle of a write leaves a part of a line; most kills come between two.
            after = after[: source.randrange(len(before) + 1, len(after) + 1)]
            output.write_bytes(after)
        before = after[: after.rfind(b"\n") + 1]
        if process.returncode == 0 and before.count(b"\n") == len(names):
            break
    assert kills >= 3
    assert main(command(batch, whole, fake.url)) == 0
    found, expected = answers_of(output), answers_of(whole)
    assert set(found) == set(expected) == set(names)
    assert {name: text_of(found[name]) for name in names} == {name: text_of(expected[name]) for name in names}
    assert {name: found[name]["id"] for name in names} == {name: expected[name]["id"] for name in names}


def output_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_finished_batch_is_left_alone(fake: LiveServer, tmp_path: Path) -> None:
    batch = write(tmp_path / "in.jsonl", [line("a"), line("b")])
    output = tmp_path / "out.jsonl"
    assert main(command(batch, output, fake.url)) == 0
    before = output.read_bytes()
    assert main(command(batch, output, "http://127.0.0.1:9")) == 0, "nobody need be asked"
    assert output.read_bytes() == before


def test_a_server_that_goes_away_ends_the_run_and_loses_nothing(
    fake: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = write(tmp_path / "in.jsonl", [line(name) for name in "abcd"])
    output = tmp_path / "out.jsonl"
    calls: list[str] = []

    class Leaving(AsyncClient):
        async def request(self, method: str, path: str, body: bytes | None = None) -> Reply:
            calls.append(path)
            if len(calls) > 3:
                raise ServerGoneError("nobody is there")
            return await super().request(method, path, body)

    with monkeypatch.context() as patch:
        patch.setattr("samebits.commands.batch_run.PAUSES", (0.0, 0.0))
        patch.setattr("samebits.commands.asked.AsyncClient", Leaving)
        assert main(command(batch, output, fake.url, "--max-concurrency", "1")) == 2
    told = capsys.readouterr().err
    assert "nobody is there" in told
    assert "2 of 4 requests are answered; the same command goes on from there" in told
    assert calls == ["/model_info"] + ["/v1/completions"] * 5, "the last one was tried three times"
    assert set(answers_of(output)) == {"a", "b"}
    assert main(command(batch, output, fake.url)) == 0
    assert set(answers_of(output)) == set("abcd")


@pytest.mark.parametrize(("status", "attempts"), [(503, 3), (429, 3), (500, 3), (400, 1), (404, 1)])
def test_a_server_in_trouble_is_asked_again(
    status: int, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_run, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(batch_run, "TROUBLE", {503: 2, 429: 2, 500: 2})
    calls = []

    class Troubled:
        async def request(self, method: str, path: str, body: bytes | None = None) -> Reply:
            calls.append(body)
            return Reply(status, {}, b"{}")

    reply = asyncio.run(batch_run._ask(Troubled(), BatchRequest("a", "/v1/completions", {})))
    assert reply.status == status and len(calls) == attempts


def test_an_interrupted_run_ends_at_once(fake: LiveServer, tmp_path: Path) -> None:
    batch = write(tmp_path / "in.jsonl", [line(f"{number}", max_tokens=400) for number in range(50)])
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "samebits",
            *command(batch, tmp_path / "out.jsonl", fake.url, "--max-concurrency", "2"),
        ],
        stderr=subprocess.PIPE,
    )
    while not output_lines(tmp_path / "out.jsonl"):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert 0 < len(answers_of(tmp_path / "out.jsonl")) < 50


def test_a_partial_line_is_cut_off_wherever_it_ends(tmp_path: Path) -> None:
    requests = [BatchRequest(name, "/v1/completions", {}) for name in "abc"]
    lines = [answer_line(request, OK) for request in requests]
    data = b"".join(lines)
    ends = [0, *(len(b"".join(lines[: count + 1])) for count in range(3))]
    for cut in range(len(data) + 1):
        answered = read_answers(data[:cut], requests, "file")
        assert answered.end == max(end for end in ends if end <= cut)
        assert len(answered.custom_ids) == ends.index(answered.end)
    path = tmp_path / "out.jsonl"
    path.write_bytes(data[:-5])
    with open_answers(str(path), requests) as answers:
        assert answers.answered.custom_ids == {"a", "b"} and answers.answered.fingerprints == {"f"}
        answers.append(requests[2], OK)
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"my diary\n", "out.jsonl:1 is no answer of a batch"),
        (b"my diary", "ends in what is no answer of a batch"),
        (b'{"a": 1}\n', "out.jsonl:1 is no answer of a batch"),
        (b'{"custom_id": "a", "id": "x", "response": [1]}\n', "out.jsonl:1 is no answer of a batch"),
        (answer_line(BatchRequest("z", "/v1/completions", {}), OK), "another request than 'z'"),
        (answer_line(BatchRequest("a", "/v1/completions", {"seed": 1}), OK), "another request than 'a'"),
        (answer_line(BatchRequest("a", "/v1/completions", {}), OK) * 2, "'a' a second time"),
    ],
)
def test_a_file_of_something_else_is_not_touched(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)
    requests = [BatchRequest("a", "/v1/completions", {})]
    with pytest.raises(ConfigError, match=words), open_answers(str(path), requests):
        raise AssertionError
    assert path.read_bytes() == content


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    path = str(tmp_path / "out.jsonl")
    with open_answers(path, []), pytest.raises(ConfigError, match="another run"), open_answers(path, []):
        raise AssertionError
    with open_answers(path, []):
        pass


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{\n", "in.jsonl:1 is not valid JSON"),
        ('{"body": {}}\n', "in.jsonl:1: a request is an object with a custom_id"),
        ('{"custom_id": 7}\n', "in.jsonl:1: a request"),
        ('{"custom_id": "a"}\n\n{"custom_id": "a"}\n', "in.jsonl:3: custom_id 'a' is taken by line 1"),
        ("\n", "holds no requests"),
    ],
)
def test_a_batch_that_cannot_be_told_apart_is_refused(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match=words):
        read_batch(str(path))


def test_a_line_ends_at_its_newline_alone(tmp_path: Path) -> None:
    """Other ends of lines that Unicode knows may stand in a text of JSON as they are."""
    path = tmp_path / "in.jsonl"
    text = "one\u2028two\u0085three"
    path.write_text(json.dumps(line("a", prompt=text), ensure_ascii=False) + "\r\n" + json.dumps(line("b")))
    requests = read_batch(str(path))
    assert [request.custom_id for request in requests] == ["a", "b"]
    assert requests[0].body["prompt"] == text


def test_half_a_surrogate_pair_is_written_as_it_was_read(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps(line("\ud800")))
    (request,) = read_batch(str(path))
    assert json.loads(answer_line(request, Reply(200, {}, b'{"text": "\\udfff"}')))["custom_id"] == "\ud800"


def test_answers_of_another_plan_are_not_mixed(
    fake: LiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = write(tmp_path / "in.jsonl", [line("a"), line("b")])
    output = tmp_path / "out.jsonl"
    assert main(command(batch, output, fake.url)) == 0
    text = output.read_text().splitlines(keepends=True)[0].replace("fake-fingerprint", "another")
    output.write_text(text)
    assert main(command(batch, output, fake.url)) == 2
    assert (
        "holds answers of another, and this model's fingerprint is fake-fingerprint"
        in capsys.readouterr().err
    )
    assert output.read_text() == text


def test_a_model_in_this_process(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Token ids in, so that the tiny model needs no tokenizer; answers on standard output."""
    body = {"prompt": [5, 6, 7], "max_tokens": 3, "temperature": 0, "return_token_ids": True}
    batch = write(
        tmp_path / "in.jsonl", [line("a") | {"body": body}, line("b") | {"body": body | {"seed": 1}}]
    )
    tiny = ["--model", "tiny", "--load-format", "dummy", "--kv-memory-mib", "64"]
    assert main(["generate", "--batch", str(batch), *tiny]) == 0
    answers = [json.loads(entry) for entry in capfdbinary.readouterr().out.splitlines()]
    ids = [answer["response"]["body"]["choices"][0]["token_ids"] for answer in answers]
    assert len(ids) == 2 and ids[0] == ids[1] and len(ids[0]) == 3
    assert main(["generate", "--batch", str(batch), *tiny, "--data-parallel", "2"]) == 2
    assert b"--data-parallel is for samebits serve" in capfdbinary.readouterr().err
    write(batch, [line("a", model="gpt")])
    assert main(["generate", "--batch", str(batch), *tiny]) == 2
    assert b"--served-model-name gpt" in capfdbinary.readouterr().err


def test_a_key_is_sent_and_a_wrong_one_ends_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(write_checkpoint(tmp_path), api_key=("secret",)) as guarded:
        batch = write(tmp_path / "in.jsonl", [line("a")])
        output = tmp_path / "out.jsonl"
        assert main(command(batch, output, guarded.url, "--api-key", "wrong")) == 2
        assert "--api-key" in capsys.readouterr().err and output.read_bytes() == b""
        assert main(command(batch, output, guarded.url, "--api-key", "secret")) == 0
    assert set(answers_of(output)) == {"a"}


def test_flags_that_would_do_nothing_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batch = str(write(tmp_path / "in.jsonl", [line("a")]))
    for arguments in (
        ["--batch", batch, "--seed", "1"],
        ["--batch", batch, "a text"],
        ["x", "--url", "http://a"],
    ):
        assert main(["generate", *arguments]) == 2
        assert "--batch" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["in.jsonl"]
