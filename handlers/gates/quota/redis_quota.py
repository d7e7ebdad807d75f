"""`redis-quota`: what each tenant may use, counted in Redis over all processes, exactly.

Both modes share their keys with the reference. `rate-limit` keeps a window of timestamps under
`<prefix><attribute>:<value>`, where each claim of a request pays for its attempt and gets that back if a later gate
turns it away; no request can name what another paid. `concurrency`
keeps the reference's counter there, and beside it who holds a slot until when
(`{...}:held`): a killed owner's slots come back with their leases.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from handlers.cancellation import end_if_cancelled
from handlers.contract.request import Request
from handlers.gates.chain import claim_name
from handlers.gates.gate import Gate, GateState, Go, Refuse, Verdict
from handlers.gates.labels import CLASSIFICATION, OVERFLOW, RESERVED
from handlers.gates.metric.reading_gate import CLOSED, OPEN
from handlers.gates.parameters import choice, number, parameter, seconds, text, whole
from handlers.gates.quota.leased_rate import Spread
from handlers.gates.quota.local_concurrency import BLOCKING, CLASSIFYING
from handlers.gates.sources import GateSources, HeldSlot, QuotaStore

RATE_LIMIT: Final = "rate-limit"
CONCURRENCY: Final = "concurrency"
_FIRST_HELD_SECONDS: Final = 1.0  # before the first request has ended
_LEARNING: Final = 0.1
_SOONER: Final = 0.8
_LEAST_INTERVAL_SECONDS: Final = 0.001
_MISSING_RETRY_SECONDS: Final = 5.0
_LONGEST_VALUE_BYTES: Final = 256
_LONGEST_MEMORY_SECONDS: Final = 7 * 86_400.0  # a deadline in a far year must not keep a marker for ever


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaParameters:
    """`on_missing` holds while Redis cannot be asked; a dead owner's slot stays for `lease_seconds`.

    `blocking` refuses over quota; `classifying` never refuses, and labels `reserved` or `overflow`.
    """

    address: str = parameter(text(), means="Redis that counts, `host:port` or a URL.")
    limit: int = parameter(
        whole(least=1),
        means=(
            "Requests per `window` (`rate-limit`), or at a time (`concurrency`), for each value of "
            "`attribute`."
        ),
    )
    attribute: str = parameter(
        text(), default="userid", means="Metadata field that names whose quota a request uses."
    )
    mode: str = parameter(
        choice(RATE_LIMIT, CONCURRENCY),
        default=RATE_LIMIT,
        means="`rate-limit` counts requests per window, `concurrency` requests in flight.",
    )
    window: float = parameter(
        seconds(), default=60.0, means="Length of the window of `rate-limit`, in seconds."
    )
    prefix: str = parameter(text(), default="quota:", means="Beginning of the keys that count.")
    gating_mode: str = parameter(
        choice(BLOCKING, CLASSIFYING),
        default=BLOCKING,
        means="`blocking`: requests beyond the quota wait. `classifying`: they go, labelled `overflow`.",
    )
    on_missing: str = parameter(
        choice(OPEN, CLOSED),
        default=CLOSED,
        means="What holds while Redis is unavailable: `open` or `closed`.",
    )
    lease_seconds: float = parameter(
        number(least=1, most=3_600),
        default=15.0,
        means="With `concurrency`: seconds after which a slot of a crashed process is free again.",
    )


class QuotaGate(Gate):
    """Asks the store for each request; a request without the attribute has no quota."""

    gate_type = "redis-quota"

    def __init__(self, parameters: QuotaParameters, sources: GateSources) -> None:
        self._parameters = parameters
        self._store = sources.stores(parameters.address)
        self._log = sources.log
        self._clock = sources.clock
        self._slots = HeldSlots(
            self._store,
            limit=parameters.limit,
            lease_seconds=parameters.lease_seconds,
            # The counter lives as long as the reference's would, and never shorter than a lease.
            counter_seconds=max(parameters.window, 2 * parameters.lease_seconds),
            tell_missing=self._set_missing,
        )
        is_rate = parameters.mode == RATE_LIMIT
        # Slots come free as often as requests end: how long those take is learnt from them.
        self._mean_held_seconds = _FIRST_HELD_SECONDS
        seconds_each = parameters.window if is_rate else self._mean_held_seconds
        self._spread = Spread(seconds_each / parameters.limit, sources.clock)
        self._is_missing = False

    async def start(self) -> None:
        """Probe the store, log the limit, and renew what is held from now on."""
        await self._slots.start()
        self._log.info(
            "gate counts",
            gate=self.gate_type,
            mode=self._parameters.mode,
            limit=self._parameters.limit,
            window_seconds=self._parameters.window,
            keys=f"{self._parameters.prefix}{self._parameters.attribute}:*",
            gating_mode=self._parameters.gating_mode,
            on_missing=self._parameters.on_missing,
            is_missing=self._is_missing,
        )

    async def aclose(self) -> None:
        """Stop renewing; what is still held comes back with its lease."""
        await self._slots.aclose()

    async def renew(self) -> None:
        """Renew what is held, now; happens by itself once started."""
        await self._slots.tick()

    async def admit(self, request: Request) -> Verdict:
        """Within quota: go, and pay. Over it: refuse with the time until a unit is free, or label."""
        value = request.metadata.get(self._parameters.attribute)
        if not value:
            return Go()
        key = f"{self._parameters.prefix}{self._parameters.attribute}:{_bounded(value)}"
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
        """Whether the store answers, and how many slots this process holds."""
        closed = self._is_missing and self._without_store_is_closed()
        return GateState(
            self.gate_type,
            threshold=self._parameters.limit,
            is_source_available=not self._is_missing,
            on_missing=self._parameters.on_missing if self._is_missing else "",
            why_closed="source missing" if closed else "",
            label=self._parameters.attribute,
            figures={"held": len(self._slots)},
        )

    async def _pay(self, key: str, request: Request) -> Verdict:
        member = claim_name(request)
        left = min(max(0.0, request.deadline - self._clock()), _LONGEST_MEMORY_SECONDS)
        may_go, has_paid_now, wait_seconds = await self._store.pay_rate(
            key,
            member,
            limit=self._parameters.limit,
            window_seconds=self._parameters.window,
            # A claim pays once and is over; without a claim's name, a request is remembered until its deadline.
            remember_seconds=self._parameters.window if request.claim else max(left, self._parameters.window),
        )
        if not may_go:
            return self._over(self._spread.delay(key, wait_seconds))
        # Who had paid before keeps that: only the one that paid now may give it back.
        return self._within(Payment(self._store, key, member) if has_paid_now else None)

    async def _hold(self, key: str, request: Request) -> Verdict:
        slot = HeldSlot(key, claim_name(request))
        if await self._slots.take(slot):
            return self._within(Held(self._slots, slot, self._clock(), self._learn))
        # Each its own time: a deep queue of one tenant that asked every second would do nothing else.
        return self._over(self._spread.delay(key, self._spread.interval_seconds))

    def _learn(self, taken_at: float) -> None:
        held_seconds = max(0.0, self._clock() - taken_at)
        self._mean_held_seconds += (held_seconds - self._mean_held_seconds) * _LEARNING
        # A little sooner than on average, so that no slot waits for its next request.
        interval = self._mean_held_seconds / self._parameters.limit * _SOONER
        self._spread.interval_seconds = max(_LEAST_INTERVAL_SECONDS, interval)

    def _within(self, reservation: Payment | Held | None) -> Go:
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

    def _set_missing(self, why: str) -> None:
        if why and not self._is_missing:
            self._log.warning(
                "gate on_missing in force",
                gate=self.gate_type,
                in_force=self._parameters.on_missing,
                why=why,
            )
        elif not why and self._is_missing:
            self._log.info("gate reads its source again", gate=self.gate_type)
        self._is_missing = bool(why)


def _bounded(value: str) -> str:
    """The value as part of a key; a digest in place of a long one, since its writer chooses the length."""
    encoded = value.encode("utf-8", "surrogatepass")
    return value if len(encoded) <= _LONGEST_VALUE_BYTES else f"sha256:{hashlib.sha256(encoded).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Payment:
    """One unit of a rate: kept once the request was sent."""

    store: QuotaStore
    key: str
    member: str

    async def release(self) -> None:
        """Nothing: a rate is used up by the sending."""

    async def give_back(self) -> None:
        """The request was not sent: the unit is free again."""
        # Without the store the unit stays paid: too strict for one window, never too generous.
        with contextlib.suppress(*self.store.failures):
            await self.store.refund_rate(self.key, self.member)


@dataclass(frozen=True, slots=True)
class Held:
    """One slot of a concurrency quota; `learn` hears when it was taken, once a request that used it is over."""

    slots: HeldSlots
    slot: HeldSlot
    taken_at: float
    learn: Callable[[float], None]

    async def release(self) -> None:
        """Free it."""
        self.learn(self.taken_at)
        await self.slots.free(self.slot)

    async def give_back(self) -> None:
        """Free it."""
        await self.slots.free(self.slot)


class HeldSlots:
    """Takes, renews (at a third of the lease) and frees.

    `tell_missing` hears why the store cannot be asked, and "" once it can.
    """

    def __init__(
        self,
        store: QuotaStore,
        *,
        limit: int,
        lease_seconds: float,
        counter_seconds: float,
        tell_missing: Callable[[str], None],
    ) -> None:
        self._store = store
        self._limit = limit
        self._lease_seconds = lease_seconds
        self._counter_seconds = counter_seconds
        self._tell_missing = tell_missing
        self._owner = secrets.token_hex(8)
        self._held: set[HeldSlot] = set()
        self._loop: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._held)

    async def start(self) -> None:
        """Probe the store and renew from now on."""
        if self._loop is None:
            await self.tick()
            self._loop = asyncio.create_task(self._run(), name="renew quota slots")

    async def aclose(self) -> None:
        """Stop renewing."""
        if self._loop is not None:
            loop, self._loop = self._loop, None
            loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await loop

    async def take(self, slot: HeldSlot) -> bool:
        """Take a slot, if there is one."""
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
        """Give a slot back; when Redis cannot be asked, its lease does."""
        self._held.discard(slot)
        try:
            await self._store.free_slot(slot, self._owner, counter_seconds=self._counter_seconds)
        except self._store.failures as error:
            self._tell_missing(type(error).__name__)

    async def tick(self) -> None:
        """Renew once. What was freed while that was on its way may be counted again: free it again."""
        renewed = sorted(self._held)
        try:
            await self._store.renew_slots(
                renewed,
                self._owner,
                lease_seconds=self._lease_seconds,
                counter_seconds=self._counter_seconds,
            )
        except self._store.failures as error:
            self._tell_missing(type(error).__name__)
            return
        self._tell_missing("")
        for slot in renewed:
            if slot not in self._held:
                await self.free(slot)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            try:
                await self.tick()
            except Exception as error:  # noqa: BLE001 - without renewal slots are lost: go on, and say so
                self._tell_missing(type(error).__name__)
            end_if_cancelled()
