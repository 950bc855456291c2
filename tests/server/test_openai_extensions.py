"""vLLM's and SGLang's additions to the OpenAI routes reach the engine, and do there what they say."""

from __future__ import annotations

from typing import Any

import pytest
from live_server import LiveServer

HI = [{"role": "user", "content": "the same"}]
REACHES: list[tuple[str, Any, str, Any]] = [
    ("top_k", 7, "top_k", 7),
    ("top_p", 0.5, "top_p", 0.5),
    ("min_p", 0.25, "min_p", 0.25),
    ("temperature", 0.5, "temperature", 0.5),
    ("repetition_penalty", 1.5, "repetition_penalty", 1.5),
    ("frequency_penalty", 0.5, "frequency_penalty", 0.5),
    ("presence_penalty", -0.5, "presence_penalty", -0.5),
    ("logit_bias", {"5": 2.5}, "logit_bias", {"5": 2.5}),
    ("ignore_eos", True, "ignore_eos", True),
    ("min_tokens", 2, "min_new_tokens", 2),
    ("stop_token_ids", [9], "stop_token_ids", [9]),
    ("stop", "x", "stop", ["x"]),
    ("seed", 11, "sampling_seed", 11),
    ("sampling_seed", "12", "sampling_seed", 12),
    ("sample_index", 3, "sample_index", 3),
    ("skip_special_tokens", False, "skip_special_tokens", False),
    ("include_stop_str_in_output", True, "no_stop_trim", True),
]


def parameters(server: LiveServer, path: str, **body: Any) -> dict[str, Any]:
    response = server.post(path, body)
    assert response.status_code == 200, response.text
    answer = response.json()
    found = answer["samebits"] if "samebits" in answer else answer["choices"][0]["samebits"]
    return dict(found["sampling_params"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "the same", "max_tokens": 3}),
        ("/v1/chat/completions", {"messages": HI, "max_tokens": 3}),
        ("/v1/responses", {"input": "the same", "max_output_tokens": 3}),
        ("/v1/messages", {"messages": HI, "max_tokens": 3}),
    ],
)
def test_what_is_asked_reaches_the_engine(server: LiveServer, path: str, body: dict[str, Any]) -> None:
    plain = parameters(server, path, **body)
    for name, value, own_name, expected in REACHES:
        given = "stop_sequences" if (path, name) == ("/v1/messages", "stop") else name
        value = [value] if given == "stop_sequences" else value
        found = parameters(server, path, **body, **{given: value})
        assert found[own_name] == expected != plain[own_name]
        assert {k: v for k, v in found.items() if k != own_name} == {
            k: v for k, v in plain.items() if k != own_name
        }


def ids(server: LiveServer, **body: Any) -> list[int]:
    base = {"prompt": "import os", "max_tokens": 12, "temperature": 1.5, "seed": 7, "ignore_eos": True}
    response = server.post("/v1/completions", base | {"return_token_ids": True} | body)
    assert response.status_code == 200, response.text
    return list(response.json()["choices"][0]["token_ids"])


def test_what_is_asked_is_done(real: LiveServer) -> None:
    free, greedy = ids(real), ids(real, temperature=0)
    assert free != greedy
    for narrow in ({"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-6}):
        assert ids(real, **narrow) == greedy
    assert ids(real, logit_bias={"9": 1000}) == [9] * 12
    penalties = {"frequency_penalty": 2.0, "presence_penalty": 2.0, "repetition_penalty": 50.0}
    for name, value in penalties.items():
        assert ids(real, temperature=0, **{name: value}) != greedy
    stopped = ids(real, temperature=0, stop_token_ids=[greedy[2]])
    assert stopped == greedy[: greedy.index(greedy[2]) + 1]
    end = greedy.index(greedy[2]) + 1
    later = ids(real, temperature=0, stop_token_ids=[greedy[2]], min_tokens=end + 1)
    assert len(later) > end
    assert ids(real, sampling_seed="7", seed=None) == free
    assert ids(real, seed=8) != free
