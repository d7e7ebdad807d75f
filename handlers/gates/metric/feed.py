"""A source read in the background: one fetch an interval, however many gates look at it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

from handlers.cancellation import end_if_cancelled

T = TypeVar("T")


class GateLog(Protocol):
    """A structured logger: an event in words, and its fields."""

    def info(self, event: str, **fields: Any) -> None:
        """Something worth knowing."""
        ...

    def warning(self, event: str, **fields: Any) -> None:
        """Something worth looking at."""
        ...


class SourceMissing(Exception):
    """A source that cannot be read, or has no sample; the text says why and holds no secret."""


@dataclass(frozen=True, slots=True)
class FeedOptions:
    """`refresh_seconds` between fetches; a fetch longer than `timeout_seconds` counts as missing."""

    refresh_seconds: float = 5.0
    timeout_seconds: float = 4.0


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    """What a source said, and when it was asked (Unix seconds)."""

    value: T
    at: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One number of a source; `detail` says which of several sources it came from.

    None is an answer too: the source was read, and has no such number.
    """

    value: float | None
    detail: str = ""


class SampleSource(Protocol):
    """What a gate of one number looks at: a feed, or something made of feeds."""

    name: str

    @property
    def reading(self) -> Reading[Sample] | None:
        """The last that was read, however old; None before."""
        ...

    @property
    def failure(self) -> str:
        """Why there is no reading now, empty while there is."""
        ...

    async def start(self) -> None:
        """Start reading, and wait for the first answer."""
        ...

    async def aclose(self) -> None:
        """Stop reading."""
        ...

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each fetch."""
        ...


class Feed(Generic[T]):
    """The last reading of one source. `failure` is why there is none now, empty while there is.

    Started and closed once by each gate that looks at it; the first starts the loop, the last ends it.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[], Awaitable[T]],
        *,
        options: FeedOptions,
        log: GateLog,
        clock: Callable[[], float],
    ) -> None:
        self.name = name
        self.reading: Reading[T] | None = None
        self.failure = "it was not read yet"
        self._read = read
        self._options = options
        self._log = log
        self._clock = clock
        self._users = 0
        self._loop: asyncio.Task[None] | None = None
        self._first = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each fetch, good or bad."""
        self._listeners.append(listener)

    async def start(self) -> None:
        """Start reading, and wait for the first answer, good or bad."""
        self._users += 1
        if self._loop is None:
            self._loop = asyncio.create_task(self._run(), name=f"feed {self.name}")
        await self._first.wait()

    async def aclose(self) -> None:
        """Stop reading, when nobody else looks."""
        self._users -= 1
        if self._users > 0 or self._loop is None:
            return
        loop, self._loop = self._loop, None
        loop.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loop

    async def tick(self) -> None:
        """Fetch once. A failure is logged when it begins and when it ends, not each time."""
        at = self._clock()
        try:
            async with asyncio.timeout(self._options.timeout_seconds):
                value = await self._read()
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one source, it is read again
            failure = str(error) if isinstance(error, SourceMissing) else type(error).__name__
            if self.failure != failure:
                self._log.warning("gate source missing", source=self.name, why=failure)
            self.failure = failure
        else:
            if self.failure and self._first.is_set():
                self._log.info("gate source back", source=self.name)
            self.reading = Reading(value, at)
            self.failure = ""
        self._first.set()
        for listener in self._listeners:
            listener()

    async def _run(self) -> None:
        while True:
            await self.tick()
            end_if_cancelled()
            await asyncio.sleep(self._options.refresh_seconds)


class Feeds:
    """All feeds of a process, by what they read: the same source is never read twice."""

    def __init__(self, options: FeedOptions, log: GateLog, clock: Callable[[], float] = time.time) -> None:
        self._options = options
        self._log = log
        self._clock = clock
        self._feeds: dict[tuple[str, ...], Feed[Any]] = {}

    def feed(
        self,
        key: tuple[str, ...],
        read: Callable[[], Awaitable[T]],
        *,
        name: str,
    ) -> Feed[T]:
        """The feed under `key` (what is read, where), `name` in logs; the first to ask brings `read`."""
        if key not in self._feeds:
            self._feeds[key] = Feed(
                name,
                read,
                options=self._options,
                log=self._log,
                clock=self._clock,
            )
        return cast("Feed[T]", self._feeds[key])
