"""From the `architectures` of a config.json to the family that reads it. Families are imported when asked for."""

from __future__ import annotations

from importlib import import_module

from samebits.errors import UnsupportedModelError
from samebits.models.family import Family
from samebits.models.hf_config import ConfigReader

FAMILY_MODULES = {
    "LlamaForCausalLM": "samebits.models.llama",
    "MistralForCausalLM": "samebits.models.mistral",
    "Qwen2ForCausalLM": "samebits.models.qwen2",
    "Qwen3ForCausalLM": "samebits.models.qwen3",
}
"""Architecture -> module whose FAMILY reads it."""


def family_of(config: ConfigReader) -> Family:
    """The family of a config. Raises `ModelFileError` when it names none, `UnsupportedModelError` when it names
    one that Samebits does not run."""
    names = config.values.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise config.fail("architectures", f"must be a list of one name, got {names!r}")
    module = FAMILY_MODULES.get(names[0])
    if module is None:
        known = ", ".join(sorted(FAMILY_MODULES))
        raise UnsupportedModelError(
            f"{config.source}: 'architectures' = {names[0]!r} is not supported; supported are {known}"
        )
    family: Family = import_module(module).FAMILY
    return family
