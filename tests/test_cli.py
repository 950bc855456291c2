"""The command line: settings and their precedence, errors, exit status, speed of start."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizer import write_tokenizer

import samebits
from samebits import __version__
from samebits.cli import build_parser, main
from samebits.commands.flags import sampling_of, settings_of
from samebits.config import EngineConfig, ModelConfig, ServerConfig, flag_text, mistyped_variables
from samebits.errors import ConfigError, RequestError

HEAVY = ("torch", "numba", "numpy", "starlette", "uvicorn", "tokenizers", "transformers", "zmq", "tqdm")


def parse(*arguments: str) -> argparse.Namespace:
    return build_parser().parse_args(arguments)


def shell(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "samebits", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_starting_loads_nothing_heavy() -> None:
    code = "import sys; from samebits.cli import build_parser; build_parser(); print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(found.stdout.split()).isdisjoint(HEAVY)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"samebits {__version__}\n"
    assert shell("--version").stdout == f"samebits {__version__}\n"


def test_flag_before_environment_before_file_before_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('port = 1\nhost = "file"\nlog-level = "error"\nthreads = 3\n')
    for name in [name for name in os.environ if name.startswith("SAMEBITS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SAMEBITS_PORT", "2")
    monkeypatch.setenv("SAMEBITS_HOST", "environment")
    options = parse("serve", "--port", "3", "--config", str(file))
    server = settings_of(options, ServerConfig)
    assert (server.port, server.host, server.log_level) == (3, "environment", "error")
    assert server.drain_seconds == ServerConfig().drain_seconds
    assert settings_of(options, EngineConfig).threads == 3


def test_a_file_with_an_unknown_setting_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("prot = 8000\n")
    with pytest.raises(ConfigError, match=r"settings\.toml names unknown settings: prot; is port meant\?"):
        settings_of(parse("serve", "--config", str(file)), ServerConfig)


def test_the_model_may_stand_alone() -> None:
    assert settings_of(parse("serve", "some/folder"), ModelConfig).model == "some/folder"
    assert settings_of(parse("serve", "a", "--model", "a"), ModelConfig).model == "a"
    with pytest.raises(ConfigError, match="two models named: a and --model b"):
        settings_of(parse("serve", "a", "--model", "b"), ModelConfig)


@pytest.mark.parametrize("cls", [ModelConfig, EngineConfig, ServerConfig])
def test_every_setting_is_a_flag(cls: type) -> None:
    options = vars(parse("serve"))
    for name in cls.__dataclass_fields__:
        assert name in options and options[name] is None


OTHER_VALUES: dict[str, str] = {"default_seed": "7", "memory_fraction": "0.5"}


def other_value(entry: dataclasses.Field[Any]) -> str:
    """A value that is not the default, as text."""
    if isinstance(entry.default, bool):
        return str(not entry.default).lower()
    choices = [choice for choice in entry.metadata["choices"] if choice != entry.default]
    usual = "word" if entry.default in ("", ()) or isinstance(entry.default, str) else "77"
    return OTHER_VALUES.get(entry.name, choices[0] if choices else usual)


@pytest.mark.parametrize(
    ("cls", "entry"),
    [
        (cls, entry)
        for cls in (ModelConfig, EngineConfig, ServerConfig)
        for entry in dataclasses.fields(cls)  # type: ignore[arg-type]
    ],
    ids=lambda part: getattr(part, "name", ""),
)
def test_every_setting_comes_from_flag_environment_and_file(
    cls: type, entry: dataclasses.Field[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("SAMEBITS_")]:
        monkeypatch.delenv(name)
    value = other_value(entry)
    flag = flag_text(entry.name, {"true": True, "false": False}.get(value, value))
    by_flag = getattr(settings_of(parse("serve", flag), cls), entry.name)
    assert by_flag != entry.default
    monkeypatch.setenv("SAMEBITS_" + entry.name.upper(), value)
    assert getattr(settings_of(parse("serve"), cls), entry.name) == by_flag
    monkeypatch.delenv("SAMEBITS_" + entry.name.upper())
    file = tmp_path / "settings.toml"
    written = json.dumps(list(by_flag) if isinstance(by_flag, tuple) else by_flag)
    file.write_text(f"{entry.name} = {written}\n")
    assert getattr(settings_of(parse("serve", "--config", str(file)), cls), entry.name) == by_flag
    monkeypatch.setenv("SAMEBITS_CONFIG", str(file))
    assert getattr(settings_of(parse("serve"), cls), entry.name) == by_flag


@pytest.mark.parametrize(
    "line", ["port = 8000.5", "port = true", "drain_seconds = false", "prefix_cache = 2"]
)
def test_a_value_of_another_type_is_refused(line: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(line)
    options = parse("serve", "--config", str(file))
    with pytest.raises(ConfigError, match=f"'{line.split()[0]}' in the configuration file must be"):
        settings_of(options, EngineConfig if "cache" in line else ServerConfig)


def test_sampling_flags() -> None:
    options = parse(
        "generate", "x", "--temperature", "0.5", "--stop", "a", "--stop", "b", "--seed", "-1", "--ignore-eos"
    )
    params = sampling_of(options)
    assert (params.temperature, params.stop, params.seed, params.ignore_eos) == (0.5, ["a", "b"], -1, True)
    assert params.top_p is None, "what is not given is the model's to say"
    with pytest.raises(RequestError, match="top_p"):
        sampling_of(parse("generate", "x", "--top-p", "2"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "a", "--model", "b"], "two models named"),
        (["generate", "x", "--top-p", "2"], "top_p must lie in"),
        (["serve", "--config", "missing.toml"], "missing.toml"),
        (["serve", "--config", sys.executable], "is not valid TOML"),
        (["verify", "--url", "http://127.0.0.1:9"], "127.0.0.1:9"),
        (
            ["verify", "--url", "http://127.0.0.1:9", "--numerics", "torch"],
            "--numerics: of an engine in this",
        ),
        (["verify", "--api", "generate"], "--api is for --url"),
        (["verify", "--temperature", "-1"], "--temperature"),
        (["generate", "x", "--model", "/no/such/folder"], "/no/such/folder"),
        (["chat", "--n", "2", "--url", "http://127.0.0.1:9"], "--n must be 1"),
    ],
)
def test_an_error_is_one_clear_line_and_status_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert words in shown.err and shown.err.count("\n") == 1


def test_an_unknown_flag_is_status_2() -> None:
    found = shell("serve", "--prot", "8000")
    assert found.returncode == 2 and "--prot" in found.stderr
    found = shell("verify", "double")
    assert found.returncode == 2 and "'double' is none of all, single" in found.stderr


def test_a_mistyped_variable_is_told_of() -> None:
    given = {
        "SAMEBITS_PRT": "1",
        "SAMEBITS_PORT": "1",
        "SAMEBITS_CONFIG": "x",
        "SAMEBITS_FUZZ_SEED": "0",
        "PORT": "",
    }
    [line] = mistyped_variables(given)
    assert line == "SAMEBITS_PRT in the environment names no setting; is SAMEBITS_PORT meant?"


def test_no_command_shows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "samebits serve" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("bench", "samebits bench: error: the following arguments are required: WHAT"),
        ("serve --prot 8000", "samebits serve: error: unknown: --prot; is --port meant?"),
        ("serve --max-runing=3", "is --max-running meant?"),
        ("serve --speculative-thing 3", "--speculative-thing: speculation is not offered yet"),
        (
            "bench serve --num-prompt 3",
            "samebits bench serve: error: unknown: --num-prompt 3; is --num-prompts",
        ),
        ("serve a b", "unknown: b; --help lists what there is"),
        ("version --loud", "unknown: --loud; --help"),
    ],
)
def test_a_mistyped_flag_is_guessed_at_and_refused(
    arguments: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leave:
        main(arguments.split())
    assert leave.value.code == 2
    assert words in capsys.readouterr().err


def test_interrupt_is_status_130() -> None:
    # It waits for a message from a terminal that never comes.
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from samebits import cli; from samebits.commands import info\n"
            "info.run = lambda options: print('ready', flush=True) or time.sleep(60)\n"
            "sys.exit(cli.main(['info']))",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "interrupted\n")


TINY = ("--model", "tiny", "--load-format", "dummy", "--kv-memory-mib", "64")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny shape with a tokenizer and a chat template; its weights are dummies."""
    folder = tmp_path_factory.mktemp("tiny")
    config = Path(samebits.__file__).parent / "models" / "shapes" / "tiny" / "config.json"
    (folder / "config.json").write_bytes(config.read_bytes())
    return write_tokenizer(folder)


