"""Structured output over real HTTP: one form under every API's names, streams, calls, and the `openai` package."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pydantic
import pytest
from fake_engine import PARROT_TEMPLATE, write_checkpoint
from live_server import LiveServer, running
from openai_answers import chat, chat_frames, frames, joined

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "tags": {"type": "array", "items": {"enum": ["é", "漢🙂", "x"]}, "maxItems": 2},
        "n": {"type": "integer", "minimum": -9, "maximum": 99},
    },
    "required": ["name", "tags", "n"],
    "additionalProperties": False,
}
REGEX = r"(é|漢){2}-[0-9]{2}🙂"
CHOICE = ["red", "green", "reddish"]
GBNF = 'root ::= "(" [a-f] [a-f] ")" | "."'
COMPLETION_NAMES: list[tuple[str, dict[str, Any]]] = [
    ("schema", {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}}),
    ("schema", {"structured_outputs": {"json": SCHEMA}}),
    ("schema", {"guided_json": SCHEMA}),
    ("schema", {"guided_json": json.dumps(SCHEMA), "guided_decoding_backend": "guidance"}),
    ("schema", {"json_schema": json.dumps(SCHEMA)}),
    ("regex", {"structured_outputs": {"regex": REGEX}}),
    ("regex", {"guided_regex": REGEX}),
    ("regex", {"regex": REGEX, "ebnf": ""}),
    ("choice", {"structured_outputs": {"choice": CHOICE}}),
    ("choice", {"guided_choice": CHOICE}),
    ("grammar", {"structured_outputs": {"grammar": GBNF}}),
    ("grammar", {"guided_grammar": GBNF}),
    ("grammar", {"ebnf": GBNF}),
]
NATIVE = {
    "schema": {"json_schema": json.dumps(SCHEMA)},
    "regex": {"regex": REGEX},
    "choice": {"choice": CHOICE},
    "grammar": {"ebnf": GBNF},
}
BODY: dict[str, Any] = {"max_tokens": 100, "seed": 4}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Zürich", "Rom"]}, "days": {"type": "integer", "maximum": 9}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
PLAIN = {"separate_reasoning": False}


def completion(server: LiveServer, **body: Any) -> Any:
    response = server.post("/v1/completions", {"prompt": "a page is", **BODY, **body})
    assert response.status_code == 200, response.text
    return response.json()


def native(server: LiveServer, **sampling: Any) -> Any:
    sampling = {"max_new_tokens": 100, "sampling_seed": 4, **sampling}
    return server.generate(text="a page is", sampling_params=sampling)


def check_form(form: str, text: str) -> None:
    match form:
        case "schema":
            jsonschema.validate(json.loads(text), SCHEMA)
        case "regex":
            assert re.fullmatch(REGEX, text)
        case "choice":
            assert text in CHOICE
        case _:
            assert re.fullmatch(r"\([a-f]{2}\)|\.", text)


@pytest.mark.parametrize(("form", "body"), COMPLETION_NAMES)
def test_one_form_under_every_name(server: LiveServer, form: str, body: dict[str, Any]) -> None:
    """Each name gives a valid output, and the one that /generate gives."""
    [choice] = completion(server, **body)["choices"]
    assert choice["finish_reason"] == "stop"
    check_form(form, choice["text"])
    assert choice["text"] == native(server, **NATIVE[form])["text"]


@pytest.mark.parametrize(("form", "body"), COMPLETION_NAMES)
def test_chats_take_the_same_names(server: LiveServer, form: str, body: dict[str, Any]) -> None:
    [choice] = chat(server, **BODY, **body)["choices"]
    check_form(form, choice["message"]["content"])
    streamed = joined(chat_frames(server, **BODY, **body))
    assert streamed[0]["message"] == choice["message"]


def test_without_a_form_the_output_has_none(server: LiveServer) -> None:
    """The inverse."""
    text = completion(server)["choices"][0]["text"]
    with pytest.raises(ValueError):
        json.loads(text)
    assert text != completion(server, **{"response_format": {"type": "json_object"}})["choices"][0]["text"]
    assert text == completion(server, response_format={"type": "text"})["choices"][0]["text"]
    assert text == completion(server, guided_json=None, regex="", structured_outputs={})["choices"][0]["text"]


def test_any_object(server: LiveServer) -> None:
    texts = [
        completion(server, seed=seed, max_tokens=200, response_format={"type": "json_object"})["choices"][0]
        for seed in range(12)
    ]
    ended = [choice["text"] for choice in texts if choice["finish_reason"] == "stop"]
    assert ended and all(isinstance(json.loads(text), dict) for text in ended)


@pytest.mark.parametrize("form", NATIVE)
def test_streams_join_to_the_whole(server: LiveServer, form: str) -> None:
    whole = native(server, **NATIVE[form])
    sampling = {"max_new_tokens": 100, "sampling_seed": 4, **NATIVE[form]}
    pieces = server.frames(text="a page is", sampling_params=sampling, incremental=True)
    assert "".join(piece["text"] for piece in pieces) == whole["text"]
    assert all("\ufffd" not in piece["text"] for piece in pieces), "no half characters"
    chunks = frames(server, "/v1/completions", prompt="a page is", **BODY, **structured(form))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"]) == whole["text"]


def structured(form: str) -> dict[str, Any]:
    return next(body for name, body in COMPLETION_NAMES if name == form)


def test_samples_in_company_equal_samples_alone(server: LiveServer) -> None:
    together = completion(server, n=4, prompt=["a page is", "the same"], **structured("schema"))["choices"]
    assert len({choice["text"] for choice in together}) > 2
    for choice in together:
        prompt = ["a page is", "the same"][choice["index"] // 4]
        index = choice["index"] % 4
        [alone] = completion(server, prompt=prompt, sample_index=index, **structured("schema"))["choices"]
        assert alone["text"] == choice["text"]


def test_what_a_response_reports_replays_it(server: LiveServer) -> None:
    [choice] = chat(server, **BODY, **structured("regex"), return_token_ids=True)["choices"]
    facts = choice["samebits"]["sampling_params"]
    ids = chat(server, **BODY, return_token_ids=True)["prompt_token_ids"]
    again = server.generate(input_ids=ids, sampling_params=facts)
    assert again["text"] == choice["message"]["content"]
    assert again["meta_info"]["sampling_params"]["llguidance"] == facts["llguidance"]


def test_a_list_has_a_form_for_each_prompt(server: LiveServer) -> None:
    parameters = [{"max_new_tokens": 100, "sampling_seed": 4, **NATIVE[form]} for form in NATIVE]
    answers = server.generate(text=["a page is"] * len(NATIVE), sampling_params=parameters)
    assert [answer["text"] for answer in answers] == [native(server, **NATIVE[f])["text"] for f in NATIVE]


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        ({"json_schema": '{"not": {}}'}, "json_schema"),
        ({"json_schema": "["}, "json_schema"),
        ({"regex": "["}, "regex"),
        ({"regex": r"[^\s\S]"}, "regex"),
        ({"ebnf": "start: x"}, "ebnf"),
        ({"ebnf": "start: A\nA: /a/ & /b/"}, "ebnf"),
        ({"choice": []}, "choice"),
        ({"llguidance": "{}"}, "llguidance"),
        ({"regex": "a", "choice": ["a"]}, "choice"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_generate_refuses_what_it_cannot_enforce(
    server: LiveServer, sampling: dict[str, Any], param: str, stream: bool
) -> None:
    response = server.post("/generate", {"text": "a", "sampling_params": sampling, "stream": stream})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert param in response.json()["error"]["message"]


DEAD_END = 'start: "the" A\nA: /a/ & /b/'
"""Begins well, and then nothing can follow."""


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"text": "a", "sampling_params": {"ebnf": DEAD_END}}),
        ("/v1/completions", {"prompt": "a", "ebnf": DEAD_END}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "ebnf": DEAD_END}),
    ],
)
def test_a_form_that_cannot_be_finished_is_the_requests_own_error(
    server: LiveServer, path: str, body: dict[str, Any]
) -> None:
    response = server.post(path, body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["code"] == "impossible_output"
    assert "cannot be written" in response.json()["error"]["message"]
    told = server.post(path, body | {"stream": True}).text
    assert "the" in told and "cannot be written" in told and "engine_error" not in told
    assert '"code":"impossible_output"' in told.strip().rpartition("\n\n")[2] and "[DONE]" not in told


def test_a_form_that_cannot_be_finished_spares_the_rest_of_a_list(server: LiveServer) -> None:
    parameters = [{"ebnf": DEAD_END}, {"max_new_tokens": 100, "sampling_seed": 4, **NATIVE["regex"]}]
    failed, whole = server.generate(text=["a page is"] * 2, sampling_params=parameters)
    assert failed["meta_info"]["finish_reason"]["type"] == "error"
    assert whole["text"] == native(server, **NATIVE["regex"])["text"]


def calls_of(choice: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    calls = choice["message"]["tool_calls"]
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


def at_once(ask: Callable[[Any], Any], asked: Iterable[Any]) -> list[Any]:
    """The results of all, asked for together."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(ask, asked))


