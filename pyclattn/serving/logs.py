"""Logs: a JSON object a line, on standard error."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

LOGGER = logging.getLogger("pyclattn.serving")


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON.

    Examples
    --------
    >>> record = logging.LogRecord("x", logging.INFO, "", 0, "request", None, None)
    >>> record.fields = {"status": 200}
    >>> json.loads(JsonFormatter().format(record))["status"]
    200
    """

    def format(self, record: logging.LogRecord) -> str:
        time = self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}"
        line = {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log(event: str, level: str = "info", exception: BaseException | None = None, **fields: Any) -> None:
    """One line."""
    LOGGER.log(getattr(logging, level.upper()), event, extra={"fields": fields}, exc_info=exception)


def configure(level: str = "info") -> None:
    """Send our lines, and uvicorn's, to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name in ("pyclattn.serving", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level.upper() if name != "uvicorn" else logging.WARNING)
