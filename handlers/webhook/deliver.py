"""Deliver results to webhooks: under a lease until accepted, signed, with retries.

Connections go to public addresses only (`destinations`), and redirects are not followed. A receiver that is down or
slow does not delay others: a waiting result uses no slot, and memory holds a bounded number of results for each
receiver. The others are parked: only their leases are renewed, and when there is room they are released and received
again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import urlsplit

import msgspec

from handlers.backoff import Backoff
from handlers.cancellation import end_if_cancelled
from handlers.client.errors import ClientError, LeaseLost
from handlers.client.results import ResultDelivery, ResultStream
from handlers.clock import steady_time
from handlers.contract.errors import InvalidSetting
from handlers.contract.result import Result
from handlers.webhook.call import CallAnswer, Caller
from handlers.webhook.destinations import (
    METADATA_FIELD,
    Destination,
    DestinationRefused,
    WebhookTarget,
    is_public_host,
    webhook_target_of,
)

LONGEST_PAUSE_SECONDS: Final = 300.0
_LONGEST_RETRY_AFTER_SECONDS: Final = 3_600.0
"""Longest `Retry-After` that is followed, so that a receiver cannot postpone its results indefinitely."""


@dataclass(slots=True, eq=False)
class Lane:
    """Slots and memory of a list entry, or of the default receiver."""

    at_once: int
    most_held: int
    most_bytes: int
    held: int = 0
    held_bytes: int = 0
    slots: asyncio.Semaphore = field(init=False)
    parked: deque[bytes] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.slots = asyncio.Semaphore(self.at_once)

    @property
    def has_room(self) -> bool:
        """Whether another result may wait in memory. The first one always may."""
        return self.held == 0 or (self.held < self.most_held and self.held_bytes < self.most_bytes)


class Receiver(msgspec.Struct, eq=False):
    """State of one receiver URL. Times are in seconds of a clock that is never set.

    While the receiver `rests`, one result at a time is sent, after growing pauses. A refusal of a single result (a 400,
    a redirect) does not start a rest.
    """

    target: WebhookTarget
    lane: Lane
    most_held: int
    backoff: Backoff
    held: int = 0
    is_gone: bool = False
    rests: bool = False
    rests_until: float = 0.0
    failing_since: float | None = None
    took_at: float = 0.0
    turn: asyncio.Lock = msgspec.field(default_factory=asyncio.Lock)
    parked: deque[bytes] = msgspec.field(default_factory=deque)
    _pause_seconds: float = 0.0
    _failed_at: float = 0.0

    @property
    def has_room(self) -> bool:
        """Whether another result of this receiver may wait in memory."""
        return self.held < self.most_held and self.lane.has_room

    @property
    def is_idle(self) -> bool:
        return not (self.held or self.parked or self.is_gone or self.failing_since is not None)

    def enter(self, size_bytes: int) -> None:
        self.held += 1
        self.lane.held += 1
        self.lane.held_bytes += size_bytes

    def leave(self, size_bytes: int) -> list[bytes]:
        """Stop counting a result. Returns the claim keys of parked results that the caller gives back."""
        self.lane.held -= 1
        self.lane.held_bytes -= size_bytes
        return self.step_aside() or _next(self.lane.parked, self.lane.held)

    def step_aside(self) -> list[bytes]:
        """Let a result wait alone. Returns the claim keys of parked results that the caller gives back.

        The result stays in memory, but does not delay the receiver's others.
        """
        self.held -= 1
        return _next(self.parked, self.held)

    def step_back(self) -> None:
        """Count a result that waited alone for the receiver again."""
        self.held += 1

    def park(self, claim_key: bytes) -> None:
        """Park a result for which memory has no room. Only its lease is kept."""
        (self.parked if self.held >= self.most_held else self.lane.parked).append(claim_key)

    def is_down(self, now: float, seconds: float) -> bool:
        """Whether the receiver has accepted nothing for `seconds`."""
        return self.failing_since is not None and now - self.failing_since >= seconds

    def is_due(self, now: float) -> bool:
        return not self.rests or (now >= self.rests_until and not self.turn.locked())

    def took(self, now: float) -> None:
        self.rests, self.failing_since = False, None
        self.took_at = now
        self.backoff.reset()

    def refused(self, now: float) -> None:
        self.failing_since = now if self.failing_since is None else self.failing_since

    def failed(self, began_at: float, now: float, retry_after_seconds: float | None) -> None:
        """Record a failed call. Concurrent failures count as one."""
        self.refused(now)
        if began_at >= self._failed_at:
            self._pause_seconds = self.backoff.next_seconds()
        self._failed_at = now
        named = min(retry_after_seconds or 0.0, _LONGEST_RETRY_AFTER_SECONDS)
        self.rests_until = max(self.rests_until, now + max(named, self._pause_seconds))
        self.rests = True


def _next(parked: deque[bytes], held: int) -> list[bytes]:
    """Claim keys to release: one, or all if memory has no result."""
    count = min(len(parked), 1 if held else len(parked))
    return [parked.popleft() for _ in range(count)]


_FIRST_PAUSE_SECONDS: Final = 1.0
_HELD_FOR_EACH_SLOT: Final = 4
"""Results of one receiver in memory, for each slot: in flight, or waiting for a retry."""
_RECEIVERS_IN_A_LANE: Final = 16
"""Receivers of one entry of the list that may be down before others of that entry must wait."""
_MOST_PARKED: Final = 50_000
_MOST_KNOWN: Final = 10_000

log = logging.getLogger(__name__)


class WebhookGone(Exception):
    """The operator's receiver responded 410 (Gone). Nothing more is sent to it."""


