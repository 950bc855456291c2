"""/generate over real HTTP: SGLang's shape, exact floats, streams."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any

import msgspec
import pytest
import requests
from fake_engine import float32_logprob
from live_server import LiveServer

GREEDY = {"temperature": 0.0, "max_new_tokens": 6}
SCORED: dict[str, Any] = {
    "text": "the same request",
    "sampling_params": GREEDY,
    "return_logprob": True,
    "logprob_start_len": 0,
}


def bits(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def is_float32(value: float) -> bool:
    return float(struct.unpack("f", struct.pack("f", value))[0]) == value


def test_one_prompt_gives_one_object(server: LiveServer) -> None:
    answer = server.generate(text="the same request", sampling_params=GREEDY)
    meta = answer["meta_info"]
    assert set(answer) == {"text", "output_ids", "meta_info"}
    assert len(answer["output_ids"]) == meta["completion_tokens"] == 6
    assert meta["finish_reason"] == {"type": "length", "length": 6}
    assert meta["prompt_tokens"] == 3
    assert meta["cached_tokens"] == 0
    assert meta["fingerprint"] == "fake-fingerprint"
    assert (meta["seed"], meta["sample_index"]) == (42, 0)
    assert meta["id"]
    assert "output_token_logprobs" not in meta


def test_a_list_is_answered_in_order(server: LiveServer) -> None:
    prompts = ["the same", "request", "gives", "the same"]
    answers = server.generate(text=prompts, sampling_params=GREEDY)
    alone = [server.generate(text=prompt, sampling_params=GREEDY) for prompt in prompts]
    assert [a["output_ids"] for a in answers] == [a["output_ids"] for a in alone]
    assert len({tuple(a["output_ids"]) for a in answers}) == 3
    assert isinstance(server.generate(text=["one"], sampling_params=GREEDY), list)


def test_token_ids_flat_or_nested(server: LiveServer) -> None:
    flat = server.generate(input_ids=[5, 6, 7], sampling_params=GREEDY)
    nested = server.generate(input_ids=[[5, 6, 7], [8]], sampling_params=GREEDY)
    assert isinstance(flat, dict)
    assert nested[0]["output_ids"] == flat["output_ids"]
    assert nested[1]["output_ids"] != flat["output_ids"]


def test_every_prompt_its_own_parameters(server: LiveServer) -> None:
    answers = server.generate(
        input_ids=[[5], [5]],
        sampling_params=[
            {"temperature": 0.0, "max_new_tokens": 2},
            {"temperature": 0.0, "max_new_tokens": 4},
        ],
        return_logprob=[True, False],
        rid=["mine-a", "mine-b"],
    )
    assert [len(a["output_ids"]) for a in answers] == [2, 4]
    assert [a["meta_info"]["id"] for a in answers] == ["mine-a", "mine-b"]
    assert ["output_token_logprobs" in a["meta_info"] for a in answers] == [True, False]


def test_logprobs_are_exact_float32(server: LiveServer) -> None:
    prompt = [5, 6, 7]
    answer = server.generate(
        input_ids=prompt,
        sampling_params=GREEDY,
        return_logprob=True,
        logprob_start_len=0,
        top_logprobs_num=3,
        token_ids_logprob=[9, 4],
        return_text_in_logprobs=True,
    )
    meta = answer["meta_info"]
    tokens = prompt + answer["output_ids"]
    listed = meta["input_token_logprobs"] + meta["output_token_logprobs"]
    assert [entry[1] for entry in listed] == tokens
    assert listed[0][0] is None
    for position in range(1, len(tokens)):
        logprob = listed[position][0]
        assert is_float32(logprob)
        assert bits(logprob) == bits(float32_logprob(tuple(tokens[:position]), tokens[position]))
    assert all(isinstance(entry[2], str) for entry in listed)
    assert meta["input_top_logprobs"][0] is None
    tops = meta["input_top_logprobs"][1:] + meta["output_top_logprobs"]
    assert all(len(top) == 3 and top[0][0] >= top[1][0] >= top[2][0] for top in tops)
    selected = meta["input_token_ids_logprobs"][1:] + meta["output_token_ids_logprobs"]
    assert all([entry[1] for entry in at] == [9, 4] for at in selected)


def test_seven_digits_would_lose_bits(server: LiveServer) -> None:
    answer = server.generate(
        input_ids=[5], sampling_params={"temperature": 0.0, "max_new_tokens": 100}, return_logprob=True
    )
    logprobs = [entry[0] for entry in answer["meta_info"]["output_token_logprobs"]]
    assert len(logprobs) == 100
    assert any(bits(float(f"{value:.7g}")) != bits(value) for value in logprobs)


def test_special_floats_in_json() -> None:
    values = [-0.0, 1e-45, 3.4028234663852886e38, 0.10000000149011612, float("inf"), float("nan")]
    text = msgspec.json.encode(values)
    assert text == b"[-0.0,1e-45,3.4028234663852886e38,0.10000000149011612,null,null]"


def test_no_prompt_logprobs_unless_asked(server: LiveServer) -> None:
    meta = server.generate(input_ids=[5, 6], sampling_params=GREEDY, return_logprob=True)["meta_info"]
    assert meta["input_token_logprobs"] == []
    assert all(entry[2] is None for entry in meta["output_token_logprobs"])
    late = server.generate(
        input_ids=[5, 6, 7], sampling_params=GREEDY, return_logprob=True, logprob_start_len=1
    )["meta_info"]
    assert [entry[1] for entry in late["input_token_logprobs"]] == [6, 7]


def test_n_samples_are_flat_and_replayable(server: LiveServer) -> None:
    params = {"temperature": 0.9, "max_new_tokens": 5, "sampling_seed": 7}
    answers = server.generate(text=["the", "same"], sampling_params=params | {"n": 3})
    assert [a["meta_info"]["sample_index"] for a in answers] == [0, 1, 2, 0, 1, 2]
    assert len({tuple(a["output_ids"]) for a in answers}) == 6
    replayed = server.generate(text="same", sampling_params=params | {"sample_index": 2})
    assert replayed["output_ids"] == answers[5]["output_ids"]
    echoed = answers[4]["meta_info"]["sampling_params"]
    assert server.generate(text="same", sampling_params=echoed)["output_ids"] == answers[4]["output_ids"]
    assert isinstance(server.generate(text="the", sampling_params=params | {"n": 2}), list)


def test_equal_samples_are_warned_of(server: LiveServer) -> None:
    params = {"temperature": 0.9, "max_new_tokens": 4}
    same = server.generate(text=["the", "the", "other"], sampling_params=params)
    assert same[0]["output_ids"] == same[1]["output_ids"]
    assert [len(a["meta_info"]["warnings"]) for a in same] == [1, 1, 0]
    greedy = server.generate(text=["the", "the"], sampling_params=GREEDY)
    assert [a["meta_info"]["warnings"] for a in greedy] == [[], []]
    named = [params | {"sample_index": 0}, params | {"sample_index": 1}]
    different = server.generate(text=["the", "the"], sampling_params=named)
    assert [a["meta_info"]["warnings"] for a in different] == [[], []]


@pytest.mark.parametrize("seed", [0, 1, -1, 1 << 31, 1 << 63, (1 << 64) - 1, -(1 << 63)])
def test_seeds_as_numbers_and_strings(server: LiveServer, seed: int) -> None:
    params: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 4}
    as_number = server.generate(input_ids=[5], sampling_params=params | {"sampling_seed": seed})
    as_string = server.generate(input_ids=[5], sampling_params=params | {"sampling_seed": str(seed)})
    assert as_number["output_ids"] == as_string["output_ids"]
    reported = as_number["meta_info"]["seed"]
    assert int(reported) == seed & ((1 << 64) - 1)
    assert isinstance(reported, str) == (int(reported) >= 1 << 53)
    other = server.generate(input_ids=[5], sampling_params=params | {"sampling_seed": "1234567"})
    assert other["output_ids"] != as_number["output_ids"]


def test_stop_string_ends_text_ids_and_logprobs(server: LiveServer) -> None:
    params = {"temperature": 0.0, "max_new_tokens": 40, "skip_special_tokens": False}
    full = server.generate(text="the same", sampling_params=params, return_logprob=True)
    text = full["text"]
    stop = next(text[i : i + 2] for i in range(len(text) // 2, len(text)) if text[i : i + 2].isascii())
    cut = server.generate(text="the same", sampling_params=params | {"stop": stop}, return_logprob=True)
    meta = cut["meta_info"]
    assert meta["finish_reason"] == {"type": "stop", "matched": stop}
    assert cut["text"] == text[: text.index(stop)]
    count = len(cut["output_ids"])
    assert 0 < count < 40
    assert cut["output_ids"] == full["output_ids"][:count]
    assert meta["completion_tokens"] == count == len(meta["output_token_logprobs"])
    assert meta["output_token_logprobs"] == full["meta_info"]["output_token_logprobs"][:count]
    kept = server.generate(text="the same", sampling_params=params | {"stop": [stop], "no_stop_trim": True})
    assert kept["text"] == cut["text"] + stop


def test_stop_token(server: LiveServer) -> None:
    full = server.generate(input_ids=[5], sampling_params=GREEDY)["output_ids"]
    cut = server.generate(input_ids=[5], sampling_params=GREEDY | {"stop_token_ids": [full[3]]})
    assert cut["output_ids"] == full[: full.index(full[3]) + 1]
    assert cut["meta_info"]["finish_reason"] == {"type": "stop", "matched": full[3]}


def test_scoring_only(server: LiveServer) -> None:
    answer = server.generate(
        input_ids=[5, 6, 7],
        sampling_params={"max_new_tokens": 0},
        return_logprob=True,
        logprob_start_len=0,
    )
    assert answer["output_ids"] == []
    assert len(answer["meta_info"]["input_token_logprobs"]) == 3


def test_cumulative_stream(server: LiveServer) -> None:
    whole = server.generate(**SCORED)
    frames = server.frames(**SCORED)
    for earlier, later in pairwise(frames):
        assert later["text"].startswith(earlier["text"])
        assert later["output_ids"][: len(earlier["output_ids"])] == earlier["output_ids"]
        assert earlier["meta_info"]["finish_reason"] is None
    assert "index" not in frames[0]
    assert without_noise(frames[-1]) == without_noise(whole)


def test_incremental_stream(server: LiveServer) -> None:
    whole = server.generate(**SCORED)
    frames = server.frames(**SCORED, incremental=True)
    assert len(frames) > 1
    assert "".join(frame["text"] for frame in frames) == whole["text"]
    assert [token for frame in frames for token in frame["output_ids"]] == whole["output_ids"]
    for side in ("input", "output"):
        name = f"{side}_token_logprobs"
        joined = [entry for frame in frames for entry in frame["meta_info"][name]]
        assert joined == whole["meta_info"][name]
    assert frames[-1]["meta_info"]["completion_tokens"] == 6
    assert frames[-1]["meta_info"]["finish_reason"] == {"type": "length", "length": 6}


def test_stream_of_a_list_has_an_index(server: LiveServer) -> None:
    body = {"text": ["the", "same"], "sampling_params": GREEDY | {"n": 2}}
    whole = server.generate(**body)
    last: dict[int, Any] = {}
    for frame in server.frames(**body):
        last[frame["index"]] = frame
    assert [last[index]["output_ids"] for index in range(4)] == [answer["output_ids"] for answer in whole]


def test_stream_never_shows_part_of_a_stop_string(server: LiveServer) -> None:
    params = {"temperature": 0.0, "max_new_tokens": 60}
    text = server.generate(text="the same", sampling_params=params)["text"]
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    final = text[: text.index(stop)]
    for frame in server.frames(text="the same", sampling_params=params | {"stop": stop}):
        assert final.startswith(frame["text"])


def without_noise(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without what may differ between two equal requests."""
    meta = {key: value for key, value in answer["meta_info"].items() if key not in ("id", "e2e_latency")}
    return answer | {"meta_info": meta}


