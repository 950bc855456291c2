"""/v1/completions over real HTTP: every form of prompt, exact logprobs, samples and streams that agree."""

from __future__ import annotations

import asyncio
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from fake_engine import build_fake_engine, float32_logprob, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import LiveServer, running
from openai_answers import bits, frames
from tiny_tokenizer import make_sentencepiece_tokenizer, make_tokenizer

from samebits.config import EngineConfig, ModelConfig, ServerConfig
from samebits.server.local import local_server
from samebits.text.tokenizer import Tokenizer

PATH = "/v1/completions"
GREEDY = {"temperature": 0.0, "max_tokens": 6}


def complete(server: LiveServer, **body: Any) -> Any:
    response = server.post("/v1/completions", body)
    assert response.status_code == 200, response.text
    return response.json()


def joined(pieces: list[Any]) -> dict[int, dict[str, Any]]:
    """A stream put together: one choice each, as a response has them."""
    choices: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        for part in piece["choices"]:
            choice = choices.setdefault(part["index"], {"text": "", "logprobs": None})
            assert "samebits" not in choice, "nothing follows the end"
            choice["text"] += part.pop("text")
            logprobs = part.pop("logprobs")
            if logprobs is not None:
                earlier = choice["logprobs"] or {name: [] for name in logprobs}
                choice["logprobs"] = {name: earlier[name] + logprobs[name] for name in logprobs}
            if "token_ids" in part:
                choice["token_ids"] = choice.get("token_ids", []) + part.pop("token_ids")
            choice.update(part)
    return choices


def test_the_shape(server: LiveServer) -> None:
    answer = complete(server, model="fake", prompt="the same request", **GREEDY)
    assert set(answer) == {"id", "object", "created", "model", "system_fingerprint", "choices", "usage"}
    assert answer["object"] == "text_completion"
    assert answer["system_fingerprint"] == "fake-fingerprint"
    assert answer["model"] == "fake"
    assert answer["id"].startswith("cmpl-")
    [choice] = answer["choices"]
    assert (choice["finish_reason"], choice["stop_reason"], choice["logprobs"]) == ("length", None, None)
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 6,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


@pytest.mark.parametrize("prompt", ["the same", ["the", "same"], [5, 6, 7], [[5, 6], [7]]])
def test_every_form_of_prompt_as_generate_gives_it(server: LiveServer, prompt: Any) -> None:
    nested = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
    name = "text" if isinstance(nested[0], str) else "input_ids"
    native = server.generate(
        **{name: nested},
        sampling_params={"temperature": 0.7, "max_new_tokens": 6, "sampling_seed": 3},
        return_logprob=True,
    )
    answer = complete(
        server, prompt=prompt, temperature=0.7, max_tokens=6, seed=3, logprobs=0, return_token_ids=True
    )
    assert len(answer["choices"]) == len(native)
    for choice, other in zip(answer["choices"], native, strict=True):
        assert choice["token_ids"] == other["output_ids"]
        assert choice["text"] == other["text"]
        expected = [bits(entry[0]) for entry in other["meta_info"]["output_token_logprobs"]]
        assert [bits(value) for value in choice["logprobs"]["token_logprobs"]] == expected
    other_seed = complete(server, prompt=prompt, temperature=0.7, max_tokens=6, seed=4, return_token_ids=True)
    assert other_seed["choices"][0]["token_ids"] != answer["choices"][0]["token_ids"]


