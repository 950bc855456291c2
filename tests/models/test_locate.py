"""Names of models: reserved names, shapes, folders, and hub ids with and without the means to fetch them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from samebits.errors import ConfigError
from samebits.models.locate import BUNDLED, locate_model


def test_reserved_names_win_over_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("bundled", "bundled-draft", "tiny"):
        Path(name).mkdir()
    assert locate_model("bundled", "safetensors") == BUNDLED["bundled"]
    assert locate_model("bundled-draft", "safetensors").name == "draft"
    assert locate_model("./bundled", "safetensors") == Path("./bundled")
    assert locate_model("tiny", "dummy").parent.name == "shapes"
    assert locate_model("tiny", "safetensors") == Path("tiny"), "a shape is a name for dummy weights only"


def test_unknown_name_lists_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such folder.*bundled.*tiny"):
        locate_model(str(tmp_path / "none"), "safetensors")


def test_hub_id_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"someone/model.*samebits\[hub\].*download the folder"):
        locate_model("someone/model", "safetensors")


def test_hub_id_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="the optional extra 'hub' is not installed")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"someone/model@main.*cannot be downloaded.*give its path"):
        locate_model("someone/model@main", "safetensors")
