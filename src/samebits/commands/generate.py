"""`samebits generate`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

import msgspec

from samebits.commands.batch_run import add_batch, run_batch
from samebits.commands.flags import add_sampling, add_settings, command, given_sampling, open_llm, sampling_of
from samebits.config import EngineConfig, ModelConfig
from samebits.errors import ConfigError

EXAMPLES = """\
  samebits generate "def add(a, b):"
  samebits generate "1 + 1 =" "2 + 2 =" --temperature 0 --max-new-tokens 8
  samebits generate --chat "Sara has 120 books. She sells 45 of them. How many books are left?"
  samebits generate --n 4 --seed 7 --json < prompt.txt
  samebits generate --batch requests.jsonl --output answers.jsonl
  samebits generate -i requests.jsonl -o answers.jsonl --url http://127.0.0.1:30000
"""


def add(commands: Any) -> None:
    parser = command(
        commands, "generate", "complete texts, or answer a batch", EXAMPLES, run, "generate [PROMPT ...]"
    )
    parser.add_argument(
        "prompts", nargs="*", metavar="PROMPT", help="a text; none: standard input is the prompt"
    )
    parser.add_argument(
        "--chat", action="store_true", help="each prompt is a user's message, not a text to go on"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a sample, token ids and logprobs in it"
    )
    add_batch(parser)
    add_sampling(parser)
    add_settings(parser, ModelConfig, EngineConfig)


def run(options: argparse.Namespace) -> int:
    params = sampling_of(options)
    if options.batch:
        check_batch(options)
        return run_batch(options)
    if options.url or options.output != "-":
        raise ConfigError("--url and --output are for --batch")
    prompts = read_prompts(options.prompts)
    with open_llm(options) as llm:
        if options.chat:
            conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
            results = llm.chat(conversations, params, return_logprob=options.json)
        else:
            results = llm.generate(prompts, params, return_logprob=options.json)
    for result in results:
        show(result, options.json, plain=len(results) == 1)
    return 0


def check_batch(options: argparse.Namespace) -> None:
    """A batch brings its own prompts and parameters. Raises `ConfigError` for flags that would do nothing."""
    if options.prompts or options.chat or options.json or given_sampling(options):
        raise ConfigError(
            "--batch takes prompts and sampling parameters from its lines: leave the others out"
        )


def read_prompts(arguments: list[str]) -> list[str]:
    """The prompts of the command line, else all of standard input as one."""
    if arguments and arguments != ["-"]:
        return arguments
    if not arguments and sys.stdin.isatty():
        raise ConfigError('no prompt: samebits generate "a text", or a text on standard input')
    return [sys.stdin.read()]


def show(result: Any, as_json: bool, plain: bool) -> None:
    """One sample on standard output."""
    if as_json:
        print(json.dumps(as_dict(result), ensure_ascii=False))
    elif plain:
        print(result.text)
    else:
        print(f"--- prompt {result.prompt_index}, sample {result.sample_index}\n{result.text}")


def as_dict(result: Any) -> dict[str, Any]:
    """A completion as plain values. Each logprob is a float32 value exactly."""
    return {
        "prompt_index": result.prompt_index,
        "prompt_token_ids": list(result.prompt_token_ids),
        "text": result.text,
        "token_ids": list(result.token_ids),
        "logprobs": [entry.logprob for entry in result.logprobs or ()],
        "finish_reason": dataclasses.asdict(result.finish_reason),
        "sampling": msgspec.to_builtins(result.sampling),
        "fingerprint": result.fingerprint,
        "cached_tokens": result.cached_tokens,
        "warnings": list(result.warnings),
    }
