"""The bundled model behind the OpenAI routes: the bits of /generate, alone and in company."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
from live_server import LiveServer
from openai_answers import bits
from transformers import AutoTokenizer

PROMPT = "import os"
SAMPLING = {"temperature": 0.8, "top_p": 0.9, "seed": 7, "ignore_eos": True}
MESSAGES = [{"role": "user", "content": "Tom has 3 boxes of 4 eggs. How many eggs?"}]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "count", "description": "counts", "parameters": {"type": "object"}},
    }
]


def answer_bits(server: LiveServer, **body: Any) -> list[tuple[Any, ...]]:
    body = {"prompt": PROMPT, "max_tokens": 10, "logprobs": 2, "prompt_logprobs": 0, **SAMPLING, **body}
    response = server.post("/v1/completions", body | {"return_token_ids": True})
    assert response.status_code == 200, response.text
    return [
        (
            tuple(choice["token_ids"]),
            [bits(value) for value in choice["logprobs"]["token_logprobs"]],
            [[bits(value) for value in top.values()] for top in choice["logprobs"]["top_logprobs"]],
            [
                None if entry is None else bits(entry[str(token)]["logprob"])
                for entry, token in zip(choice["prompt_logprobs"], choice["prompt_token_ids"], strict=True)
            ],
        )
        for choice in response.json()["choices"]
    ]


def test_the_bits_of_generate(real: LiveServer) -> None:
    native = real.generate(
        text=PROMPT,
        sampling_params={
            "temperature": 0.8,
            "top_p": 0.9,
            "sampling_seed": 7,
            "ignore_eos": True,
            "max_new_tokens": 10,
        },
        return_logprob=True,
        logprob_start_len=0,
    )
    [found] = answer_bits(real)
    meta = native["meta_info"]
    assert found[0] == tuple(native["output_ids"])
    assert found[1] == [bits(entry[0]) for entry in meta["output_token_logprobs"]]
    assert found[3] == [bits(entry[0]) for entry in meta["input_token_logprobs"]]
    assert answer_bits(real, seed=8)[0][0] != found[0]


def test_samples_equal_their_replays_alone_and_in_company(real: LiveServer) -> None:
    together = answer_bits(real, n=4)
    assert len({sample[0] for sample in together}) > 1
    with ThreadPoolExecutor(8) as pool:
        noise = [
            pool.submit(answer_bits, real, prompt=[9 + i] * (20 * i + 1), seed=i, max_tokens=20)
            for i in range(4)
        ]
        replays = [pool.submit(answer_bits, real, sample_index=index) for index in range(4)]
        assert [job.result()[0] for job in replays] == together
        assert len({job.result()[0][0] for job in noise}) > 1


def test_echo_scores_as_it_generated(real: LiveServer) -> None:
    """A text scored as a prompt has the logprobs that it had when it was generated."""
    body = {"prompt": PROMPT, "max_tokens": 10, "logprobs": 0, "return_token_ids": True, **SAMPLING}
    [choice] = real.post("/v1/completions", body).json()["choices"]
    ids = choice["prompt_token_ids"] + choice["token_ids"]
    scoring = {"prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 0}
    [scored] = real.post("/v1/completions", scoring).json()["choices"]
    assert scored["text"] == PROMPT + choice["text"]
    known = scored["logprobs"]["token_logprobs"][len(choice["prompt_token_ids"]) :]
    assert [bits(v) for v in known] == [bits(v) for v in choice["logprobs"]["token_logprobs"]]


def test_chats_are_rendered_as_transformers_renders_them(real: LiveServer) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real.get("/model_info").json()["tokenizer_path"])
    conversation = [
        {"role": "system", "content": "be brief"},
        *MESSAGES,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "count", "arguments": {"n": [3, 4]}}}
            ],
        },
        {"role": "tool", "tool_call_id": "c", "content": "12"},
    ]
    sent = [dict(message) for message in conversation]
    sent[2] = sent[2] | {
        "content": None,
        "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "count", "arguments": '{"n": [3, 4]}'}}
        ],
    }
    for tools in (None, TOOLS):
        expected = tokenizer.apply_chat_template(
            conversation, tools=tools, add_generation_prompt=True, return_dict=False
        )
        body = {"messages": sent, "tools": tools}
        assert real.post("/tokenize", body).json()["tokens"] == expected
        answer = real.post("/v1/chat/completions", body | {"max_tokens": 2, "return_token_ids": True}).json()
        assert answer["prompt_token_ids"] == expected


def test_the_package_chats_with_the_model(real: LiveServer) -> None:
    fingerprint = real.get("/model_info").json()["fingerprint"]
    with openai.OpenAI(base_url=real.url + "/v1", api_key="any", max_retries=0) as client:
        [model] = client.models.list()
        body: Any = {"model": model.id, "messages": MESSAGES, "temperature": 0.7, "max_tokens": 24}
        answer = client.chat.completions.create(**body)
        chunks = list(client.chat.completions.create(**body, stream=True))
        other = client.chat.completions.create(**body, seed=1)
    assert {answer.system_fingerprint, *(chunk.system_fingerprint for chunk in chunks)} == {fingerprint}
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == answer.choices[0].message.content
    assert other.choices[0].message.content != text


EGGS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "answer": {"type": "integer", "minimum": 0, "maximum": 9999},
        "unit": {"enum": ["eggs", "boxes"]},
    },
    "required": ["answer", "unit"],
    "additionalProperties": False,
}
ASK_EGGS: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Tom has 3 boxes of 4 eggs. How many eggs?"}],
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "eggs", "schema": EGGS, "strict": True},
    },
    "logprobs": True,
    "top_logprobs": 2,
    "max_tokens": 200,
    "temperature": 0.9,
}


def chat_choice(server: LiveServer, **body: Any) -> dict[str, Any]:
    response = server.post("/v1/chat/completions", {**ASK_EGGS, **body})
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def test_structured_answers_keep_their_bits_in_company(real: LiveServer) -> None:
    """Requests with a form and without, alone and all at once, against each other's traffic."""
    free = {"response_format": {"type": "text"}, "max_tokens": 40}
    bodies = [{"seed": seed} if seed % 3 else {"seed": seed, **free} for seed in range(9)]
    alone = [chat_choice(real, **body) for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(lambda body: chat_choice(real, **body), bodies))
    assert together == alone
    parsed = [
        json.loads(choice["message"]["content"])
        for choice, body in zip(alone, bodies, strict=True)
        if "response_format" not in body and choice["finish_reason"] == "stop"
    ]
    assert len(parsed) >= 3
    assert all(answer["unit"] in ("eggs", "boxes") and 0 <= answer["answer"] <= 9999 for answer in parsed)


