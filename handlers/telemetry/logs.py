"""One line per event that matters: JSON for machines, readable text in a terminal. Never payloads.

    log = get_logger("poller")
    log.info("answered", id=request.id, queue=request.queue, attempt=0, seconds=1.2)

Below the least level nothing is built. Whatever a field holds, an event is one line of valid JSON: control
characters are escaped (CWE-117), long text is cut, what looks like a credential is masked. The trace that
is current (`handlers.telemetry.logs`) is added by itself; where a Google project is named, in the
fields that Cloud Logging wants. The library loggers (uvicorn, redis, …) come out in the same form.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, TextIO

from handlers.telemetry.log_line import json_line, text_line

_ROOT: Final = "async_processor"
_SEVERITIES: Final = {10: "DEBUG", 20: "INFO", 30: "WARNING", 40: "ERROR", 50: "CRITICAL"}
_HASHED_DIGITS: Final = 16


@dataclass(frozen=True, slots=True)
class LogOptions:
    """`form` is `json`, `text` or `auto` (text in a terminal); `project_id` links traces on Google Cloud.

    `hash_ids` writes the start of an id's SHA-256 in place of the id, for ids that name people.
    """

    level: str = "info"
    form: str = "auto"
    project_id: str = ""
    hash_ids: bool = False


class Logger:
    """Logs events of one part of the product; `fields` are what is known of the event, small and flat."""

    def __init__(self, part: str) -> None:
        self._logger = logging.getLogger(f"{_ROOT}.{part}")

    def debug(self, event: str, **fields: Any) -> None:
        """For a developer."""
        if self._logger.isEnabledFor(logging.DEBUG):
            self._logger.handle(_Event(self._logger.name, logging.DEBUG, event, fields))

    def info(self, event: str, **fields: Any) -> None:
        """Something that matters happened, as it should."""
        if self._logger.isEnabledFor(logging.INFO):
            self._logger.handle(_Event(self._logger.name, logging.INFO, event, fields))

    def warning(self, event: str, **fields: Any) -> None:
        """Something that should not be so, and that we live with."""
        if self._logger.isEnabledFor(logging.WARNING):
            self._logger.handle(_Event(self._logger.name, logging.WARNING, event, fields))

    def error(self, event: str, **fields: Any) -> None:
        """Something that somebody must look at."""
        if self._logger.isEnabledFor(logging.ERROR):
            self._logger.handle(_Event(self._logger.name, logging.ERROR, event, fields))


def get_logger(part: str) -> Logger:
    """The logger of one part: `poller`, `pubsub_push`, …"""
    return Logger(part)


def configure_logs(options: LogOptions, stream: TextIO | None = None) -> None:
    """Send all loggers to `stream` (standard error) in one form; call once, at the start of a process.

    What ends the process uncaught becomes a line of the same form.
    """
    out = stream or sys.stderr
    is_text = options.form == "text" or (options.form == "auto" and out.isatty())
    handler = logging.StreamHandler(out)
    handler.setFormatter(_TextFormatter(options) if is_text else _JsonFormatter(options))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(_ROOT).setLevel(options.level.upper())
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    if not is_text:
        sys.excepthook = _log_uncaught


def hashed_id(request_id: str) -> str:
    """What stands for an id where ids may name people; the same id gives the same text everywhere."""
    return hashlib.sha256(request_id.encode("utf-8", "backslashreplace")).hexdigest()[:_HASHED_DIGITS]


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        logging.getLogger(f"{_ROOT}.process").critical("ended by an error", exc_info=(kind, error, trace))


# Formatters of others (a test's, a platform's) look for these, in the record's own dictionary.
_BLANK: Final[dict[str, Any]] = {
    **dict.fromkeys(("args", "exc_info", "exc_text", "stack_info", "thread", "process", "taskName")),
    **dict.fromkeys(("pathname", "filename", "module", "funcName", "processName", "threadName"), ""),
    **dict.fromkeys(("lineno", "relativeCreated"), 0),
}


class _Event(logging.LogRecord):
    """A record that costs a fraction of logging's own, which looks for file, line, thread and process."""

    def __init__(self, name: str, level: int, event: str, fields: Mapping[str, Any]) -> None:
        self.__dict__.update(_BLANK)
        self.name = name
        self.levelno = level
        self.levelname = _SEVERITIES[level]
        self.msg = event
        self.created = time.time()
        self.msecs = self.created % 1 * 1000
        self.fields = fields