def test_sglangs_own_script_would_read_it(server: LiveServer) -> None:
    """The traffic of its determinism test: text lists, flat and nested ids, a flush, and what it reads."""
    common = {
        "temperature": 0.0,
        "max_new_tokens": 2,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "sampling_seed": 42,
    }
    assert requests.post(server.url + "/flush_cache", timeout=10).status_code == 200
    single = requests.post(
        server.url + "/generate",
        json={"text": ["Tell me"] * 3, "sampling_params": common, "return_logprob": False, "stream": False},
        timeout=30,
    )
    assert len({answer["text"] for answer in single.json()}) == 1
    ids = list(range(100, 165))
    first = server.generate(input_ids=ids, sampling_params=common, return_logprob=True, stream=False)
    longer = ids + first["output_ids"][:1]
    again = server.generate(
        input_ids=longer, sampling_params=common | {"max_new_tokens": 1}, return_logprob=True
    )
    assert again["meta_info"]["output_token_logprobs"][0] == first["meta_info"]["output_token_logprobs"][1]
    scored = server.generate(
        input_ids=[ids + first["output_ids"]] * 2,
        sampling_params=common | {"max_new_tokens": 1},
        return_logprob=True,
        logprob_start_len=0,
        return_text_in_logprobs=True,
    )
    for answer in scored:
        listed = answer["meta_info"]["input_token_logprobs"]
        assert len(listed) == 67
        pairs = [entry[:2] for entry in listed[65:]]
        assert pairs == [entry[:2] for entry in first["meta_info"]["output_token_logprobs"]]
