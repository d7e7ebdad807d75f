"""One line per event that matters: JSON for machines, readable text in a terminal. Never payloads.

    log = get_logger("poller")
    log.info("answered", id=request.id, queue=request.queue, attempt=0, seconds=1.2)

Below the least level nothing is built. Where a Google project is named, the trace of a line is linked as
Cloud Logging wants it. The library loggers (uvicorn, redis, …) come out in the same form.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TextIO

import msgspec

_ROOT: Final = "async_processor"
_SEVERITIES: Final = {10: "DEBUG", 20: "INFO", 30: "WARNING", 40: "ERROR", 50: "CRITICAL"}
_LONGEST: Final = 512
_encoder = msgspec.json.Encoder(enc_hook=str)


@dataclass(frozen=True, slots=True)
class LogOptions:
    """`form` is `json`, `text` or `auto` (text in a terminal); `project_id` links traces on Google Cloud."""

    level: str = "info"
    form: str = "auto"
    project_id: str = ""


class Logger:
    """Logs events of one part of the product."""

    def __init__(self, part: str) -> None:
        self._logger = logging.getLogger(f"{_ROOT}.{part}")

    def debug(self, event: str, **fields: Any) -> None:
        """For a developer."""
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Something that matters happened, as it should."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Something that should not be so, and that we live with."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Something that somebody must look at."""
        self._log(logging.ERROR, event, fields)

    def _log(self, level: int, event: str, fields: dict[str, Any]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={"fields": fields})


def get_logger(part: str) -> Logger:
    """The logger of one part: `poller`, `pubsub_push`, …"""
    return Logger(part)


def configure_logs(options: LogOptions, stream: TextIO | None = None) -> None:
    """Send all loggers to `stream` (standard error) in one form; call once, at the start of a process."""
    out = stream or sys.stderr
    is_text = options.form == "text" or (options.form == "auto" and out.isatty())
    handler = logging.StreamHandler(out)
    handler.setFormatter(_TextFormatter() if is_text else _JsonFormatter(options.project_id))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(_ROOT).setLevel(options.level.upper())
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True


class _JsonFormatter(logging.Formatter):
    def __init__(self, project_id: str) -> None:
        super().__init__()
        self._project_id = project_id

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        line = {
            **{name: _short(value) for name, value in fields.items()},
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "severity": _SEVERITIES.get(record.levelno, record.levelname),
            "part": record.name.removeprefix(f"{_ROOT}."),
            "event": _short(record.getMessage()),
        }
        if self._project_id and "trace_id" in fields:
            line["logging.googleapis.com/trace"] = f"projects/{self._project_id}/traces/{fields['trace_id']}"
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return _encoder.encode(line).decode()
        except (ValueError, OverflowError):  # half a character, or a number of more than 64 bits
            return json.dumps(line, default=str)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        at = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        part = record.name.removeprefix(f"{_ROOT}.")
        pairs = " ".join(f"{name}={_visible(value)}" for name, value in fields.items())
        text = f"{at} {record.levelname.lower():7} {part}: {_visible(record.getMessage())} {pairs}".rstrip()
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def _short(value: Any) -> Any:
    return value[:_LONGEST] if isinstance(value, str) and len(value) > _LONGEST else value


def _visible(value: Any) -> str:
    """Control characters escaped: a line of the log is one event, whatever an id holds (CWE-117)."""
    text = str(_short(value))
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
