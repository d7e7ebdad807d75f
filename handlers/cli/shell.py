"""Check the text that commands read; escape the text that they print.

Input must be valid Unicode: Python represents undecodable bytes of arguments and variables as lone surrogates, which
no queue can store. Characters that the output's encoding lacks are escaped as in JSON, so that JSON stays valid.
Control characters are never written to a terminal (CWE-150).
"""

from __future__ import annotations

import codecs
import functools
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, ParamSpec, TextIO, TypeVar

import click

from handlers.contract.errors import AsyncProcessorError, InvalidRequest, InvalidSetting
from handlers.contract.lenient_json import is_unicode

_ESCAPES: Final = "json-escapes"


def end_of_start() -> None:
    """Turn garbage collection on again, for objects created from now on.

    Collection runs less often than by default, which saves 4 % of a request's CPU: requests leave nothing to collect.
    """
    gc.freeze()
    gc.set_threshold(10_000)
    gc.enable()


def stop_at_signals() -> None:
    """Make signals raise exceptions, so that the command cleans up.

    Ctrl-C raises `KeyboardInterrupt`, SIGTERM `SystemExit(143)`. Before, both end the process at once
    (`handlers/cli/__init__.py`).
    """
    if threading.current_thread() is not threading.main_thread():
        return  # a test's thread, which gets no signals
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


T = TypeVar("T")


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine to its end and return its value. Ctrl-C and SIGTERM cancel the coroutine.

    After a cancellation, raises `KeyboardInterrupt` or `SystemExit(143)`, unless the coroutine still returns a value.
    """
    import asyncio

    async def until_sigterm() -> T:
        task = asyncio.ensure_future(work)
        has_stopped = False

        def stop() -> None:
            nonlocal has_stopped
            has_stopped = True
            task.cancel()

        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
        try:
            return await task
        except asyncio.CancelledError:
            if has_stopped:
                sys.exit(ExitCode.TERMINATED)
            raise

    stop_at_signals()
    return asyncio.run(until_sigterm())


def confirm(question: str) -> bool:
    """Ask a question; Ctrl-C and SIGTERM end it at once, also while an event loop handles them."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stop_at_signals()
    try:
        return click.confirm(question, err=True)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class TextType(click.types.StringParamType):
    """A string of valid Unicode."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The text; fails if it is not UTF-8."""
        text = super().convert(value, param, ctx)
        if isinstance(text, str) and not is_unicode(text):
            shown = text.encode("utf-8", "surrogateescape" if _has_bytes(text) else "backslashreplace")
            self.fail(f"expected UTF-8 text, got {shown!r}", param, ctx)
        return text


class IdType(TextType):
    """The id of a request, a line or a dead letter."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The text; fails if it is empty."""
        text = super().convert(value, param, ctx)
        if not text.strip():
            self.fail(f"expected an id, got {text!r}", param, ctx)
        return text


def check_names(*paths: Path | None) -> None:
    """Raise `InvalidSetting` for a file name that is not UTF-8.

    The state file could not store it.
    """
    for path in paths:
        if path is not None and not is_unicode(str(path)):
            raise InvalidSetting("file name", found=repr(os.fsencode(path)), accepted="a name in UTF-8")


def _has_bytes(text: str) -> bool:
    return all(not "\ud800" <= each <= "\udfff" or "\udc80" <= each <= "\udcff" for each in text)


def check_text(command: click.Command) -> click.Command:
    """Make a command and its subcommands check plain strings with `TextType`.

    File names (`click.Path`) are exempt, because a file system may hold names that are not UTF-8.
    """
    for parameter in command.params:
        if type(parameter.type) is click.types.StringParamType:
            parameter.type = TextType()
    if isinstance(command, click.Group):
        for each in command.commands.values():
            check_text(each)
    return command


def open_closed_streams() -> None:
    """Replace standard streams that the caller closed (`>&-`) by the null device."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115  # it stays open until the process ends


def escape_unencodable() -> None:
    """Make stdout and stderr escape characters that their encoding lacks.

    Otherwise they would raise `UnicodeEncodeError`.
    """
    codecs.register_error(_ESCAPES, _json_escapes)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # the capture of a test has its own
            stream.reconfigure(errors=_ESCAPES)


def _json_escapes(error: UnicodeError) -> tuple[str, int]:
    r"""Escape as `\u00e9`, with a pair of surrogates beyond the basic plane."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    units = (int.from_bytes(text[at : at + 2]) for at in range(0, len(text), 2))
    return "".join(f"\\u{unit:04x}" for unit in units), error.end


def for_output(text: str, out: TextIO) -> str:
    """`text`; for a terminal, control characters are replaced (see `printable`)."""
    return printable(text) if out.isatty() else text


def printable(text: str, kept: str = "\n\t") -> str:
    """`text` with control characters replaced, except those in `kept`."""
    return "".join(each if each.isprintable() or each in kept else "\N{REPLACEMENT CHARACTER}" for each in text)


