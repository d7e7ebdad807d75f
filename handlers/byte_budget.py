"""Limit the bytes of requests and responses that a process holds.

A limit on the number of requests is not enough, since a request or a response may have ten million bytes. Requests and
responses have separate shares; otherwise requests could use all bytes, and no response could be read and stored.
The budget is derived from the memory limit of the container or process, unless `MAX_IN_FLIGHT_BYTES` sets it.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from handlers.number_text import whole

CGROUP_FILES: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Files with the container's memory limit: cgroup version 2, then version 1."""
_UNLIMITED: Final = 2**50
"""A larger value means no limit; cgroup version 1 writes a huge number for that."""
WITHOUT_LIMIT: Final = 1 << 30
"""Memory limit to assume without one; the same as in our manifests."""
BASE_BYTES: Final = 160_000_000
"""Memory of a process with small requests: interpreter, libraries, `WORKERS` requests of a few kilobytes."""
COPIES: Final = 4
"""Maximum number of copies of a large body in memory at once: received, decoded, encoded, sent."""


def memory_limit(files: Iterable[Path] = CGROUP_FILES) -> int | None:
    """The memory limit of container or process in bytes, or None."""
    found = [_read(file) for file in files]
    soft, _hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [limit for limit in (*found, soft) if limit is not None and 0 < limit < _UNLIMITED]
    return min(limits, default=None)


def save_address_space() -> None:
    """Let all threads share two heaps if the address space is limited (`ulimit -v`); called before threads start.

    glibc reserves 64 MB of addresses for the heap of each thread. With little memory in use, no address would be left
    for a large body.
    """
    soft, _hard = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        import ctypes

        with contextlib.suppress(AttributeError):  # another C library has no such option
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


_M_ARENA_MAX: Final = -8
"""The option in glibc's `malloc.h`."""


def _read(file: Path) -> int | None:
    try:
        return whole(file.read_text(encoding="ascii").strip())  # None for the text "max"
    except (OSError, ValueError):  # another version of cgroups
        return None


def derived_budget(limit: int | None, *, least: int) -> int:
    """The byte budget under a memory limit; at least `least`."""
    return max(least, ((limit or WITHOUT_LIMIT) - BASE_BYTES) // COPIES)


def needed_memory(budget: int) -> int:
    """Maximum memory of a process with this byte budget, in bytes."""
    return BASE_BYTES + COPIES * budget


SMALL_BYTES: Final = 65_536
"""A body up to this size is not counted."""


class ByteShare:
    """At most `limit` bytes of one kind. An item of any size fits if nothing else is held."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._waiting: deque[ByteRequest] = deque()

    def room(self) -> int:
        return max(0, self.limit - self.held)

    def has_room(self, size: int) -> bool:
        """Whether an item of `size` bytes may be taken now."""
        return not self._waiting and (self.held == 0 or size <= self.limit - self.held)

    def give(self, size: int) -> None:
        """Return `size` bytes (if negative, take more), then grant waiting `ByteRequest`s in order."""
        self.held -= size
        while self._waiting and (self.held == 0 or self._waiting[0].size <= self.limit - self.held):
            asked = self._waiting.popleft()
            self.held += asked.size
            asked.is_granted = True
            asked.on_granted()

    def ask(self, size: int, on_granted: Callable[[], None]) -> ByteRequest:
        """Take `size` bytes now (`is_granted`), or call `on_granted` once they are taken."""
        asked = ByteRequest(size, on_granted)
        if self.has_room(size):
            self.held += size
            asked.is_granted = True
        else:
            self._waiting.append(asked)
        return asked

    def withdraw(self, asked: ByteRequest) -> None:
        """Withdraw a request for bytes that was not granted."""
        self._waiting.remove(asked)
        self.give(0)  # smaller requests behind it may fit now


class ByteRequest:
    """Bytes for which a request waits."""

    __slots__ = ("is_granted", "on_granted", "size")

    def __init__(self, size: int, on_granted: Callable[[], None]) -> None:
        self.size = size
        self.on_granted = on_granted
        self.is_granted = False


class ByteBudget:
    """The shares of one process, `total` bytes together.

    - `requests` and `answers` (responses) together have three quarters.
    - `payloads` (offloaded payloads) have an eighth. A request that waits for this share already holds bytes of
      `requests`.
    - `results` (encoded, until they are stored or sent) have an eighth. As JSON, a result may be six times as large as
      its response, which is held while the result waits for this share. An encoded result also counts as a response,
      so that fewer responses are read.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.payloads = ByteShare(total // 8)
        self.results = ByteShare(total // 8)
        self.answers = ByteShare(total // 2 - self.results.limit)
        self.requests = ByteShare(total - self.answers.limit - self.results.limit - self.payloads.limit)


class Holding:
    """The bytes that one request holds of one share, at first 0."""

    __slots__ = ("_asked", "_share", "size")

    def __init__(self, share: ByteShare) -> None:
        self._share = share
        self.size = 0
        self._asked: ByteRequest | None = None

    def ask(self, size: int, on_granted: Callable[[], None]) -> bool:
        """Hold up to `size` bytes. Returns True if there is room.

        Otherwise `on_granted` is called once there is.
        """
        self.hold(0)
        asked = self._share.ask(size, on_granted)
        self._asked = asked
        return asked.is_granted

    def hold(self, size: int) -> None:
        """Hold exactly `size` bytes, even without room. Cancels a waiting `ask`."""
        asked, self._asked = self._asked, None
        if asked is None and size == self.size:
            return
        before = self.size
        if asked is not None and asked.is_granted:
            before += asked.size
        elif asked is not None:
            self._share.withdraw(asked)
        self.size = size
        self._share.give(before - size)


class HeldBytes:
    """Bytes that one request holds, until its result is stored or sent."""

    __slots__ = ("answer", "payload", "request", "result")

    def __init__(self, budget: ByteBudget, request_bytes: int) -> None:
        self.request = Holding(budget.requests)
        self.payload = Holding(budget.payloads)
        self.answer = Holding(budget.answers)
        self.result = Holding(budget.results)
        self.request.hold(request_bytes)

    async def room_for_result(self, size: int) -> None:
        """Wait until a result of `size` bytes may be encoded."""
        if size <= SMALL_BYTES:
            return
        room = asyncio.Event()
        if not self.result.ask(size, room.set):
            await room.wait()
        self.answer.hold(size)

    def is_settled_with(self, size: int) -> None:
        """Hold the encoded result's `size` bytes in place of payload and response."""
        self.payload.hold(0)
        self.answer.hold(size)
        self.result.hold(size)

    def release(self) -> None:
        self.is_settled_with(0)
        self.request.hold(0)
