"""`redis-quota`: a quota per tenant, counted exactly in Redis over all processes.

Both modes share the key `<prefix><attribute>:<value>` with the reference.

- `rate-limit` keeps a window of timestamps there. Each claim takes a unit of its own, which is returned if a later gate
  refuses the request.
- `concurrency` keeps the reference's counter there, and the leases of the slots in `{...}:held`. When the leases of a
  crashed process expire, its slots are free again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import time
from collections.abc import Callable
from typing import Annotated, Final, Literal

import msgspec

from handlers.cancellation import end_if_cancelled
from handlers.contract.accepted import about
from handlers.contract.request import Request
from handlers.gates.chain import claim_name
from handlers.gates.gate import CLASSIFICATION, OVERFLOW, RESERVED, Gate, Go, Refuse, Verdict
from handlers.gates.metric.reading_gate import CLOSED, OPEN
from handlers.gates.parameters import Duration, Text
from handlers.gates.quota.leased_rate import Spread
from handlers.gates.quota.local_concurrency import BLOCKING, CLASSIFYING
from handlers.gates.sources import GateSources
from handlers.redis_store.limits.limits import BESIDE_QUOTA, HeldSlot, RedisGateStore
from handlers.telemetry.dependencies import GateState

RATE_LIMIT: Final = "rate-limit"
_FIRST_HELD_SECONDS: Final = 1.0  # assumed duration of a request until the first one has ended
_LEARNING: Final = 0.1
_SOONER: Final = 0.8
_LEAST_INTERVAL_SECONDS: Final = 0.001
_MISSING_RETRY_SECONDS: Final = 5.0
_LONGEST_VALUE_BYTES: Final = 256
_LONGEST_MEMORY_SECONDS: Final = 7 * 86_400.0  # a limit, since requests may have deadlines years away


class QuotaParameters(msgspec.Struct, frozen=True, kw_only=True):
    """A quota for each value of a metadata field."""

    address: Annotated[Text, about("Redis that holds the counters, `host:port` or a URL.")]
    limit: Annotated[
        int,
        about(
            "Requests per `window` (`rate-limit`) or in flight (`concurrency`), for each value of `attribute`.",
            ge=1,
            le=1_000_000_000,
        ),
    ]
    attribute: Annotated[
        Text, about("Metadata field that names the tenant. A request without this field is not limited.")
    ] = "userid"
    mode: Annotated[
        Literal["rate-limit", "concurrency"],
        about("`rate-limit` counts requests per window, `concurrency` requests in flight."),
    ] = RATE_LIMIT
    window: Annotated[Duration, about("Length of the window of `rate-limit`, in seconds.")] = 60.0
    prefix: Annotated[Text, about("Prefix of the quota keys.")] = "quota:"
    gating_mode: Annotated[
        Literal["blocking", "classifying"],
        about(
            "`blocking`: requests beyond the quota go back to the queue. `classifying`: they are "
            "sent, labelled `overflow`. In `local-max-concurrency` these words mean other modes."
        ),
    ] = BLOCKING
    on_missing: Annotated[
        Literal["open", "closed"],
        about(
            "While Redis is unavailable: `open` sends requests, `closed` holds them back. With `classifying`, they "
            "are sent in both cases, labelled `overflow`."
        ),
    ] = CLOSED
    lease_seconds: Annotated[
        float,
        about(
            "With `concurrency`: seconds after which the slots of a crashed process are free again.",
            ge=1,
            le=3600,
        ),
    ] = 15.0


class QuotaGate(Gate):
    """Counts each request in Redis. A request without the attribute is not limited."""

    gate_type = "redis-quota"

    def __init__(self, parameters: QuotaParameters, sources: GateSources) -> None:
        self._parameters = parameters
        self._store = sources.stores(parameters.address)
        self._log = sources.log
        self._clock = sources.clock
        self._why_missing = ""
        self._slots = HeldSlots(
            self._store,
            limit=parameters.limit,
            lease_seconds=parameters.lease_seconds,
            # The counter has the reference's TTL, but at least two leases.
            counter_seconds=max(parameters.window, 2 * parameters.lease_seconds),
            set_missing=self._set_missing,
        )
        is_rate = parameters.mode == RATE_LIMIT
        # Slots become free as requests end, so retries are spread by the measured mean duration.
        self._mean_held_seconds = _FIRST_HELD_SECONDS
        seconds_each = parameters.window if is_rate else self._mean_held_seconds
        self._spread = Spread(seconds_each / parameters.limit, sources.clock)

    async def start(self) -> None:
        """Check that Redis is available, log the limit, and start renewing slots."""
        await self._slots.start()
        self._log.info(
            "gate started",
            gate=self.gate_type,
            mode=self._parameters.mode,
            limit=self._parameters.limit,
            window_seconds=self._parameters.window,
            keys=f"{self._parameters.prefix}{self._parameters.attribute}:*",
            gating_mode=self._parameters.gating_mode,
            on_missing=self._parameters.on_missing,
            is_redis_missing=bool(self._why_missing),
        )

    async def aclose(self) -> None:
        """Stop renewing. Slots still held are freed when their leases expire."""
        await self._slots.aclose()

    async def renew(self) -> None:
        """Renew held slots now; a started gate does so in the background."""
        await self._slots.tick()

    async def admit(self, request: Request) -> Verdict:
        """Reserve a unit or a slot. Beyond the quota, refuse or label as overflow."""
        value = request.metadata.get(self._parameters.attribute)
        if not value:
            return Go()
        key = f"{self._parameters.prefix}{self._parameters.attribute}:{_in_key(value)}"
        try:
            if self._parameters.mode == RATE_LIMIT:
                verdict = await self._pay(key, request)
            else:
                verdict = await self._hold(key, request)
        except self._store.failures as error:
            self._set_missing(type(error).__name__)
            return self._without_store()
        self._set_missing("")
        return verdict

    def state(self) -> GateState:
        """State with Redis' availability and the slots that this process holds."""
        closed = bool(self._why_missing) and self._without_store_is_closed()
        return GateState(
            self.gate_type,
            threshold=self._parameters.limit,
            is_source_available=not self._why_missing,
            on_missing=self._parameters.on_missing if self._why_missing else "",
            why_missing=self._why_missing,
            why_closed=f"source missing: {self._why_missing}" if closed else "",
            label=self._parameters.attribute,
            figures={"held": len(self._slots)},
        )

    async def _pay(self, key: str, request: Request) -> Verdict:
        member = claim_name(request)
        left = min(max(0.0, request.deadline - time.time()), _LONGEST_MEMORY_SECONDS)
        may_go, has_paid_now, wait_seconds = await self._store.pay_rate(
            key,
            member,
            limit=self._parameters.limit,
            window_seconds=self._parameters.window,
            # With a claim, a request takes one unit per attempt; without a claim, one until its deadline.
            remember_seconds=self._parameters.window if request.claim else max(left, self._parameters.window),
        )
        if not may_go:
            return self._over(self._spread.delay(key, wait_seconds))
        # Only the call that took the unit may return it.
        return self._within(RateReservation(self._store, key, member) if has_paid_now else None)

    async def _hold(self, key: str, request: Request) -> Verdict:
        slot = HeldSlot(key, claim_name(request))
        if await self._slots.take(slot):
            return self._within(SlotReservation(self._slots, slot, self._clock(), self._learn))
        # Spread retries: otherwise one tenant's long queue would be retried every second and keep the poller busy.
        return self._over(self._spread.delay(key, self._spread.interval_seconds))

    def _learn(self, taken_at: float) -> None:
        held_seconds = max(0.0, self._clock() - taken_at)
        self._mean_held_seconds += (held_seconds - self._mean_held_seconds) * _LEARNING
        # Slightly shorter than the mean, so that a free slot is not left unused.
        interval = self._mean_held_seconds / self._parameters.limit * _SOONER
        self._spread.interval_seconds = max(_LEAST_INTERVAL_SECONDS, interval)

    def _within(self, reservation: RateReservation | SlotReservation | None) -> Go:
        labels = {CLASSIFICATION: RESERVED}
        return Go(labels=labels) if reservation is None else Go(reservation, labels)

    def _over(self, delay_seconds: float) -> Verdict:
        if self._parameters.gating_mode == CLASSIFYING:
            return Go(labels={CLASSIFICATION: OVERFLOW})
        return Refuse(delay_seconds, "over quota")

    def _without_store(self) -> Verdict:
        if self._parameters.gating_mode == CLASSIFYING:
            return Go(labels={CLASSIFICATION: OVERFLOW})
        if self._parameters.on_missing == OPEN:
            return Go()
        return Refuse(_MISSING_RETRY_SECONDS, "source missing")

    def _without_store_is_closed(self) -> bool:
        return self._parameters.gating_mode == BLOCKING and self._parameters.on_missing == CLOSED

    def _set_missing(self, reason: str) -> None:
        if reason and not self._why_missing:
            self._log.warning(
                "gate on_missing applied",
                gate=self.gate_type,
                in_force=self._parameters.on_missing,
                reason=reason,
            )
        elif not reason and self._why_missing:
            self._log.info("gate source restored", gate=self.gate_type)
        self._why_missing = reason