@pytest.mark.parametrize("parallel", [True, False])
def test_calls_that_must_be_made(parrot: LiveServer, parallel: bool) -> None:
    body = {"tools": [WEATHER, CLOCK], "tool_choice": "required", "parallel_tool_calls": parallel, **PLAIN}
    counts, names = set(), set()

    def ask(seed: int) -> tuple[Any, Any]:
        [choice] = chat(parrot, seed=seed, max_tokens=300, **body)["choices"]
        return choice, joined(chat_frames(parrot, seed=seed, max_tokens=300, **body))

    for choice, streamed in at_once(ask, range(8)):
        if choice["finish_reason"] == "length":
            continue
        assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
        calls = calls_of(choice)
        counts.add(len(calls))
        for name, arguments in calls:
            names.add(name)
            schema = WEATHER["function"]["parameters"] if name == "weather" else {"maxProperties": 0}
            jsonschema.validate(arguments, schema)
        assert streamed[0]["message"] == choice["message"]
    assert names == {"weather", "clock"}
    assert counts == {1} if not parallel else 1 in counts


def test_a_named_function(parrot: LiveServer) -> None:
    body = {"tools": [WEATHER, CLOCK], **PLAIN}

    def called(asked: tuple[int, str]) -> list[str]:
        seed, name = asked
        choice = {"type": "function", "function": {"name": name}}
        [made] = chat(parrot, seed=seed, max_tokens=300, tool_choice=choice, **body)["choices"]
        return [name for name, _ in calls_of(made)]

    asked = [(seed, name) for seed in range(4) for name in ("weather", "clock")]
    assert at_once(called, asked) == [[name] for _, name in asked]


