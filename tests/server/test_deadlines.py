"""Deadlines over HTTP: 504 when there is no token by then, else what there is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from fake_engine import SILENT_TOKEN, write_checkpoint
from live_server import LiveServer, running

from samebits.errors import DeadlineError
from samebits.generation.samples import FinishReason, SampleOutput
from samebits.server.http import check_in_time

LONG = {"temperature": 0.0, "max_new_tokens": 1500, "ignore_eos": True}
EXPIRED = SampleOutput(finish=FinishReason("deadline", message="late"))
ROUTES = ("/generate", "/v1/completions", "/v1/chat/completions")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A token takes 20 ms."""
    with running(write_checkpoint(tmp_path_factory.mktemp("slow"), delay=0.02)) as live:
        yield live


def assert_504(response: requests.Response) -> None:
    assert response.status_code == 504, response.text
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("timeout_error", "deadline_exceeded")
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES[:2])
def test_no_token_by_then_is_a_504(slow: LiveServer, route: str, stream: bool) -> None:
    prompt = {"input_ids": [SILENT_TOKEN]} if route == "/generate" else {"prompt": [SILENT_TOKEN]}
    assert_504(slow.post(route, prompt | {"deadline_seconds": 0.1, "stream": stream}))


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_a_chat_that_is_too_late_is_a_504(parrot: LiveServer, route: str) -> None:
    said = [{"role": "user", "content": "x"}]
    body: dict[str, Any] = {"input": said} if route == "/v1/responses" else {"messages": said}
    body |= {"model": "fake", "max_tokens": 3} if route == "/v1/messages" else {}
    whole = parrot.post(route, body)
    assert whole.status_code == 200, whole.text
    late = parrot.post(route, body | {"deadline_seconds": 1e-9})
    assert late.status_code == 504, late.text
    assert late.headers["x-should-retry"] == "false"


def test_what_there_is_by_then_is_the_beginning_of_the_answer(slow: LiveServer) -> None:
    whole = slow.generate(input_ids=[5], sampling_params=LONG | {"max_new_tokens": 40})["output_ids"]
    begun = slow.generate(input_ids=[5], sampling_params=LONG, deadline_seconds=0.5)
    assert begun["meta_info"]["finish_reason"] == {
        "type": "abort",
        "message": "its deadline passed",
        "status_code": 504,
    }
    length = min(len(begun["output_ids"]), 40)
    assert length and begun["output_ids"][:length] == whole[:length]
    frames = slow.frames(input_ids=[5], sampling_params=LONG, deadline_seconds=0.5)
    assert frames[-1]["meta_info"]["finish_reason"]["type"] == "abort"
    assert frames[-1]["output_ids"][:length] == whole[: len(frames[-1]["output_ids"])][:length]


@pytest.mark.parametrize("stream", [False, True])
def test_openai_routes_say_abort(slow: LiveServer, stream: bool) -> None:
    body: dict[str, Any] = {"prompt": [5], "max_tokens": 1500, "ignore_eos": True, "n": 2, "temperature": 1}
    response = slow.post("/v1/completions", body | {"deadline_seconds": 0.5, "stream": stream})
    assert response.status_code == 200, response.text
    assert response.text.count('"finish_reason":"abort"') == 2
    assert response.text.count('"message":"its deadline passed"') == 2


@pytest.mark.parametrize("stream", [False, True])
def test_responses_and_messages_say_so_in_their_words(slow: LiveServer, stream: bool) -> None:
    shared = {"ignore_eos": True, "deadline_seconds": 0.5, "stream": stream}
    response = slow.post("/v1/responses", {"input": "the", "max_output_tokens": 1500, **shared})
    assert (response.status_code, '"status":"cancelled"' in response.text) == (200, True)
    message = [{"role": "user", "content": "the"}]
    response = slow.post("/v1/messages", {"messages": message, "max_tokens": 1500, **shared})
    assert (response.status_code, '"stop_reason":"abort"' in response.text) == (200, True)
    assert '"message":"its deadline passed"' in response.text


def test_members_of_a_list_end_by_themselves(slow: LiveServer) -> None:
    answers = slow.generate(
        input_ids=[[5], [SILENT_TOKEN]],
        sampling_params={"temperature": 0.0, "max_new_tokens": 3},
        deadline_seconds=1.0,
    )
    assert [answer["meta_info"]["finish_reason"]["type"] for answer in answers] == ["length", "abort"]
    assert len(answers[0]["output_ids"]) == 3


@pytest.mark.parametrize("value", [0, -1, 1e999])
@pytest.mark.parametrize("route", ROUTES)
def test_a_deadline_must_be_a_time_to_come(server: LiveServer, route: str, value: float) -> None:
    prompts = {"/generate": {"input_ids": [5]}, "/v1/completions": {"prompt": [5]}}
    chat = {"messages": [{"role": "user", "content": "x"}]}
    text = str(value).replace("inf", "1e999")
    given = repr(prompts.get(route, chat)).replace("'", '"')[:-1] + f', "deadline_seconds": {text}}}'
    response = requests.post(server.url + route, data=given, timeout=10)
    assert response.status_code == 400, response.text


def test_the_flag_is_for_requests_that_name_none(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, delay=0.005)
    with running(folder, default_deadline_seconds=0.3) as live:
        assert_504(live.post("/generate", {"input_ids": [SILENT_TOKEN]}))
        started = time.monotonic()
        assert_504(live.post("/generate", {"input_ids": [SILENT_TOKEN], "deadline_seconds": 1.0}))
        assert time.monotonic() - started >= 1.0
        assert (
            len(live.generate(input_ids=[5], sampling_params=LONG | {"max_new_tokens": 3})["output_ids"]) == 3
        )
        metrics = live.get("/metrics").text
    assert 'samebits_requests_total{finish_reason="deadline"} 2.0' in metrics


def test_an_answer_is_in_time_when_any_of_it_is() -> None:
    begun = SampleOutput(token_ids=(5,), finish=FinishReason("deadline", message="late"))
    done = SampleOutput(finish=FinishReason("stop"))
    for results in ([], [begun], [EXPIRED, begun], [done, EXPIRED], [SampleOutput()]):
        check_in_time(results)
    with pytest.raises(DeadlineError, match="late"):
        check_in_time([EXPIRED, EXPIRED])
