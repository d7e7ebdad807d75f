"""Check a batch's input file and begin the batch, or resume it."""

from __future__ import annotations

import codecs
import hashlib
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec

from handlers.batch.files import BatchConflict, BatchFiles, BatchState, numbered_lines, source_print
from handlers.batch.lines import InvalidLine, decode_line
from handlers.client.new_request import Deadline, unix_deadline
from handlers.number_text import counted, duration_text, parse_duration
from handlers.redis_store.keys import batch_results_key


def begin_or_resume(
    files: BatchFiles,
    source: Path,
    *,
    queue: str,
    results: str,
    deadline: Deadline,
    tier: str,
    tenant: str,
    is_checked: bool = True,
    chosen: Collection[str] = (),
    clock: Callable[[], float] = time.time,
) -> BatchState:
    """Read the state of an earlier run, or create a new one.

    The settings of an earlier run are kept, and those named in `chosen` must equal them. With `is_checked`, every line
    of a new batch is checked first. `clock` returns the Unix seconds from which a deadline counts. Raises
    `BatchConflict` if the files belong to another batch, or the input or a chosen setting has changed, `InvalidFile`
    for an invalid input.
    """
    given = {"queue": queue, "results": results, "tier": tier, "tenant": tenant}
    given["deadline"] = _deadline_text(deadline)
    state = files.read_state()
    if state is not None:
        _check_same(files, state, source, given, chosen)
        files.errors = files.errors_of(state)
        _check_outputs(files, state)
        state.source = str(source.absolute())
        return state
    for path in (files.out, files.errors):
        if path.exists() and path.stat().st_size:
            raise BatchConflict(f"{path}: exists, but {files.state} does not; move it away")
    total = _checked_total(source, is_checked=is_checked)
    name = secrets.token_hex(8)
    state = BatchState(
        batch=name,
        token=secrets.token_hex(16),
        source=str(source.absolute()),
        source_print=source_print(source),
        errors=files.errors.name if files.errors.parent == files.out.parent else str(files.errors),
        queue=queue,
        results=batch_results_key(results, name),
        deadline=unix_deadline(deadline, now=clock()),
        tier=tier,
        tenant=tenant,
        total=total,
        given=given,
    )
    files.write_state(state)
    return state


def _check_same(
    files: BatchFiles, state: BatchState, source: Path, given: Mapping[str, str], chosen: Collection[str]
) -> None:
    """Raise `BatchConflict` if the input or a chosen setting has changed."""
    if state.source_print != source_print(source):
        raise files.changed_input(str(source))
    before = {**state.given, "errors": str(files.errors_of(state))}
    now = {**given, "errors": str(files.errors)}
    faults = [
        f"--{name}: expected {before[name] or 'no value'} as in the first run, got {now[name] or 'no value'}"
        for name in now
        if name in chosen and name in before and now[name] != before[name]
    ]
    if faults:
        faults.append("A batch keeps its settings: leave these flags out, or give another --out for a new batch")
        raise BatchConflict("\n  ".join([f"{files.state}: settings differ from those of the first run", *faults]))


def _check_outputs(files: BatchFiles, state: BatchState) -> None:
    """Raise `BatchConflict` if a finished batch has lost an output.

    Its results cannot be read again.
    """
    if lost := files.lost_lines(state):
        raise BatchConflict(
            f"{' and '.join(f'{path}: {reason}' for path, reason in lost.items())}; according to {files.state} this "
            f"batch is {state.outcome}; restore the file, or to run it again, delete {files.state}, {files.out} and "
            f"{files.errors}, or give another --out"
        )


def _deadline_text(deadline: Deadline) -> str:
    match deadline:
        case timedelta():
            seconds = deadline.total_seconds()
            text = duration_text(seconds)
            return text if parse_duration(text) == seconds else f"{seconds:g}s"
        case datetime():
            return deadline.astimezone(UTC).isoformat()
        case _:
            return str(deadline)


def _checked_total(source: Path, *, is_checked: bool) -> int:
    """The number of requests. Raises `InvalidFile` with the first faults and their number."""
    check = check_file(source, is_whole=is_checked)
    if check.faulty:
        more = f"\n  and {check.faulty - len(check.faults)} more" if check.faulty > len(check.faults) else ""
        raise InvalidFile(
            f"{source}: {check.faulty:,} of {counted(check.total, 'line')} cannot be used; nothing was queued\n  "
            + "\n  ".join(check.faults)
            + more
            + "\nCorrect the file, or run with --no-check: invalid lines then get error lines; "
            "lines that repeat a custom_id are submitted"
        )
    if not check.total:
        raise EmptyInput(str(source))
    return check.total


SHOWN_FAULTS: Final = 10

_MARKS: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"(\xb5/\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"PK\x03\x04", "zip"),
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


class InvalidFile(BatchConflict):
    """The input file is invalid; nothing was queued."""


class EmptyInput(InvalidFile):
    """The input has no request."""

    def __init__(self, source: str) -> None:
        super().__init__(f"{source}: expected at least one request, got an empty input; nothing was queued")


class FileCheck(msgspec.Struct, frozen=True):
    """Numbers of requests and of invalid lines, and the first faults."""

    total: int
    faulty: int
    faults: list[str]


def file_format(head: bytes) -> str:
    """The format that a file's first bytes show. Empty if it may be JSON in UTF-8."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    if (len(head) >= 4 and head[0] == 0) or head[1:2] == b"\0":
        return "UTF-32" if head[:3] == b"\0\0\0" or head[1:4] == b"\0\0\0" else "UTF-16"
    return ""


def check_text_file(path: Path, head: bytes) -> None:
    """Raise `InvalidFile` if the first bytes show a compressed or non-UTF-8 file."""
    if found := file_format(head):
        raise InvalidFile(f"{path}: expected JSON lines in UTF-8, got {found}; convert the file first")


def check_file(path: Path, *, is_whole: bool) -> FileCheck:
    """Check the format and, with `is_whole`, every line. Raises `InvalidFile` for another format.

    A repeated `custom_id` is a fault. Needs 16 bytes of memory, and a line number, for each `custom_id`.
    """
    with path.open("rb") as file:
        check_text_file(path, file.read(8))
    total = faulty = 0
    faults: list[str] = []
    first_lines: dict[bytes, int] = {}
    for number, text in numbered_lines(path, 1):
        total += 1
        reason = _fault(number, text, first_lines) if is_whole else ""
        if reason:
            faulty += 1
            if len(faults) < SHOWN_FAULTS:
                faults.append(f"line {number}: {reason}")
    return FileCheck(total, faulty, faults)


def _fault(number: int, text: bytes, first_lines: dict[bytes, int]) -> str:
    line = decode_line(number, text)
    reason = line.reason if isinstance(line, InvalidLine) else ""
    if line.custom_id:
        digest = hashlib.blake2b(line.custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        first = first_lines.setdefault(digest, number)
        if first != number:
            return f"custom_id: expected a unique id, got {line.custom_id[:80]!r} of line {first}"
    return reason
