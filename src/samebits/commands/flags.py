"""Flags made from the settings classes, and settings made from flags, environment and file."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
from collections.abc import Callable
from itertools import takewhile
from typing import Any, TypeVar, get_type_hints

from samebits.commands.foreign import FOREIGN, translate
from samebits.config import (
    CONFIG_VARIABLE,
    EngineConfig,
    ModelConfig,
    ServerConfig,
    check_known,
    flag_name,
    read_toml,
    resolve,
)
from samebits.errors import ConfigError
from samebits.sampling_params import SamplingParams

Settings = TypeVar("Settings")
TITLES = {ModelConfig: "model", EngineConfig: "engine (nothing here changes a bit)", ServerConfig: "server"}
METAVARS = {int: "N", float: "X", str: "TEXT"}
HELP_COLUMN = 26
SAMPLING_HELP = {
    "temperature": "0: the most likely token each time",
    "top_k": "sample among this many most likely tokens; 0: off",
    "top_p": "sample among the most likely tokens that make up this probability",
    "min_p": "leave out tokens less likely than this times the most likely one",
    "presence_penalty": "subtracted from the logit of every token that has occurred",
    "frequency_penalty": "the same, times how often it occurred",
    "repetition_penalty": "divides the positive logits of tokens that have occurred",
    "max_new_tokens": "longest answer in tokens",
    "min_new_tokens": "shortest answer in tokens",
    "n": "samples of each prompt",
    "seed": "a 64-bit number; the default is in --default-seed",
    "sample_index": "which sample of that seed comes first",
}


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Flags and their help side by side, as far as they fit."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=HELP_COLUMN)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """The names of a foreign flag without its values, which are the same for each of many names."""
        if action.dest == FOREIGN:
            return ", ".join(action.option_strings)
        return super()._format_action_invocation(action)


def command(
    commands: Any,
    name: str,
    help_text: str,
    examples: str,
    run: Callable[[argparse.Namespace], int],
    usage: str,
) -> argparse.ArgumentParser:
    """A subcommand whose help ends with examples. `usage` is what its usage line shows, without the flags."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        prog=" ".join(["samebits", *takewhile(str.islower, usage.split())]),
        usage=f"samebits {usage} [FLAGS]",
        help=help_text,
        description=help_text[0].upper() + help_text[1:] + ".",
        epilog=f"examples:\n{examples}",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,  # a flag of another server, cut short, must not become one of ours
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_settings(parser: argparse.ArgumentParser, *classes: type) -> None:
    """Groups of flags for each settings class, and `--config`. A flag that is not given stays None."""
    for cls in classes:
        hints = get_type_hints(cls)
        groups: dict[str, Any] = {}
        for entry in dataclasses.fields(cls):
            title = entry.metadata["group"] or TITLES[cls]
            if title not in groups:
                groups[title] = parser.add_argument_group(title)
            names = dict.fromkeys([flag_name(entry.name), entry.metadata["flag"] or flag_name(entry.name)])
            groups[title].add_argument(*names, **_flag_options(entry, hints[entry.name]))
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="TOML file; the environment (SAMEBITS_PORT=1) wins",
    )


def given_settings(options: argparse.Namespace, *classes: type) -> list[str]:
    """The flags of these settings classes, and `--config`, that the command line names."""
    names = [entry.name for cls in classes for entry in dataclasses.fields(cls)]
    return [flag_name(name) for name in [*names, "config"] if getattr(options, name, None) is not None]


def _default_text(entry: dataclasses.Field[Any]) -> str:
    """The end of a setting's help: its default as one would type it, unless the help ends with what that means."""
    default = entry.default
    if default in ("", ()):
        return ""
    if isinstance(default, bool):
        return f" (default: {'on' if default else 'off'})"
    text = f"{default:g}" if isinstance(default, float) else str(default)
    said = f" {text}: " in entry.metadata["help"].rpartition(";")[2]
    return " (default)" if said else f" (default: {text})"


def _flag_options(entry: dataclasses.Field[Any], kind: Any) -> dict[str, Any]:
    """What argparse is told of one setting."""
    options: dict[str, Any] = {
        "dest": entry.name,
        "default": None,
        "help": f"{entry.metadata['help']}{_default_text(entry)}".replace("%", "%%"),
    }
    if kind is bool:
        return options | {"action": argparse.BooleanOptionalAction}
    if kind == tuple[str, ...]:
        return options | {"action": "append", "metavar": "TEXT"}
    choices, synonyms = entry.metadata["choices"], entry.metadata["synonyms"]
    if choices:
        return options | {"type": lambda text: synonyms.get(text, text), "choices": choices}
    return options | {"type": kind, "metavar": METAVARS[kind]}


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """The model as a plain argument, for those who do not write `--model`."""
    parser.add_argument(
        "positional_model", nargs="?", metavar="MODEL", help="checkpoint folder or hub id (default: bundled)"
    )


def settings_of(options: argparse.Namespace, cls: type[Settings]) -> Settings:
    """`cls` from the command line, the environment, the file of `--config`, and its defaults."""
    given = dict(vars(options))
    positional = given.get("positional_model")
    if positional is not None:
        if given.get("model") not in (None, positional):
            raise ConfigError(f"two models named: {positional} and --model {given['model']}")
        given["model"] = positional
    if given.get(FOREIGN):
        given |= translate(given[FOREIGN], given)[0]
    file_values: dict[str, Any] = {}
    if path := options.config or os.environ.get(CONFIG_VARIABLE):
        file_values = read_toml(path)
        check_known(file_values, path)
    return resolve(cls, given, file_values=file_values)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """The numbers of `SamplingParams` as flags, `--stop` and `--ignore-eos`."""
    group = parser.add_argument_group(
        "sampling (what is left out comes from the model's generation_config.json)"
    )
    for name, help_text in SAMPLING_HELP.items():
        kind = float if name in ("temperature", "top_p", "min_p") or name.endswith("penalty") else int
        group.add_argument(
            flag_name(name), dest=f"sampling_{name}", type=kind, metavar=kind.__name__.upper(), help=help_text
        )
    group.add_argument(
        "--stop", dest="sampling_stop", action="append", metavar="TEXT", help="end before this text"
    )
    group.add_argument(
        "--ignore-eos",
        dest="sampling_ignore_eos",
        action="store_true",
        default=None,
        help="go on after the end-of-sequence token",
    )


def given_sampling(options: argparse.Namespace) -> dict[str, Any]:
    """The sampling parameters that the command line names, by name."""
    prefix = "sampling_"
    return {
        name.removeprefix(prefix): value
        for name, value in vars(options).items()
        if name.startswith(prefix) and name != "sampling_defaults" and value is not None
    }


def sampling_of(options: argparse.Namespace) -> SamplingParams:
    """The sampling parameters of the command line. Raises `RequestError` naming a bad one."""
    params = SamplingParams(**given_sampling(options))
    params.validate()
    return params


def open_llm(options: argparse.Namespace, **changes: Any) -> Any:
    """An `LLM` with the settings of the command line; `changes` go before them."""
    from samebits.llm import LLM

    model, engine = settings_of(options, ModelConfig), settings_of(options, EngineConfig)
    settings: dict[str, Any] = dataclasses.asdict(model) | dataclasses.asdict(engine) | changes
    return LLM(settings.pop("model"), **settings)


def quieten() -> None:
    """No warnings of what a check does on purpose: equal requests in one batch, a profile that promises nothing."""
    logging.getLogger("samebits").setLevel(logging.ERROR)


def positive(text: str) -> int:
    """A whole number above zero, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value
