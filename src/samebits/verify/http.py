"""Targets behind a URL: servers that speak SGLang's `/generate`, or OpenAI's `/v1/completions` as vLLM does.

Standard library only. A float32 that a server prints with nine digits or more comes back exactly; one that
prints fewer loses bits, but equal bits stay equal.
"""

from __future__ import annotations

import http.client
import json
import struct
import urllib.parse
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from samebits.client import listed_model, split_url
from samebits.errors import ConfigError, EngineError
from samebits.sampling_params import SamplingParams
from samebits.verify.answers import Answer, TokenBits, check_whole, float_bits
from samebits.verify.target import Target, TargetFacts

UNKNOWN_CONTEXT = 1 << 30
APIS = ("auto", "generate", "completions")


class Client:
    """JSON over HTTP to one server."""

    def __init__(self, url: str, api_key: str = "", timeout: float = 600.0) -> None:
        parts = split_url(url)
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"
        self._parts = urllib.parse.urlsplit(self.url)
        self._timeout = timeout
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def open(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        return kind(self._parts.hostname or "", self._parts.port, timeout=self._timeout)

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """(status, body). Raises `EngineError` where nobody answers."""
        connection = self.open()
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, self._parts.path + path, data, self._headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(f"{self.url}{path}: {error or type(error).__name__}") from error
        finally:
            connection.close()

    def json(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON answer. Raises `EngineError` with the server's words for any status but 200."""
        status, data = self.request(method, path, body)
        if status != 200:
            raise EngineError(f"{self.url}{path} answered {status}: {data[:500].decode(errors='replace')}")
        try:
            return json.loads(data)
        except ValueError as error:
            raise EngineError(f"{self.url}{path} answered something that is not JSON") from error

    def probe(self, path: str) -> Any:
        """The JSON answer of a GET, None where the path does not exist or is no JSON."""
        status, data = self.request("GET", path)
        if status != 200:
            return None
        try:
            return json.loads(data)
        except ValueError:
            return None

    def stream(self, path: str, body: Any) -> Generator[dict[str, Any], None, None]:
        """The JSON objects of a reply in server-sent events, up to `[DONE]`."""
        connection = self.open()
        try:
            connection.request("POST", self._parts.path + path, json.dumps(body).encode(), self._headers)
            response = connection.getresponse()
            if response.status != 200:
                text = response.read(500).decode(errors="replace")
                raise EngineError(f"{self.url}{path} answered {response.status}: {text}")
            for line in response:
                data = line.strip().removeprefix(b"data:").strip()
                if data == b"[DONE]":
                    return
                if data and line.startswith(b"data:"):
                    yield json.loads(data)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise EngineError(f"{self.url}{path}: {error or type(error).__name__}") from error
        finally:
            connection.close()


def connect(url: str, api: str = "auto", api_key: str = "") -> Target:
    """The target behind `url`, its way of speaking found out where `api` is `auto`."""
    client = Client(url, api_key)
    if api in ("auto", "generate"):
        for path in ("/model_info", "/get_model_info"):
            facts = client.probe(path)
            if isinstance(facts, dict):
                with reading(client.url + path):
                    return GenerateTarget(client, facts)
        if api == "generate":
            return GenerateTarget(client, {})
    if model := listed_model(client.probe("/v1/models")):
        with reading(f"{client.url}/v1/models"):
            return CompletionsTarget(client, model)
    raise ConfigError(
        f"{client.url} answers neither /model_info (SGLang's way) nor /v1/models (OpenAI's way)"
    )


@contextmanager
def reading(place: str) -> Iterator[None]:
    """Raises `EngineError` for an answer of `place` that lacks what is read of it, or has another form."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, struct.error) as error:
        raise EngineError(f"{place} answered in a form that cannot be read here: {error!r}") from error


def checked_ids(ids: list[Any], place: str) -> list[int]:
    """The token ids that a server tells of a text. Raises `EngineError` where it tells none: without them there is no
    prompt to be made."""
    if not ids or not all(type(token) is int for token in ids):
        raise EngineError(f"{place} told no token ids of a text, of which the prompts are made: {ids[:4]}")
    return ids


class GenerateTarget:
    """A server that speaks SGLang's native `/generate`; a batch is one request."""

    def __init__(self, client: Client, model_info: dict[str, Any]) -> None:
        self._client = client
        server = client.probe("/server_info") or client.probe("/get_server_info") or {}
        told = {**server, **model_info}
        context = told.get("context_length") or told.get("max_req_input_len") or UNKNOWN_CONTEXT
        name = told.get("served_model_name") or told.get("model_path") or told.get("model") or "a model"
        wanted = ("fingerprint", "numerics", "version", "attention_backend", "tp_size")
        details = {key: str(told[key]) for key in wanted if told.get(key) is not None}
        self._facts = TargetFacts(f"{name} at {client.url} (/generate)", int(context), details)

    def facts(self) -> TargetFacts:
        return self._facts

    def encode(self, text: str) -> list[int]:
        """By the server's own tokenizer: the ids that it reports when it scores the text."""
        body = {"text": text, "sampling_params": {"max_new_tokens": 1, "temperature": 0}}
        scoring = {"return_logprob": True, "logprob_start_len": 0}
        reply = self._client.json("POST", "/generate", body | scoring)
        with reading(f"{self._client.url}/generate"):
            ids = [entry[1] for entry in reply["meta_info"]["input_token_logprobs"]]
        return checked_ids(ids, f"{self._client.url}/generate")

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sequence[SamplingParams],
        score_prompt: bool = False,
    ) -> list[Answer]:
        body = {
            "input_ids": [list(ids) for ids in prompts],
            "sampling_params": [native_sampling(parameters) for parameters in sampling],
            "return_logprob": True,
            "logprob_start_len": 0 if score_prompt else -1,
        }
        replies = self._client.json("POST", "/generate", body)
        if not isinstance(replies, list) or len(replies) != len(prompts):
            raise EngineError(
                f"{self._client.url}/generate did not answer {len(prompts)} prompts with as many replies"
            )
        with reading(f"{self._client.url}/generate"):
            return [
                native_answer(reply, list(ids), score_prompt)
                for reply, ids in zip(replies, prompts, strict=True)
            ]

    def flush(self) -> bool:
        return self._client.request("POST", "/flush_cache")[0] == 200

    def close(self) -> None:
        pass


def native_sampling(parameters: SamplingParams) -> dict[str, Any]:
    """As SGLang names them. Neutral values are left out, so that a server that lacks a filter is not asked for it."""
    values: dict[str, Any] = {
        "temperature": parameters.temperature,
        "max_new_tokens": parameters.max_new_tokens,
        "sampling_seed": parameters.seed,
        "ignore_eos": parameters.ignore_eos,
    }
    return values | filters(parameters)


def filters(parameters: SamplingParams) -> dict[str, Any]:
    """The filters that are not neutral, by the names that SGLang and vLLM share."""
    neutral = {
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
    }
    values = {name: getattr(parameters, name) for name in neutral}
    return {name: value for name, value in values.items() if value is not None and value != neutral[name]}


def native_answer(reply: dict[str, Any], prompt_ids: list[int], score_prompt: bool) -> Answer:
    """One reply of `/generate`. Its logprobs are triples of logprob, token id, text. Raises `EngineError` for a reply
    that cannot be compared."""
    meta = reply["meta_info"]
    output = [token_bits(entry[1], entry[0]) for entry in meta["output_token_logprobs"]]
    prompt = (
        [token_bits(entry[1], entry[0]) for entry in meta["input_token_logprobs"]] if score_prompt else []
    )
    ids = reply.get("output_ids")
    if ids is not None and list(ids) != [entry.token for entry in output]:
        raise EngineError(
            "a reply of /generate names other tokens in output_ids than in output_token_logprobs"
        )
    if score_prompt and [entry.token for entry in prompt] != prompt_ids:
        raise EngineError(
            f"/generate was sent {len(prompt_ids)} tokens to score, and its {len(prompt)} input_token_logprobs are not "
            "of these"
        )
    answer = Answer(tuple(output), tuple(prompt), meta.get("cached_tokens"))
    finish = meta.get("finish_reason")
    ended = finish if isinstance(finish, dict) else {"type": finish}
    check_whole(answer, str(ended.get("type")), str(ended.get("message") or ""))
    return answer


def token_bits(token: int | str, logprob: float | None) -> TokenBits:
    return TokenBits(token, None if logprob is None else float_bits(logprob))


class CompletionsTarget:
    """A server that speaks `/v1/completions` with token ids as prompts, and vLLM's additions where it has them.
    A batch is one request where all parameters are equal, else as many concurrent ones."""

    def __init__(self, client: Client, model: dict[str, Any]) -> None:
        self._client = client
        self._model = model["id"]
        context = int(model.get("max_model_len") or UNKNOWN_CONTEXT)
        version = client.probe("/version") or {}
        details = {key: str(value) for key, value in version.items()} if isinstance(version, dict) else {}
        self._facts = TargetFacts(f"{self._model} at {client.url} (/v1/completions)", context, details)

    def facts(self) -> TargetFacts:
        return self._facts

    def encode(self, text: str) -> list[int]:
        reply = self._client.json("POST", "/tokenize", {"model": self._model, "prompt": text})
        with reading(f"{self._client.url}/tokenize"):
            ids = list(reply["tokens"])
        return checked_ids(ids, f"{self._client.url}/tokenize")

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sequence[SamplingParams],
        score_prompt: bool = False,
    ) -> list[Answer]:
        if all(parameters == sampling[0] for parameters in sampling):
            return self._ask([list(ids) for ids in prompts], sampling[0], score_prompt)
        with ThreadPoolExecutor(len(prompts)) as pool:
            calls = [
                pool.submit(self._ask, [list(ids)], parameters, score_prompt)
                for ids, parameters in zip(prompts, sampling, strict=True)
            ]
            return [call.result()[0] for call in calls]

    def _ask(self, prompts: list[list[int]], parameters: SamplingParams, score_prompt: bool) -> list[Answer]:
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": prompts,
            "temperature": parameters.temperature,
            "max_tokens": parameters.max_new_tokens,
            "seed": parameters.seed,
            "logprobs": 1,
            "ignore_eos": parameters.ignore_eos,
            "return_token_ids": True,
        }
        if score_prompt:
            body["prompt_logprobs"] = 0
        reply = self._client.json("POST", "/v1/completions", body | filters(parameters))
        with reading(f"{self._client.url}/v1/completions"):
            return self._answers(reply, prompts, score_prompt)

    def _answers(self, reply: Any, prompts: list[list[int]], score_prompt: bool) -> list[Answer]:
        choices = sorted(reply["choices"], key=lambda choice: choice["index"])
        if len(choices) != len(prompts):
            raise EngineError(
                f"{self._client.url}/v1/completions gave {len(choices)} choices for {len(prompts)} prompts"
            )
        cached = ((reply.get("usage") or {}).get("prompt_tokens_details") or {}).get("cached_tokens")
        return [
            completion_answer(choice, ids, score_prompt, cached if number == 0 or cached is None else 0)
            for number, (choice, ids) in enumerate(zip(choices, prompts, strict=True))
        ]

    def flush(self) -> bool:
        """vLLM offers this in its development mode alone."""
        paths = ("/flush_cache", "/reset_prefix_cache")
        return any(self._client.request("POST", path)[0] == 200 for path in paths)

    def close(self) -> None:
        pass


