"""Settings of a process, frozen: what to load, how the engine runs, how the server listens.

A setting comes from the command line, else from the environment (`SAMEBITS_` + its name in capitals), else
from the TOML file that `--config` or SAMEBITS_CONFIG names, else from the default here. `resolve` does that for
any of the classes below; the command line's flags are made from the same fields, so there is one list of settings.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from samebits.errors import ConfigError

ENVIRONMENT_PREFIX = "SAMEBITS_"
CONFIG_VARIABLE = ENVIRONMENT_PREFIX + "CONFIG"
"""names the TOML file where `--config` does not"""
NUMERICS_PROFILES = ("exact", "tp-invariant", "torch", "unpinned")
PROMISING_PROFILES = ("exact", "tp-invariant")
MEMORY = "memory (changes no bit)"
"""a heading of flags"""
CLOSE_ENOUGH = 0.7
"""likeness from which an unknown name is taken for a mistyped one"""
Settings = TypeVar("Settings")


def setting(
    default: Any,
    help_text: str,
    choices: tuple[str, ...] = (),
    flag: str = "",
    group: str = "",
    secret: bool = False,
    synonyms: Mapping[str, str] | None = None,
) -> Any:
    """A dataclass field with what its flag's `--help` says and under which heading. A default that is a tuple makes
    a list: the flag may be repeated, and commas part values. A secret is never shown. `synonyms` are other words
    for some of the choices."""
    metadata = {"help": help_text, "choices": choices, "flag": flag, "group": group, "secret": secret}
    return field(default=default, repr=not secret, metadata=metadata | {"synonyms": dict(synonyms or {})})


@dataclass(frozen=True)
class ModelConfig:
    """Which weights, and what decides their bits."""

    model: str = setting(
        "bundled", "checkpoint folder or hub id; 'bundled' (or 'bundled-draft') ships inside"
    )
    load_format: str = setting(
        "safetensors",
        "dummy: seeded random weights",
        ("safetensors", "dummy"),
        synonyms={"auto": "safetensors"},
    )
    dummy_seed: int = setting(0, "seed of the dummy weights")
    numerics: str = setting("exact", "numerics profile", NUMERICS_PROFILES)
    dtype: str = setting(
        "auto",
        "weights' dtype",
        ("auto", "bfloat16", "float16", "float32"),
        synonyms={"half": "float16", "float": "float32"},
    )
    device: str = setting("auto", "where the numerics run", ("auto", "cpu", "cuda"))
    tensor_parallel: int = setting(
        1, "ranks that share the model, a process each; under tp-invariant it changes no bit", flag="--tp"
    )
    context_length: int = setting(0, "longest request in tokens; 0: the model's limit")
    attention_split_tokens: int = setting(
        0,
        "keys of a split, a multiple of 64; decides bits, needs a GPU; 0: the contract's",
    )
    sampling_defaults: str = setting(
        "model",
        "take blank sampling parameters from the model's generation_config.json",
        ("model", "none"),
        synonyms={"openai": "none"},
    )
    default_seed: str = setting("42", "seed of requests that name none: a number, or 'random' for one each")


@dataclass(frozen=True)
class EngineConfig:
    """How the engine runs. Nothing here may change a bit, and the simulator checks that."""

    page_tokens: int = setting(64, "tokens in a KV page, a multiple of 64", group=MEMORY)
    kv_pages: int = setting(0, "number of KV pages; 0: from kv_memory_mib", group=MEMORY)
    kv_memory_mib: int = setting(
        0, "MiB for KV pages; 0: 1024 on the CPU, on a GPU what memory_fraction leaves", group=MEMORY
    )
    memory_fraction: float = setting(
        0.0, "share of a GPU for weights and KV pages; 0: 0.9, where kv_memory_mib is 0", group=MEMORY
    )
    prefix_cache: bool = setting(True, "keep KV pages of prompts for reuse", group=MEMORY)
    step_tokens: int = setting(
        0, "most tokens in a step; longer prompts are cut; 0: 512 on the CPU, 8192 or 8448 on a GPU"
    )
    max_running: int = setting(0, "most requests in one step; 0: 64 on the CPU, 256 on a GPU")
    max_waiting: int = setting(4096, "most requests in the queue")
    assumed_answer_tokens: int = setting(
        4096,
        "tokens expected of answers before any has ended; 0: admit whoever fits now",
    )
    loop: str = setting(
        "overlapped", "prepare the next step while one runs, or one after another", ("overlapped", "simple")
    )
    threads: int = setting(0, "threads of the CPU; 0: one a core")
    data_parallel: int = setting(
        1, "engines behind one server, each with the whole model; it changes no bit", flag="--dp"
    )
    all_reduce: str = setting(
        "auto",
        "how the ranks of GPUs add; nccl promises nothing, and is for unpinned",
        ("auto", "one-shot", "two-shot", "push", "gather", "nccl"),
    )
    ranks_per_gpu: int = setting(1, "ranks that share a GPU, to prove a degree; slow")
    cuda_graph_max_bs: int = setting(-1, "largest batch run as a CUDA graph; 0: none, -1: all")


@dataclass(frozen=True)
class ServerConfig:
    """How the server listens, whom it lets in, how much it takes on, what it writes."""

    host: str = setting("127.0.0.1", "address to listen on")
    port: int = setting(30000, "port to listen on")
    served_model_name: str = setting("", "name in responses; empty: the model's own")
    page: bool = setting(True, "chat page at /")
    api_key: tuple[str, ...] = setting(
        (), "key that requests must carry; may be repeated", group="access", secret=True
    )
    api_key_file: str = setting("", "file with one key a line", group="access")
    cors_origins: tuple[str, ...] = setting(
        (), "web origins that may call: https://example.org, or *", group="access"
    )
    tool_call_parser: str = setting(
        "auto",
        "of tool calls; auto: by the chat template",
        ("auto", "hermes", "qwen", "qwen25", "llama3", "llama3_json"),
    )
    max_body_mib: int = setting(16, "largest request body in MiB", group="limits")
    max_in_flight: int = setting(4096, "HTTP requests at once; more get 503", group="limits")
    default_deadline_seconds: float = setting(
        0.0,
        "of requests that name none; 0: never",
        group="limits",
    )
    drain_seconds: float = setting(30.0, "how long SIGTERM waits for requests", group="limits")
    engine_restarts: int = setting(
        3, "how often in 10 minutes a dead engine is started anew; 0: exit at once", group="limits"
    )
    log_level: str = setting("info", "how much to log", ("debug", "info", "warning", "error"), group="log")
    log_format: str = setting("text", "for people or for machines", ("text", "json"), group="log")
    profile_folder: str = setting("", "where /start_profile writes traces", group="log")
    otlp_endpoint: str = setting("", "OpenTelemetry collector to send spans to", group="log")


def shown(settings: Any) -> dict[str, Any]:
    """Settings by name, without the secret ones."""
    return {
        entry.name: getattr(settings, entry.name)
        for entry in fields(settings)
        if not entry.metadata.get("secret")
    }


def flag_name(name: str) -> str:
    """`kv_pages` -> `--kv-pages`."""
    return "--" + name.replace("_", "-")


def flag_text(name: str, value: Any) -> str:
    """A setting as one word of a command line: `--port=8000`, `--no-prefix-cache`."""
    if isinstance(value, bool):
        return flag_name(name) if value else flag_name("no_" + name)
    return f"{flag_name(name)}={value}"


def read_toml(path: str | Path) -> dict[str, Any]:
    """The settings of a TOML file, by name. Raises `ConfigError` naming the file."""
    try:
        with open(path, "rb") as file:
            return {key.replace("-", "_"): value for key, value in tomllib.load(file).items()}
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def check_known(file_values: Mapping[str, Any], source: str) -> None:
    """Refuse a configuration file that names a setting that does not exist."""
    known = setting_names()
    unknown = sorted(set(file_values) - set(known))
    if unknown:
        near = get_close_matches(unknown[0], known, 1, CLOSE_ENOUGH)
        meant = f"; is {near[0]} meant?" if near else ""
        raise ConfigError(f"{source} names unknown settings: {', '.join(unknown)}{meant}")


def setting_names() -> list[str]:
    """Every setting there is."""
    return [entry.name for cls in (ModelConfig, EngineConfig, ServerConfig) for entry in fields(cls)]


def mistyped_variables(environment: Mapping[str, str]) -> list[str]:
    """A line for each variable of an environment that looks like one of ours, and is read by nobody."""
    known = ["CONFIG", *(name.upper() for name in setting_names())]
    lines = []
    for variable in sorted(environment):
        name = variable.removeprefix(ENVIRONMENT_PREFIX)
        if name == variable or name in known:
            continue
        if near := get_close_matches(name, known, 1, CLOSE_ENOUGH):
            meant = ENVIRONMENT_PREFIX + near[0]
            lines.append(f"{variable} in the environment names no setting; is {meant} meant?")
    return lines


def resolve(
    cls: type[Settings],
    command_line: Mapping[str, Any],
    environment: Mapping[str, str] | None = None,
    file_values: Mapping[str, Any] | None = None,
) -> Settings:
    """Build `cls` from its four sources. A None on the command line means: not given."""
    environment = os.environ if environment is None else environment
    file_values = file_values or {}
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for entry in fields(cls):  # type: ignore[arg-type]
        variable = ENVIRONMENT_PREFIX + entry.name.upper()
        if command_line.get(entry.name) is not None:
            value, source = command_line[entry.name], flag_name(entry.name)
        elif environment.get(variable):
            value, source = environment[variable], variable
        elif entry.name in file_values:
            value, source = file_values[entry.name], f"'{entry.name}' in the configuration file"
        else:
            continue
        converted = _convert(value, hints[entry.name], source)
        values[entry.name] = entry.metadata.get("synonyms", {}).get(converted, converted)
        choices = entry.metadata.get("choices")
        if choices and values[entry.name] not in choices:
            raise ConfigError(f"{source} must be one of {', '.join(choices)}, got {value!r}")
    return cls(**values)


def _convert(value: Any, kind: Any, source: str) -> Any:
    if kind == tuple[str, ...]:
        return _convert_list(value, source)
    if kind is bool:
        if isinstance(value, bool):
            return value
        lowered = str(value).lower()
        if lowered in ("1", "true", "yes", "on"):
            return True
        if lowered in ("0", "false", "no", "off"):
            return False
        raise ConfigError(f"{source} must be true or false, got {value!r}")
    unfit = ConfigError(f"{source} must be of type {kind.__name__}, got {value!r}")
    if isinstance(value, bool) or (kind is int and isinstance(value, float)):
        raise unfit  # Python would make 1 of true and of 1.5
    try:
        return kind(value)
    except (TypeError, ValueError) as error:
        raise unfit from error


def _convert_list(value: Any, source: str) -> tuple[str, ...]:
    """Texts of a list, or of one text with commas. An empty one is refused: nothing is not what was meant."""
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
        raise ConfigError(f"{source} must be a text or a list of texts")
    texts = tuple(text.strip() for part in parts for text in part.split(","))
    if not texts or not all(texts):
        raise ConfigError(f"{source} is given but empty")
    return texts
