"""Log lines of the processes that Samebits itself runs. A program that imports it configures its own."""

from __future__ import annotations

import logging
import sys

LINE_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure_logging(level: str, other_loggers: tuple[str, ...] = ()) -> None:
    """Log to standard error from `level` on. `other_loggers` are libraries', heard from `warning` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(LINE_FORMAT))
    quiet = level if level in ("debug", "error") else "warning"
    for name in ("samebits", *other_loggers):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel((level if name == "samebits" else quiet).upper())
