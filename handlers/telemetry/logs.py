"""Structured logs: one line per event, as JSON or text.

    log = get_logger("poller")
    log.info("answered", id=request.id, queue=request.queue, attempt=0, seconds=1.2)

Payloads are never logged. Whatever a field holds, the line is valid JSON: control characters are escaped (CWE-117),
long text is cut, and credentials are masked (`_without_credentials`). The current trace is added to each line; with a
Google project, also in the fields of Cloud Logging. Loggers of libraries (uvicorn, redis, …) use the same format.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sys
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, TextIO

import msgspec

from handlers.contract.request import MAX_ID_LENGTH

_ROOT: Final = "async_processor"
_SEVERITIES: Final = {10: "DEBUG", 20: "INFO", 30: "WARNING", 40: "ERROR", 50: "CRITICAL"}
_HASHED_DIGITS: Final = 16


class LogOptions(msgspec.Struct, frozen=True):
    """Level and form of the log lines.

    `form` is `json`, `text` or `auto` (text in a terminal). `project_id` links traces on Google Cloud. `hash_ids`
    replaces request ids, which may name people, with the first digits of their SHA-256.
    """

    level: str = "info"
    form: str = "auto"
    project_id: str = ""
    hash_ids: bool = False


class Logger:
    """Logs events of one part of the program; `fields` are flat."""

    def __init__(self, part: str) -> None:
        self._logger = logging.getLogger(f"{_ROOT}.{part}")

    @property
    def is_debugging(self) -> bool:
        """Whether `debug` writes anything; check it before collecting many fields."""
        return self._logger.isEnabledFor(logging.DEBUG)

    def debug(self, event: str, **fields: Any) -> None:
        if self._logger.isEnabledFor(logging.DEBUG):
            self._logger.handle(_Event(self._logger.name, logging.DEBUG, event, fields))

    def info(self, event: str, **fields: Any) -> None:
        """Log a normal event that operators want to see."""
        if self._logger.isEnabledFor(logging.INFO):
            self._logger.handle(_Event(self._logger.name, logging.INFO, event, fields))

    def warning(self, event: str, **fields: Any) -> None:
        """Log a fault that the process recovers from."""
        if self._logger.isEnabledFor(logging.WARNING):
            self._logger.handle(_Event(self._logger.name, logging.WARNING, event, fields))

    def error(self, event: str, **fields: Any) -> None:
        """Log a fault that needs an operator."""
        if self._logger.isEnabledFor(logging.ERROR):
            self._logger.handle(_Event(self._logger.name, logging.ERROR, event, fields))


def get_logger(part: str) -> Logger:
    """Logger of one part, such as `poller` or `pubsub_push`."""
    return Logger(part)


def configure_logs(options: LogOptions, stream: TextIO | None = None) -> None:
    """Configure all loggers; call once, when the process starts.

    They write to `stream` (default: standard error). In JSON format, an uncaught exception is logged as one line too.
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
    """The first digits of an id's SHA-256, for logs without ids."""
    return hashlib.sha256(request_id.encode("utf-8", "backslashreplace")).hexdigest()[:_HASHED_DIGITS]


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        logging.getLogger(f"{_ROOT}.process").critical("process crashed", exc_info=(kind, error, trace))


# Formatters of test tools and platforms read these from the record's dictionary.
_BLANK: Final[dict[str, Any]] = {
    **dict.fromkeys(("args", "exc_info", "exc_text", "stack_info", "thread", "process", "taskName")),
    **dict.fromkeys(("pathname", "filename", "module", "funcName", "processName", "threadName"), ""),
    **dict.fromkeys(("lineno", "relativeCreated"), 0),
}


class _Event(logging.LogRecord):
    """A cheap log record.

    The record of `logging` looks up file, line, thread and process.
    """

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
            line["message"] = event  # the part of a line that Cloud Logging shows
        # Repeated at the end, because a field of an event must not replace one of these.
        line = {**line, **_fields(record, hash_ids=self._hash_ids), **line}
        self._link_trace(line)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json_line(line)

    def _link_trace(self, line: dict[str, Any]) -> None:
        """Add the current trace, unless the event names one.

        With a project, it is added to Cloud Logging's fields too.
        """
        trace = current_trace.get()
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


class CurrentTrace(msgspec.Struct, frozen=True):
    """W3C ids of trace (32 hexadecimal digits) and span (16)."""

    trace_id: str
    span_id: str
    is_sampled: bool


current_trace: Final[ContextVar[CurrentTrace | None]] = ContextVar("current_trace", default=None)
"""Trace of the running task. It is kept here, not in the tracer, so that logs name it without loading OpenTelemetry."""


EVERY_SECONDS: Final = 60.0


