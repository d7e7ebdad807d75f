"""A source read in the background: one fetch an interval, however many gates look at it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar, cast

from handlers.cancellation import end_if_cancelled
from handlers.transport.failures import UnusableResponse
from handlers.transport.transport import TransportOptions, http_client

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


_MAX_BYTES: Final = 32_000_000
"""A large router's /metrics is a few megabytes; more than this is another page than we think."""


class HttpText:
    """One client for all sources; closed by `aclose`. The feed sets the timeout.

    `token` gives the bearer token that is sent along, `ssl_context` says whom to trust; None is none, and
    the system's own CAs.
    """

    def __init__(
        self, token: Callable[[], str] | None = None, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self._token = token
        self._client = http_client(TransportOptions(max_response_bytes=_MAX_BYTES, ssl_context=ssl_context))

    async def get(self, url: str, query: Mapping[str, str] | None = None) -> bytes:
        """The body of a 200. Raises `SourceMissing` for any other status or a body that cannot be used."""
        headers = {"authorization": f"Bearer {self._token()}"} if self._token else None
        try:
            response = await self._client.get(url, params=query, headers=headers)
        except UnusableResponse as error:
            raise SourceMissing(f"its answer {error}") from None
        if response.status_code != 200:
            raise SourceMissing(f"it answered {response.status_code}")
        return response.content

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


class HeldSlot(NamedTuple):
    """One slot of a concurrency quota: the quota's key and the submission that holds it."""

    key: str
    member: str


class BudgetStore(Protocol):
    """Reads a number that somebody else writes."""

    async def read_budget(self, key: str) -> str | None:
        """The text under `key`, None when there is none."""
        ...


class QuotaStore(Protocol):
    """Counts what tenants use, over all processes.

    `counter_seconds` is how long the counter that the reference shares lives without being touched.
    """

    failures: tuple[type[Exception], ...]

    async def pay_rate(
        self, key: str, member: str, *, limit: int, window_seconds: float, remember_seconds: float
    ) -> tuple[bool, bool, float]:
        """Take one unit of `limit` per window: (may go, paid just now, seconds until a unit is free).

        A member that has paid goes without paying for as long as that is remembered.
        """
        ...

    async def refund_rate(self, key: str, member: str) -> None:
        """Give back the unit that `member` paid; nothing happens when there is none."""
        ...

    async def hold_slot(
        self, slot: HeldSlot, owner: str, *, limit: int, lease_seconds: float, counter_seconds: float
    ) -> bool:
        """Take one of `limit` slots under a lease; one who has one keeps it, for `owner` now."""
        ...

    async def free_slot(self, slot: HeldSlot, owner: str, *, counter_seconds: float) -> bool:
        """Give the slot back, if it is still this owner's; returns whether it was."""
        ...

    async def renew_slots(
        self, slots: Sequence[HeldSlot], owner: str, *, lease_seconds: float, counter_seconds: float
    ) -> None:
        """Move the leases' ends. A lost slot is counted again, unless another owner has it.

        Without slots this only asks whether the store is there.
        """
        ...


class LeasedRate(Protocol):
    """The controller's decision: whether it is valid now, its rate per second, and what became of a token."""

    @property
    def is_taken(self) -> bool:
        """Whether a token was taken."""
        ...

    @property
    def is_valid(self) -> bool:
        """Whether there is a lease, for this pool, that has not expired."""
        ...

    @property
    def per_second(self) -> float:
        """The leased rate; 0 without a valid lease."""
        ...

    @property
    def wait_seconds(self) -> float:
        """How long until there is a token."""
        ...


class LeasedRateStore(Protocol):
    """A token bucket whose rate an outside controller leases to us."""

    failures: tuple[type[Exception], ...]

    async def take_token(
        self, control_key: str, state_key: str, pool: str, *, burst_seconds: float
    ) -> LeasedRate:
        """Take one token, if the lease is valid and there is one."""
        ...

    def check_lease_keys(self, control_key: str, state_key: str) -> None:
        """Raises `InvalidSetting` for two keys that this store cannot look at in one step."""
        ...

    async def look_at_lease(self, control_key: str, state_key: str, pool: str) -> LeasedRate:
        """The lease as it stands; takes nothing."""
        ...

    async def return_token(self, state_key: str) -> None:
        """Put one token back; the bucket's own limit holds at the next taking."""
        ...


class GateStore(BudgetStore, QuotaStore, LeasedRateStore, Protocol):
    """All that the gates need of one address."""

    failures: tuple[type[Exception], ...]
    """What any of the calls raises when the store cannot be asked."""


@dataclass(frozen=True, slots=True)
class GateSources:
    """`stores` gives the store at an address, the same one for the same address.

    `prometheus_url` is empty where none is configured; `prometheus_http` carries the credentials for it, and
    `http`, which reads pages, has none. `owner_pool` is the worker pool whose gate is built, or whose queue's.
    `clock` gives Unix seconds, `draw` a number in [0, 1).
    """

    feeds: Feeds
    http: HttpText
    prometheus_http: HttpText
    stores: Callable[[str], GateStore]
    log: GateLog
    prometheus_url: str = ""
    owner_pool: str = ""
    clock: Callable[[], float] = time.time
    draw: Callable[[], float] = random.random