def test_logprobs_are_exact_and_offsets_point_at_tokens(server: LiveServer) -> None:
    tokenizer = make_tokenizer()
    [choice] = complete(
        server, prompt="the same bits", echo=True, logprobs=3, return_token_ids=True, **GREEDY
    )["choices"]
    tokens = choice["prompt_token_ids"] + choice["token_ids"]
    table = choice["logprobs"]
    assert choice["text"].startswith("the same bits")
    assert table["token_logprobs"][0] is None and table["top_logprobs"][0] is None
    for position in range(1, len(tokens)):
        expected = float32_logprob(tuple(tokens[:position]), tokens[position])
        assert bits(table["token_logprobs"][position]) == bits(expected)
        top = table["top_logprobs"][position]
        assert len(top) in (3, 4)
        assert top[table["tokens"][position]] == table["token_logprobs"][position]
    for name, token, offset in zip(table["tokens"], tokens, table["text_offset"], strict=True):
        if not name.startswith("bytes:"):
            assert name == tokenizer.decode([token], skip_special_tokens=False)
            assert choice["text"][offset : offset + len(name)] == name
    as_ids = complete(server, prompt="the same", logprobs=1, return_tokens_as_token_ids=True, **GREEDY)
    assert all(name.startswith("token_id:") for name in as_ids["choices"][0]["logprobs"]["tokens"])


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("as_ids", [True, False])
def test_offsets_in_a_prompt_with_special_tokens(server: LiveServer, skip: bool, as_ids: bool) -> None:
    tokenizer = make_tokenizer()
    prompt = "<|start|>the same<|end|> bits<|end|>"
    ids = tokenizer.encode(prompt).ids
    asked = {"prompt": ids if as_ids else prompt, "skip_special_tokens": skip}
    [choice] = complete(server, **asked, echo=True, logprobs=0, return_token_ids=True, **GREEDY)["choices"]
    hidden = skip and as_ids
    begin = "the same bits" if hidden else prompt
    assert choice["text"].startswith(begin)
    table = choice["logprobs"]
    assert table["text_offset"][len(ids)] == len(begin)
    for name, offset in zip(table["tokens"], table["text_offset"], strict=True):
        if not name.startswith("bytes:") and not (hidden and name.startswith("<|")):
            assert choice["text"][offset : offset + len(name)] == name


def test_a_completion_goes_on_behind_its_prompt(tmp_path: Path) -> None:
    """With a tokenizer that leaves out the space at the beginning of a text."""
    tokenizer = make_sentencepiece_tokenizer()
    folder = write_checkpoint(tmp_path)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    asked = {"prompt": "the same", "regex": "( the)+ same", "logprobs": 0, "max_tokens": 200}
    with running(folder) as server:
        for echo in ("", "the same"):
            [choice] = complete(server, **asked, echo=bool(echo))["choices"]
            assert re.fullmatch(echo + "( the)+ same", choice["text"])
            table = choice["logprobs"]
            for name, offset in zip(table["tokens"], table["text_offset"], strict=True):
                assert choice["text"][offset : offset + len(name)] == name or name == "<unk>"


def test_scoring_a_prompt(server: LiveServer) -> None:
    ids = [5, 6, 7, 8]
    [choice] = complete(server, prompt=ids, max_tokens=0, prompt_logprobs=2)["choices"]
    listed = choice["prompt_logprobs"]
    assert listed[0] is None
    assert choice["text"] == ""
    for position in range(1, 4):
        own = listed[position][str(ids[position])]
        assert bits(own["logprob"]) == bits(float32_logprob(tuple(ids[:position]), ids[position]))
        assert {entry["rank"] for entry in listed[position].values()} >= {1, 2}