def _in_key(value: str) -> str:
    """The attribute's value for a key. The producer chooses it.

    A long one becomes a digest, and so does one that ends like the keys beside another tenant's.
    """
    encoded = value.encode("utf-8", "surrogatepass")
    is_plain = len(encoded) <= _LONGEST_VALUE_BYTES and not value.endswith(BESIDE_QUOTA)
    return value if is_plain else f"sha256:{hashlib.sha256(encoded).hexdigest()}"


class RateReservation(msgspec.Struct, frozen=True):
    """One unit of a rate limit."""

    store: RedisGateStore
    key: str
    member: str

    async def release(self) -> None:
        """Do nothing: the request was sent, so the unit stays used."""

    async def give_back(self) -> None:
        """Return the unit, because the request was not sent."""
        # While Redis is unavailable the unit stays used, so the limit is too strict for one window, but never exceeded.
        with contextlib.suppress(*self.store.failures):
            await self.store.refund_rate(self.key, self.member)


class SlotReservation(msgspec.Struct, frozen=True):
    """One slot of a concurrency quota.

    When the request ends, `learn` is called with `taken_at`, to measure how long it held the slot.
    """

    slots: HeldSlots
    slot: HeldSlot
    taken_at: float
    learn: Callable[[float], None]

    async def release(self) -> None:
        self.learn(self.taken_at)
        await self.slots.free(self.slot)

    async def give_back(self) -> None:
        await self.slots.free(self.slot)