class WebhookOptions(msgspec.Struct, frozen=True):
    """Receiver, keys and limits of a delivery.

    `allow_private` permits private addresses and plain HTTP, for a receiver of your own. A result that is not
    accepted within `give_up_seconds` is passed to `on_given_up`.

    A request may name one of `destinations` in its metadata (see `destinations.py`; needs `RESULT_DETAILS`). If that
    receiver does not accept a result within `destination_seconds`, or is not on the list, the result is sent to `url`
    with the reason. Each entry of the list, and `url`, has `at_once` slots of its own. `held_bytes` limits the results
    in memory.
    """

    url: str
    keys: Sequence[bytes]
    allow_private: bool = False
    at_once: int = 16
    call_seconds: float = 20.0
    give_up_seconds: float = 259_200.0
    first_pause_seconds: float = _FIRST_PAUSE_SECONDS
    destinations: Sequence[Destination] = ()
    destination_seconds: float = 300.0
    held_bytes: int = 64_000_000

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        schemes = ("https", "http") if self.allow_private else ("https",)
        if parts.scheme not in schemes or not parts.hostname or parts.username or parts.password:
            accepted = "https://host/path without user or password"
            found = f"{parts.scheme or 'no scheme'}://{parts.hostname or ''}" + (
                " with user or password" if parts.username or parts.password else ""
            )
            raise InvalidSetting("url", found=found, accepted=accepted)
        if not self.allow_private and not is_public_host(parts.hostname):
            raise InvalidSetting("url", found=f"the private address {parts.hostname}", accepted="a public host")
        for one in self.destinations:
            if not self.allow_private and not is_public_host(one.host.partition(":")[0]):
                found = f"the private address {one.host}"
                raise InvalidSetting("destinations", found=found, accepted="public hosts")

    def __repr__(self) -> str:
        return "WebhookOptions(…)"  # without keys, and without a URL that may contain a token


@dataclass(slots=True, eq=False)
class _Held:
    """A result in memory for one receiver. `since` is its arrival in Unix seconds."""

    delivery: ResultDelivery
    receiver: Receiver
    since: float
    undelivered: str = ""
    size_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        result = self.delivery.result
        self.size_bytes = len(result.payload) + len(result.payload_base64)