def test_thoughts_come_before_the_form(real: LiveServer) -> None:
    """Thoughts are free, and what follows them has the form. The bundled model thinks when it is pushed."""
    tokens = {
        name: real.post("/tokenize", {"prompt": name}).json()["tokens"] for name in ("<think>", "</think>")
    }
    [begin], [end] = tokens.values()
    push = {"logit_bias": {str(begin): 100.0, str(end): 12.0}, "return_token_ids": True, "max_tokens": 400}
    choice = chat_choice(real, seed=1, **push)
    assert choice["token_ids"][0] == begin and end in choice["token_ids"]
    assert json.loads(choice["message"]["content"])["unit"] in ("eggs", "boxes")
    silent = chat_choice(real, seed=1, separate_reasoning=False, **push)
    assert begin not in silent["token_ids"], "where thoughts would be part of the answer there are none"
    assert json.loads(silent["message"]["content"])["unit"] in ("eggs", "boxes")


def test_the_model_must_call(real: LiveServer) -> None:
    tool = {"type": "function", "function": {"name": "count", "parameters": EGGS}}
    body: Any = {"messages": ASK_EGGS["messages"], "max_tokens": 300, "seed": 2}
    with openai.OpenAI(base_url=real.url + "/v1", api_key="any", max_retries=0) as client:
        body |= {"model": "bundled", "tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
        answer = client.chat.completions.create(**body)
        with client.chat.completions.stream(**body) as stream:
            streamed = stream.get_final_completion()
    assert answer.choices[0].finish_reason == "tool_calls"
    [call] = answer.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["unit"] in ("eggs", "boxes")
    [again] = streamed.choices[0].message.tool_calls or []
    assert (again.id, again.function.arguments) == (call.id, call.function.arguments)


def test_responses_and_messages_say_what_chats_say(real: LiveServer) -> None:
    sampling = {"temperature": 0.8, "seed": 7, "return_token_ids": True}
    question = str(MESSAGES[0]["content"])
    chat = real.post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 24, **sampling}).json()
    expected = chat["choices"][0]["token_ids"]
    bodies: dict[str, dict[str, Any]] = {
        "/v1/responses": {"input": question, "max_output_tokens": 24},
        "/v1/messages": {"messages": MESSAGES, "max_tokens": 24},
    }
    for path, body in bodies.items():
        found = real.post(path, body | sampling).json()
        assert found["system_fingerprint"] == chat["system_fingerprint"]
        assert found["samebits"]["prompt_token_ids"] == chat["prompt_token_ids"]
        assert found["samebits"]["token_ids"] == expected
        other = real.post(path, body | sampling | {"seed": 8}).json()
        assert other["samebits"]["token_ids"] != expected
