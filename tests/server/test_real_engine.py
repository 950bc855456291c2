"""The bundled model behind both fronts: the same bits offline and over HTTP, alone and in company."""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from live_server import (
    BUNDLED_SETTINGS,
    LiveServer,
    engine_process,
    wait_for,
)
from transformers import AutoTokenizer

from samebits import LLM, SamplingParams

PROMPTS = [[5, 6, 7], [9] * 40, [11, 3, 250, 17, 8, 1000], list(range(20, 150))]
PARAMS = [
    {"temperature": 0.0, "max_new_tokens": 12, "ignore_eos": True},
    {"temperature": 0.8, "max_new_tokens": 9, "top_p": 0.9, "sampling_seed": 7, "ignore_eos": True},
    {"temperature": 1.2, "max_new_tokens": 14, "top_k": 20, "frequency_penalty": 0.5, "ignore_eos": True},
    {"temperature": 0.6, "max_new_tokens": 7, "min_p": 0.05, "sample_index": 3, "ignore_eos": True},
]


@pytest.fixture(scope="module")
def offline() -> Iterator[LLM]:
    with LLM("bundled", **BUNDLED_SETTINGS) as llm:
        yield llm


def bits(logprob: float | None) -> int | None:
    return None if logprob is None else int(struct.unpack("<I", struct.pack("<f", logprob))[0])


def answer_bits(answer: dict[str, Any]) -> tuple[Any, ...]:
    """Output ids, and ids and logprob bits of prompt and output."""
    meta = answer["meta_info"]
    sides = (meta["input_token_logprobs"], meta["output_token_logprobs"])
    return tuple(answer["output_ids"]), *(
        [(token, bits(value)) for value, token, _ in side] for side in sides
    )


def ask(server: LiveServer, ids: Any, params: Any, **more: Any) -> Any:
    body = {"input_ids": ids, "sampling_params": params, "return_logprob": True, "logprob_start_len": 0}
    return server.generate(**body, **more)


@pytest.fixture(scope="module")
def alone(real: LiveServer) -> list[tuple[Any, ...]]:
    return [answer_bits(ask(real, ids, params)) for ids, params in zip(PROMPTS, PARAMS, strict=True)]


def test_answers_differ_from_each_other(alone: list[tuple[Any, ...]]) -> None:
    assert len({answer[0] for answer in alone}) == len(PROMPTS)


def test_a_batch_gives_the_same_bits(real: LiveServer, alone: list[tuple[Any, ...]]) -> None:
    order = [3, 0, 2, 1, 0, 3]
    together = ask(real, [PROMPTS[i] for i in order], [PARAMS[i] for i in order])
    assert [answer_bits(answer) for answer in together] == [alone[i] for i in order]


def test_streams_and_neighbours_that_leave_change_nothing(
    real: LiveServer, alone: list[tuple[Any, ...]]
) -> None:
    def stream(index: int) -> Any:
        body = {"input_ids": PROMPTS[index], "sampling_params": PARAMS[index], "return_logprob": True}
        return answer_bits(real.frames(**body, logprob_start_len=0)[-1])

    def leave(index: int) -> None:
        body = {"input_ids": PROMPTS[index] + [2], "sampling_params": {"max_new_tokens": 500}, "stream": True}
        real.post("/generate", body, stream=True).close()

    with ThreadPoolExecutor(8) as pool:
        leaving = [pool.submit(leave, index) for index in range(4)]
        found = [job.result() for job in [pool.submit(stream, index) for index in range(4)]]
        for job in leaving:
            job.result()
    assert found == alone
    real.wait_until_idle()


def test_scoring_gives_the_bits_of_generating(real: LiveServer, alone: list[tuple[Any, ...]]) -> None:
    for ids, (output, _, generated) in zip(PROMPTS, alone, strict=True):
        scored = answer_bits(ask(real, ids + list(output), {"max_new_tokens": 0}))
        assert scored[1][len(ids) :] == generated


def test_cache_hits_are_told_and_counted(real: LiveServer) -> None:
    def counted() -> float:
        lines = real.get("/metrics").text.splitlines()
        return next(
            float(x.split()[1]) for x in lines if x.startswith("samebits_prompt_tokens_cached_total ")
        )

    real.post("/flush_cache")
    prompt = list(range(700, 885))
    body = {"input_ids": prompt, "sampling_params": PARAMS[0]}
    cold = real.generate(**body)
    before = counted()
    warm, many = real.generate(**body), real.generate(**body | {"input_ids": [prompt] * 3})
    assert [one["meta_info"]["cached_tokens"] for one in (cold, warm, *many)] == [0, 128, 128, 128, 128]
    assert counted() - before == 4 * 128
    usage = real.post("/v1/completions", {"prompt": prompt, "max_tokens": 1}).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 128
    # The next turn of a chat finds the answer, too.
    second = real.generate(**body | {"input_ids": [*prompt, *cold["output_ids"], 5, 6]})
    assert second["meta_info"]["cached_tokens"] == 192


