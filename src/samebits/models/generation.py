"""generation_config.json: the sampling defaults and the end-of-sequence ids that a model's authors chose."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from samebits.errors import RequestError
from samebits.models.checkpoint import GENERATION_FILE, read_json
from samebits.models.hf_config import ConfigReader, read_token_ids
from samebits.sampling_params import SamplingDefaults, SamplingParams

FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty")
INTEGERS = ("top_k", "max_new_tokens")
log = logging.getLogger(__name__)


def read_generation(folder: Path) -> ConfigReader:
    """The folder's generation_config.json; an empty one where there is none."""
    path = folder / GENERATION_FILE
    return ConfigReader(read_json(path) if path.exists() else {}, str(path))


def sampling_defaults(generation: ConfigReader, source: str) -> SamplingDefaults:
    """What fills a request's blanks. `source` is `model`, or `none` for the neutral values.

    A field that the file does not hold is neutral. `do_sample: false` makes the default temperature 0, as the
    model's authors decode it; a file without `do_sample` means the temperature that it names. Values that no
    request could ask for are refused, naming the field.
    """
    if source == "none":
        return SamplingDefaults()
    values: dict[str, float | int] = {}
    for field in (*FLOATS, *INTEGERS):
        value = generation.values.get(field)
        if value is None:
            continue
        number = generation.as_float(field, value)
        if field in INTEGERS and not isinstance(value, int):
            raise generation.fail(field, f"must be a number, got {value!r}")
        values[field] = value if isinstance(value, int) else number
    if not generation.boolean("do_sample", True):
        values["temperature"] = 0.0
    try:
        SamplingParams(**values).validate()  # type: ignore[arg-type]
    except RequestError as error:
        raise generation.fail(error.field or "", f"is out of range: {error}") from error
    values = {name: float(value) if name in FLOATS else value for name, value in values.items()}
    defaults = SamplingDefaults(**values)  # type: ignore[arg-type]
    return msgspec.structs.replace(defaults, top_k=max(defaults.top_k, 0))


def end_tokens(config: ConfigReader, generation: ConfigReader, vocabulary: int) -> tuple[int, ...]:
    """Ids that end a text: those of config.json and of generation_config.json together, ascending. Ids outside of the
    vocabulary, which some models name, are left out: none of them is ever sampled, and no kernel may be handed one."""
    named = {*read_token_ids(config, "eos_token_id"), *read_token_ids(generation, "eos_token_id")}
    beyond = sorted(token_id for token_id in named if token_id >= vocabulary)
    if beyond:
        log.warning(
            "%s or %s: eos_token_id names %s, outside the vocabulary [0, %d), which is never sampled and ends no text",
            config.source, generation.source, ", ".join(map(str, beyond)), vocabulary,
        )  # fmt: skip
    return tuple(sorted(named.difference(beyond)))