class Webhook:
    """Delivers results to all receivers."""

    def __init__(self, options: WebhookOptions, on_given_up: Callable[[Result], Awaitable[object]]) -> None:
        self._options = options
        self._on_given_up = on_given_up
        lanes = [self._lane() for _ in range(len(options.destinations) + 1)]
        self._lanes = dict(zip((one.place for one in options.destinations), lanes[1:], strict=True))
        self._own = self._receiver(WebhookTarget(options.url, options.keys), lanes[0])
        self._receivers: dict[str, Receiver] = {}
        self._held = 0
        self._parked = 0
        self._has_given_back = False
        self._has_left = asyncio.Event()
        self.delivered = 0
        self.given_up = 0

    def _lane(self) -> Lane:
        options = self._options
        held = options.at_once * _HELD_FOR_EACH_SLOT * _RECEIVERS_IN_A_LANE
        return Lane(options.at_once, held, options.held_bytes // (len(options.destinations) + 1))

    def _receiver(self, target: WebhookTarget, lane: Lane) -> Receiver:
        options = self._options
        return Receiver(target, lane, options.at_once * _HELD_FOR_EACH_SLOT, self._backoff())

    def _backoff(self) -> Backoff:
        return Backoff(self._options.first_pause_seconds, LONGEST_PAUSE_SECONDS)

    async def __aenter__(self) -> Self:
        options = self._options
        self._caller = Caller(allow_private=options.allow_private, call_seconds=options.call_seconds)
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._caller.close()

    async def run(self, stream: ResultStream) -> None:
        """Deliver until the stream ends. Raises `WebhookGone` or a `ClientError`."""
        self._stream = stream
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    async for delivery in stream:
                        await self._take(delivery, group)
                        end_if_cancelled()
                    while self._held and not self._has_given_back:
                        await self._until_one_leaves()
                    if not self._has_given_back:
                        break
                    self._has_given_back = False
        except* WebhookGone:
            raise WebhookGone from None
        except* ClientError as errors:
            raise _first(errors) from None

    async def _take(self, delivery: ResultDelivery, group: asyncio.TaskGroup) -> None:
        receiver, undelivered = self._aim(delivery.result)
        while not receiver.has_room and not self._lanes:
            await self._until_one_leaves()  # without other receivers, there is no use in reading more results
        held = _Held(delivery, receiver, time.time(), undelivered)
        if receiver.has_room:
            self._enter(held)
            group.create_task(self._carry(held))
        else:
            self._park(held)

    def _aim(self, result: Result) -> tuple[Receiver, str]:
        """The receiver that the request names, else the default one and why."""
        options = self._options
        try:
            found = webhook_target_of(result.metadata, options.destinations, allow_private=options.allow_private)
        except DestinationRefused as error:
            return self._own, str(error)
        if found is None:
            return self._own, ""
        place, target = found
        receiver = self._receivers.pop(target.url, None) or self._receiver(target, self._lanes[place])
        self._receivers[target.url] = receiver  # the least recently used receiver comes first
        if len(self._receivers) > _MOST_KNOWN:
            self._forget_one()
        return receiver, ""

    def _forget_one(self) -> None:
        for url, one in self._receivers.items():
            if not (one.held or one.parked):
                del self._receivers[url]
                return

    def _park(self, held: _Held) -> None:
        if self._parked < _MOST_PARKED:
            held.receiver.park(held.delivery.claim_key)
            self._parked += 1
        else:
            self._stream.let_go(held.delivery.claim_key)

    async def _until_one_leaves(self) -> None:
        self._has_left.clear()
        await self._has_left.wait()

    def _enter(self, held: _Held) -> None:
        held.receiver.enter(held.size_bytes)
        self._held += 1

    async def _leave(self, held: _Held) -> None:
        receiver = held.receiver
        await self._bring_back(receiver.leave(held.size_bytes))
        if receiver.is_idle and self._receivers.get(receiver.target.url) is receiver:
            del self._receivers[receiver.target.url]
        self._held -= 1
        self._has_left.set()

    async def _bring_back(self, claim_keys: Sequence[bytes]) -> None:
        if claim_keys:
            self._parked -= len(claim_keys)
            await self._stream.give_back(claim_keys)
            self._has_given_back = True

    async def _wait_alone(self, held: _Held, seconds: float) -> None:
        await self._bring_back(held.receiver.step_aside())
        self._has_left.set()
        await asyncio.sleep(seconds)
        held.receiver.step_back()

    async def _carry(self, held: _Held) -> None:
        """Deliver to the result's receiver, else to the default one, then acknowledge."""
        is_delivered = await self._is_delivered(held)
        if not is_delivered and held.receiver is not self._own:
            turned = self._turned_to_own(held)
            if not self._own.has_room:
                self._park(turned)
                await self._leave(held)
                return
            self._enter(turned)
            await self._leave(held)
            held = turned
            is_delivered = await self._is_delivered(held)
        if is_delivered:
            self.delivered += 1
        else:
            self.given_up += 1
            await self._on_given_up(held.delivery.result)
        with contextlib.suppress(LeaseLost):
            await (
                held.delivery.ack()
            )  # if the lease was lost, the next reader sends the result again, under the same id
        await self._leave(held)

    def _turned_to_own(self, held: _Held) -> _Held:
        reason = f"not accepted within {self._seconds(held.receiver):g} s"
        if held.receiver.is_gone:
            reason = "the receiver responded 410 (Gone)"
        return _Held(held.delivery, self._own, held.since, f"metadata.{METADATA_FIELD}: {reason}")

    def _seconds(self, receiver: Receiver) -> float:
        options = self._options
        if receiver is self._own:
            return options.give_up_seconds
        return min(options.give_up_seconds, options.destination_seconds)

    async def _is_delivered(self, held: _Held) -> bool:
        """Deliver within the time limit. Returns whether the receiver accepted.

        If the receiver has accepted nothing for that long, one attempt is made, and only if it is due.
        """
        receiver, seconds = held.receiver, self._seconds(held.receiver)
        until, backoff = steady_time() + seconds, self._backoff()
        failed_at = math.inf
        while not receiver.is_gone:
            is_down = receiver.is_down(steady_time(), seconds)
            if is_down and not receiver.is_due(steady_time()):
                return False
            answer = await self._in_turn(held, until)
            if answer is not None and answer.is_taken:
                return True
            if answer is None or is_down:
                return False
            # While a receiver pauses, its next due call tests it for all results. If only this result is refused, it
            # waits alone.
            if not answer.is_gone and (not answer.is_trouble or receiver.took_at > failed_at):
                pause_seconds = backoff.next_seconds()
                if steady_time() + pause_seconds >= until:
                    return False
                await self._wait_alone(held, pause_seconds)
            failed_at = steady_time()
        return False

    async def _in_turn(self, held: _Held, until: float) -> CallAnswer | None:
        """Call when the receiver's pause ends. None if that is after `until` of `steady_time`."""
        receiver = held.receiver
        if receiver.rests:
            try:
                async with asyncio.timeout(max(0.0, until - steady_time())):
                    await receiver.turn.acquire()
            except TimeoutError:
                return None
            try:
                if receiver.rests:
                    if receiver.rests_until >= until:
                        return None
                    await asyncio.sleep(receiver.rests_until - steady_time())
                    return await self._called(held)
            finally:
                receiver.turn.release()
        return await self._called(held)

    async def _called(self, held: _Held) -> CallAnswer:
        receiver = held.receiver
        async with receiver.lane.slots:
            began_at = steady_time()
            answer = await self._caller.post(receiver.target, held.delivery.result, held.since, held.undelivered)
        now = steady_time()
        if answer.is_taken:
            receiver.took(now)
        elif answer.is_gone:
            self._disable(receiver)
        elif answer.is_trouble:
            receiver.failed(began_at, now, answer.retry_after_seconds)
        else:
            receiver.refused(now)
        return answer

    def _disable(self, receiver: Receiver) -> None:
        if receiver is self._own:
            raise WebhookGone
        if not receiver.is_gone:
            log.warning("receiver disabled: %s responded 410 (Gone)", urlsplit(receiver.target.url).netloc)
        receiver.is_gone = True


def _first(errors: BaseExceptionGroup[ClientError]) -> ClientError:
    """The first error, also within nested groups."""
    one = errors.exceptions[0]
    return _first(one) if isinstance(one, BaseExceptionGroup) else one
