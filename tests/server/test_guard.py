"""What every request passes before its route: ids, logs, metrics, keys, CORS, the limit on requests in flight."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
from fake_engine import write_checkpoint
from live_server import LiveServer, free_port, running, wait_for
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from samebits.config import ServerConfig
from samebits.engine.logs import JsonFormatter, request_id
from samebits.errors import ConfigError
from samebits.server.guard import guarded
from samebits.server.keys import Keys, load_keys
from samebits.server.metrics import ServerMetrics

KEY, OTHER_KEY, FILE_KEY = "sk-first.1", "sk-second", "sk-from-a-file"
SHORT = {"input_ids": [5, 6], "sampling_params": {"temperature": 0.0, "max_new_tokens": 3}}
LONG = {"input_ids": [5, 6], "sampling_params": {"max_new_tokens": 1500, "ignore_eos": True}}
BEARER = {"Authorization": f"Bearer {KEY}"}
ORIGIN = "https://example.org"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with three keys, one origin, room for two requests, and JSON logs."""
    folder = write_checkpoint(tmp_path_factory.mktemp("locked"), delay=0.002)
    keys = folder / "keys"
    keys.write_text(f"# clients\n\n{FILE_KEY}\n")
    settings = {
        "api_key": [KEY, OTHER_KEY],
        "api_key_file": str(keys),
        "cors_origins": [ORIGIN],
        "max_in_flight": 2,
        "log_format": "json",
    }
    with running(folder, **settings) as live:
        yield live


def lines(live: LiveServer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in live.log().splitlines()]


@pytest.mark.parametrize(
    "headers",
    [
        BEARER,
        {"Authorization": f"bearer  {OTHER_KEY}"},
        {"x-api-key": FILE_KEY},
        {"x-api-key": OTHER_KEY, "Authorization": "Bearer wrong"},
    ],
)
def test_each_key_opens_either_way(locked: LiveServer, headers: dict[str, str]) -> None:
    assert locked.post("/generate", SHORT, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"x-api-key": f"{KEY},{OTHER_KEY}"},
        {"x-api-key": ""},
        {"x-api-key": "# clients"},
    ],
)
def test_nothing_else_does(locked: LiveServer, headers: dict[str, str]) -> None:
    response = locked.post("/generate", SHORT, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert response.headers["x-request-id"]


def test_all_but_health_is_guarded(locked: LiveServer) -> None:
    info = locked.get("/server_info", headers=BEARER)
    assert info.status_code == 200
    for path in ("/health", "/ready"):
        assert locked.get(path).status_code == 200
    guarded_paths = ("/metrics", "/server_info", "/v1/models", "/health_generate", "/no", "//health")
    for path in (*guarded_paths, "/health/", "/health/x", "/%2e/health", "/HEALTH"):
        response = requests.get(locked.url + path, timeout=30, allow_redirects=False)
        assert response.status_code == 401, path
    for key in (KEY, OTHER_KEY, FILE_KEY):
        assert key not in info.text
        assert key not in locked.log()


def test_the_openai_client_presents_its_key(locked: LiveServer) -> None:
    settings: dict[str, Any] = {"base_url": f"{locked.url}/v1", "max_retries": 0}
    with openai.OpenAI(api_key=KEY, **settings) as client:
        answer = client.completions.with_raw_response.create(model="fake", prompt="the", max_tokens=3)
        assert answer.parse().choices[0].finish_reason == "length"
        assert answer.headers["x-request-id"]
    with openai.OpenAI(api_key="wrong", **settings) as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_a_key_is_never_shown_by_its_settings() -> None:
    assert KEY not in repr(ServerConfig(api_key=(KEY,)))
    keys = load_keys(ServerConfig(api_key=(KEY,)))
    assert KEY not in repr(vars(keys))
    assert keys.admit([(b"x-api-key", KEY.encode())])
    assert not keys.admit([(b"x-api-key", b"\xff\xfe")])
    assert not Keys([]), "no keys: no guard"


@pytest.mark.parametrize("content", ["", "# only\n\n", "two words\n", "é\n"])
def test_a_bad_key_file_is_an_error(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(ConfigError, match="keys"):
        load_keys(ServerConfig(api_key_file=str(file)))
    with pytest.raises(ConfigError, match=r"missing: No such file"):
        load_keys(ServerConfig(api_key_file=str(tmp_path / "missing")))


def test_a_request_id_is_kept_returned_and_logged(locked: LiveServer) -> None:
    given = "client-7.a/b=="
    headers = BEARER | {"X-Request-Id": given}
    response = locked.post("/generate", LONG | {"stream": True}, headers=headers, stream=True)
    assert response.headers["x-request-id"] == given
    response.close()

    def named() -> list[dict[str, Any]]:
        return [line for line in lines(locked) if line.get("request_id") == given]

    wait_for(lambda: len(named()) == 2)
    left, access = named()
    assert "the client left" in left["message"]
    assert (access["method"], access["path"], access["status"]) == ("POST", "/generate", 200)
    assert access["level"] == "info" and access["seconds"] > 0


@pytest.mark.parametrize("bad", ["with space", "x" * 129, "é".encode().decode("latin-1"), 'quote"', ""])
def test_an_ill_formed_id_is_replaced(locked: LiveServer, bad: str) -> None:
    response = locked.get("/health", headers={"X-Request-Id": bad})
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])
    assert locked.get("/health").headers["x-request-id"] != response.headers["x-request-id"]


