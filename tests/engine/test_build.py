"""Making an engine: what is read beside what, and what an unreadable tokenizer costs."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from samebits.config import EngineConfig, ModelConfig
from samebits.engine import build
from samebits.engine.engine import Engine
from samebits.engine.messages import EngineRequest, Finish
from samebits.errors import ModelFileError
from samebits.grammar.compiler import GrammarError
from samebits.grammar.language import grammar_of, regex_part
from samebits.sampling_params import ResolvedSampling

MODEL = ModelConfig(model="tiny", load_format="dummy")
SETTINGS = EngineConfig(kv_memory_mib=16, loop="simple", threads=1)
GRAMMAR = grammar_of(regex_part("[a-f]+", "regex")).text


def ends(engine: Engine) -> dict[str, Finish]:
    """How a free request and one with a grammar end."""
    for rid, grammar in (("free", ""), ("grammar", GRAMMAR)):
        sampling = ResolvedSampling(temperature=0.0, max_new_tokens=3, seed=1)
        engine.submit(EngineRequest(rid=rid, prompt_ids=[5, 6], sampling=sampling, grammar=grammar))
    found: dict[str, Finish] = {}
    while engine.has_work():
        found |= {event.rid: event.finish for event in engine.step() if event.finish is not None}
    engine.close()
    return found


def test_the_tokenizer_is_read_while_the_weights_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the engine is ready only when both are."""
    begun, loaded, done = threading.Event(), threading.Event(), threading.Event()
    seen: list[str] = []

    def read(*arguments: Any) -> Any:
        begun.set()
        assert loaded.wait(60), "the weights waited for the tokenizer"
        done.set()
        raise GrammarError("not today")

    def progress(name: str, number: int, total: int) -> None:
        seen.append(name)
        if "tokenizer" in name:
            loaded.set()
        else:
            assert begun.wait(60), "the tokenizer waited for the weights"

    monkeypatch.setattr(build, "read_compiler", read)
    engine = build.build_engine(MODEL, SETTINGS, progress)
    assert done.is_set() and len(set(seen)) > 1
    found = ends(engine)
    assert found["free"].reason == "length"
    assert (found["grammar"].refusal, found["grammar"].message) == ("request", "not today")


def test_a_broken_tokenizer_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*arguments: Any) -> Any:
        raise ModelFileError("tokenizer.json is not a tokenizer that can be read")

    monkeypatch.setattr(build, "read_compiler", read)
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        build.build_engine(MODEL, SETTINGS, lambda *news: None)


def test_memory_is_foretold_unless_no_length_is_assumed() -> None:
    """Sixteen pages, and two requests that want up to ten each."""
    pages_and_running = []
    for assumed in (EngineConfig.assumed_answer_tokens, 0):
        settings = replace(SETTINGS, kv_memory_mib=0, kv_pages=16, assumed_answer_tokens=assumed)
        engine = build.build_engine(MODEL, settings, lambda *news: None)
        for rid, token in (("one", 5), ("other", 6)):
            sampling = ResolvedSampling(max_new_tokens=576, ignore_eos=True)
            engine.submit(EngineRequest(rid=rid, prompt_ids=[token] * 64, sampling=sampling))
        engine.step()
        status = engine.status(0)
        pages_and_running.append((status.expected_pages, status.running))
        engine.close()
    assert pages_and_running == [(20, 2), (0, 2)]
