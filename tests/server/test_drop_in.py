"""A launch command of SGLang's determinism guide with only the program's name changed, and the guide's clients."""

from __future__ import annotations

import json
import shlex
import socket
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import requests
from live_server import LiveServer, ending, free_port, launch

LAUNCH = (
    "serve --model-path bundled --attention-backend triton --enable-deterministic-inference --tp 1 "
    "--mem-fraction-static 0.8 --chunked-prefill-size 48 --cuda-graph-max-bs 16 --disable-radix-cache "
    "--host 127.0.0.1 --port {port}"
)
USUAL_PORT = 30000


def port_to_use() -> int:
    """The guide's own port where it is free."""
    with socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", USUAL_PORT))
        except OSError:
            return free_port()
    return USUAL_PORT


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    port = port_to_use()
    arguments = ["-m", "samebits", *shlex.split(LAUNCH.format(port=port)), "--kv-memory-mib", "64"]
    with ending(launch(arguments, port, tmp_path_factory.mktemp("log"))) as live:
        live.wait_until_ready(400)
        assert live.process.poll() is None, live.log()
        yield live


def test_the_log_says_what_the_flags_came_to(guided: LiveServer) -> None:
    for words in (
        "--enable-deterministic-inference: determinism is always on",
        "--attention-backend: the native backend computes attention; triton is another name of it",
        "--cuda-graph-max-bs has no effect",
        "--memory-fraction is of a GPU's memory and has no effect",
        "no prefix cache",
    ):
        assert words in guided.log()


def test_the_settings_are_in_force(guided: LiveServer) -> None:
    told = guided.get("/server_info").json()
    assert (told["model"], told["step_tokens"], told["prefix_cache"]) == ("bundled", 48, False)
    assert (told["memory_fraction"], told["cuda_graph_max_bs"]) == (0.8, 16)


def test_the_prefix_cache_is_off_and_bits_are_the_same(guided: LiveServer, real: LiveServer) -> None:
    body: dict[str, Any] = {
        "input_ids": list(range(20, 220)),
        "sampling_params": {"temperature": 0.8, "max_new_tokens": 6, "ignore_eos": True},
        "return_logprob": True,
    }

    def said(answer: dict[str, Any]) -> Any:
        meta = answer["meta_info"]
        return answer["output_ids"], meta["input_token_logprobs"], meta["output_token_logprobs"]

    first, second = guided.generate(**body), guided.generate(**body)
    assert first["meta_info"]["cached_tokens"] == second["meta_info"]["cached_tokens"] == 0
    assert guided.engine()["cached_pages"] == 0
    cold, warm = real.generate(**body), real.generate(**body)
    assert warm["meta_info"]["cached_tokens"] > 0, "the inverse: elsewhere the cache is on"
    assert said(first) == said(second) == said(cold) == said(warm)


def joke(server: LiveServer, **sampling: Any) -> dict[str, Any]:
    """The guide's request; another port only where its own is taken."""
    port = server.url.rsplit(":", 1)[1]
    response = requests.post(
        f"http://localhost:{port}/generate",
        json={
            "text": "Tell me a joke",
            "sampling_params": {"temperature": 0.8, "max_new_tokens": 128, **sampling},
        },
        timeout=120,
    )
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_the_guides_seeds(guided: LiveServer) -> None:
    """The default seed is 42; other seeds, other answers; each again the same."""
    sampling_seeds = [42, 43, 44, 45, 46]
    responses = [joke(guided, sampling_seed=seed)["text"] for seed in sampling_seeds]
    assert len(set(responses)) == len(sampling_seeds)
    assert joke(guided)["text"] == responses[0]
    assert joke(guided, sampling_seed=45)["text"] == responses[3]


def test_openai_client_on_the_same_server(guided: LiveServer) -> None:
    with openai.OpenAI(base_url=guided.url + "/v1", api_key="None", max_retries=0) as client:
        messages: list[Any] = [{"role": "user", "content": "How much is 12 times 12?"}]
        asked = {"model": "bundled", "messages": messages, "temperature": 0, "max_tokens": 64}
        answer = client.chat.completions.create(**asked)
        stream = client.chat.completions.create(**asked, stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == answer.choices[0].message.content
    assert json.dumps(answer.system_fingerprint) in guided.get("/model_info").text
