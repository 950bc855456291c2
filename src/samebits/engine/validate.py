"""What the engine refuses before it starts: requests that this model and these KV pages cannot serve."""

from __future__ import annotations

from samebits.engine.messages import EngineFacts, EngineRequest
from samebits.errors import RequestError
from samebits.sampling_params import LARGEST_INTEGER, MAX_SELECTED_LOGPROBS, MAX_TOP_LOGPROBS


class QueueFullError(RequestError):
    """The queue is full; the request may be sent again later."""


def validate_request(request: EngineRequest, facts: EngineFacts) -> None:
    """Raise `RequestError` naming the field that cannot be served. Sampling ranges are checked by their owner."""
    prompt = request.prompt_ids
    sampling = request.sampling
    if not prompt:
        raise RequestError("the prompt is empty: at least one token is needed", "input_ids")
    _check_ids("input_ids", prompt, facts.vocabulary)
    _check_ids("stop_token_ids", sampling.stop_token_ids, facts.vocabulary)
    _check_ids("logit_bias", list(sampling.logit_bias), facts.vocabulary)
    selected = len(request.logprobs.token_ids)
    if selected > MAX_SELECTED_LOGPROBS:
        message = f"token_ids_logprob must hold at most {MAX_SELECTED_LOGPROBS} ids, got {selected}"
        raise RequestError(message, "token_ids_logprob")
    _check_ids("token_ids_logprob", request.logprobs.token_ids, facts.vocabulary)
    room = facts.context_length - len(prompt)
    if room < min(1, sampling.max_new_tokens):
        raise RequestError(
            f"the prompt has {len(prompt)} tokens and the context length is {facts.context_length}: "
            "no room is left for an output token",
            "input_ids",
        )
    longest = len(prompt) + min(sampling.max_new_tokens, room)
    if longest > facts.kv_tokens:
        raise RequestError(
            f"prompt and max_new_tokens need {longest} KV slots and the engine has {facts.kv_tokens}: "
            "ask for fewer tokens, or start the engine with more KV memory",
            "max_new_tokens",
        )
    start = request.logprobs.prompt_start
    if start < -1 or start > len(prompt):
        raise RequestError(
            f"logprob_start_len must lie in [-1, {len(prompt)}] for this prompt, got {start}",
            "logprob_start_len",
        )
    if not 0 <= request.logprobs.top <= MAX_TOP_LOGPROBS:
        raise RequestError(f"top_logprobs_num must lie in [0, {MAX_TOP_LOGPROBS}]", "top_logprobs_num")
    if abs(request.priority) > LARGEST_INTEGER:
        raise RequestError("priority must fit in 64 bits", "priority")


def _check_ids(field: str, ids: list[int], vocabulary: int) -> None:
    # min and max first: a long prompt is checked without a Python loop.
    if not ids or (min(ids) >= 0 and max(ids) < vocabulary):
        return
    at, wrong = next((i, token) for i, token in enumerate(ids) if not 0 <= token < vocabulary)
    raise RequestError(
        f"{field} holds {wrong} at index {at}, outside the vocabulary [0, {vocabulary})", field
    )
