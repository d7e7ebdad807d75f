"""Sources of gates: background feeds and metric pages.

A feed fetches its source once per interval, for all gates that use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Generic, Protocol, TypeVar, cast

import httpx
import msgspec

from handlers.cancellation import end_if_cancelled
from handlers.clock import steady_time
from handlers.contract.masked_text import without_secrets
from handlers.redis_store.limits.limits import RedisGateStore
from handlers.telemetry.logs import Logger
from handlers.transport.failures import UnusableResponse, connection_failure
from handlers.transport.transport import TransportOptions, http_client

T = TypeVar("T")


NOT_READ_YET: Final = "not read yet"


class SourceMissing(Exception):
    """Raised if a source cannot be read or has no sample. The message has no secrets."""


class UnexpectedStatus(SourceMissing):
    """Raised for a response whose status is not 200."""

    def __init__(self, status_code: int, body: bytes) -> None:
        super().__init__(f"expected status 200, got {status_code}")
        self.body = body


class FeedOptions(msgspec.Struct, frozen=True):
    """Interval between fetches, and the timeout of one."""

    refresh_seconds: float = 5.0
    timeout_seconds: float = 4.0


class Reading(msgspec.Struct, Generic[T], frozen=True):
    """Value of a source, and when it was fetched (Unix seconds)."""

    value: T
    at: float


class MetricSample(msgspec.Struct, frozen=True):
    """A number from a source.

    `value` is None if the source was read but has no such number. `detail` is then the reason; else it names the metric
    if there are several.
    """

    value: float | None
    detail: str = ""


class MetricSource(Protocol):
    """The number that a `ReadingGate` follows, from one or more feeds."""

    name: str

    @property
    def reading(self) -> Reading[MetricSample] | None:
        """The last reading, of any age; None before the first."""
        ...

    @property
    def failure(self) -> str:
        """Why the last fetch failed; empty if it succeeded."""
        ...

    async def start(self) -> None:
        """Start fetching and wait for the first fetch, successful or not."""
        ...

    async def aclose(self) -> None: ...

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each fetch, successful or not."""
        ...

    def forget(self, listener: Callable[[], None]) -> None: ...


class Feed(Generic[T]):
    """The last reading of one source, fetched in the background.

    Each gate that uses the feed starts and closes it once. The first start begins the fetching, the last close ends it.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[], Awaitable[T]],
        *,
        options: FeedOptions,
        log: Logger,
        clock: Callable[[], float],
    ) -> None:
        self.name = name
        self.reading: Reading[T] | None = None
        self.failure = NOT_READ_YET
        self._read = read
        self._options = options
        self._log = log
        self._clock = clock
        self._users = 0
        self._loop: asyncio.Task[None] | None = None
        self._first = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def forget(self, listener: Callable[[], None]) -> None:
        if listener in self._listeners:
            self._listeners.remove(listener)

    async def start(self) -> None:
        self._users += 1
        if self._loop is None:
            self._loop = asyncio.create_task(self._run(), name=f"feed {self.name}")
        await self._first.wait()

    async def aclose(self) -> None:
        self._users -= 1
        if self._users > 0 or self._loop is None:
            return
        loop, self._loop = self._loop, None
        loop.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loop

    async def tick(self) -> None:
        """Fetch once. Logs when a failure begins and when it ends."""
        at = self._clock()
        try:
            async with asyncio.timeout(self._options.timeout_seconds):
                value = await self._read()
        except Exception as error:  # noqa: BLE001 - any failure of a source is retried at the next fetch
            failure = str(error) if isinstance(error, SourceMissing) else type(error).__name__
            if self.failure != failure:
                self._log.warning("gate source lost", source=self.name, reason=failure)
            self.failure = failure
        else:
            if self.failure and self._first.is_set():
                self._log.info("gate source recovered", source=self.name)
            self.reading = Reading(value, at)
            self.failure = ""
        self._first.set()
        for listener in list(self._listeners):
            listener()

    async def _run(self) -> None:
        while True:
            await self.tick()
            end_if_cancelled()
            await asyncio.sleep(self._options.refresh_seconds)


class Feeds:
    """A process's feeds by source, so that none is fetched twice."""

    def __init__(self, options: FeedOptions, log: Logger, clock: Callable[[], float] = steady_time) -> None:
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
        """The feed of the source `key`, made by the first call. `name` is for logs."""
        if key not in self._feeds:
            self._feeds[key] = Feed(
                name,
                read,
                options=self._options,
                log=self._log,
                clock=self._clock,
            )
        return cast("Feed[T]", self._feeds[key])


_MAX_BYTES: Final = 32_000_000
"""Maximum bytes of a page. The /metrics page of a large router has a few megabytes."""


class HttpText:
    """HTTP client that fetches texts of bounded size.

    Its caller, a `Feed`, limits the time. `token` returns the bearer token to send; without `token` none is sent.
    Without `ssl_context`, the system's CAs are trusted.
    """

    def __init__(self, token: Callable[[], str] | None = None, ssl_context: ssl.SSLContext | None = None) -> None:
        self._token = token
        self._client = http_client(TransportOptions(max_response_bytes=_MAX_BYTES, ssl_context=ssl_context))

    async def get(self, url: str, query: Mapping[str, str] | None = None) -> bytes:
        """The body of a 200 response. Raises `SourceMissing` for other responses and without one."""
        headers = {"authorization": f"Bearer {self._token()}"} if self._token else None
        try:
            response = await self._client.get(url, params=query, headers=headers)
        except UnusableResponse as error:
            raise SourceMissing(f"the response {error}") from None
        except httpx.TransportError as error:
            raise SourceMissing(f"{without_secrets(url)} {connection_failure(error)}") from None
        if response.status_code != 200:
            raise UnexpectedStatus(response.status_code, response.content)
        return response.content

    async def aclose(self) -> None:
        await self._client.aclose()


class GateSources(msgspec.Struct, frozen=True):
    """Everything a gate may read from, passed to its constructor.

    `stores` returns the store at an address, the same one for each call. `prometheus_url` is empty if none is
    configured. `prometheus_http` sends its credentials; `http`, for metric pages, sends none. `owner_pool` is the pool
    to which the gate belongs. `clock` returns Unix seconds, `jitter` a random number in [0, 1).
    """

    feeds: Feeds
    http: HttpText
    prometheus_http: HttpText
    stores: Callable[[str], RedisGateStore]
    log: Logger
    prometheus_url: str = ""
    owner_pool: str = ""
    clock: Callable[[], float] = steady_time
    jitter: Callable[[], float] = random.random
