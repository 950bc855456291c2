"""The flags of SGLang's, vLLM's and FastDeploy's servers, told in our settings, so that their launch commands run.

`FLAGS` is the whole translation. A foreign flag means one of our settings, or means nothing here and says why, or
is refused with what to do instead. None is passed over in silence.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from samebits.config import PROMISING_PROFILES, EngineConfig, ModelConfig, flag_name, flag_text
from samebits.errors import ConfigError


@dataclass(frozen=True)
class Meaning:
    """What a foreign flag comes to: a setting with its value, and a line for the log; either may be missing."""

    setting: str = ""
    value: Any = None
    note: str = ""


Read = Callable[[str], Meaning]
"""From the flag's value, empty where it has none, to its meaning. Raises `ConfigError` with a reason."""


@dataclass(frozen=True)
class ForeignFlag:
    """A flag, or several that mean the same."""

    names: tuple[str, ...]
    read: Read
    help: str
    takes: int | str | None = None
    """values after it, as argparse's `nargs`: None for one, 0 for a switch, `*` for any number"""


FOREIGN = "foreign"
"""where argparse keeps them: pairs of a flag and its value, as typed"""
HELP = {
    entry.name: str(entry.metadata["help"]) for cls in (ModelConfig, EngineConfig) for entry in fields(cls)
}


def whole(text: str) -> int:
    """A whole number; vLLM's `8k` is 8000 and `8K` is 8192."""
    scale = {"k": 1000, "K": 1024}.get(text[-1:], 1)
    return int(text[:-1] if scale > 1 else text) * scale


def positive(text: str) -> int:
    """A whole number above zero."""
    if whole(text) < 1:
        raise ValueError
    return whole(text)


def page(text: str) -> int:
    """A page is a whole number of key blocks of 64 tokens."""
    if positive(text) % 64:
        raise ValueError
    return whole(text)


def share(text: str) -> float:
    """A number between 0 and 1."""
    if not 0 < float(text) < 1:
        raise ValueError
    return float(text)


def means(names: str, setting: str, kind: Callable[[str], Any] = str) -> ForeignFlag:
    """Another name of one of our settings."""

    def read(text: str) -> Meaning:
        try:
            return Meaning(setting, kind(text))
        except ValueError as error:
            raise ConfigError(f"got {text!r}; see {flag_name(setting)} ({HELP[setting]})") from error

    return ForeignFlag(tuple(names.split()), read, f"is {flag_name(setting)}")


def sets(names: str, setting: str, value: Any) -> ForeignFlag:
    """A switch that gives one of our settings a value."""
    text = flag_text(setting, value).replace("=", " ")
    return ForeignFlag(tuple(names.split()), lambda _: Meaning(setting, value), f"is {text}", 0)


def word(names: str, setting: str, words: Mapping[str, str]) -> ForeignFlag:
    """One of our settings, with other words for its values."""

    def read(text: str) -> Meaning:
        if text not in words:
            raise ConfigError(f"got {text!r}; see {flag_name(setting)} ({HELP[setting]})")
        return Meaning(setting, words[text])

    listed = ", ".join(f"{theirs} is {ours}" for theirs, ours in words.items())
    return ForeignFlag(tuple(names.split()), read, f"is {flag_name(setting)}: {listed}")


def idle(names: str, why: str, takes: int | str | None = 0) -> ForeignFlag:
    """Accepted, and without effect for a reason that is logged."""
    return ForeignFlag(tuple(names.split()), lambda _: Meaning(note=why), why, takes)


def only(names: str, words: Sequence[str], otherwise: str, note: str = "") -> ForeignFlag:
    """Accepted with values that ask for what there is anyway, refused with all others."""

    def read(text: str) -> Meaning:
        if text not in words:
            raise ConfigError(f"got {text!r}: {otherwise}")
        return Meaning(note=note)

    return ForeignFlag(tuple(names.split()), read, f"{' or '.join(words)}; {otherwise}")


def refused(names: str, instead: str) -> ForeignFlag:
    """Refused, whatever follows, with a sentence that says what to do."""

    def read(text: str) -> Meaning:
        raise ConfigError(instead)

    return ForeignFlag(tuple(names.split()), read, f"refused: {instead}", "*")


