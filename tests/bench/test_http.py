"""`samebits bench http` in little: it counts what the server gave. No figure is asserted."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from samebits.bench.http import cases, measure
from samebits.bench.http_client import load, request_bytes
from samebits.bench.null_service import STEPS_A_SECOND
from samebits.cli import main
from samebits.commands.bench_http import serve


def test_it_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "http.json"
    assert main(["bench", "http", "--seconds", "0.3", "--repeats", "1", "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert {"commit", "command", "libraries"} <= set(result["machine"])
    assert [row["case"] for row in result["cases"]] == [case.name for case in cases()]
    assert all(row["server microseconds a request"] > 0 for row in result["cases"][:3])
    assert "requests/s" in capsys.readouterr().out


def test_streams_are_counted_to_the_token_and_other_answers_are_errors() -> None:
    paced = cases()[3]
    with serve(paced.engine) as server:
        found = measure(server, paced, 2.0)
        # A stream of 256 tokens takes more than a second at this pace: nobody can have had more than a few.
        assert found["requests a second"] * 2.0 <= paced.connections * (
            3.0 * STEPS_A_SECOND / paced.tokens + 1
        )
        assert found["server cores"] > 0
        bad = request_bytes(paced.path, {"prompt": ""})
        with pytest.raises(RuntimeError, match="400"):
            asyncio.run(load(server.port, bad, 1, 5.0, 5.0))


def test_a_server_that_closes_connections_is_no_load() -> None:
    """What the others still do would be less than the connections that the figure names."""

    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        writer.close()

    async def ask() -> None:
        async with await asyncio.start_server(answer_once, "127.0.0.1", 0) as server:
            await load(server.sockets[0].getsockname()[1], request_bytes("/", {}), 2, 0.1, 0.2)

    with pytest.raises(RuntimeError, match="closed a connection"):
        asyncio.run(ask())


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_times_in_which_nothing_can_be_counted(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "http", f"--seconds={seconds}"])
    assert "must be above 0" in capsys.readouterr().err
