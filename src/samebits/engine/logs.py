"""Log lines of the processes that Samebits itself runs. A program that imports it configures its own."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

LINE_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""id of the HTTP request that this task works for; empty outside of any"""


class TextFormatter(logging.Formatter):
    """Lines for people; those of a request end with its id."""

    def __init__(self) -> None:
        super().__init__(LINE_FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        found = id_of(record)
        return f"{line} [{found}]" if found else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, process, and where there are such, request_id,
    exception, and what the line's `extra` holds under `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "time": time,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        if found := id_of(record):
            line["request_id"] = found
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


FORMATTERS = {"text": TextFormatter, "json": JsonFormatter}


def id_of(record: logging.LogRecord) -> str:
    """The request that a line belongs to: named by the line itself (`extra`), else the one worked for."""
    return str(getattr(record, "request_id", "")) or request_id.get()


def configure_logging(level: str, other_loggers: tuple[str, ...] = (), style: str = "text") -> None:
    """Log to standard error from `level` on, as `text` or `json`. `other_loggers` are libraries', heard from
    `warning` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FORMATTERS[style]())
    quiet = level if level in ("debug", "error") else "warning"
    for name in ("samebits", *other_loggers):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel((level if name == "samebits" else quiet).upper())