class _JsonFormatter(logging.Formatter):
    def __init__(self, options: LogOptions) -> None:
        super().__init__()
        self._project_id = options.project_id
        self._hash_ids = options.hash_ids

    def format(self, record: logging.LogRecord) -> str:
        event = record.getMessage()
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "severity": _SEVERITIES.get(record.levelno, record.levelname),
            "part": record.name.removeprefix(f"{_ROOT}."),
            "event": event,
        }
        if self._project_id:
            line["message"] = event  # what Cloud Logging shows of a line
        # Said again at the end: no field takes the place of what every line says.
        line = {**line, **_fields(record, hash_ids=self._hash_ids), **line}
        self._link_trace(line)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json_line(line)

    def _link_trace(self, line: dict[str, Any]) -> None:
        """The trace that is current, unless the event names one; on Google Cloud as its log viewer wants it."""
        trace = current_trace()
        if trace is not None and "trace_id" not in line:
            line["trace_id"] = trace.trace_id
            line["span_id"] = trace.span_id
        if self._project_id and "trace_id" in line:
            line["logging.googleapis.com/trace"] = f"projects/{self._project_id}/traces/{line['trace_id']}"
            if trace is not None and trace.trace_id == line["trace_id"]:
                line["logging.googleapis.com/spanId"] = trace.span_id
                line["logging.googleapis.com/trace_sampled"] = trace.is_sampled


class _TextFormatter(logging.Formatter):
    def __init__(self, options: LogOptions) -> None:
        super().__init__()
        self._hash_ids = options.hash_ids

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        part = record.name.removeprefix(f"{_ROOT}.")
        head = f"{at} {record.levelname.lower():7} {part}:"
        exception = self.formatException(record.exc_info) if record.exc_info else ""
        return text_line(head, record.getMessage(), _fields(record, hash_ids=self._hash_ids), exception)


def _fields(record: logging.LogRecord, *, hash_ids: bool) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    return {**fields, "id": hashed_id(str(fields["id"]))} if hash_ids and fields.get("id") else fields


@dataclass(frozen=True, slots=True)
class CurrentTrace:
    """W3C ids in lower-case hexadecimal: 32 digits of the trace, 16 of the span."""

    trace_id: str
    span_id: str
    is_sampled: bool


_current: ContextVar[CurrentTrace | None] = ContextVar("current_trace", default=None)


def current_trace() -> CurrentTrace | None:
    """The trace of the running task, if there is one."""
    return _current.get()


def enter_trace(trace: CurrentTrace) -> Token[CurrentTrace | None]:
    """Make this the trace of the running task until `leave_trace` gets the token."""
    return _current.set(trace)


def leave_trace(token: Token[CurrentTrace | None]) -> None:
    """Back to the trace before."""
    _current.reset(token)


EVERY_SECONDS: Final = 60.0


class RareWarning:
    """Logs the first of a kind at once and then one line a minute. `clock` gives seconds that never go back."""

    def __init__(self, log: Logger, event: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._event = event
        self._clock = clock
        self._count = 0
        self._next_at = float("-inf")

    def tell(self, **fields: Any) -> None:
        """It happened; `fields` are logged with the line, if there is one, and `count`, how often since the last."""
        self._count += 1
        now = self._clock()
        if now >= self._next_at:
            self._log.warning(self._event, count=self._count, **fields)
            self._count, self._next_at = 0, now + EVERY_SECONDS
