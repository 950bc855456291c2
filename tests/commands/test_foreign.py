"""Flags of SGLang, vLLM and FastDeploy on our command line, one by one."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from samebits.cli import build_parser, main
from samebits.commands.flags import settings_of
from samebits.commands.foreign import FLAGS, FOREIGN, translate
from samebits.config import EngineConfig, ModelConfig, ServerConfig
from samebits.errors import ConfigError

MEANT = {
    "--model-path some/folder": {"model": "some/folder"},
    "--max-model-len 4096": {"context_length": 4096},
    "--max-model-len 8k": {"context_length": 8000},
    "--max-model-len 8K": {"context_length": 8192},
    "--random-seed 7": {"default_seed": "7"},
    "--seed 0": {"default_seed": "0"},
    "--generation-config auto": {"sampling_defaults": "model"},
    "--generation-config vllm": {"sampling_defaults": "none"},
    "--mem-fraction-static 0.8": {"memory_fraction": 0.8},
    "--gpu-memory-utilization=0.9": {"memory_fraction": 0.9},
    "--chunked-prefill-size 2048": {"step_tokens": 2048},
    "--max-num-batched-tokens 8192": {"step_tokens": 8192},
    "--max-running-requests 32": {"max_running": 32},
    "--max-num-seqs 256": {"max_running": 256},
    "--max-queued-requests 100": {"max_waiting": 100},
    "--page-size 64": {"page_tokens": 64},
    "--block-size 128": {"page_tokens": 128},
    "--num-gpu-blocks-override 77": {"kv_pages": 77},
    "--max-cudagraph-capture-size 32": {"cuda_graph_max_bs": 32},
    "--disable-cuda-graph": {"cuda_graph_max_bs": 0},
    "--enforce-eager": {"cuda_graph_max_bs": 0},
    "--disable-radix-cache": {"prefix_cache": False},
    "--no-enable-prefix-caching": {"prefix_cache": False},
    "--enable-prefix-caching": {"prefix_cache": True},
    "--disable-overlap-schedule": {"loop": "simple"},
    "--no-async-scheduling": {"loop": "simple"},
    "--async-scheduling": {"loop": "overlapped"},
    "-tp 8": {"tensor_parallel": 8},
    "--tp-size 2": {"tensor_parallel": 2},
    "--tensor-parallel-size 4": {"tensor_parallel": 4},
    "-dp 2": {"data_parallel": 2},
    "--data-parallel-size 2": {"data_parallel": 2},
}
"""flags that mean a setting"""
OURS = {
    "--cuda-graph-max-bs 16": {"cuda_graph_max_bs": 16},
    "--tp 2 --dp 3": {"tensor_parallel": 2, "data_parallel": 3},
    "--served-model-name judge": {"served_model_name": "judge"},
    "--context-length 2048": {"context_length": 2048},
    "--load-format auto": {"load_format": "safetensors"},
    "--load-format dummy": {"load_format": "dummy"},
    "--dtype half": {"dtype": "float16"},
    "--dtype float": {"dtype": "float32"},
    "--sampling-defaults openai": {"sampling_defaults": "none"},
    "--host 0.0.0.0 --port 8000": {"host": "0.0.0.0", "port": 8000},
    "--model some/folder": {"model": "some/folder"},
    "some/folder": {"model": "some/folder"},
    "--api-key secret --log-level warning --device cpu": {
        "api_key": ("secret",),
        "log_level": "warning",
        "device": "cpu",
    },
}
"""flags of theirs that are ours too"""
NOTED = {
    "--enable-deterministic-inference": "determinism is always on",
    "--attention-backend triton": "triton is another name",
    "--attention-backend auto": "the native backend",
    "--prefill-attention-backend triton --decode-attention-backend triton": "another name",
    "--max-prefill-tokens 16384": "--step-tokens",
    "--cuda-graph-bs 1 2 4 8": "sizes of their own",
    "--enable-mixed-chunk": "chunks",
    "--enable-chunked-prefill": "chunks",
    "--schedule-policy lpm": "no order changes a bit",
    "--scheduling-policy fcfs": "no order changes a bit",
    "--schedule-conservativeness 1.0": "no order changes a bit",
    "--enable-priority-scheduling": "priority",
    "--enable-torch-compile": "compiled",
    "--skip-server-warmup": "compiled",
    "--disable-custom-all-reduce": "part of the plan",
    "--enable-auto-tool-choice": "wherever a request has tools",
    "--grammar-backend llguidance": "llguidance",
    "--guided-decoding-backend auto": "llguidance",
    "--reasoning-parser qwen3": "</think>",
    "--enable-metrics": "always on",
    "--disable-log-requests": "neither prompts nor answers",
    "--stream-interval 4": "as they come",
    "--engine-worker-queue-port 8182 --cache-queue-port 8183": "no port",
}
"""flags without effect, and words of the reason that is logged"""
SILENT = (
    "--tp 1",
    "-tp 1",
    "--tp-size 1",
    "--tensor-parallel-size 1",
    "--dp-size 1",
    "--pipeline-parallel-size 1",
    "--nnodes 1 --node-rank 0",
    "--kv-cache-dtype auto",
    "--swap-space 0",
    "--splitwise-role mixed",
)
"""flags that ask for what there is anyway"""
REFUSED = {
    "--attention-backend fa3": "write triton",
    "--attention-backend flashinfer": "write triton",
    "--decode-attention-backend fa4": "write triton",
    "--speculative-algorithm EAGLE": "speculation is not offered yet",
    "--speculative-draft-model-path some/draft": "speculation is not offered yet",
    '--speculative-config \'{"method": "ngram"}\'': "speculation is not offered yet",
    "--trust-remote-code": "no code of a checkpoint is ever run",
    "-tp 0": "--tensor-parallel (ranks that share the model",
    "--pipeline-parallel-size 2": "by --tp alone",
    "--nnodes 2": "by --tp alone",
    "--enable-expert-parallel": "mixtures of experts",
    "--quantization fp8": "not offered yet",
    "--kv-cache-dtype fp8_e5m2": "the activations' type",
    "--enable-lora --max-running 3": "merged weights",
    "--chat-template some.jinja": "fingerprint",
    "--tokenizer-path some/folder": "fingerprint",
    "--rl-on-policy-target fsdp": "scoring equals generating",
    "--chunked-prefill-size -1": "--step-tokens (most tokens in a step",
    "--max-model-len auto": "--context-length (longest request",
    "--page-size 1": "a multiple of 64",
    "--block-size 16": "a multiple of 64",
    "--mem-fraction-static 1.5": "--memory-fraction (share of a GPU",
    "--no-enable-chunked-prefill": "chunks change no bit",
    "--generation-config some/folder": "--sampling-defaults",
    "--grammar-backend xgrammar": "masks come from llguidance",
    "--metrics-port 8001": "/metrics of --port",
    "--cpu-offload-gb 4": "one device",
    "--splitwise-role prefill": "one engine",
}
"""flags that are refused, and words of what to do instead"""
GUIDE = (
    "serve --model-path Qwen/Qwen3-8B --attention-backend triton --enable-deterministic-inference",
    "serve --model-path M --attention-backend triton --enable-deterministic-inference --tp 1 "
    "--mem-fraction-static 0.8 --chunked-prefill-size 4096 --disable-radix-cache --host 0.0.0.0 --port 30000",
    "serve --model M --max-num-seqs 64 --max-num-batched-tokens 2048 --max-model-len 4096 --enforce-eager "
    "--gpu-memory-utilization 0.9 --served-model-name m --tensor-parallel-size 1 --seed 1",
)
"""whole launch commands of SGLang's determinism guide and in vLLM's words"""


def settings(line: str) -> dict[str, Any]:
    """What a command line of `serve` sets, without defaults."""
    options = build_parser().parse_args(["serve", *shlex.split(line)])
    found: dict[str, Any] = {}
    for cls in (ModelConfig, EngineConfig, ServerConfig):
        resolved, default = settings_of(options, cls), cls()
        found |= {
            name: getattr(resolved, name)
            for name in cls.__dataclass_fields__
            if getattr(resolved, name) != getattr(default, name)
        }
    return found


def notes(line: str) -> list[str]:
    options = build_parser().parse_args(["serve", *shlex.split(line)])
    return translate(getattr(options, FOREIGN) or (), vars(options))[1]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("SAMEBITS_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("line", MEANT | OURS)
def test_a_flag_sets_what_it_means(line: str) -> None:
    defaults = {**vars(ModelConfig()), **vars(EngineConfig()), **vars(ServerConfig())}
    expected = {name: value for name, value in (MEANT | OURS)[line].items() if defaults[name] != value}
    assert settings(line) == expected
    assert notes(line) == []


@pytest.mark.parametrize("line", NOTED)
def test_a_flag_without_effect_says_so(line: str) -> None:
    assert settings(line) == {}
    told = notes(line)
    assert told and all(note.startswith("-") and ": " in note for note in told)
    assert any(NOTED[line] in note for note in told)


@pytest.mark.parametrize("line", SILENT)
def test_a_flag_that_asks_for_what_there_is(line: str) -> None:
    assert settings(line) == {} and notes(line) == []


@pytest.mark.parametrize("line", REFUSED)
def test_a_flag_that_is_refused_says_what_to_do(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *shlex.split(line)]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"samebits: {line.split()[0]}: ") and REFUSED[line] in shown
    assert shown.count("\n") == 1


def test_every_flag_of_the_table_is_tested() -> None:
    lines = " ".join([*MEANT, *NOTED, *SILENT, *REFUSED])
    tested = {word.split("=")[0] for word in lines.split()}
    untested = [flag.names for flag in FLAGS if not tested & set(flag.names)]
    assert untested == []
    names = [name for flag in FLAGS for name in flag.names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("line", GUIDE)
def test_launch_commands_of_others(line: str) -> None:
    found = settings(line.removeprefix("serve "))
    assert found["model"] in ("M", "Qwen/Qwen3-8B")
    assert ("prefix_cache" in found) == ("--disable-radix-cache" in line)


def test_a_contradiction_is_refused() -> None:
    for line, words in {
        "--model a --model-path b": "--model-path b contradicts --model a",
        "a --model-path b": "--model-path b contradicts --model a",
        "--max-num-seqs 4 --max-running-requests 8": "--max-running-requests 8 contradicts --max-num-seqs 4",
        "--prefix-cache --disable-radix-cache": "--disable-radix-cache contradicts --prefix-cache True",
    }.items():
        with pytest.raises(ConfigError, match=words):
            settings(line)
    assert settings("--model a --model-path a") == {"model": "a"}


@pytest.mark.parametrize("profile", ["torch", "unpinned"])
def test_determinism_is_not_said_to_be_on_where_it_is_off(
    profile: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["serve", "--enable-deterministic-inference"]
    assert main([*line, "--numerics", profile]) == 2
    assert f"contradicts --numerics {profile}" in capsys.readouterr().err
    monkeypatch.setenv("SAMEBITS_NUMERICS", profile)
    assert main(line) == 2


def test_a_foreign_flag_goes_before_environment_and_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMEBITS_MAX_RUNNING", "3")
    assert settings("")["max_running"] == 3
    assert settings("--max-num-seqs 5")["max_running"] == 5


def test_a_flag_cut_short_is_not_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["serve", "--max-run", "3"])
    assert "--max-run" in capsys.readouterr().err


def test_help_hides_them_and_help_all_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    for flag, shows in (("--help", False), ("--help-all", True), ("--help", False)):
        with pytest.raises(SystemExit) as leave:
            build_parser().parse_args(["serve", flag])
        assert leave.value.code == 0
        shown = capsys.readouterr().out
        assert all((name in shown) == shows for name in ("--mem-fraction-static", "--speculative-config"))
