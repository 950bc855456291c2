"""/start_profile and /stop_profile."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_engine import write_checkpoint
from live_server import LiveServer, running

from samebits.engine.messages import EngineStatus, ProfileReply
from samebits.engine.profiler import ProfileError, Profiler
from samebits.engine.replicas import joined_replies

KEY = "sk-profile"
SHORT = {"input_ids": [5, 6], "sampling_params": {"max_new_tokens": 5, "ignore_eos": True}}


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = write_checkpoint(tmp_path_factory.mktemp("profiled"))
    with running(folder, api_key=[KEY], profile_folder=str(folder / "traces")) as live:
        yield live


def post(live: LiveServer, path: str, body: object = None) -> tuple[int, object]:
    response = live.post(path, body, headers={"x-api-key": KEY})
    return response.status_code, response.json()


def spans(path: str) -> list[str]:
    """Names of the events of a trace."""
    return [event.get("name", "") for event in json.loads(gzip.open(path).read())["traceEvents"]]


def test_a_trace_holds_the_steps_in_between(profiled: LiveServer) -> None:
    assert post(profiled, "/generate", SHORT)[0] == 200
    status, begun = post(profiled, "/start_profile", {})
    assert status == 200
    assert post(profiled, "/generate", SHORT)[0] == 200
    status, ended = post(profiled, "/stop_profile")
    assert (status, ended) == (200, begun)
    assert isinstance(ended, dict)
    [path] = ended["traces"]
    assert Path(path).parent.name == "traces"
    assert spans(path).count("samebits step") >= 5
    assert post(profiled, "/generate", SHORT)[0] == 200, "the engine goes on"


def test_one_at_a_time(profiled: LiveServer) -> None:
    assert post(profiled, "/stop_profile")[0] == 400
    assert post(profiled, "/start_profile")[0] == 200
    status, body = post(profiled, "/start_profile")
    assert status == 400
    assert "already" in body["error"]["message"]  # type: ignore[index]
    assert post(profiled, "/stop_profile")[0] == 200
    status, body = post(profiled, "/stop_profile")
    assert status == 400
    assert "no profile" in body["error"]["message"]  # type: ignore[index]


def test_a_client_names_no_folder_and_needs_a_key(profiled: LiveServer) -> None:
    status, body = post(profiled, "/start_profile", {"output_dir": "/etc"})
    assert status == 400
    assert "folders named by a client" in body["error"]["message"]  # type: ignore[index]
    assert post(profiled, "/start_profile", {"no_such": 1})[0] == 400
    for path in ("/start_profile", "/stop_profile"):
        assert profiled.post(path).status_code == 401


def test_a_trace_that_cannot_be_written_costs_nobody_the_engine(profiled: LiveServer) -> None:
    status, begun = post(profiled, "/start_profile")
    assert status == 200
    assert isinstance(begun, dict)
    shutil.rmtree(Path(begun["traces"][0]).parent)
    status, body = post(profiled, "/stop_profile")
    assert status == 400
    assert begun["traces"][0] in body["error"]["message"]  # type: ignore[index]
    assert post(profiled, "/generate", SHORT)[0] == 200, "the engine goes on"
    for _ in range(2):  # in the same second, too
        assert post(profiled, "/start_profile")[0] == 200
        assert post(profiled, "/stop_profile")[0] == 200


def test_off_unless_a_folder_is_set(server: LiveServer) -> None:
    for path in ("/start_profile", "/stop_profile"):
        response = server.post(path)
        assert response.status_code == 400
        assert "--profile-folder" in response.json()["error"]["message"]


def test_a_forgotten_recording_ends_by_itself(tmp_path: Path) -> None:
    profiler = Profiler(most_steps=3)
    path = profiler.start(str(tmp_path))
    assert [profiler.step(lambda: 7) for _ in range(3)] == [7, 7, 7]
    assert not profiler.is_running
    assert spans(path).count("samebits step") == 3
    with pytest.raises(ProfileError, match="already"):
        profiler.start(str(tmp_path))
    assert profiler.stop() == path
    with pytest.raises(ProfileError, match="no profile"):
        profiler.stop()


def test_a_forgotten_recording_that_cannot_be_written_costs_no_step(tmp_path: Path) -> None:
    profiler = Profiler(most_steps=1)
    path = profiler.start(str(tmp_path / "gone"))
    shutil.rmtree(tmp_path / "gone")
    assert profiler.step(lambda: 7) == 7
    assert not profiler.is_running
    with pytest.raises(ProfileError, match=path):
        profiler.stop()
    with pytest.raises(ProfileError, match="no profile"):
        profiler.stop()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ProfileError, match="file"):
        Profiler().start(str(tmp_path / "file" / "below"))


def test_replicas_name_all_their_traces() -> None:
    replies = [ProfileReply(call=3, paths=["a"]), ProfileReply(call=3, paths=["b"])]
    assert joined_replies(replies) == ProfileReply(call=3, paths=["a", "b"])
    failed = [replies[0], ProfileReply(call=3, error="no space")]
    assert joined_replies(failed).error == "no space"  # type: ignore[union-attr]
    assert not isinstance(joined_replies([replies[0]]), EngineStatus)
