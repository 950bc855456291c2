"""The errors that a user can meet. Each message names the file, tensor, flag or field and says what to do."""

from __future__ import annotations


class SamebitsError(Exception):
    """Base of every error that Samebits raises on purpose."""


class ConfigError(SamebitsError):
    """A flag, environment variable, configuration file or combination of them that cannot be served."""


class ModelFileError(SamebitsError):
    """A checkpoint that cannot be loaded as it stands; the message names the file or tensor."""


class UnsupportedModelError(ModelFileError):
    """A well-formed checkpoint of a kind that Samebits does not run."""


class NumericsError(SamebitsError):
    """The numerics cannot keep their contract here: wrong floating-point environment, missing instruction."""


class RequestError(SamebitsError):
    """A request that is refused. `field` names the offending parameter (None when it is the whole body), `code`
    the kind of offence for programs, where there is a word for it."""

    def __init__(self, message: str, field: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.code = code


class DeadlineError(SamebitsError):
    """The deadline of a request passed before anything of its answer was there."""


class EngineError(SamebitsError):
    """The engine (or its process) failed; the message carries the cause."""


class RanksLostError(EngineError):
    """The ranks that share the model are no longer in step, or one of them died: the engine cannot go on."""


class DeviceLostError(EngineError):
    """The device reported an error after which it computes nothing more in this process: the engine cannot go on."""
