"""What requests may ask for, through the GPU's loop: grammars, several samples, stop strings, biases, logprobs.

Each wish is kept, and each answer has the bits that it has alone. The server itself is checked on a GPU by
`tests/server/test_real_engine.py`, whose fixture takes the GPU where there is one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from samebits import LLM, SamplingParams
from samebits.llm import Completion

pytestmark = pytest.mark.gpu

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 9},
        "tags": {"type": "array", "items": {"enum": ["a", "é"]}, "maxItems": 3},
        "n": {"type": "integer", "minimum": -99, "maximum": 99},
    },
    "required": ["name", "tags", "n"],
    "additionalProperties": False,
}
EXPRESSION = r"(ab|cd){2,5}-[0-9]{3}"
CHOICES = ["red", "green", "reddish"]
FAVOURED = 77
FORM: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 60}
TEXT: dict[str, Any] = {"temperature": 0.8, "max_new_tokens": 24, "ignore_eos": True}
WISHES: dict[str, SamplingParams] = {
    "schema": SamplingParams(json_schema=SCHEMA, seed=1, **FORM),
    "expression": SamplingParams(regex=EXPRESSION, seed=2, **FORM),
    "choice": SamplingParams(choice=CHOICES, seed=3, **FORM),
    "grammar and penalties": SamplingParams(
        ebnf='root ::= "(" [a-z ]+ ")" root | "."', seed=4, frequency_penalty=0.5, top_p=0.9, **FORM
    ),
    "samples": SamplingParams(n=4, seed=5, **TEXT),
    "samples of a form": SamplingParams(n=3, regex=EXPRESSION, seed=6, **FORM),
    "stop": SamplingParams(stop=["e"], seed=7, **TEXT),
    "stop at a token": SamplingParams(stop_token_ids=[FAVOURED], logit_bias={FAVOURED: 12.0}, seed=8, **FORM),
    "bias": SamplingParams(logit_bias={FAVOURED: 1000.0}, seed=9, **TEXT),
    "penalties": SamplingParams(repetition_penalty=1.3, presence_penalty=0.4, top_k=30, seed=10, **TEXT),
    "filters": SamplingParams(min_p=0.05, top_p=0.8, top_k=50, seed=11, **TEXT),
    "greedy": SamplingParams(temperature=0.0, max_new_tokens=24, ignore_eos=True),
    "plain": SamplingParams(seed=12, **TEXT),
}
Bits = tuple[Any, ...]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("bundled", device="cuda", kv_memory_mib=512, max_running=32, step_tokens=256) as made:
        yield made


def prompt_of(number: int) -> list[int]:
    return [(17 * number + 31 * place) % 4000 for place in range(1 + 29 * number)]


def ask(llm: LLM, numbers: Sequence[int], wishes: Sequence[SamplingParams]) -> list[list[Completion]]:
    """The samples of each request, from a cold cache."""
    llm.flush_cache()
    found = llm.generate(
        [prompt_of(number) for number in numbers],
        list(wishes),
        return_logprob=True,
        logprob_start_len=0,
        top_logprobs_num=2,
        token_ids_logprob=[5, FAVOURED],
        progress=False,
    )
    return [[one for one in found if one.prompt_index == place] for place in range(len(numbers))]


def bits(samples: Sequence[Completion]) -> Bits:
    return tuple(
        (one.token_ids, one.text, one.finish_reason, one.logprobs, one.prompt_logprobs) for one in samples
    )


@pytest.fixture(scope="module")
def alone(llm: LLM) -> dict[str, list[Completion]]:
    return {
        name: ask(llm, [number], [wish])[0] for number, (name, wish) in enumerate(WISHES.items(), start=1)
    }


def test_wishes_are_kept(alone: dict[str, list[Completion]]) -> None:
    [formed] = alone["schema"]
    assert formed.finish_reason.type == "stop"
    assert set(json.loads(formed.text)) == set(SCHEMA["required"])
    for one in (*alone["expression"], *alone["samples of a form"]):
        assert re.fullmatch(EXPRESSION, one.text), one.text
    assert alone["choice"][0].text in CHOICES
    assert len({one.token_ids for one in alone["samples"]}) == 4
    assert alone["stop"][0].finish_reason.matched == "e"
    assert "e" not in alone["stop"][0].text
    assert alone["stop at a token"][0].finish_reason.matched == FAVOURED
    assert set(alone["bias"][0].token_ids) == {FAVOURED}
    for samples in alone.values():
        for one in samples:
            assert len(one.logprobs or ()) == len(one.token_ids)
            assert all(len(entry.top) == 2 for entry in one.logprobs or ())


@pytest.mark.parametrize("stride", [1, 5])
def test_in_company(llm: LLM, alone: dict[str, list[Completion]], stride: int) -> None:
    names = list(WISHES)
    order = [names[place * stride % len(names)] for place in range(2 * len(names))]
    together = ask(llm, [1 + names.index(name) for name in order], [WISHES[name] for name in order])
    for name, samples in zip(order, together, strict=True):
        assert bits(samples) == bits(alone[name]), name


def test_each_sample_can_be_had_alone(llm: LLM, alone: dict[str, list[Completion]]) -> None:
    number = 1 + list(WISHES).index("samples")
    for index, sample in enumerate(alone["samples"]):
        again = SamplingParams(sample_index=index, seed=5, **TEXT)
        assert bits(ask(llm, [number], [again])[0]) == bits([sample])


def test_other_requests_have_other_bits(llm: LLM, alone: dict[str, list[Completion]]) -> None:
    """The inverse: another seed, and another prompt, are seen."""
    number = 1 + list(WISHES).index("plain")
    assert bits(ask(llm, [number], [SamplingParams(seed=13, **TEXT)])[0]) != bits(alone["plain"])
    assert bits(ask(llm, [number + 1], [WISHES["plain"]])[0]) != bits(alone["plain"])