DETERMINISM = "--enable-deterministic-inference"
SPECULATION = "speculation is not offered yet; leave it out, which cannot change a bit of an answer"
FLAGS = (
    idle(
        DETERMINISM,
        "determinism is always on, and there is no slower mode that it would switch on",
    ),
    only(
        "--attention-backend --prefill-attention-backend --decode-attention-backend",
        ("triton", "native", "auto"),
        "not offered; leave it out, or write triton, which is another name of the native backend",
        "the native backend computes attention; triton is another name of it",
    ),
    # model
    means("--model-path", "model"),
    means("--max-model-len", "context_length", positive),
    means("--random-seed --seed", "default_seed"),
    word("--generation-config", "sampling_defaults", {"auto": "model", "vllm": "none"}),
    refused(
        "--trust-remote-code",
        "no code of a checkpoint is ever run, and the supported families need none; leave it out",
    ),
    refused(
        "--tokenizer-path --tokenizer --chat-template --json-model-override-args --hf-overrides",
        "the plan, and so the fingerprint, is of the checkpoint's own files; change them in its folder",
    ),
    refused(
        "--quantization --quantization-param-path",
        "quantized weights are not offered yet; serve a checkpoint in bfloat16, float16 or float32",
    ),
    refused("--enable-lora --lora-paths --lora-modules", "LoRA is not offered yet; serve merged weights"),
    refused(
        "--speculative-algorithm --speculative-algo --speculative-draft-model-path --speculative-draft-model "
        "--speculative-num-steps --speculative-eagle-topk --speculative-num-draft-tokens "
        "--speculative-attention-mode --speculative-token-map --speculative-accept-threshold-single "
        "--speculative-accept-threshold-acc --speculative-config --speculative-model "
        "--num-speculative-tokens",
        SPECULATION,
    ),
    refused(
        "--rl-on-policy-target",
        "a trainer's numerics are not imitated; scoring equals generating here without it",
    ),
    # batches and memory
    means("--mem-fraction-static --gpu-memory-utilization", "memory_fraction", share),
    means("--chunked-prefill-size --max-num-batched-tokens", "step_tokens", positive),
    means("--max-running-requests --max-num-seqs", "max_running", positive),
    means("--max-queued-requests", "max_waiting", positive),
    means("--page-size --block-size", "page_tokens", page),
    means("--num-gpu-blocks-override", "kv_pages", positive),
    means("--max-cudagraph-capture-size", "cuda_graph_max_bs", whole),
    sets("--disable-cuda-graph --enforce-eager", "cuda_graph_max_bs", 0),
    sets("--disable-radix-cache --no-enable-prefix-caching", "prefix_cache", False),
    sets("--enable-prefix-caching", "prefix_cache", True),
    sets("--disable-overlap-schedule --no-async-scheduling", "loop", "simple"),
    sets("--async-scheduling", "loop", "overlapped"),
    idle("--max-prefill-tokens", "--step-tokens bounds a step", None),
    idle(
        "--cuda-graph-bs --cuda-graph-sizes --cudagraph-capture-sizes", "graphs have sizes of their own", "*"
    ),
    idle(
        "--enable-mixed-chunk --enable-chunked-prefill",
        "long prompts are always cut into chunks, which steps share with answers",
    ),
    refused(
        "--no-enable-chunked-prefill",
        "chunks change no bit; for whole prompts, give --step-tokens the longest prompt's length",
    ),
    idle(
        "--schedule-policy --schedule-conservativeness --scheduling-policy",
        "requests are served by priority, then in the order in which they came; no order changes a bit",
        None,
    ),
    idle("--enable-priority-scheduling", "a request's priority always counts"),
    only("--kv-cache-dtype", ("auto",), "keys and values have the activations' type"),
    only("--swap-space --cpu-offload-gb", ("0", "0.0"), "KV pages and weights stay on one device"),
    idle(
        "--enable-torch-compile --skip-server-warmup",
        "kernels are compiled before the server is ready, in one way",
    ),
    # devices
    means("--tp-size --tensor-parallel-size -tp", "tensor_parallel", positive),
    means("--dp-size --data-parallel-size -dp", "data_parallel", positive),
    only(
        "--pp-size --pipeline-parallel-size -pp --ep-size --nnodes",
        ("1",),
        "a model is cut over the ranks of one host by --tp alone; leave it out",
    ),
    only("--node-rank", ("0",), "the model is on one host"),
    only("--splitwise-role", ("mixed",), "one engine computes prompts and answers"),
    refused("--enable-expert-parallel --enable-dp-attention", "mixtures of experts are not offered yet"),
    idle("--disable-custom-all-reduce", "the collectives that join ranks are part of the plan"),
    # server
    only(
        "--reasoning-parser",
        ("qwen3", "deepseek-r1", "deepseek_r1"),
        "thoughts are read between <think> and </think> alone",
        "thoughts are split off where the checkpoint's chat template knows </think>",
    ),
    only(
        "--grammar-backend --guided-decoding-backend",
        ("llguidance", "guidance", "auto"),
        "masks come from llguidance, whose version is in the fingerprint",
        "structured output is always on, through llguidance",
    ),
    idle("--enable-auto-tool-choice", "tool calls are read wherever a request has tools"),
    idle(
        "--enable-metrics --enable-cache-report --enable-prompt-tokens-details --enable-logprob", "always on"
    ),
    idle(
        "--disable-log-requests --no-enable-log-requests --disable-log-stats",
        "neither prompts nor answers are logged; --log-level warning leaves out a line a request",
    ),
    idle("--stream-interval", "tokens are sent as they come", None),
    refused("--metrics-port", "metrics are at /metrics of --port"),
    idle("--engine-worker-queue-port --cache-queue-port", "the engine listens on no port", None),
)


