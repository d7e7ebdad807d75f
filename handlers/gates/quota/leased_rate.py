"""`redis-leased-rate`: a rate that an external controller leases, for all processes together.

They share one token bucket in Redis. The gate is closed if the lease is missing, expired or for another pool, and while
Redis is unavailable.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from handlers.contract.accepted import about
from handlers.contract.masked_text import shown_value
from handlers.contract.request import Request
from handlers.gates.gate import (
    CLOSED_RETRY_SECONDS,
    NO_LABELS,
    Gate,
    Go,
    Refuse,
    Verdict,
)
from handlers.gates.parameters import DURATION, InconsistentParameters, Text
from handlers.gates.sources import GateSources
from handlers.redis_store.limits.limits import RedisGateStore, TokenAnswer
from handlers.telemetry.dependencies import GateState


class LeasedRateParameters(msgspec.Struct, frozen=True, kw_only=True):
    """Keys of the lease and of the token bucket.

    `pool_id` and `burst_seconds` are newer names of `pool` and `burst`. Without a pool, the id of the worker pool is
    used.
    """

    address: Annotated[Text, about("Redis that holds the keys, `host:port` or a URL.")]
    control_key: Annotated[
        Text,
        about("Key that holds the rate and its expiry; a controller writes it. Without it the gate is closed."),
    ]
    pool: Annotated[str, about("Pool that the control key must name; empty: the id of the worker pool.")] = ""
    pool_id: Annotated[str, about("Another name of `pool`.")] = ""
    state_key: Annotated[str, about("Key of the token bucket; empty: the control key with `:state` appended.")] = ""
    burst: Annotated[
        Annotated[float, DURATION, Meta(gt=0, le=3_600)] | None,
        about("The reference's name for `burst_seconds`."),
    ] = None
    burst_seconds: Annotated[
        Annotated[float, DURATION, Meta(gt=0, le=3_600)] | None,
        about("Largest burst, as seconds of the rate: with 10 requests/s, 2 allows 20 requests at once. Unset: 1."),
    ] = None

    def __post_init__(self) -> None:
        if self.pool and self.pool_id:
            raise InconsistentParameters(
                "pool_id",
                found=f"pool {shown_value(self.pool)} and pool_id {shown_value(self.pool_id)}",
                accepted="one of the two",
            )
        if self.burst is not None and self.burst_seconds is not None:
            raise InconsistentParameters(
                "burst_seconds",
                found=f"burst {self.burst} and burst_seconds {self.burst_seconds}",
                accepted="one of the two",
            )


class LeasedRateGate(Gate):
    """Takes one token per request. If a later gate refuses, the token is returned."""

    gate_type = "redis-leased-rate"

    def __init__(self, parameters: LeasedRateParameters, sources: GateSources) -> None:
        self._parameters = parameters
        self._pool = pool = parameters.pool or parameters.pool_id or sources.owner_pool
        burst = parameters.burst if parameters.burst is not None else parameters.burst_seconds
        self._burst_seconds = 1.0 if burst is None else burst
        self._state_key = parameters.state_key or f"{parameters.control_key}:state"
        store = sources.stores(parameters.address)
        store.check_lease_keys(parameters.control_key, self._state_key)
        self._store = store
        self._log = sources.log
        self._clock = sources.clock
        self._spread: Spread | None = None
        self._spread_rate = 0.0

        async def measure() -> TokenAnswer:
            return await store.read_lease(parameters.control_key, self._state_key, pool)

        self._feed = sources.feeds.feed(
            ("lease", parameters.address, parameters.control_key, self._state_key, pool),
            measure,
            name=f"redis {parameters.control_key}",
        )
        self._is_started = False

    async def start(self) -> None:
        """Read the lease, log it, and keep reading in the background."""
        if self._is_started:
            return
        await self._feed.start()
        self._is_started = True
        self._log.info(
            "gate started",
            gate=self.gate_type,
            pool=self._pool,
            source=self._feed.name,
            per_second=self._rate(),
            burst_seconds=self._burst_seconds,
            on_missing="closed",
            reason=self._why_closed(),
        )

    async def aclose(self) -> None:
        if self._is_started:
            self._is_started = False
            await self._feed.aclose()

    def budget(self) -> float:
        """1 while a lease with a positive rate is valid, else 0."""
        return 1.0 if self._rate() > 0 else 0.0

    def room(self, labels: Mapping[str, str] = NO_LABELS) -> int | None:  # noqa: ARG002 - one rate for all
        """None while the budget is 1, else 0. Only Redis knows the number of tokens."""
        return None if self._rate() > 0 else 0

    async def admit(self, request: Request) -> Verdict:  # noqa: ARG002 - one rate for all
        """Take a token, or refuse until one is available."""
        try:
            answer = await self._store.take_token(
                self._parameters.control_key,
                self._state_key,
                self._pool,
                burst_seconds=self._burst_seconds,
            )
        except self._store.failures:
            return Refuse(CLOSED_RETRY_SECONDS, "source missing")
        if answer.is_taken:
            return Go(_Token(self._store, self._state_key))
        if not answer.is_valid or answer.per_second <= 0:
            return Refuse(CLOSED_RETRY_SECONDS, "no valid lease" if not answer.is_valid else "the rate is 0")
        return Refuse(self._delay(answer), "over the leased rate")

    def state(self) -> GateState:
        """State with the rate, and whether its lease is valid."""
        return GateState(
            self.gate_type,
            budget=self.budget(),
            value=self._rate(),
            is_source_available=not self._feed.failure and self._is_valid(),
            on_missing="" if self._is_valid() else "closed",
            why_missing="" if self._is_valid() else self._feed.failure or "no valid lease",
            why_closed=self._why_closed(),
            label=self._pool,
        )

    def _delay(self, answer: TokenAnswer) -> float:
        if self._spread is None or self._spread_rate != answer.per_second:
            self._spread = Spread(1 / answer.per_second, self._clock)
            self._spread_rate = answer.per_second
        return self._spread.delay(self._state_key, answer.wait_seconds)

    def _is_valid(self) -> bool:
        reading = self._feed.reading
        return self._is_started and not self._feed.failure and reading is not None and reading.value.is_valid

    def _rate(self) -> float:
        reading = self._feed.reading
        return reading.value.per_second if reading is not None and self._is_valid() else 0.0

    def _why_closed(self) -> str:
        if self._rate() > 0:
            return ""
        if self._feed.failure:
            return f"source missing: {self._feed.failure}"
        return "the rate is 0" if self._is_valid() else "no valid lease"


class _Token(msgspec.Struct, frozen=True):
    store: RedisGateStore
    state_key: str

    async def release(self) -> None:
        """Do nothing: the request was sent, so the token stays used."""

    async def give_back(self) -> None:
        """Return the token, because the request was not sent."""
        with contextlib.suppress(*self.store.failures):
            await self.store.return_token(self.state_key)


_LONGEST_SECONDS: Final = 60.0  # longer forecasts are uncertain: units are returned, clients give up
_MOST_KEYS: Final = 10_000


class Spread:
    """Spreads the retries of refused requests: one every `interval_seconds` per key.

    Otherwise all refused requests of a key would be retried at the same time. The interval may be changed later.
    """

    def __init__(self, interval_seconds: float, clock: Callable[[], float]) -> None:
        self.interval_seconds = interval_seconds
        self._clock = clock
        self._last_at: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._last_at)

    def delay(self, key: str, wait_seconds: float) -> float:
        """Seconds until this request should be retried, at least `wait_seconds`."""
        now = self._clock()
        at = max(now + wait_seconds, self._last_at.get(key, 0.0) + self.interval_seconds)
        if at - now > _LONGEST_SECONDS:
            at = now + max(wait_seconds, _LONGEST_SECONDS / 2)
        self._last_at[key] = at
        self._last_at.move_to_end(key)
        if len(self._last_at) > _MOST_KEYS:
            self._last_at.popitem(last=False)  # the least recently used key
        return at - now
