"""The offline API: prompts of every form, order, logprobs, interrupts, notebooks."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_engine import CRASH_TOKEN, build_fake_engine, write_checkpoint

from samebits.config import EngineConfig
from samebits.engine.validate import QueueFullError
from samebits.errors import ConfigError, EngineError, RequestError
from samebits.llm import LLM
from samebits.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=4)
MESSAGES = [{"role": "user", "content": "the same"}]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), delay=0.003)
    with LLM(str(folder), build=build_fake_engine) as loaded:
        yield loaded


def test_prompts_of_every_form(llm: LLM) -> None:
    ids = llm.encode("the same")
    [text] = llm.generate("the same", GREEDY)
    assert text.prompt == "the same"
    assert text.prompt_token_ids == tuple(ids)
    assert text.text == llm.decode(text.token_ids)
    for prompts in (["the same"], ids, [ids], [tuple(ids)], np.array(ids), np.array([ids])):
        [other] = llm.generate(prompts, GREEDY)
        assert other.token_ids == text.token_ids
    assert llm.generate([], GREEDY) == []
    assert [one.prompt for one in llm.generate((text for text in ("the", "same")), GREEDY)] == ["the", "same"]
    assert [one.prompt_token_ids for one in llm.generate(torch.tensor([[5], [6]]), GREEDY)] == [(5,), (6,)]
    assert len(llm.generate(iter(ids), GREEDY)) == 1
    for wrong in ([1.5], [None], [["a"]], 5, b"the", [b"the"], {"prompt": "the"}, [{"prompt": "the"}]):
        with pytest.raises(RequestError):
            llm.generate(wrong, GREEDY)  # type: ignore[arg-type]


def test_order_and_parameters(llm: LLM) -> None:
    params = [SamplingParams(temperature=0.0, max_new_tokens=n) for n in (30, 1, 8)]
    found = llm.generate(["the", "same", "bits"], params, progress=False)
    assert [len(one.token_ids) for one in found] == [30, 1, 8]
    assert [one.prompt for one in found] == ["the", "same", "bits"]
    with pytest.raises(RequestError, match="2 sampling_params for 1"):
        llm.generate(["the"], params[:2])


def test_parameters_of_wrong_types_are_named(llm: LLM) -> None:
    wrong: dict[str, Any] = {
        "stop": "###",
        "choice": "yes",
        "stop_token_ids": 5,
        "temperature": "0.8",
        "n": 1.5,
        "logit_bias": {"5": 1.0},
        "regex": "\ud800",
    }
    for name, value in wrong.items():
        with pytest.raises(RequestError, match=name) as caught:
            llm.generate("the", SamplingParams(**{name: value}))
        assert caught.value.field == name
        with pytest.raises(RequestError, match=name):
            next(llm.stream("the", SamplingParams(**{name: value})))
    for given in ({"temperature": 0.0}, [None], "the"):
        with pytest.raises(RequestError, match="sampling_params"):
            llm.generate("the", given)  # type: ignore[arg-type]
    numbers: dict[str, Any] = {
        "temperature": np.float32(0.5),
        "max_new_tokens": np.int64(3),
        "stop_token_ids": list(np.arange(2)),
        "logit_bias": {np.int64(7): 1},
    }
    [one] = llm.generate("the", SamplingParams(**numbers))
    assert one.sampling.temperature == 0.5
    assert one.sampling.stop_token_ids == [0, 1]
    assert one.sampling.logit_bias == {7: 1.0}


def test_n_and_replay(llm: LLM) -> None:
    params = SamplingParams(temperature=0.9, max_new_tokens=6, n=3, seed=11)
    found = llm.generate(["the", "same"], params)
    assert [(one.prompt_index, one.sample_index) for one in found] == [
        (p, s) for p in (0, 1) for s in range(3)
    ]
    assert {one.seed for one in found} == {11}
    again = SamplingParams(temperature=0.9, max_new_tokens=6, seed=11, sample_index=2)
    assert llm.generate("same", again)[0].token_ids == found[5].token_ids
    assert len({one.token_ids for one in found}) == 6


def test_logprobs(llm: LLM) -> None:
    [plain] = llm.generate("the same", GREEDY)
    assert plain.logprobs is None
    assert plain.prompt_logprobs is None
    [scored] = llm.generate("the same", GREEDY, return_logprob=True, logprob_start_len=0, top_logprobs_num=2)
    assert scored.logprobs is not None
    assert scored.prompt_logprobs is not None
    assert [at.token_id for at in scored.logprobs] == list(scored.token_ids)
    assert [at.token_id for at in scored.prompt_logprobs] == list(scored.prompt_token_ids)
    assert scored.prompt_logprobs[0].logprob is None
    values = [at.logprob for at in scored.logprobs]
    assert values == [float(np.float32(value)) for value in values]
    assert all(len(at.top) == 2 for at in scored.logprobs)


def test_facts_of_the_answer(llm: LLM) -> None:
    [answer] = llm.generate("the", GREEDY)
    assert answer.fingerprint == llm.facts.fingerprint
    assert answer.finish_reason.type == "length"
    assert answer.sampling.temperature == 0.0
    assert llm.generate(["the"] * 2, SamplingParams(max_new_tokens=1))[0].warnings
    assert llm.status().running == 0
    assert llm.flush_cache() == 3


def test_chat(llm: LLM) -> None:
    [one] = llm.chat(MESSAGES, GREEDY)
    assert one.prompt == "<|start|>user\nthe same<|end|>\n<|start|>assistant\n"
    [again] = llm.generate(one.prompt, GREEDY)
    assert again.token_ids == one.token_ids
    two = llm.chat([MESSAGES, [*MESSAGES, {"role": "assistant", "content": "bits"}]], GREEDY)
    assert two[0].token_ids == one.token_ids
    assert len(two) == 2


def test_streams(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_new_tokens=12)
    [whole] = llm.generate("the same", params)
    updates = list(llm.stream("the same", params))
    assert len(updates) > 1
    assert "".join(update.text for update in updates) == whole.text
    assert tuple(token_id for update in updates for token_id in update.token_ids) == whole.token_ids
    assert updates[-1].finish == whole.finish_reason
    assert "".join(llm.stream_chat(MESSAGES, params)) == llm.chat(MESSAGES, params)[0].text
    with pytest.raises(RequestError, match="n must be 1"):
        next(llm.stream("the", SamplingParams(n=2)))
    with pytest.raises(RequestError, match="one prompt, got 2"):
        llm.stream(["the", "same"], params)  # type: ignore[arg-type]


def test_leaving_a_stream_ends_the_request(llm: LLM) -> None:
    for update in llm.stream([5], SamplingParams(max_new_tokens=2000, ignore_eos=True)):
        assert update.token_ids
        break
    while llm.status().running:
        time.sleep(0.01)


def test_a_forgotten_stream_is_ended_in_any_thread(llm: LLM) -> None:
    """The collector of garbage runs in whatever thread makes some; that may be the one that a stream waits for."""
    updates = llm.stream([5], SamplingParams(max_new_tokens=2000, ignore_eos=True))
    assert next(updates).token_ids
    asked, done = threading.Event(), threading.Event()

    def forget() -> None:
        asked.wait()
        held.clear()
        done.set()

    held = [updates]
    llm._loop.call_soon_threadsafe(forget)
    del updates
    asked.set()
    assert done.wait(10)
    while llm.status().running:
        time.sleep(0.01)


def test_inside_a_running_loop(llm: LLM) -> None:
    async def notebook() -> tuple[int, ...]:
        return llm.generate("the", GREEDY)[0].token_ids

    assert asyncio.run(notebook()) == llm.generate("the", GREEDY)[0].token_ids


def test_from_several_threads(llm: LLM) -> None:
    expected = llm.generate("the", GREEDY)[0].token_ids
    found: list[tuple[int, ...]] = []
    threads = [
        threading.Thread(target=lambda: found.append(llm.generate("the", GREEDY)[0].token_ids))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_interrupt_stops_cleanly(llm: LLM) -> None:
    timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        llm.generate([[5], [6]], SamplingParams(max_new_tokens=2000, ignore_eos=True))
    assert time.monotonic() - start < 10
    while llm.status().running:
        time.sleep(0.01)
    assert len(llm.generate("the", GREEDY)[0].token_ids) == 4


def test_closing(tmp_path: Path) -> None:
    llm = LLM(str(write_checkpoint(tmp_path, delay=0.003)), build=build_fake_engine)
    left = llm.stream([5], SamplingParams(max_new_tokens=2000, ignore_eos=True))
    going_on = llm.stream([5], SamplingParams(max_new_tokens=2000, ignore_eos=True))
    assert next(left).token_ids
    assert next(going_on).token_ids
    llm.close()
    llm.close()
    left.close()  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="closed"):
        next(going_on)
    with pytest.raises(ConfigError, match="closed"):
        llm.generate("the")


def test_a_crash_is_an_engine_error(tmp_path: Path) -> None:
    with LLM(str(write_checkpoint(tmp_path)), build=build_fake_engine) as llm:
        with pytest.raises(EngineError, match="went wrong"):
            llm.generate([[CRASH_TOKEN]])
        with pytest.raises(EngineError, match="went wrong"):
            llm.generate("the")


def test_a_call_may_have_any_number_of_prompts(tmp_path: Path) -> None:
    folder = str(write_checkpoint(tmp_path))
    prompts = [[5 + number % 50] for number in range(EngineConfig.max_waiting + 200)]
    with LLM(folder, build=build_fake_engine) as llm:
        found = llm.generate(prompts, SamplingParams(temperature=0.0, max_new_tokens=1))
        assert [list(one.prompt_token_ids) for one in found] == prompts
    with LLM(folder, build=build_fake_engine, max_waiting=3) as llm, pytest.raises(QueueFullError):
        llm.generate(prompts[:100], GREEDY)


def test_settings_are_checked(tmp_path: Path) -> None:
    folder = str(write_checkpoint(tmp_path))
    with pytest.raises(ConfigError, match="temperature"):
        LLM(folder, build=build_fake_engine, temperature=1)
    with pytest.raises(ConfigError, match="numerics"):
        LLM(folder, build=build_fake_engine, numerics="quick")
    write_checkpoint(tmp_path, broken=True)
    with pytest.raises(ConfigError, match="broken on purpose"):
        LLM(folder, build=build_fake_engine)


def test_outputs_of_a_form(llm: LLM) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    forms: list[dict[str, Any]] = [
        {"json_schema": schema | {"additionalProperties": False}},
        {"regex": "[a-f]{3}é"},
        {"choice": ["red", "green"]},
        {"ebnf": 'root ::= "(" [0-9] ")"'},
    ]
    params = [SamplingParams(max_new_tokens=150, seed=2, **form) for form in forms]
    found = [one.text for one in llm.generate(["the same"] * len(forms), params, progress=False)]
    assert isinstance(json.loads(found[0])["n"], int)
    assert re.fullmatch("[a-f]{3}é", found[1]) and re.fullmatch(r"\([0-9]\)", found[3])
    assert found[2] in ("red", "green")
    assert [llm.generate("the same", one)[0].text for one in params] == found
    assert "".join(update.text for update in llm.stream("the same", params[1])) == found[1]
    assert llm.chat(MESSAGES, params[2])[0].text in ("red", "green")
    for bad, field in (({"regex": "("}, "regex"), ({"json_schema": {"not": {}}}, "json_schema")):
        with pytest.raises(RequestError) as caught:
            llm.generate("the same", SamplingParams(**bad))
        assert caught.value.field == field
    with pytest.raises(RequestError, match="one form"):
        llm.generate("the same", SamplingParams(regex="a", choice=["a"]))
