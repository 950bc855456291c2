"""`samebits info`."""

from __future__ import annotations

import argparse
import json
import platform
from importlib import metadata
from typing import Any

from samebits import __version__
from samebits.commands.flags import add_model_argument, add_settings, command, open_llm
from samebits.config import EngineConfig, ModelConfig

LIBRARIES = ("torch", "numpy", "numba", "llvmlite", "triton", "tokenizers", "safetensors")
EXAMPLES = """\
  samebits info
  samebits info path/to/checkpoint --numerics tp-invariant
  samebits info --json
  samebits info --kernels
"""


def add(commands: Any) -> None:
    parser = command(
        commands, "info", "tell what the engine decides for a model", EXAMPLES, run, "info [MODEL]"
    )
    add_model_argument(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--kernels",
        action="store_true",
        help="tell instead which kernels are proven on this GPU, and which were rejected, from the starts so far",
    )
    add_settings(parser, ModelConfig, EngineConfig)


def run(options: argparse.Namespace) -> int:
    if options.kernels:
        from samebits.commands import kernel_table

        return kernel_table.show(options.json)
    with open_llm(options) as llm:
        parts = describe(llm.facts)
    if options.json:
        print(json.dumps(parts, indent=2))
        return 0
    for title, values in parts.items():
        print(title)
        width = max(len(name) for name in values)
        for name, value in values.items():
            print(f"  {name.ljust(width)}  {value}")
    return 0


def describe(facts: Any) -> dict[str, dict[str, str]]:
    """What `info` shows, in groups: engine, plan, versions."""
    return {
        "engine": {
            "model": facts.model,
            "family": facts.family,
            "vocabulary": str(facts.vocabulary),
            "context": f"{facts.context_length} tokens",
            "KV pages hold": f"{facts.kv_tokens} tokens",
            "end of sequence": ", ".join(map(str, facts.eos_token_ids)) or "none",
            "default seed": "random" if facts.default_seed is None else str(facts.default_seed),
        },
        "plan": {
            "fingerprint": facts.fingerprint,
            "numerics": facts.profile + ("" if facts.promises_bits else " (promises no bits)"),
            **{name: value for name, value in facts.plan.items() if name not in ("fingerprint", "numerics")},
        },
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Python, machine and the libraries that are installed."""
    found = {"samebits": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | {"machine": f"{platform.system()} {platform.machine()}"}