def check_promise(typed: Sequence[tuple[str, str]], numerics: str) -> None:
    """Raise `ConfigError` where determinism is asked for by name and the numerics profile promises none."""
    if numerics not in PROMISING_PROFILES and any(name == DETERMINISM for name, _ in typed):
        raise ConfigError(
            f"{DETERMINISM} contradicts --numerics {numerics}, which promises nothing; leave one of them out"
        )


def about_unknown(words: Sequence[str], known: Collection[str]) -> str:
    """What to say of words of a command line that nobody knows, `known` being the flags that there are."""
    flags = [word.partition("=")[0] for word in words if word.startswith("-")]
    for flag in flags:
        if flag.startswith("--speculative-"):
            return f"{flag}: {SPECULATION}"
    told = f"unknown: {' '.join(words)}"
    near = [close[0] for flag in flags if (close := get_close_matches(flag, known, 1, 0.7))]
    return told + (f"; is {' and '.join(near)} meant?" if near else "; --help lists what there is")


class _Keep(argparse.Action):
    """Notes the flag as it was typed; what it means is found out later, so that errors look like all others."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        text = " ".join(values) if isinstance(values, list) else values
        typed = [*(getattr(namespace, self.dest) or ()), (option_string, text)]
        setattr(namespace, self.dest, typed)


class _HelpAll(argparse.Action):
    """`--help` with the foreign flags in it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        helps = {flag.names: flag.help for flag in FLAGS}
        for action in parser._actions:
            if isinstance(action, _Keep):
                action.help = helps[tuple(action.option_strings)].replace("%", "%%")
        parser.print_help()
        parser.exit()


def add_foreign(parser: argparse.ArgumentParser) -> None:
    """The foreign flags, in a group that only `--help-all` shows."""
    parser.add_argument(
        "--help-all", action=_HelpAll, nargs=0, help="with the flags of SGLang, vLLM and FastDeploy"
    )
    group = parser.add_argument_group("flags of SGLang, vLLM and FastDeploy")
    for flag in FLAGS:
        group.add_argument(
            *flag.names,
            action=_Keep,
            dest=FOREIGN,
            nargs=flag.takes,
            metavar="VALUE",
            help=argparse.SUPPRESS,
        )


def translate(typed: Sequence[tuple[str, str]], given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(settings, lines for the log) of foreign flags as typed. `given` are the settings of our own flags.

    Raises `ConfigError` naming the flag: one that is refused, or that contradicts another.
    """
    by_name = {name: flag for flag in FLAGS for name in flag.names}
    settings: dict[str, Any] = {}
    source = {name: flag_name(name) for name, value in given.items() if value is not None}
    notes = []
    for name, text in typed:
        try:
            meaning = by_name[name].read(text)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
        if meaning.note:
            notes.append(f"{name}: {meaning.note}")
        if not meaning.setting:
            continue
        before = settings.get(meaning.setting, given.get(meaning.setting))
        if before is not None and str(before) != str(meaning.value):
            raise ConfigError(f"{name} {text}".rstrip() + f" contradicts {source[meaning.setting]} {before}")
        settings[meaning.setting], source[meaning.setting] = meaning.value, name
    return settings, notes
