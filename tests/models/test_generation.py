"""generation_config.json: sampling defaults and end-of-sequence ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from samebits.config import ModelConfig
from samebits.errors import ModelFileError
from samebits.models.generation import end_tokens, read_generation, sampling_defaults
from samebits.models.hf_config import ConfigReader
from samebits.models.load import read_model_files
from samebits.models.locate import SHAPES
from samebits.sampling_params import SamplingDefaults


def defaults(tmp_path: Path, source: str = "model", **values: Any) -> SamplingDefaults:
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    return sampling_defaults(read_generation(tmp_path), source)


def test_no_file_is_neutral(tmp_path: Path) -> None:
    assert sampling_defaults(read_generation(tmp_path), "model") == SamplingDefaults()


def test_values_are_taken(tmp_path: Path) -> None:
    values = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.1, "repetition_penalty": 1.05}
    assert defaults(tmp_path, **values, do_sample=True) == SamplingDefaults(**values)  # type: ignore[arg-type]
    assert defaults(tmp_path, **values) == SamplingDefaults(**values)  # type: ignore[arg-type]
    assert defaults(tmp_path, max_new_tokens=2048).max_new_tokens == 2048


def test_integers_become_floats_so_that_the_fingerprint_has_one_spelling(tmp_path: Path) -> None:
    taken = defaults(tmp_path, temperature=1, top_p=1)
    assert isinstance(taken.temperature, float) and isinstance(taken.top_p, float)


def test_none_ignores_the_file(tmp_path: Path) -> None:
    assert defaults(tmp_path, "none", temperature=0.6, top_k=20) == SamplingDefaults()


def test_do_sample_false_means_argmax(tmp_path: Path) -> None:
    taken = defaults(tmp_path, do_sample=False, temperature=0.7, repetition_penalty=1.1)
    assert taken == SamplingDefaults(temperature=0.0, repetition_penalty=1.1)
    assert defaults(tmp_path, do_sample=None, temperature=0.7).temperature == 0.7


def test_null_and_off_values_are_neutral(tmp_path: Path) -> None:
    assert defaults(tmp_path, temperature=None, top_k=0, top_p=None) == SamplingDefaults()
    assert defaults(tmp_path, top_k=-1).top_k == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1.0),
        ("temperature", "hot"),
        ("temperature", 10**400),
        ("temperature", True),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", 2.5),
        ("top_k", -2),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("max_new_tokens", -5),
        ("do_sample", "no"),
    ],
)
def test_unusable_values_are_refused(tmp_path: Path, field: str, value: object) -> None:
    with pytest.raises(ModelFileError, match=f"generation_config.json.*'{field}'"):
        defaults(tmp_path, **{field: value})


def test_end_tokens_are_the_union() -> None:
    config = ConfigReader({"eos_token_id": 7}, "config.json")
    assert end_tokens(config, ConfigReader({"eos_token_id": [9, 7]}, "g"), 10) == (7, 9)
    assert end_tokens(config, ConfigReader({}, "g"), 10) == (7,)
    assert end_tokens(ConfigReader({}, "c"), ConfigReader({"eos_token_id": 0}, "g"), 10) == (0,)
    with pytest.raises(ModelFileError, match="'eos_token_id'"):
        end_tokens(config, ConfigReader({"eos_token_id": [1.5]}, "generation_config.json"), 10)


def test_end_tokens_outside_of_the_vocabulary_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    config = ConfigReader({"eos_token_id": [7, 10]}, "config.json")
    assert end_tokens(config, ConfigReader({"eos_token_id": 99}, "g"), 10) == (7,)
    assert "names 10, 99, outside the vocabulary [0, 10)" in caplog.text
    caplog.clear()
    assert end_tokens(config, ConfigReader({}, "g"), 11) == (7, 10)
    assert not caplog.text


def test_nothing_that_ends_a_text_lies_outside_of_the_vocabulary(tmp_path: Path) -> None:
    """A request with a least length is not to sample them, and its row of logits has no place for others."""
    values = json.loads((SHAPES / "tiny" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"eos_token_id": [2, values["vocab_size"]]}))
    files = read_model_files(ModelConfig(model=str(tmp_path), load_format="dummy"))
    assert files.end_tokens == (2,)