P = ParamSpec("P")


class ExitCode(IntEnum):
    """Exit codes. Click also uses 2 for wrong usage."""

    DONE = 0
    """Success."""
    FAILED_REQUESTS = 1
    """The command ran, and at least one final result is an error."""
    WRONG_INPUT = 2
    """Invalid flags, file or request; nothing was queued."""
    NOT_YET = 3
    """The time limit passed before all results arrived."""
    UNREACHABLE = 4
    """The broker did not answer."""
    CANCELLED = 5
    """The batch was cancelled."""
    CONFLICT = 6
    """The idempotency key was used for another request; nothing was queued."""
    INTERRUPTED = 130
    """Ctrl-C; queued requests stay queued."""
    TERMINATED = 143
    """SIGTERM; queued requests stay queued."""


_DEADLINES: Final = "a time in the future: a duration such as 10m, an ISO time or Unix seconds"
_EXIT_CODES: Final = {
    ExitCode.DONE: "done",
    ExitCode.FAILED_REQUESTS: "a final result is an error",
    ExitCode.WRONG_INPUT: "invalid flags or input",
    ExitCode.NOT_YET: "no result in the time given",
    ExitCode.UNREACHABLE: "the broker does not answer",
    ExitCode.CANCELLED: "the batch was cancelled",
    ExitCode.CONFLICT: "the idempotency key was used for another request",
    ExitCode.INTERRUPTED: "interrupted",
    ExitCode.TERMINATED: "stopped by SIGTERM",
}


def exit_codes_help(*without: ExitCode) -> str:
    """The exit codes for a command's help, except those in `without`."""
    meanings = [f"{int(code)} {text}" for code, text in _EXIT_CODES.items() if code not in without]
    return f"Exit codes: {'; '.join(meanings)}."


def exits(command: Callable[P, ExitCode]) -> Callable[P, None]:
    """Decorator: exit with the command's code; print expected errors as one line."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from handlers.client.errors import BrokerUnreachable, IdempotencyConflict, NoResultYet

        try:
            warn_about_names()
            code = command(*args, **kwargs)
        except KeyboardInterrupt:
            code = ExitCode.INTERRUPTED
        except BrokenPipeError:
            # The program that reads our output has ended (`| head`), so there is nothing to print or flush.
            sys.stdout = None
            code = ExitCode.DONE
        except NoResultYet as error:
            code = _print_error(error, ExitCode.NOT_YET)
        except IdempotencyConflict as error:
            code = _print_error(error, ExitCode.CONFLICT)
        except BrokerUnreachable as error:
            code = _print_error(error, ExitCode.UNREACHABLE)
            if str(error).startswith("Redis:") and not _has_fix(error.__cause__):
                print("Set its address with REDIS_URL or --redis-url.", file=sys.stderr)
        except (AsyncProcessorError, OSError) as error:
            code = _print_error(_without_python(error), ExitCode.WRONG_INPUT)
        sys.exit(int(code))

    return run


def _has_fix(error: BaseException | None) -> bool:
    from handlers.redis_store.faults import has_fix

    return error is not None and has_fix(error)


def warn_about_names() -> None:
    """Print the `name_warnings` of the current command on stderr."""
    for text in name_warnings(click.get_current_context().command, os.environ):  # noqa: TID251  # the process's entry
        print(f"warning: {text}", file=sys.stderr)


CREDENTIALS: Final = ("username", "password", "password_file", "ca_file", "cert_file", "key_file")
_REDIS: Final = frozenset(f"REDIS_{name.upper()}" for name in ("url", "timeout_seconds", *CREDENTIALS))


def name_warnings(command: click.Command, variables: Mapping[str, str]) -> list[str]:
    """Warnings about ignored variables whose names resemble those that a command reads."""
    from handlers.variable_names import unknown, warning

    own = {str(parameter.envvar) for parameter in command.params if parameter.envvar}
    if not own:
        return []
    # The servers' settings are not imported here, since that takes time. All names that begin with REDIS are known.
    known = own | _REDIS if "REDIS_URL" in own else own
    texts = []
    for name in unknown(variables, known):
        compared = {one for one in known if one.startswith("REDIS_")} if name.startswith("REDIS_") else own
        text = warning(name, compared)
        if text and (name.startswith("REDIS_") or "did you mean" in text):
            texts.append(text)
    return texts


def _without_python(error: Exception) -> Exception:
    """The error; for a deadline, it names the flag's formats instead of Python types."""
    from handlers.client.new_request import DEADLINES

    if isinstance(error, InvalidRequest) and error.accepted == DEADLINES:
        return InvalidRequest("deadline", found=error.found, accepted=_DEADLINES)
    return error


def _print_error(error: Exception, code: ExitCode) -> ExitCode:
    # "[Errno 2] No such file or directory: '…'" reads as an internal error.
    text = str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror.lower()}"
    print(f"error: {text}", file=sys.stderr)
    return code