class HeldSlots:
    """Slots of a concurrency quota that this process holds.

    Leases are renewed every third of their length. `set_missing` is called with the reason if Redis is unavailable, and
    with "" once it is back.
    """

    def __init__(
        self,
        store: RedisGateStore,
        *,
        limit: int,
        lease_seconds: float,
        counter_seconds: float,
        set_missing: Callable[[str], None],
    ) -> None:
        self._store = store
        self._limit = limit
        self._lease_seconds = lease_seconds
        self._counter_seconds = counter_seconds
        self._set_missing = set_missing
        self._owner = secrets.token_hex(8)
        self._held: set[HeldSlot] = set()
        self._loop: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._held)

    async def start(self) -> None:
        if self._loop is None:
            await self.tick()
            self._loop = asyncio.create_task(self._run(), name="renew quota slots")

    async def aclose(self) -> None:
        if self._loop is not None:
            loop, self._loop = self._loop, None
            loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await loop

    async def take(self, slot: HeldSlot) -> bool:
        """Take a slot. Returns whether one was free."""
        is_held = await self._store.hold_slot(
            slot,
            self._owner,
            limit=self._limit,
            lease_seconds=self._lease_seconds,
            counter_seconds=self._counter_seconds,
        )
        if is_held:
            self._held.add(slot)
        return is_held

    async def free(self, slot: HeldSlot) -> None:
        """Free a slot. If Redis is unavailable, it is freed when its lease expires."""
        self._held.discard(slot)
        try:
            await self._store.free_slot(slot, self._owner, counter_seconds=self._counter_seconds)
        except self._store.failures as error:
            self._set_missing(type(error).__name__)

    async def tick(self) -> None:
        """Renew all leases once. A slot that was freed meanwhile is freed again."""
        renewed = sorted(self._held)
        try:
            await self._store.renew_slots(
                renewed,
                self._owner,
                lease_seconds=self._lease_seconds,
                counter_seconds=self._counter_seconds,
            )
        except self._store.failures as error:
            self._set_missing(type(error).__name__)
            return
        self._set_missing("")
        for slot in renewed:
            if slot not in self._held:
                await self.free(slot)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            try:
                await self.tick()
            except Exception as error:  # noqa: BLE001 - the loop must survive, or slots would be lost
                self._set_missing(type(error).__name__)
            end_if_cancelled()
