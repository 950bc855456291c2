"""The plotting library, which a bench needs for its pictures alone."""

from __future__ import annotations

from samebits.errors import ConfigError


def check_plotting() -> None:
    """Raise `ConfigError` where the plotting library is missing: before the run, not after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install 'samebits[plots]'") from error
