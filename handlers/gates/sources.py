"""What gates read from: background feeds, metric pages, and the shared store of quotas.

A feed fetches each source once per interval, however many gates use it. `handlers.redis_store.limits` implements the
store protocols.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar, cast

import msgspec

from handlers.cancellation import end_if_cancelled
from handlers.transport.failures import UnusableResponse
from handlers.transport.transport import TransportOptions, http_client

T = TypeVar("T")


class GateLog(Protocol):
    """Interface of `handlers.telemetry.logs.Logger`."""

    def info(self, event: str, **fields: Any) -> None: ...

    def warning(self, event: str, **fields: Any) -> None: ...


NOT_READ_YET: Final = "not read yet"


class SourceMissing(Exception):
    """The source cannot be read or has no sample; the message holds no secret."""


class FeedOptions(msgspec.Struct, frozen=True):
    """Interval between fetches, and the timeout after which a fetch has failed."""

    refresh_seconds: float = 5.0
    timeout_seconds: float = 4.0


class Reading(msgspec.Struct, Generic[T], frozen=True):
    """Value of a source, and when it was fetched (Unix seconds)."""

    value: T
    at: float


class MetricSample(msgspec.Struct, frozen=True):
    """One number of a source; None if the source was read but has no such number.

    `detail` names the source if there are several.
    """

    value: float | None
    detail: str = ""


class MetricSource(Protocol):
    """Number that a `ReadingGate` follows: a feed, or a combination of feeds."""

    name: str

    @property
    def reading(self) -> Reading[MetricSample] | None:
        """The last reading, however old; None before the first."""
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

    Each gate that uses the feed starts and closes it once: the first start begins the loop, the last close ends it.
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
        """Fetch once; logs when a failure begins and when it ends."""
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
    """Feeds of a process by source, so that no source is fetched twice."""

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
        """The feed of the source `key`; `name` is for logs, `read` is used by the first call only."""
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
"""Most bytes of a page; the /metrics page of a large router has a few megabytes."""


class HttpText:
    """HTTP client that fetches texts of bounded size; the feed limits the time.

    `token` returns the bearer token to send, None sends none. `ssl_context` None trusts the system's CAs.
    """

    def __init__(
        self, token: Callable[[], str] | None = None, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self._token = token
        self._client = http_client(TransportOptions(max_response_bytes=_MAX_BYTES, ssl_context=ssl_context))

    async def get(self, url: str, query: Mapping[str, str] | None = None) -> bytes:
        """Body of a 200 response; raises `SourceMissing` for another status or an unusable body."""
        headers = {"authorization": f"Bearer {self._token()}"} if self._token else None
        try:
            response = await self._client.get(url, params=query, headers=headers)
        except UnusableResponse as error:
            raise SourceMissing(f"the response {error}") from None
        if response.status_code != 200:
            raise SourceMissing(f"expected status 200, got {response.status_code}")
        return response.content

    async def aclose(self) -> None:
        await self._client.aclose()


class HeldSlot(NamedTuple):
    """One slot of a concurrency quota: the quota's key and the claim that holds the slot."""

    key: str
    member: str


class BudgetStore(Protocol):
    """Reads a budget that another program writes."""

    async def read_budget(self, key: str) -> str | None:
        """Value of `key`; None if the key does not exist."""
        ...


class QuotaStore(Protocol):
    """Counts the use of quotas over all processes, on the store's clock.

    `member` names a claim, `owner` is the random token of this process. `counter_seconds` is the TTL of the counter
    that the reference shares.
    """

    failures: tuple[type[Exception], ...]

    async def pay_rate(
        self, key: str, member: str, *, limit: int, window_seconds: float, remember_seconds: float
    ) -> tuple[bool, bool, float]:
        """Take one of `limit` units per window: (may go, paid by this call, seconds until a unit is free).

        A member that has paid within `remember_seconds` may go without paying again.
        """
        ...

    async def refund_rate(self, key: str, member: str) -> None:
        """Return the unit that `member` paid; a no-op if it paid nothing."""
        ...

    async def hold_slot(
        self, slot: HeldSlot, owner: str, *, limit: int, lease_seconds: float, counter_seconds: float
    ) -> bool:
        """Take one of `limit` slots under a lease; a member that holds one keeps it under `owner`."""
        ...

    async def free_slot(self, slot: HeldSlot, owner: str, *, counter_seconds: float) -> bool:
        """Free the slot if `owner` still holds it; returns whether it did."""
        ...

    async def renew_slots(
        self, slots: Sequence[HeldSlot], owner: str, *, lease_seconds: float, counter_seconds: float
    ) -> None:
        """Renew the leases; a lost slot is taken again unless another owner holds it.

        Without slots it only checks that the store is available.
        """
        ...


class LeasedRate(Protocol):
    """State of a leased rate, and whether a token was taken."""

    @property
    def is_taken(self) -> bool: ...

    @property
    def is_valid(self) -> bool:
        """Whether there is a lease for this pool that has not expired."""
        ...

    @property
    def per_second(self) -> float:
        """Leased rate; 0 without a valid lease."""
        ...

    @property
    def wait_seconds(self) -> float: ...


class LeasedRateStore(Protocol):
    """Token bucket whose rate an external controller leases."""

    failures: tuple[type[Exception], ...]

    async def take_token(
        self, control_key: str, state_key: str, pool: str, *, burst_seconds: float
    ) -> LeasedRate:
        """Take one token if the lease is valid and a token is available."""
        ...

    def check_lease_keys(self, control_key: str, state_key: str) -> None:
        """Raise `InvalidSetting` for keys that one script cannot use together (Redis Cluster slots)."""
        ...

    async def look_at_lease(self, control_key: str, state_key: str, pool: str) -> LeasedRate:
        """State of the lease; takes no token."""
        ...

    async def return_token(self, state_key: str) -> None:
        """Return one token; the bucket's limit applies at the next take."""
        ...


class GateStore(BudgetStore, QuotaStore, LeasedRateStore, Protocol):
    """Store at one address, as the gates use it."""

    failures: tuple[type[Exception], ...]
    """Exceptions of calls while the store is unavailable."""


class GateSources(msgspec.Struct, frozen=True):
    """Everything a gate may read from, passed to its constructor.

    `stores` returns the store at an address, one per address. `prometheus_url` is empty if none is configured;
    `prometheus_http` carries its credentials, `http` (for pages) carries none. `owner_pool` is the worker pool that the
    gate belongs to. `clock` returns Unix seconds, `jitter` a number in [0, 1).
    """

    feeds: Feeds
    http: HttpText
    prometheus_http: HttpText
    stores: Callable[[str], GateStore]
    log: GateLog
    prometheus_url: str = ""
    owner_pool: str = ""
    clock: Callable[[], float] = time.time
    jitter: Callable[[], float] = random.random