def test_samples_are_replayable_alone(server: LiveServer) -> None:
    body = {"prompt": ["the", "same"], "temperature": 0.9, "max_tokens": 5, "seed": 7, "logprobs": 1}
    answer = complete(server, **body, n=3, return_token_ids=True)
    choices = answer["choices"]
    assert [choice["index"] for choice in choices] == list(range(6))
    assert len({tuple(choice["token_ids"]) for choice in choices}) == 6
    prompt_tokens = sum(len(choice["prompt_token_ids"]) for choice in choices[::3])
    assert answer["usage"]["prompt_tokens"] == prompt_tokens
    assert answer["usage"]["completion_tokens"] == 30
    for number, choice in enumerate(choices):
        alone = body | {"prompt": body["prompt"][number // 3], "sample_index": number % 3}  # type: ignore[index]
        [again] = complete(server, **alone, return_token_ids=True)["choices"]
        assert again["token_ids"] == choice["token_ids"]
        assert again["logprobs"] == choice["logprobs"]
        native = server.generate(
            input_ids=choice["prompt_token_ids"], sampling_params=choice["samebits"]["sampling_params"]
        )
        assert native["output_ids"] == choice["token_ids"]


def test_a_request_alone_and_among_others(server: LiveServer) -> None:
    body = {"prompt": "the same", "temperature": 0.8, "seed": 5, "max_tokens": 20, "logprobs": 2}
    alone = complete(server, **body)["choices"]

    def neighbour(number: int) -> Any:
        return complete(server, prompt=f"request {number}", max_tokens=30, n=2, seed=number)["choices"]

    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(neighbour, number) for number in range(6)]
        together = [pool.submit(complete, server, **body) for _ in range(3)]
        assert all(job.result()["choices"] == alone for job in together)
        assert len({job.result()[0]["text"] for job in others}) == 6


@settings(max_examples=12, deadline=None)
@given(
    prompt=st.sampled_from(["the same", ["the", "bits"], [5, 6], [[9], [8, 7]]]),
    n=st.integers(1, 3),
    echo=st.booleans(),
    logprobs=st.sampled_from([None, 0, 2]),
    ids=st.booleans(),
    stop=st.sampled_from([None, "e", ["th", "a"], "\n"]),
    seed=st.integers(0, 99),
)
def test_a_stream_joined_is_the_whole(server: LiveServer, **fields: Any) -> None:
    fields["return_token_ids"] = fields.pop("ids")
    body = fields | {"max_tokens": 12, "prompt_logprobs": 0}
    whole = complete(server, **body)
    parts = frames(server, PATH, **body, stream_options={"include_usage": True})
    assert all(part["usage"] is None for part in parts[:-1])
    assert (parts[-1]["choices"], parts[-1]["usage"]) == ([], whole["usage"])
    assert {part["system_fingerprint"] for part in parts} == {"fake-fingerprint"}
    assert len({part["id"] for part in parts}) == 1
    choices = joined(parts)
    assert [choices[index] for index in range(len(choices))] == whole["choices"]


def test_a_lost_frame_would_show(server: LiveServer) -> None:
    body = {"prompt": "the same", "max_tokens": 12, "logprobs": 1}
    [whole] = complete(server, **body)["choices"]
    for number in range(12):
        parts = frames(server, PATH, **body)
        kept = [part for at, part in enumerate(parts) if at != number % len(parts)]
        assert joined(kept)[0] != whole


def test_a_stream_has_the_warnings_of_the_whole(server: LiveServer) -> None:
    body = {"prompt": ["the same"] * 2, "temperature": 1.0, "max_tokens": 12, "stream": True}
    choices = joined(frames(server, PATH, **body))
    for index in range(2):
        [warning] = choices[index]["samebits"]["warnings"]
        assert "2 samples of this batch have the same prompt" in warning


def test_no_usage_in_a_stream_unless_asked(server: LiveServer) -> None:
    parts = frames(server, PATH, prompt="the", **GREEDY)
    assert all("usage" not in part and part["choices"] for part in parts)
    counted = frames(
        server,
        PATH,
        prompt="the",
        stream_options={"include_usage": True, "continuous_usage_stats": True},
        **GREEDY,
    )
    counts = [part["usage"]["completion_tokens"] for part in counted]
    assert counts == sorted(counts) and counts[-1] == 6


def test_stops(server: LiveServer) -> None:
    free = complete(server, prompt="the same", return_token_ids=True, temperature=0, max_tokens=30)
    text, ids = free["choices"][0]["text"], free["choices"][0]["token_ids"]
    stop = next(text[i : i + 2] for i in range(8, len(text)) if text[i : i + 2].isascii())
    [cut] = complete(server, prompt="the same", temperature=0, max_tokens=30, stop=[stop])["choices"]
    assert cut["text"] == text[: text.index(stop)]
    assert (cut["finish_reason"], cut["stop_reason"], cut["matched_stop"]) == ("stop", stop, stop)
    body = {"prompt": "the same", "temperature": 0, "max_tokens": 30}
    for name in ("include_stop_str_in_output", "no_stop_trim"):
        [kept] = complete(server, **body, stop=stop, **{name: True})["choices"]
        assert kept["text"] == cut["text"] + stop
    [by_token] = complete(server, **body, stop_token_ids=[ids[3]], return_token_ids=True)["choices"]
    assert by_token["token_ids"] == ids[: ids.index(ids[3]) + 1]
    assert by_token["stop_reason"] == ids[3]


def test_default_length_is_openais(server: LiveServer) -> None:
    assert complete(server, prompt=[5])["usage"]["completion_tokens"] == 16


def test_a_running_request_is_aborted_by_its_id(server: LiveServer) -> None:
    body = {"prompt": "the", "max_tokens": 1500, "stream": True, "rid": "mine"}
    with server.post("/v1/completions", body, stream=True) as response:
        lines = (line for line in response.iter_lines() if line)
        first = json.loads(next(lines).removeprefix(b"data: "))
        assert first["id"] == "cmpl-mine"
        assert server.post("/abort_request", {"rid": "mine"}).status_code == 200
        last = [json.loads(line.removeprefix(b"data: ")) for line in lines if b"[DONE]" not in line][-1]
    assert last["choices"][0]["finish_reason"] == "abort"


@pytest.mark.parametrize(("prompts", "n"), [(4097, None), (65, 64)])
def test_more_samples_than_can_wait(server: LiveServer, prompts: int, n: int | None) -> None:
    response = server.post("/v1/completions", {"prompt": ["a"] * prompts, "n": n, "max_tokens": 1})
    assert response.status_code == 400 and response.json()["error"]["param"] == "prompt", response.text
    assert "--max-waiting" in response.json()["error"]["message"]


def test_others_have_their_turn_while_prompts_are_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, seen = 0, []
    encode = Tokenizer.encode

    def watched(self: Tokenizer, text: str, add_special_tokens: bool = True) -> list[int]:
        seen.append(turns)
        return encode(self, text, add_special_tokens)

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def run() -> int:
        model = ModelConfig(model=str(write_checkpoint(tmp_path)))
        async with local_server(model, EngineConfig(), ServerConfig(), build_fake_engine) as local:
            other = asyncio.create_task(count_turns())
            body = json.dumps({"prompt": ["the same"] * 20, "max_tokens": 1}).encode()
            reply = await local.request("POST", "/v1/completions", body)
            other.cancel()
            return reply.status

    monkeypatch.setattr(Tokenizer, "encode", watched)
    assert asyncio.run(run()) == 200
    assert len(set(seen)) == len(seen) == 20


def test_raw_requests_without_a_content_type(server: LiveServer) -> None:
    """As `curl -d` with a body from a file sends them."""
    body = b'{"prompt": "the same", "max_tokens": 4, "stream": true}'
    headers = {"content-type": "application/x-www-form-urlencoded"}
    with httpx.stream("POST", server.url + PATH, content=body, headers=headers, timeout=10) as response:
        lines = list(response.iter_lines())
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(line == "" or line.startswith("data: ") for line in lines)
    assert lines[1::2] == [""] * (len(lines) // 2), "a blank line after each frame"


def test_a_client_that_leaves_aborts_its_request(server: LiveServer) -> None:
    body = {"prompt": "the", "max_tokens": 1900, "stream": True, "n": 4}
    requests.post(server.url + "/v1/completions", json=body, stream=True, timeout=10).close()
    server.wait_until_idle()
