"""Samebits: an LLM inference engine whose token ids and logprob bits depend on the request and the plan alone.

The public surface: `LLM` (offline generation), `SamplingParams` and the errors. Everything heavy is imported
on first use, so that `import samebits` and `samebits --help` stay quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from samebits.errors import ConfigError, ModelFileError, RequestError, SamebitsError
from samebits.sampling_params import SamplingParams

if TYPE_CHECKING:
    from samebits.llm import LLM

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "ConfigError",
    "ModelFileError",
    "RequestError",
    "SamebitsError",
    "SamplingParams",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from samebits.llm import LLM

        return LLM
    raise AttributeError(f"module 'samebits' has no attribute {name!r}")
