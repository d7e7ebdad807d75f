"""What a batch keeps beside its output, so that a run that was cut off can go on.

<out>            answers, appended; with the error file it is the record of what is done
<errors>         errors, appended
<out>.batch      what the batch is, and how far its lines may have been submitted
<out>.lock       held by the process that runs it
<out>.cancel     there: it is to be cancelled
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from handlers.batch.lines import output_number
from handlers.client.errors import ClientError

PRINT_BYTES = 65_536


class BatchConflict(ClientError):
    """The files say that this is another batch, or that another process runs it."""


class BatchState(msgspec.Struct, kw_only=True):
    """What the state file holds. `deadline` is in Unix seconds; `total` counts the requests of the file.

    Lines up to `submitted_through` may have been submitted, later ones have not.
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
    outcome: str = "running"


class BatchFiles:
    """The files of the batch whose output is `out`."""

    def __init__(self, out: Path, errors: Path | None = None) -> None:
        self.out = out
        self.errors = errors or out.with_name(f"{out.stem}.errors{out.suffix or '.jsonl'}")
        self.state = out.with_name(f"{out.name}.batch")
        self._lock = out.with_name(f"{out.name}.lock")
        self.cancel = out.with_name(f"{out.name}.cancel")

    def read_state(self) -> BatchState | None:
        """The state of an earlier run; None if there was none. Raises `BatchConflict` if it is broken."""
        try:
            return msgspec.json.decode(self.state.read_bytes(), type=BatchState)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise BatchConflict(f"{self.state}: not the state of a batch ({error})") from None

    def write_state(self, state: BatchState) -> None:
        """Replace the state file, as a whole, and see it to the disk."""
        new = self.state.with_name(f"{self.state.name}.new")
        with new.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(state)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.state)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the batch; raises `BatchConflict` while another process does."""
        with self._lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BatchConflict(f"{self.out}: another process runs this batch") from None
            yield

    def is_running(self) -> bool:
        """Whether a process holds the batch now."""
        if not self._lock.exists():
            return False
        try:
            with self.locked():
                return False
        except BatchConflict:
            return True


class Answered:
    """Which lines have their output: a bit for each."""

    def __init__(self) -> None:
        self._bits = bytearray()

    def __contains__(self, number: int) -> bool:
        place = number >> 3
        return place < len(self._bits) and bool(self._bits[place] & (1 << (number & 7)))

    def add(self, number: int) -> None:
        """The line `number` has its output."""
        place = number >> 3
        if place >= len(self._bits):
            self._bits.extend(bytes(max(1024, place + 1 - len(self._bits))))
        self._bits[place] |= 1 << (number & 7)


class BatchOutput:
    """The output and error file, open for appending."""

    def __init__(self, files: BatchFiles, batch: str) -> None:
        self.answered = Answered()
        self.completed = self._recover(files.out, batch)
        self.failed = self._recover(files.errors, batch)
        self._out = files.out.open("ab")
        self._errors = files.errors.open("ab")

    def write(self, number: int, text: bytes, *, is_answer: bool) -> None:
        """Add the line of request `number`."""
        (self._out if is_answer else self._errors).write(text)
        self.answered.add(number)
        if is_answer:
            self.completed += 1
        else:
            self.failed += 1

    def sync(self) -> None:
        """See what was written to the disk: after that it may go elsewhere."""
        for file in (self._out, self._errors):
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close both files."""
        self._out.close()
        self._errors.close()

    def _recover(self, path: Path, batch: str) -> int:
        """Note which lines a file holds, and cut off the end of one that was being written; the count."""
        if not path.exists():
            return 0
        count = 0
        end = 0
        with path.open("rb+") as file:
            for text in file:
                number = output_number(batch, text) if text.endswith(b"\n") else None
                if number is None:
                    break
                end += len(text)
                count += number not in self.answered
                self.answered.add(number)
            if end < path.stat().st_size:
                _cut(file, end, path)
        return count


def _cut(file: IO[bytes], end: int, path: Path) -> None:
    file.seek(end)
    rest = file.read(1 << 20)
    if b"\n" in rest:
        raise BatchConflict(f"{path}: holds lines of something else after byte {end}; move it away")
    file.truncate(end)


def source_print(path: Path) -> str:
    """What tells an input file from another one: its size, its beginning and its end."""
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        digest.update(file.read(PRINT_BYTES))
        file.seek(max(0, size - PRINT_BYTES))
        digest.update(file.read(PRINT_BYTES))
    return digest.hexdigest()


def count_requests(path: Path) -> int:
    """How many lines of the file are not blank."""
    with path.open("rb") as file:
        return sum(not text.isspace() for text in file)


def numbered_lines(path: Path, first: int, last: int | None = None) -> Iterator[tuple[int, bytes]]:
    """The lines `first` to `last` (counted from 1) that are not blank, one at a time."""
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            if last is not None and number > last:
                return
            if number >= first and not text.isspace():
                yield number, text
