"""Golden digests of whole generations under `exact`: the same on every machine, until the contract changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from samebits.errors import ConfigError
from samebits.llm import LLM
from samebits.verify import golden

FOLDER = Path(__file__).parents[1] / "golden"
ENGINES = {
    "plain": {},
    "small chunks, one thread, simple loop": {
        "step_tokens": 48,
        "threads": 1,
        "loop": "simple",
        "max_running": 5,
    },
}


def open_tiny(**settings: object) -> LLM:
    return LLM("tiny", load_format="dummy", **({"kv_memory_mib": 64} | settings))


@pytest.fixture(scope="module")
def tiny() -> Iterator[LLM]:
    with open_tiny() as llm:
        yield llm


@pytest.mark.parametrize("engine", ENGINES)
def test_tiny_model_with_dummy_weights(engine: str) -> None:
    with open_tiny(**ENGINES[engine]) as llm:
        assert golden.differing(FOLDER / "tiny.json", llm) == []


def test_bundled_model() -> None:
    with LLM("bundled", kv_memory_mib=256) as llm:
        assert golden.differing(FOLDER / "bundled.json", llm) == []


def test_clock_locale_and_hash_seed_do_not_enter() -> None:
    """Trap 29: whatever surrounds the process, the same token ids from the same text."""
    surroundings = {
        "PYTHONHASHSEED": "4711",
        "TZ": "Pacific/Kiritimati",
        "LC_ALL": "C",
        "LANG": "tr_TR.UTF-8",
    }
    command = [sys.executable, "-m", "samebits", "verify", "--golden", str(FOLDER / "bundled.json")]
    done = subprocess.run(command, env=os.environ | surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_profile_torch_gives_other_digests(tiny: LLM) -> None:
    with open_tiny(numerics="torch") as other:
        assert set(golden.digests(other).items()).isdisjoint(golden.digests(tiny).items())


def test_every_bit_of_an_answer_enters_the_digest(tiny: LLM) -> None:
    case = golden.cases(tiny)[0]
    [answer] = tiny.generate(
        [case.prompt],
        case.sampling,
        return_logprob=True,
        logprob_start_len=0,
        top_logprobs_num=2,
        progress=False,
    )
    whole = golden.digest([answer])
    assert answer.logprobs and answer.prompt_logprobs
    last = answer.logprobs[-1]
    assert last.logprob is not None and last.logprob < -1e-6
    changes = [
        # The smallest step of a float32: one bit.
        {"logprob": float(np.nextafter(np.float32(last.logprob), np.float32(0)))},
        {"token_id": last.token_id + 1},
        {"top": last.top[:1]},
    ]
    for change in changes:
        fields = {name: getattr(last, name) for name in last.__struct_fields__} | change
        other = replace(answer, logprobs=(*answer.logprobs[:-1], type(last)(**fields)))
        assert golden.digest([other]) != whole
    assert golden.digest([replace(answer, prompt_logprobs=answer.prompt_logprobs[1:])]) != whole


def test_a_sample_can_be_replayed_alone(tiny: LLM) -> None:
    asked = {case.name: case for case in golden.cases(tiny)}
    whole, alone = asked["four samples"], asked["sample 3 of them, alone"]
    samples = tiny.generate([whole.prompt], whole.sampling, return_logprob=True, progress=False)
    replayed = tiny.generate([alone.prompt], alone.sampling, return_logprob=True, progress=False)
    assert golden.digest([samples[3]]) == golden.digest(replayed)
    assert len({golden.digest([sample]) for sample in samples}) == 4


def test_differing_names_are_found(tmp_path: Path, tiny: LLM) -> None:
    kept = golden.read(FOLDER / "tiny.json")
    kept["digests"]["top_k"] = "0" * 64
    kept["digests"]["a case of old"] = "0" * 64
    del kept["digests"]["min_p"]
    path = tmp_path / "kept.json"
    path.write_text(json.dumps(kept))
    assert golden.differing(path, tiny) == ["a case of old", "min_p", "top_k"]


@pytest.mark.parametrize(
    ("name", "value"), [("contract_version", 0), ("model", "other"), ("profile", "torch")]
)
def test_a_file_of_something_else_is_refused(name: str, value: object, tmp_path: Path, tiny: LLM) -> None:
    path = tmp_path / "kept.json"
    path.write_text(json.dumps(golden.read(FOLDER / "tiny.json") | {name: value}))
    with pytest.raises(ConfigError, match=f"is for {name}"):
        golden.differing(path, tiny)
    path.write_text("{}")
    with pytest.raises(ConfigError, match=r"kept\.json has no contract_version"):
        golden.read(path)
    path.write_text("[]")
    with pytest.raises(ConfigError, match=r"kept\.json holds no golden digests"):
        golden.read(path)
    with pytest.raises(ConfigError, match="cannot write"):
        golden.write(tmp_path / "missing" / "kept.json", tiny)
