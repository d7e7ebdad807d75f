"""Files beside a batch's output, from which an interrupted run resumes.

<out>            answers, appended; this and the error file record which lines are finished
<errors>         errors, appended
<out>.batch      the state: description of the batch, and the last line that may have been submitted
<out>.lock       locked by the process that runs the batch, removed at its end
<out>.input      the requests, if they came from stdin
<out>.undecodable  results that could not be decoded, as base64
<out>.cancel     exists if the batch is to be cancelled
<out>.cancel-lines  numbers of single lines that are to be cancelled, appended
"""

from __future__ import annotations

import base64
import codecs
import contextlib
import errno
import fcntl
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec

from handlers.batch.lines import custom_id_of, decode_output, error_kind, request_id
from handlers.client.errors import ClientError
from handlers.contract.lenient_json import MALFORMED
from handlers.number_text import whole

PRINT_BYTES = 65_536


class BatchConflict(ClientError):
    """The files belong to another batch, or another process runs it."""


class BatchState(msgspec.Struct, kw_only=True):
    """Content of the state file.

    `deadline` is in Unix seconds; `total` is the number of requests in the input. Lines up to `submitted_through` may
    have been submitted, later ones have not. `errors` is relative to the output's folder. `given` has the text of each
    flag that later runs may not change; it is empty in files of earlier versions.
    """

    batch: str
    token: str
    source: str
    source_print: str
    errors: str
    queue: str
    results: str
    deadline: int
    tier: str = ""
    tenant: str = ""
    total: int = 0
    submitted_through: int = 0
    completed: int = 0
    failed: int = 0
    undecodable: int = 0
    kinds: dict[str, int] = msgspec.field(default_factory=dict)
    given: dict[str, str] = msgspec.field(default_factory=dict)
    outcome: str = "running"


def open_private(path: Path, mode: str = "rb") -> IO[bytes]:
    """Open a regular file, but no symbolic or hard link. Raises `BatchConflict`.

    `mode` is `rb`, `rb+`, `ab` or `wb`, which truncates only after the checks. A new file has mode 0600.
    """
    flags = {"rb": os.O_RDONLY, "rb+": os.O_RDWR}.get(mode, os.O_RDWR | os.O_CREAT)
    flags |= os.O_APPEND if mode == "ab" else 0
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BatchConflict(f"{path}: expected a regular file, got a symbolic link") from None
        raise
    found = os.fstat(descriptor)
    if found.st_nlink > 1 and mode != "rb":
        os.close(descriptor)
        raise BatchConflict(f"{path}: expected a file of its own, got a hard link")
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise BatchConflict(f"{path}: expected a regular file, got a folder, a pipe or a device")
    if mode == "wb":
        os.ftruncate(descriptor, 0)
    return os.fdopen(descriptor, mode)