def offline(checkpoint: Path) -> list[str]:
    return [
        "--model",
        str(checkpoint),
        "--load-format",
        "dummy",
        "--kv-memory-mib",
        "64",
        "--max-new-tokens",
        "4",
    ]


def test_generate(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--json", "a page", "the bits", "--n", "2", *offline(checkpoint)]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["prompt_index"], one["sampling"]["sample_index"]) for one in told] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    assert all(len(one["token_ids"]) == len(one["logprobs"]) <= 4 for one in told)


def test_generate_from_standard_input(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "a page", *offline(checkpoint)]) == 0
    expected = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("a page"))
    assert main(["generate", *offline(checkpoint)]) == 0
    assert capsys.readouterr().out == expected


def test_chat_says_what_generate_says(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = ["--ignore-eos", "--max-new-tokens", "24"]
    assert main(["generate", "--chat", "hello", *offline(checkpoint), *longer]) == 0
    expected = capsys.readouterr().out
    assert expected.strip()
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    assert main(["chat", *offline(checkpoint), *longer]) == 0
    assert capsys.readouterr().out == expected


def test_a_model_without_a_tokenizer_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a page", *TINY]) == 2
    assert "tokenizer" in capsys.readouterr().err


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json", *TINY]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["plan"]["fingerprint"].startswith("sb1-")
    assert told["plan"]["numerics"] == "exact"
    assert told["engine"]["vocabulary"] == "1280"


@pytest.mark.parametrize(("profile", "status"), [("exact", 0), ("torch", 1)])
def test_verify_of_both_profiles(profile: str, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "single --n-trials 12 --max-new-tokens 8 --temperature 0 --numerics".split()
    assert main(["verify", *arguments, profile, *TINY]) == status
    shown = capsys.readouterr().out
    assert ("Total samples: 12, Unique samples: 1 " in shown) == (profile == "exact")
    assert ("first difference at output position" in shown) == (profile == "torch")


def test_verify_json_is_all_of_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--n-trials", "2", "--max-new-tokens", "2", "--max-batch", "3", "--json"]
    assert main(["verify", "single", "mixed", *arguments, *TINY]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(mode["mode"], mode["temperature"]) for mode in told["modes"]] == [
        ("single", 0.0),
        ("single", 0.8),
        ("mixed", 0.0),
        ("mixed", 0.8),
    ]
    assert told["passed"] is True


def test_a_list_is_a_repeated_flag_or_commas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('api_key = ["from", "file"]\n')
    options = parse("serve", "--config", str(file))
    assert settings_of(options, ServerConfig).api_key == ("from", "file")
    monkeypatch.setenv("SAMEBITS_API_KEY", "a, b")
    assert settings_of(options, ServerConfig).api_key == ("a", "b")
    options = parse("serve", "--api-key", "x", "--api-key", "y,z")
    assert settings_of(options, ServerConfig).api_key == ("x", "y", "z")


@pytest.mark.parametrize("given", ["", " ", "a,", ","])
def test_an_empty_key_is_not_an_open_server(given: str) -> None:
    with pytest.raises(ConfigError, match="--api-key is given but empty"):
        settings_of(parse("serve", "--api-key", given), ServerConfig)


def test_the_help_of_serve_is_short_and_grouped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["serve", "--help"])
    shown = capsys.readouterr().out
    for title in (
        "server:",
        "access:",
        "limits:",
        "log:",
        "model:",
        "memory (changes no bit):",
        "engine (nothing here changes a bit):",
    ):
        assert f"\n{title}\n" in shown
    assert shown.count("\n") < 110