def test_a_strict_function_leaves_words_free(parrot: LiveServer) -> None:
    strict = json.loads(json.dumps(WEATHER))
    strict["function"]["strict"] = True
    [choice] = chat(parrot, "words", tools=[strict], max_tokens=30, **PLAIN)["choices"]
    assert choice["message"]["content"]
    del strict["function"]["strict"]
    [free] = chat(parrot, "words", tools=[strict], max_tokens=30, **PLAIN)["choices"]
    assert free["message"]["content"] == "words", "and without it nothing is masked"
    strict["function"]["parameters"]["properties"]["city"]["not"] = {}
    [unread] = chat(parrot, "words", tools=[strict], max_tokens=30, **PLAIN)["choices"]
    assert unread["message"]["content"] == "words"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_arguments_that_cannot_be_enforced_are_refused(parrot: LiveServer, choice: Any) -> None:
    bad = json.loads(json.dumps(WEATHER))
    bad["function"]["parameters"]["properties"]["city"] = {"type": "string", "format": "town"}
    body = {"messages": [{"role": "user", "content": "a"}], "tools": [CLOCK, bad], "tool_choice": choice}
    response = parrot.post("/v1/chat/completions", body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "tools[1].function.parameters" and "town" in error["message"]


class Answer(pydantic.BaseModel):
    """What the package parses."""

    name: str = pydantic.Field(max_length=6)
    count: int = pydantic.Field(ge=0, le=99)
    colours: list[str] = pydantic.Field(max_length=2)
    inner: Inner | None = None


class Inner(pydantic.BaseModel):
    ok: bool


def test_the_package_parses_answers(server: LiveServer) -> None:
    parsed = 0
    with openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "the same request"}]
        for seed in range(6):
            try:
                made = client.chat.completions.parse(
                    model="fake", messages=messages, response_format=Answer, seed=seed, max_tokens=400
                )
            except openai.LengthFinishReasonError:
                continue
            answer = made.choices[0].message.parsed
            assert isinstance(answer, Answer) and answer.count < 100
            parsed += 1
            with client.chat.completions.stream(
                model="fake", messages=messages, response_format=Answer, seed=seed, max_tokens=400
            ) as stream:
                assert stream.get_final_completion().choices[0].message.parsed == answer
    assert parsed


def test_the_package_parses_forced_calls(parrot: LiveServer) -> None:
    with openai.OpenAI(base_url=parrot.url + "/v1", api_key="any", max_retries=0) as client:
        tool = openai.pydantic_function_tool(Inner, name="inner")
        made = client.chat.completions.parse(
            model="fake",
            messages=[{"role": "user", "content": "a"}],
            tools=[tool],
            tool_choice="required",
            parallel_tool_calls=False,
            max_tokens=300,
            extra_body=PLAIN,
        )
    calls = made.choices[0].message.tool_calls
    assert calls and isinstance(calls[0].function.parsed_arguments, Inner)