class RareWarning:
    """Warning that callers can cause, logged at most once a minute.

    The next line has the count since the last. `clock` returns monotonic seconds.
    """

    def __init__(self, log: Logger, event: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._event = event
        self._clock = clock
        self._count = 0
        self._next_at = float("-inf")

    def report(self, **fields: Any) -> None:
        """Count an occurrence, and log it with `fields` if due."""
        self._count += 1
        now = self._clock()
        if now >= self._next_at:
            self._log.warning(self._event, count=self._count, **fields)
            self._count, self._next_at = 0, now + EVERY_SECONDS


LONGEST_TEXT: Final = 512
"""Maximum characters of a value, since error bodies and other untrusted input may be long."""
LONGEST_LINE: Final = 16_384
"""Maximum characters of a line; the fields of a longer line are cut."""

_LONGEST: Final = {"id": MAX_ID_LENGTH, "exception": LONGEST_LINE}
"""Fields with higher limits: operators search for ids and need whole exceptions."""
_USER_INFO = re.compile(r"://[^\s\"'<>]{0,512}@")
_AUTHORIZATION = re.compile(r"\b((?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_QUERY = re.compile(
    r"([?&;][\w.-]{0,64}(?:token|secret|passw(?:or)?d|key|sig|signature|credentials?|auth)=)[^&;#\s\"']+", re.IGNORECASE
)
_encoder = msgspec.json.Encoder(enc_hook=str)


def json_line(fields: Mapping[str, Any]) -> str:
    """One JSON object without line breaks or control characters."""
    line = _json(fields)
    if len(line) > LONGEST_LINE:
        line = _json({name: _shortest(value) for name, value in fields.items()})
    return line


def _json(fields: Mapping[str, Any]) -> str:
    bounded = dict(fields)
    for name, value in fields.items():
        if value.__class__ is str and len(value) > LONGEST_TEXT:
            bounded[name] = _bounded(name, value)
    try:
        line = str(_encoder.encode(bounded), "utf-8")
    except Exception:  # noqa: BLE001  # an unencodable value must lose neither the event nor the request
        line = str(_encoder.encode({_sound(name): _sound(value) for name, value in bounded.items()}), "utf-8")
    line = _without_credentials(line)
    # JSON escapes C0 controls only; terminals also interpret DEL, C1 controls and bidirectional marks.
    return line if line.isprintable() else "".join(c if c.isprintable() else _json_escape(c) for c in line)


def text_line(head: str, event: str, fields: Mapping[str, Any], exception: str = "") -> str:
    """One readable line; a traceback follows on its own lines."""
    pairs = "".join(f" {_printable(name)}={_visible(name, value)}" for name, value in fields.items())
    line = _without_credentials(f"{head} {_visible('event', event)}{pairs}")
    if not exception:
        return line
    shown = _without_credentials(exception[-LONGEST_LINE:]).split("\n")
    return "\n".join([line, *("  " + _printable(text) for text in shown)])


def _bounded(name: str, value: Any) -> Any:
    if not isinstance(value, str) or len(value) <= LONGEST_TEXT:
        return value
    longest = _LONGEST.get(name, LONGEST_TEXT)
    return value if len(value) <= longest else value[:longest] + "…"


def _shortest(value: Any) -> Any:
    """A value cut to a short text, for a long line."""
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(_sound(value))
    # Keep both ends: the end of an exception and the start of other texts are most useful.
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT // 2]}…{text[-LONGEST_TEXT // 2 :]}"


def _sound(value: Any) -> Any:
    """The value if JSON can hold it, else a replacement.

    Surrogates, huge integers and other objects are replaced.
    """
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return value
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception:  # noqa: BLE001  # a __repr__ that fails, or an integer of more than 4,300 digits
        text = f"<{type(value).__name__}>"
    return text[: LONGEST_LINE // 4].encode("utf-8", "backslashreplace").decode()


def _without_credentials(text: str) -> str:
    """Mask credentials. A cheap substring test skips most lines."""
    if "@" in text and "://" in text:
        text = _USER_INFO.sub("://***@", text)
    if "earer" in text or "asic" in text or "EARER" in text or "ASIC" in text:
        text = _AUTHORIZATION.sub(r"\1***", text)
    if "?" in text and "=" in text:
        text = _QUERY.sub(r"\1***", text)
    return text


def _json_escape(character: str) -> str:
    code = ord(character)
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def _visible(name: str, value: Any) -> str:
    """A value for a terminal: without control characters, quoted if needed."""
    text = str(_bounded(name, _sound(value) if not isinstance(value, int | float) else value))
    text = _printable(text)
    return f'"{text}"' if name != "event" and (not text or " " in text or "=" in text) else text


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
