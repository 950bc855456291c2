"""The HTTP targets, against small servers that speak SGLang's and vLLM's tongues out of the fake target."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from samebits.bench.load.run import look_at
from samebits.client import AsyncClient
from samebits.commands import remote
from samebits.errors import ConfigError, EngineError
from samebits.sampling_params import SamplingParams
from samebits.verify.answers import bits_float
from samebits.verify.http import CompletionsTarget, GenerateTarget, connect
from samebits.verify.modes import MODES, Settings

from .fake import FakeTarget

Routes = Callable[[str, str, Any], Any]


class Server:
    """`routes(method, path, body)` over HTTP; a reply of None is a 404."""

    def __init__(self, routes: Routes) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._reply("GET", None)

            def do_POST(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                self._reply("POST", json.loads(self.rfile.read(size)) if size else None)

            def _reply(self, method: str, body: Any) -> None:
                reply = routes(method, self.path, body)
                data = json.dumps(reply).encode()
                self.send_response(404 if reply is None else 200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def serve() -> Iterator[Callable[[Routes], str]]:
    servers: list[Server] = []

    def start(routes: Routes) -> str:
        servers.append(Server(routes))
        return servers[-1].url

    yield start
    for server in servers:
        server.close()


def triples(entries: Any) -> list[list[Any]]:
    return [[None if entry.bits is None else bits_float(entry.bits), entry.token, None] for entry in entries]


def sglang(target: FakeTarget) -> Routes:
    def sampling(values: dict[str, Any]) -> SamplingParams:
        renamed = {"seed" if name == "sampling_seed" else name: value for name, value in values.items()}
        return SamplingParams(**renamed)

    def routes(method: str, path: str, body: Any) -> Any:
        if path == "/get_model_info":
            return {"model_path": "fake"}
        if path == "/get_server_info":
            return {"context_length": 4096, "version": "9"}
        if path == "/flush_cache":
            return target.flush()
        if path != "/generate":
            return None
        if "text" in body:
            prompts, values = [target.encode(body["text"])], [body["sampling_params"]]
        else:
            prompts, values = body["input_ids"], body["sampling_params"]
        score = body.get("logprob_start_len", -1) == 0
        answers = target.generate(prompts, [sampling(value) for value in values], score)
        replies = [
            {
                "output_ids": list(answer.output_ids),
                "meta_info": {
                    "input_token_logprobs": triples(answer.prompt),
                    "output_token_logprobs": triples(answer.output),
                    "cached_tokens": answer.cached_tokens,
                },
            }
            for answer in answers
        ]
        return replies[0] if "text" in body else replies

    return routes


def vllm(target: FakeTarget, tells_ids: bool = True) -> Routes:
    def routes(method: str, path: str, body: Any) -> Any:
        if path == "/v1/models":
            return {"data": [{"id": "fake", "max_model_len": 4096}]}
        if path == "/tokenize":
            return {"tokens": target.encode(body["prompt"])}
        if path == "/reset_prefix_cache":
            return target.flush()
        if path != "/v1/completions":
            return None
        names = set(SamplingParams.__struct_fields__) & set(body)
        parameters = SamplingParams(**{name: body[name] for name in names}, max_new_tokens=body["max_tokens"])
        score = "prompt_logprobs" in body
        answers = target.generate(body["prompt"], [parameters] * len(body["prompt"]), score)
        choices = []
        for index, answer in enumerate(answers):
            values = [bits_float(entry.bits or 0) for entry in answer.output]
            choice: dict[str, Any] = {
                "index": index,
                "logprobs": {"tokens": [f"t{id}" for id in answer.output_ids], "token_logprobs": values},
            }
            if tells_ids:
                choice["token_ids"] = list(answer.output_ids)
            if score:
                choice["prompt_logprobs"] = [
                    None if value is None else {str(token): {"logprob": value}}
                    for value, token, _ in triples(answer.prompt)
                ]
            choices.append(choice)
        # What was cached is told of the whole request.
        cached = sum(answer.cached_tokens or 0 for answer in answers)
        details = {"cached_tokens": cached} if target.tells_cached else None
        return {"choices": choices[::-1], "usage": {"prompt_tokens_details": details}}

    return routes


QUICK = Settings(trials=6, max_new_tokens=8)


@pytest.mark.parametrize("tongue", [sglang, vllm])
@pytest.mark.parametrize("mode", MODES)
def test_modes_over_http(
    serve: Callable[[Routes], str], tongue: Callable[[FakeTarget], Routes], mode: str
) -> None:
    honest = connect(serve(tongue(FakeTarget())))
    broken = connect(serve(tongue(FakeTarget("prefill is not decode" if mode == "p_vs_d" else "cache"))))
    assert isinstance(honest, GenerateTarget if tongue is sglang else CompletionsTarget)
    assert honest.facts().context_length == 4096
    assert MODES[mode](honest, QUICK, 0.0, lambda done, total: None).passed
    assert not MODES[mode](broken, QUICK, 0.0, lambda done, total: None).passed


@pytest.mark.parametrize("tongue", [sglang, vllm])
def test_what_came_from_the_cache_is_told_in_either_tongue(
    serve: Callable[[Routes], str], tongue: Callable[[FakeTarget], Routes]
) -> None:
    notes = []
    for target in (FakeTarget(), FakeTarget(cache=False), FakeTarget(tells_cached=False)):
        connected = connect(serve(tongue(target)))
        notes += MODES["radix_cache"](connected, QUICK, 0.0, lambda done, total: None).notes
    assert notes[0] == f"prompt tokens from the cache: 0 cold, {64 + 129 + 699 + 2048} warm"
    assert "no prompt token came" in notes[1] and "does not say" in notes[2]


def test_answers_keep_every_bit(serve: Callable[[Routes], str]) -> None:
    target = FakeTarget()
    prompts = [[1, 2, 3], [4], [5, 6]]
    sampling = [SamplingParams(temperature=0.5, seed=seed, max_new_tokens=4) for seed in range(3)]
    expected = target.generate(prompts, sampling, score_prompt=True)
    for tongue in (sglang, vllm):
        found = connect(serve(tongue(FakeTarget()))).generate(prompts, sampling, score_prompt=True)
        assert [(answer.output, answer.prompt) for answer in found] == [
            (answer.output, answer.prompt) for answer in expected
        ]


def test_a_server_that_tells_no_ids_is_compared_by_tokens_and_bits(serve: Callable[[Routes], str]) -> None:
    target = connect(serve(vllm(FakeTarget(), tells_ids=False)))
    answer = target.generate([[1, 2]], [SamplingParams(temperature=0.0, max_new_tokens=2)])[0]
    assert all(isinstance(entry.token, str) and entry.bits is not None for entry in answer.output)


def test_errors_say_who_answered_what(serve: Callable[[Routes], str]) -> None:
    with pytest.raises(ConfigError, match="answers neither /model_info"):
        connect(serve(lambda method, path, body: None))
    with pytest.raises(ConfigError, match="a URL looks like"):
        connect("ftp://host")
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:9"):
        connect("http://127.0.0.1:9")
    target = connect(serve(lambda method, path, body: {} if path == "/model_info" else None))
    with pytest.raises(EngineError, match="/generate answered 404"):
        target.encode("text")


@pytest.mark.parametrize(
    "listing", [{"data": [{"object": "model"}]}, {"data": ["a"]}, {"data": {"a": 1}}, [1]]
)
def test_a_list_of_models_of_another_form_is_none(listing: Any, serve: Callable[[Routes], str]) -> None:
    url = serve(lambda method, path, body: listing if path == "/v1/models" else None)
    for connect_to in (connect, remote.connect):
        with pytest.raises(ConfigError, match="neither"):
            connect_to(url)
    with pytest.raises(ConfigError, match="name one with --model"):
        asyncio.run(look_at(AsyncClient(url), ""))


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/generate", [{"text": "x", "meta_info": {}}]),
        ("/generate", [{"meta_info": {"output_token_logprobs": [["low", 1, None]]}}]),
        ("/v1/completions", {}),
        ("/v1/completions", {"choices": [{"text": "x"}]}),
        ("/v1/completions", {"choices": [{"index": 0, "logprobs": {"tokens": ["a"], "token_logprobs": []}}]}),
        (
            "/v1/completions",
            {"choices": [{"index": 0, "logprobs": {"tokens": ["a"], "token_logprobs": [1e99]}}]},
        ),
    ],
)
def test_an_answer_of_another_form_is_an_error_that_names_the_route(
    path: str, answer: Any, serve: Callable[[Routes], str]
) -> None:
    models = {"/v1/models": {"data": [{"id": "a"}]}} if path.startswith("/v1") else {"/model_info": {}}
    target = connect(serve(lambda method, asked, body: (models | {path: answer}).get(asked)))
    with pytest.raises(EngineError, match=f"{path} answered in a form that cannot be read"):
        target.generate([[1]], [SamplingParams(max_new_tokens=1)])
    if path == "/generate":
        with pytest.raises(EngineError, match="cannot be read"):
            target.encode("text")


def one_answer(path: str, output: list[list[Any]], ending: Any, scored: list[list[Any]]) -> Any:
    """What a server says that answers everything alike: triples of logprob, id, text."""
    if path == "/generate":
        meta = {"output_token_logprobs": output, "input_token_logprobs": scored, "finish_reason": ending}
        return [{"output_ids": [entry[1] for entry in output], "meta_info": meta}]
    told = {"tokens": ["x"] * len(output), "token_logprobs": [entry[0] for entry in output]}
    choice = {"index": 0, "token_ids": [entry[1] for entry in output], "logprobs": told}
    return {"choices": [choice | {"finish_reason": ending["type"] if ending else None}]}


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
@pytest.mark.parametrize(
    ("output", "ending", "message"),
    [
        ([[-1.0, 5, None]], {"type": "abort", "message": "too late"}, "cut short: it ended after 1 tokens"),
        ([], {"type": "error", "message": "not finite"}, "cut short: it ended after 0 tokens"),
        ([], {"type": "length"}, "has no token"),
        ([[-1.0, 5, None], [None, 6, None]], None, "output token 1 of an answer has no logprob"),
        ([[-1.0, 5, None]], {"type": "length"}, ""),
        ([[-1.0, 5, None]], None, ""),
    ],
)
def test_what_says_nothing_of_bits_is_neither_equal_nor_different(
    path: str, output: list[list[Any]], ending: Any, message: str, serve: Callable[[Routes], str]
) -> None:
    models = {"/v1/models": {"data": [{"id": "a"}]}} if path.startswith("/v1") else {"/model_info": {}}
    answer = one_answer(path, output, ending, [])
    target = connect(serve(lambda method, asked, body: (models | {path: answer}).get(asked)))
    if message:
        with pytest.raises(EngineError, match=message):
            target.generate([[1]], [SamplingParams(max_new_tokens=1)])
    else:
        assert len(target.generate([[1]], [SamplingParams(max_new_tokens=1)])[0].output) == 1


@pytest.mark.parametrize("scored", [[], [[None, 1, None]], [[None, 1, None], [-1.0, 3, None]]])
def test_a_server_that_scores_other_tokens_is_told_so(
    scored: list[list[Any]], serve: Callable[[Routes], str]
) -> None:
    answer = one_answer("/generate", [[-1.0, 5, None]], None, scored)
    target = connect(
        serve(lambda method, path, body: {"/model_info": {}, "/generate": answer}.get(path)), "generate"
    )
    with pytest.raises(EngineError, match="was sent 2 tokens to score"):
        target.generate([[1, 2]], [SamplingParams(max_new_tokens=1)], score_prompt=True)
    assert target.generate([[1, 2]], [SamplingParams(max_new_tokens=1)])[0].prompt == ()


@pytest.mark.parametrize("told", [[], ["a", "b"], [None]])
def test_a_server_that_tells_no_tokens_of_a_text_is_not_asked_for_ever(
    told: list[Any], serve: Callable[[Routes], str]
) -> None:
    answer = {"meta_info": {"input_token_logprobs": [[-1.0, token, None] for token in told]}}
    native = {"/model_info": {}, "/generate": answer}
    completions = {"/v1/models": {"data": [{"id": "a"}]}, "/tokenize": {"tokens": told}}
    for routes in (native, completions):
        target = connect(serve(lambda method, path, body, routes=routes: routes.get(path)))
        with pytest.raises(EngineError, match="told no token ids of a text"):
            MODES["radix_cache"](target, QUICK, 0.0, lambda done, total: None)


@pytest.mark.parametrize(
    "routes",
    [
        {"/model_info": {}, "/server_info": ["a"]},
        {"/model_info": {"context_length": "long"}},
        {"/v1/models": {"data": [{"id": "a", "max_model_len": [1]}]}},
    ],
)
def test_facts_of_another_form_are_told(routes: dict[str, Any], serve: Callable[[Routes], str]) -> None:
    with pytest.raises(EngineError, match="cannot be read here"):
        connect(serve(lambda method, path, body: routes.get(path)))