def test_responses_take_forms_and_forced_calls(server: LiveServer, parrot: LiveServer) -> None:
    form = {"type": "json_schema", "name": "a", "schema": SCHEMA, "strict": True}
    body: dict[str, Any] = {"input": "hi", "max_output_tokens": 100, "seed": 4}
    made = server.post("/v1/responses", body | {"text": {"format": form}}).json()
    text = made["output"][0]["content"][0]["text"]
    check_form("schema", text)
    assert text == chat(server, **BODY, **structured("schema"))["choices"][0]["message"]["content"]
    tool = {"type": "function", **CLOCK["function"]}
    for seed in range(8):
        body = {
            "input": "hi",
            "tools": [tool],
            "tool_choice": "required",
            "seed": seed,
            "max_output_tokens": 200,
        }
        output = parrot.post("/v1/responses", body).json()["output"]
        calls = [item for item in output if item["type"] == "function_call"]
        if calls:
            assert (calls[0]["name"], json.loads(calls[0]["arguments"])) == ("clock", {})
            break
    else:
        raise AssertionError("no answer came to its calls")
    bad = {"text": {"format": form | {"schema": {"not": {}}}}}
    refused = server.post("/v1/responses", {"input": "hi"} | bad)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "text.format.schema"
    tool = tool | {"parameters": {"type": "object", "not": {}}}
    refused = parrot.post("/v1/responses", {"input": "hi", "tools": [tool], "tool_choice": "required"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools[0].parameters")


def test_messages_take_forms_and_forced_calls(server: LiveServer, parrot: LiveServer) -> None:
    messages = [{"role": "user", "content": "hi"}]
    body: dict[str, Any] = {"model": "fake", "messages": messages, "max_tokens": 100, "seed": 4}
    form = {"type": "json_schema", "schema": SCHEMA}
    made = server.post("/v1/messages", body | {"output_config": {"format": form}}).json()
    check_form("schema", made["content"][0]["text"])
    tool = {"name": "weather", "input_schema": WEATHER["function"]["parameters"]}
    for seed in range(8):
        asked = body | {"tools": [tool], "tool_choice": {"type": "any"}, "seed": seed, "max_tokens": 200}
        content = parrot.post("/v1/messages", asked).json()["content"]
        calls = [block for block in content if block["type"] == "tool_use"]
        if calls:
            jsonschema.validate(calls[0]["input"], tool["input_schema"])
            break
    else:
        raise AssertionError("no answer came to its calls")
    tool = tool | {"input_schema": {"type": "object", "not": {}}}
    refused = parrot.post("/v1/messages", body | {"tools": [tool], "tool_choice": {"type": "any"}})
    assert refused.status_code == 400 and "tools[0].input_schema" in refused.json()["error"]["message"]


LLAMA_CALL = '{"name": "weather", "parameters": {"city": "Rom"}}'


def test_the_flag_names_the_format_of_calls(tmp_path: Path) -> None:
    """The parrot's template asks for the Hermes format; the flag says otherwise."""
    folder = write_checkpoint(tmp_path, parrot=True)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": PARROT_TEMPLATE}))
    with running(folder, tool_call_parser="llama3_json") as live:
        [choice] = chat(live, LLAMA_CALL, tools=[WEATHER])["choices"]
        assert calls_of(choice) == [("weather", {"city": "Rom"})]
        streamed = joined(chat_frames(live, LLAMA_CALL, tools=[WEATHER]))
        assert streamed[0]["message"] == choice["message"]
        body = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, **PLAIN}
        [forced] = chat(live, max_tokens=200, **body)["choices"]
        assert calls_of(forced)[0][0] == "weather"
        message = {"messages": [{"role": "user", "content": "a"}], "tools": [WEATHER]}
        mixed = live.post("/v1/chat/completions", message | {"response_format": {"type": "json_object"}})
        assert (mixed.status_code, mixed.json()["error"]["param"]) == (400, "response_format")
    with running(write_checkpoint(tmp_path), tool_call_parser="hermes") as live:
        response = live.post("/v1/chat/completions", message | {"max_tokens": 3})
        assert response.status_code == 200, (
            "a template that says nothing of calls is taken at the flag's word"
        )