class BatchFiles:
    """The files of the batch whose output is `out`, by absolute paths."""

    def __init__(self, out: Path, errors: Path | None = None) -> None:
        out = out.absolute()  # a link stays a link, which `open_private` refuses
        self.out = out
        self.errors = errors.absolute() if errors else out.with_name(f"{out.stem}.errors{out.suffix or '.jsonl'}")
        self.state = out.with_name(f"{out.name}.batch")
        self._lock = out.with_name(f"{out.name}.lock")
        self.cancel = out.with_name(f"{out.name}.cancel")
        self.cancel_lines = out.with_name(f"{out.name}.cancel-lines")
        self.input = out.with_name(f"{out.name}.input")
        self.undecodable = out.with_name(f"{out.name}.undecodable")

    def is_input(self, requests: IO[bytes]) -> bool:
        """Whether `requests` are those of the earlier run, or empty. Reads both up to the first difference."""
        part = requests.read(PRINT_BYTES)
        if not part:
            return True
        with open_private(self.input) as kept:
            while part:
                if kept.read(len(part)) != part:
                    return False
                part = requests.read(PRINT_BYTES)
            return not kept.read(1)

    def changed_input(self, source: str) -> BatchConflict:
        """The error for requests that differ from those of the earlier run."""
        return BatchConflict(
            f"{source}: expected the unchanged input of {self.state}, got requests that differ; give another --out, or "
            f"delete {self.state}, {self.out} and {self.errors} to start again"
        )

    def lost_input(self) -> BatchConflict:
        """The error for a resumed run whose stored requests were deleted."""
        return BatchConflict(
            f"{self.input}: deleted, but {self.state} needs it to continue; pipe the same requests again, or give "
            "another --out for a new batch"
        )

    def read_state(self) -> BatchState | None:
        """The state of an earlier run, or None. Raises `BatchConflict` if it cannot be decoded."""
        try:
            with open_private(self.state) as file:
                return msgspec.json.decode(file.read(), type=BatchState)
        except FileNotFoundError:
            return None
        except MALFORMED as error:
            raise BatchConflict(
                f"{self.state}: expected a batch's state, got text that cannot be decoded ({error})"
            ) from None

    def errors_of(self, state: BatchState) -> Path:
        """The error file of an earlier run."""
        return self.out.parent / state.errors

    def lost_lines(self, state: BatchState) -> dict[Path, str]:
        """The incomplete outputs of a finished batch, each with the reason."""
        if state.outcome == "running":
            return {}
        written = WrittenLines(self, state.batch)
        rows = ((self.out, written.completed, state.completed), (self.errors, written.failed, state.failed))
        return {
            path: f"changed, holds {found:,} of {whole:,} lines of this batch" if path.exists() else "deleted"
            for path, found, whole in rows
            if found < whole or not path.exists()
        }

    def write_state(self, state: BatchState) -> None:
        """Replace the state file atomically and sync it to disk."""
        new = self.state.with_name(f"{self.state.name}.new")
        with open_private(new, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(state)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.state)

    def set_aside(self, text: bytes) -> None:
        """Save an undecodable result as one line of base64."""
        with open_private(self.undecodable, "ab") as file:
            file.write(base64.b64encode(text) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def request_cancel(self) -> None:
        """Ask the process that runs the batch to cancel it."""
        open_private(self.cancel, "ab").close()

    def request_cancel_of(self, numbers: Sequence[int]) -> None:
        """Record lines to cancel, for the process that runs the batch."""
        with open_private(self.cancel_lines, "ab") as file:
            file.write("".join(f"{number}\n" for number in numbers).encode())
            file.flush()
            os.fsync(file.fileno())

    def lines_to_cancel(self) -> set[int]:
        """Numbers of the lines that are to be cancelled."""
        try:
            with open_private(self.cancel_lines) as file:
                numbers = (whole(text.strip()) for text in file if text.endswith(b"\n"))
                return {number for number in numbers if number is not None}
        except FileNotFoundError:
            return set()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the batch, and remove the lock file at the end.

        Raises `BatchConflict` if another process has locked it.
        """
        while True:
            with open_private(self._lock, "ab") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise BatchConflict(f"{self.out}: another process runs this batch") from None
                if not self._is_lock(file):
                    continue  # its holder removed the file after we opened it, so lock the new one
                try:
                    yield
                finally:
                    self._lock.unlink(missing_ok=True)
                return

    def _is_lock(self, file: IO[bytes]) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(file.fileno()), self._lock.lstat())
        return False

    def is_running(self) -> bool:
        if not self._lock.exists():
            return False
        try:
            with self.locked():
                return False
        except BatchConflict:
            return True


class AnsweredLines:
    """A bit set of the numbers of lines that have output."""

    def __init__(self) -> None:
        self._bits = bytearray()

    def __contains__(self, number: int) -> bool:
        place = number >> 3
        return place < len(self._bits) and bool(self._bits[place] & (1 << (number & 7)))

    def add(self, number: int) -> None:
        place = number >> 3
        if place >= len(self._bits):
            self._bits.extend(bytes(max(1024, place + 1 - len(self._bits))))
        self._bits[place] |= 1 << (number & 7)


class WrittenLines:
    """The lines of the output and the error file. `damaged` lists invalid lines (path:line).

    `mode` is that of `open_private`. A partial last line is not counted, and with `rb+` it is truncated.
    """

    def __init__(self, files: BatchFiles, batch: str, mode: str = "rb") -> None:
        self.answered = AnsweredLines()
        self.damaged: list[str] = []
        self.kinds: Counter[str] = Counter()
        self.completed = self._read(files.out, batch, mode)
        self.failed = self._read(files.errors, batch, mode)

    def _read(self, path: Path, batch: str, mode: str) -> int:
        """Mark the requests that a file answers as finished. Returns how many.

        Damaged lines are reported; their requests are submitted again.
        """
        try:
            file = open_private(path, mode)
        except FileNotFoundError:
            return 0
        count = 0
        end = 0
        with file:
            for at, text in enumerate(file, start=1):
                if not text.endswith(b"\n"):
                    if mode == "rb+":
                        file.truncate(end)
                    break
                end += len(text)
                read = decode_output(batch, text)
                if read is None:
                    self.damaged.append(f"{path}:{at}")
                    continue
                number, code = read
                self.kinds[code] += bool(code)
                count += number not in self.answered
                self.answered.add(number)
        return count


class BatchOutput(WrittenLines):
    """The output and the error file, open for appending."""

    def __init__(self, files: BatchFiles, batch: str) -> None:
        super().__init__(files, batch, "rb+")
        self._out = open_private(files.out, "ab")
        self._errors = open_private(files.errors, "ab")

    def write(self, number: int, text: bytes, *, is_answer: bool) -> None:
        (self._out if is_answer else self._errors).write(text)
        if not is_answer:
            self.kinds[error_kind(text)] += 1
        self.answered.add(number)
        if is_answer:
            self.completed += 1
        else:
            self.failed += 1

    def sync(self) -> None:
        for file in (self._out, self._errors):
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        self._out.close()
        self._errors.close()


def source_print(path: Path) -> str:
    """Fingerprint of an input file: its size, beginning and end."""
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        digest.update(file.read(PRINT_BYTES))
        file.seek(max(0, size - PRINT_BYTES))
        digest.update(file.read(PRINT_BYTES))
    return digest.hexdigest()


def numbered_lines(path: Path, first: int, last: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield the non-blank lines `first` to `last`, with their numbers from 1.

    A byte order mark is removed.
    """
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            if last is not None and number > last:
                return
            if number == 1:
                text = text.removeprefix(codecs.BOM_UTF8)  # noqa: PLW2901  # the line without its mark
            if number >= first and text.strip():
                yield number, text


class FoundLine(msgspec.Struct, kw_only=True):
    """One line of the input.

    `written` is empty, or the kind of its answer or error and the file that has it. `is_cancelled`: its cancellation
    was requested.
    """

    custom_id: str
    number: int
    request_id: str
    written: str = ""
    is_cancelled: bool = False


def find_lines(files: BatchFiles, state: BatchState, custom_ids: Collection[str]) -> dict[str, FoundLine]:
    """The first line with each of `custom_ids`. Ids without a line are left out."""
    found: dict[str, FoundLine] = {}
    cancelled = files.lines_to_cancel()
    for number, text in numbered_lines(Path(state.source), 1):
        name = custom_id_of(text)
        if name in custom_ids and name not in found:
            found[name] = FoundLine(
                custom_id=name,
                number=number,
                request_id=request_id(state.batch, number),
                is_cancelled=number in cancelled,
            )
    by_number = {line.number: line for line in found.values()}
    for path in (files.out, files.errors):
        if path.exists():
            for _, text in numbered_lines(path, 1):
                number, kind = decode_output(state.batch, text) or (0, "")
                if number in by_number:
                    by_number[number].written = f"{kind or 'answered'}, in {path}"
    return found