def test_another_request_gives_other_bits(real: LiveServer, alone: list[tuple[Any, ...]]) -> None:
    changed = [[6, 6, 7], *PROMPTS[1:]]
    other = answer_bits(ask(real, changed[0], PARAMS[0]))
    assert other[1] != alone[0][1]
    reseeded = answer_bits(ask(real, PROMPTS[1], PARAMS[1] | {"sampling_seed": 8}))
    assert reseeded[0] != alone[1][0]
    assert reseeded[1] == alone[1][1]


def test_plain_torch_gives_other_bits_in_a_batch() -> None:
    """The inverse: the same code over operators whose order follows the batch."""
    params = SamplingParams(temperature=0.0, max_new_tokens=8, ignore_eos=True)
    with LLM("bundled", **BUNDLED_SETTINGS, numerics="torch") as llm:
        single = [llm.generate([ids], params, return_logprob=True, logprob_start_len=0)[0] for ids in PROMPTS]
        batch = llm.generate(PROMPTS * 3, params, return_logprob=True, logprob_start_len=0)
    alone = [[at.logprob for at in one.prompt_logprobs or ()] for one in single]
    together = [[at.logprob for at in one.prompt_logprobs or ()] for one in batch]
    assert any(together[i] != alone[i % len(PROMPTS)] for i in range(len(together)))


def test_text_is_what_its_tokens_say(real: LiveServer, offline: LLM) -> None:
    """Text, stop strings and chat with a tokenizer and a template that people use."""
    tokenizer = AutoTokenizer.from_pretrained(real.get("/model_info").json()["tokenizer_path"])
    params = {"temperature": 0.0, "max_new_tokens": 30, "ignore_eos": True}
    whole = real.generate(text="import os", sampling_params=params)
    assert whole["meta_info"]["prompt_tokens"] == len(tokenizer.encode("import os"))
    assert whole["text"] == tokenizer.decode(whole["output_ids"], skip_special_tokens=True)
    cut = real.generate(text="import os", sampling_params=params | {"stop": "import"})
    assert cut["text"] == whole["text"][: whole["text"].index("import")]
    messages = [{"role": "user", "content": "Tom has 3 boxes of 4 eggs. How many eggs?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    asked = real.generate(input_ids=ids, sampling_params={"temperature": 0.0, "max_new_tokens": 8})
    [answer] = offline.chat(messages, SamplingParams(temperature=0.0, max_new_tokens=8))
    assert answer.prompt_token_ids == tuple(ids)
    assert answer.token_ids == tuple(asked["output_ids"])
    assert answer.text == asked["text"]


def test_offline_gives_the_same_bits(real: LiveServer, offline: LLM, alone: list[tuple[Any, ...]]) -> None:
    params = []
    for given in PARAMS:
        names = {"sampling_seed": "seed"}
        params.append(SamplingParams(**{names.get(name, name): value for name, value in given.items()}))
    found = offline.generate(PROMPTS, params, return_logprob=True, logprob_start_len=0)
    assert offline.facts.fingerprint == real.get("/model_info").json()["fingerprint"]
    seen = [
        (
            one.token_ids,
            [(at.token_id, bits(at.logprob)) for at in one.prompt_logprobs or ()],
            [(at.token_id, bits(at.logprob)) for at in one.logprobs or ()],
        )
        for one in found
    ]
    assert seen == alone


def test_replays_of_requests_lost_with_their_engine_have_the_same_bits(real: LiveServer) -> None:
    """Last in this file: it kills the engine that the others use."""

    def post(index: int, seed: int) -> Any:
        sampling = {
            "max_new_tokens": 150,
            "ignore_eos": True,
            "temperature": 0.4 * index,
            "sampling_seed": seed,
        }
        body = {"input_ids": PROMPTS[index], "sampling_params": sampling, "return_logprob": True}
        return real.post("/generate", body | {"logprob_start_len": 0})

    def replay(index: int, seed: int = 7) -> tuple[Any, ...]:
        return answer_bits(post(index, seed).json())

    killed, indices = engine_process(real), range(len(PROMPTS))
    with ThreadPoolExecutor() as pool:
        expected = list(pool.map(replay, indices))
        lost = [pool.submit(post, index, 7) for index in indices]
        wait_for(lambda: real.engine()["running"] == len(lost))
        seen = real.engine()["generated_tokens"]
        wait_for(lambda: real.engine()["generated_tokens"] > seen)
        os.kill(killed, signal.SIGKILL)
        start = time.monotonic()
        for answer in lost:
            assert answer.result().status_code == 500
            assert "SIGKILL" in answer.result().json()["error"]["message"]
        assert time.monotonic() - start < 3
        wait_for(lambda: real.get("/ready").status_code == 200, 200)
        assert engine_process(real) != killed
        assert list(pool.map(replay, indices)) == expected
    assert replay(1, seed=8)[0] != expected[1][0], "another seed is another request"
    assert "samebits_step_seconds_count 0.0" not in real.get("/metrics").text