def test_a_path_cannot_forge_a_log_line(locked: LiveServer) -> None:
    locked.get("/a%0Ab?key=secret", headers=BEARER)
    wait_for(lambda: any(line.get("path") == "/a%0Ab" for line in lines(locked)))
    assert "secret" not in locked.log()


def test_too_many_in_flight_are_asked_to_come_back(locked: LiveServer) -> None:
    holders = [
        locked.post("/generate", LONG | {"stream": True}, headers=BEARER, stream=True) for _ in range(2)
    ]
    refused = locked.post("/generate", SHORT, headers=BEARER)
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    assert refused.json()["error"]["code"] == "too_many_in_flight"
    assert locked.get("/ready").status_code == 200
    assert "samebits_http_requests_in_flight 2.0" in locked.get("/metrics", headers=BEARER).text
    for holder in holders:
        holder.close()
    wait_for(lambda: locked.post("/generate", SHORT, headers=BEARER).status_code == 200)


def test_cors_for_the_named_origin_alone(locked: LiveServer, server: LiveServer) -> None:
    preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"} | {
        "Access-Control-Request-Headers": "authorization"
    }
    answer = requests.options(locked.url + "/generate", headers=preflight, timeout=30)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in answer.headers["access-control-allow-headers"]
    other = requests.options(
        locked.url + "/generate", headers=preflight | {"Origin": "https://evil.org"}, timeout=30
    )
    assert "access-control-allow-origin" not in other.headers
    denied = locked.post("/generate", SHORT, headers={"Origin": ORIGIN})
    assert denied.status_code == 401
    assert denied.headers["access-control-allow-origin"] == ORIGIN, "a page may read why"
    off = requests.options(server.url + "/generate", headers=preflight, timeout=30)
    assert "access-control-allow-origin" not in off.headers
    assert "access-control-allow-origin" not in server.post("/generate", SHORT, headers=preflight).headers


@pytest.mark.parametrize(
    "settings",
    [
        {"max_in_flight": 0},
        {"cors_origins": ("example.org",)},
        {"cors_origins": ("https://example.org/page",)},
        {"engine_restarts": -1},
        {"max_body_mib": 0},
        {"drain_seconds": -1.0},
        {"default_deadline_seconds": float("inf")},
        {"api_key": ("a b",)},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--" + next(iter(settings)).replace("_", "-")):
        guarded(Starlette(), FakeFront(ServerConfig(**settings)))  # type: ignore[arg-type]


class FakeFront:
    """What the guard knows of a front."""

    tracing = None

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.metrics = ServerMetrics()


async def call(app: Any, path: str, headers: dict[str, str] | None = None) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": raw}
    await app(scope, receive, send)
    return sent


def test_a_route_that_raises_is_logged_with_its_id(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(request: Request) -> Response:
        raise RuntimeError("on purpose")

    front = FakeFront(ServerConfig())
    app = guarded(Starlette(routes=[Route("/broken/{x}", broken)]), front)  # type: ignore[arg-type]
    sent = asyncio.run(call(app, "/broken/1", {"x-request-id": "the-id"}))
    assert sent[0]["status"] == 500
    assert (b"x-request-id", b"the-id") in sent[0]["headers"]
    assert front.metrics.http_requests == {("GET", "/broken/{x}", "500"): 1}
    assert any("on purpose" in str(record.exc_info) for record in caplog.records)


def test_made_up_paths_do_not_grow_the_metrics() -> None:
    front = FakeFront(ServerConfig())
    app = guarded(Starlette(), front)  # type: ignore[arg-type]
    for number in range(5):
        asyncio.run(call(app, f"/{number}"))
    assert front.metrics.http_requests == {("GET", "other", "404"): 5}


def test_text_lines_end_with_the_id(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    with running(folder, port=free_port()) as live:
        live.post("/generate", SHORT, headers={"X-Request-Id": "abc"})
        live.get("/metrics", headers={"X-Request-Id": "scrape"})
        assert re.search(r"POST /generate 200 in [0-9.]+ s \[abc\]\n", live.log())
        assert "scrape" not in live.log(), "probes are quiet"


def test_a_json_line_is_one_line_with_everything() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        record = logging.LogRecord("samebits.x", logging.ERROR, "", 0, "two\n%s", ("lines",), sys.exc_info())
    record.request_id = "own"
    token = request_id.set("of the task")
    text = JsonFormatter().format(record)
    request_id.reset(token)
    assert "\n" not in text
    line = json.loads(text)
    assert (line["message"], line["request_id"], line["level"]) == ("two\nlines", "own", "error")
    assert "ValueError: first\nsecond" in line["exception"]
