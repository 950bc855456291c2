"""`samebits serve`."""

from __future__ import annotations

import argparse
import os
from typing import Any

from samebits.commands.flags import add_model_argument, add_settings, command, settings_of
from samebits.commands.foreign import FOREIGN, add_foreign, check_promise, translate
from samebits.config import EngineConfig, ModelConfig, ServerConfig, mistyped_variables

EXAMPLES = """\
  samebits serve
  samebits serve path/to/checkpoint --port 8000
  samebits serve Qwen/Qwen3-0.6B --host 0.0.0.0 --kv-memory-mib 4096
  samebits serve --model-path Qwen/Qwen3-8B --attention-backend triton --enable-deterministic-inference
  curl http://127.0.0.1:30000/generate -d '{"text": "2 + 2 =", "sampling_params": {"max_new_tokens": 8}}'
"""


def add(commands: Any) -> None:
    parser = command(commands, "serve", "serve a model over HTTP", EXAMPLES, run, "serve [MODEL]")
    add_model_argument(parser)
    add_settings(parser, ServerConfig, ModelConfig, EngineConfig)
    add_foreign(parser)


def run(options: argparse.Namespace) -> int:
    model = settings_of(options, ModelConfig)
    engine = settings_of(options, EngineConfig)
    server = settings_of(options, ServerConfig)
    typed = getattr(options, FOREIGN) or ()
    check_promise(typed, model.numerics)
    from samebits.server.lifecycle import serve

    notes = [*mistyped_variables(os.environ), *translate(typed, vars(options))[1]]
    return serve(model, engine, server, notes=notes)