def completion_answer(
    choice: dict[str, Any], prompt_ids: list[int], score_prompt: bool, cached: int | None
) -> Answer:
    """One choice of `/v1/completions`. Where the server tells no ids, the tokens' texts stand for them. Raises
    `EngineError` for a choice that cannot be compared."""
    logprobs = choice.get("logprobs")
    if not logprobs or logprobs.get("token_logprobs") is None:
        raise EngineError("/v1/completions returned no token_logprobs; samebits verify compares their bits")
    tokens = choice.get("token_ids") or logprobs["tokens"]
    output = [
        token_bits(token, value) for token, value in zip(tokens, logprobs["token_logprobs"], strict=True)
    ]
    prompt = prompt_bits(choice.get("prompt_logprobs"), prompt_ids) if score_prompt else []
    answer = Answer(tuple(output), tuple(prompt), cached)
    told = choice.get("samebits")
    check_whole(answer, str(choice.get("finish_reason")), told.get("message", "") if told else "")
    return answer


def prompt_bits(entries: list[dict[str, Any] | None] | None, prompt_ids: list[int]) -> list[TokenBits]:
    """vLLM's `prompt_logprobs`: per position None, or the logprobs of a few ids, the prompt's own among them."""
    if entries is None:
        raise EngineError("/v1/completions returned no prompt_logprobs, which the mode p_vs_d compares")
    return [
        token_bits(token, None if entry is None else entry[str(token)]["logprob"])
        for token, entry in zip(prompt_ids, entries, strict=True)
    ]
