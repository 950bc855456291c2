"""The systemd unit and the container file start what exists, and let it drain."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from samebits.cli import build_parser
from samebits.commands.flags import settings_of
from samebits.config import EngineConfig, ModelConfig, ServerConfig

ROOT = Path(__file__).parents[1]
UNIT = (ROOT / "deploy" / "samebits.service").read_text(encoding="utf-8")
CONTAINER = (ROOT / "deploy" / "Containerfile").read_text(encoding="utf-8")


def unit_value(name: str) -> str:
    [value] = re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE)
    return str(value)


def test_the_unit_starts_a_server_with_keys() -> None:
    program, *arguments = shlex.split(unit_value("ExecStart"))
    assert program.endswith("/samebits")
    options = build_parser().parse_args(arguments)
    assert (options.command, options.log_format) == ("serve", "json")
    name, _, _ = unit_value("LoadCredential").partition(":")
    assert options.api_key_file == f"%d/{name}"


def test_the_unit_waits_for_the_drain() -> None:
    assert unit_value("KillSignal") == "SIGTERM"
    assert unit_value("KillMode") == "mixed"
    assert float(unit_value("TimeoutStopSec")) > ServerConfig().drain_seconds + 20


def test_the_unit_lets_kernels_be_compiled() -> None:
    assert not re.search("^MemoryDenyWriteExecute=", UNIT, re.MULTILINE)
    caches = re.findall(r"^Environment=(?:NUMBA_CACHE_DIR|HF_HOME)=(.*)$", UNIT, re.MULTILINE)
    assert len(caches) == 2
    assert all(path.startswith(f"/var/cache/{unit_value('CacheDirectory')}/") for path in caches)


def test_the_container_copies_what_exists_and_sets_what_is_known() -> None:
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", CONTAINER, re.MULTILINE)
    assert copied
    assert all((ROOT / name).exists() for line in copied for name in line.split())
    settings = dict(re.findall(r"SAMEBITS_([A-Z_]+)=(\S+)", CONTAINER))
    known = {name for cls in (ModelConfig, EngineConfig, ServerConfig) for name in cls.__dataclass_fields__}
    assert {name.lower() for name in settings} <= known
    [pinned] = re.findall(r"^ARG TORCH=(.*)$", CONTAINER, re.MULTILINE)
    assert f"\nTORCH ?= {pinned}\n" in (ROOT / "Makefile").read_text()


def test_the_container_serves() -> None:
    [words] = re.findall(r"^ENTRYPOINT \[(.*)\]$", CONTAINER, re.MULTILINE)
    name, *arguments = re.findall(r'"([^"]*)"', words)
    assert name == "samebits"
    options = build_parser().parse_args([*arguments, "/model"])
    assert settings_of(options, ModelConfig).model == "/model"
    assert f"EXPOSE {ServerConfig().port}\n" in CONTAINER
    assert f":{ServerConfig().port}/health'" in CONTAINER
