"""Carries the claims of one queue: decode, dispatch, settle; and gives them up when their lease is lost."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from handlers.answer_room import ANSWER_ROOM
from handlers.backoff import backoff_seconds
from handlers.contract.envelope import Envelope, decode_member, encode_whole, with_payload
from handlers.contract.errors import InvalidRequest
from handlers.contract.json_limits import BLOCKING_BYTES
from handlers.contract.masked_text import without_secrets
from handlers.contract.request import Request
from handlers.contract.result import ErrorCode, error_result
from handlers.forward.forward import cancelled, expired
from handlers.forward.middleware.account import account
from handlers.forward.middleware.details import lasted
from handlers.forward.middleware.gated import gated
from handlers.forward.outcome import Answered, Outcome, Retry
from handlers.gates.gate import Gate
from handlers.gates.labels import labelled, without_labels
from handlers.poller.ack_batcher import AckBatcher, Release, Settlement, size_of
from handlers.poller.byte_budget import ByteBudget, HeldBytes
from handlers.poller.dispatcher import Dispatch
from handlers.poller.duplicates import Duplicates
from handlers.poller.priority import LaneOptions, in_lane
from handlers.poller.settlement import (
    RequestLimits,
    ResultRoute,
    bury,
    bury_unread,
    ended_by_attempts,
    refuse,
    settle,
)
from handlers.redis_store.queue.queue import Ack, Claim
from handlers.telemetry.logs import Logger
from handlers.telemetry.metrics import QueueMetrics

ReadPayload = Callable[[str, str, str], Awaitable[bytes | None]]
"""Reads a payload that is stored apart, by its key, for an id and a token; None where it is gone or not theirs."""


_DEFECT_ATTEMPTS = 3
"""Attempts after which an exception of our own code ends the request: it would most likely fail again."""

CANCEL_AGAIN_SECONDS = 5.0
"""How long work that was cancelled may take to end: longer than Redis has for an answer."""


@dataclass(slots=True)
class Held:
    """A claim that is ours: from its claim to its settlement. `work` is None once its outcome is known.

    `has_slot`: it holds a slot of its pool, until its settlement is stored. `decided_at` is when the outcome was known,
    `sent_at` when its attempt was sent, `cancel_again_at` when its work may be cancelled once more; all by
    `time.monotonic`, and 0 until then.
    """

    claim: Claim
    bytes: HeldBytes
    has_slot: bool = False
    is_retry: bool = False
    work: asyncio.Task[Settlement] | None = None
    envelope: Envelope | None = None
    is_lost: bool = False
    decided_at: float = 0.0
    sent_at: float = 0.0
    is_cancelled: bool = False
    cancel_again_at: float = 0.0


class Worker:
    """Holds nothing but what it has claimed. `clock` gives the Redis server's Unix seconds."""

    def __init__(
        self,
        ack_batcher: AckBatcher,
        route: ResultRoute,
        dispatch: Dispatch,
        log: Logger,
        metrics: QueueMetrics,
        *,
        labels: Mapping[str, str],
        withheld_labels: Collection[str] = (),
        gates: Sequence[Gate] = (),
        read_payload: ReadPayload | None = None,
        lane: LaneOptions | None = None,
        duplicates: Duplicates | None = None,
        budget: ByteBudget | None = None,
        clock: Callable[[], float],
        max_request_bytes: int,
        on_freed: Callable[[], None] = lambda: None,
        on_outcome: Callable[[Request, Outcome], None] = lambda _request, _outcome: None,
        limits: RequestLimits | None = None,
    ) -> None:
        self._ack_batcher = ack_batcher
        self._route = route
        self._dispatch = dispatch
        self._log = log
        self._metrics = metrics
        self._labels = labels
        self._limits = limits or RequestLimits()
        self._withheld_labels = withheld_labels
        self._gates = gates
        self._read_payload = read_payload
        self._lane = lane
        self._duplicates = duplicates
        self.budget = budget or ByteBudget(sys.maxsize)
        self._clock = clock
        self.on_freed = on_freed
        self._on_outcome = on_outcome
        self._max_request_bytes = max_request_bytes
        self._held: dict[bytes, Held] = {}
        self._without_slot = 0
        self.in_flight = 0
        self.retries_in_slots = 0

    @property
    def is_settling_without_slots(self) -> bool:
        """Whether claims that hold no slot wait for their settlement; no more of these are claimed meanwhile."""
        return self._without_slot > 0

    def held_claims(self) -> list[Claim]:
        """Every claim whose lease must be kept."""
        return [held.claim for held in self._held.values() if not held.is_lost]

    def work(self) -> list[asyncio.Task[Settlement]]:
        """What is under way."""
        return [held.work for held in self._held.values() if held.work is not None]

    def start(self, claims: Sequence[Claim]) -> None:
        """Carry these claims; each holds one slot until its settlement is stored, or its lease is lost."""
        for claim in claims:
            budgeted = HeldBytes(self.budget, len(claim.member))
            held = Held(claim, budgeted, has_slot=True, is_retry=claim.is_retry)
            self._held[claim.owner_token] = held
            self.retries_in_slots += held.is_retry
            self.in_flight += 1
            held.work = asyncio.create_task(self._settlement(held))
            # A callback, not a `finally`: work that is cancelled before its first step never gets there.
            held.work.add_done_callback(partial(self._finish, held))

    def _finish(self, held: Held, work: asyncio.Task[Settlement]) -> None:
        held.work = None
        self.in_flight -= 1
        if held.is_lost:
            # The next owner answers; a settlement of ours would be refused.
            self._forget(held.claim)
        elif work.cancelled():
            self._add(held, self._cancelled(held) if held.is_cancelled else Release(held.claim))
        elif error := work.exception():
            # A defect of ours. Nothing is settled, so the lease ends and a death is counted: what always
            # breaks us is buried with a result in the end, and nothing is lost or repeated for ever.
            self._log.error(
                "settlement failed", id=held.claim.request_id, queue=held.claim.queue, error=repr(error)
            )
            self._forget(held.claim)
        else:
            held.decided_at = time.monotonic()
            self._add(held, work.result())

    def _add(self, held: Held, settlement: Settlement) -> None:
        held.bytes.is_settled_with(size_of(settlement))
        self._ack_batcher.add(settlement)

    def _hold(self, claim: Claim) -> None:
        """Hold a claim that takes no slot: all that is left to do is its settlement."""
        self._held[claim.owner_token] = Held(claim, HeldBytes(self.budget, len(claim.member)))
        self._without_slot += 1

    def _forget(self, claim: Claim) -> Held | None:
        """The claim is no longer ours; its slot is free again."""
        held = self._held.pop(claim.owner_token, None)
        if held is None:
            return None
        held.bytes.release()
        if held.has_slot:
            self.retries_in_slots -= held.is_retry
            self.on_freed()
        else:
            self._without_slot -= 1
        return held

    async def _settlement(self, held: Held) -> Settlement:
        claim, began_at = held.claim, time.monotonic()
        ANSWER_ROOM.set(held.bytes.answer.ask)
        try:
            envelope = held.envelope = await self._decoded(claim)
        except InvalidRequest as error:
            self._log.warning(
                "invalid request",
                id=error.request_id,
                queue=claim.queue,
                outcome="failed",
                reason=ErrorCode.INVALID_REQUEST,
                field=error.field,
            )
            self._metrics.answered(0, ErrorCode.INVALID_REQUEST, 0)
            return refuse(claim, error, self._route, self._clock())
        if claim.is_cancelled:
            outcome: Outcome = cancelled(envelope.request)
        elif envelope.request.deadline <= self._clock():
            outcome = expired(envelope.request, None)
        else:
            if self._duplicates and (
                repeated := await self._duplicates.answer(claim, envelope, self._clock())
            ):
                return repeated
            outcome = await self._attempt(held, envelope)
        return self._settled_as(claim, envelope, outcome, began_at)

    def _settled_as(
        self, claim: Claim, envelope: Envelope, outcome: Outcome, began_at: float | None = None
    ) -> Settlement:
        """The settlement of an outcome, accounted for as what it is: a retry that comes too late is final.

        `began_at` is when its work began (`time.monotonic`), None where there was none, or none that counts.
        """
        outcome = ended_by_attempts(envelope.request, outcome, self._limits.max_attempts)
        settlement = settle(claim, envelope, outcome, self._route, self._clock())
        if isinstance(outcome, Retry) and isinstance(settlement, Ack):
            outcome = expired(envelope.request, outcome.last)
        account(
            envelope.request,
            outcome,
            now=self._clock(),
            seconds=0.0 if began_at is None else time.monotonic() - began_at,
            log=self._log,
            metrics=self._metrics,
        )
        self._on_outcome(envelope.request, outcome)
        return self._marked(settlement, envelope)

    def _marked(self, settlement: Settlement, envelope: Envelope) -> Settlement:
        return self._duplicates.marked(settlement, envelope) if self._duplicates else settlement

    async def _attempt(self, held: Held, envelope: Envelope) -> Outcome:
        request = envelope.request
        waited = None if request.created is None else max(0.0, self._clock() - request.created)
        self._metrics.started(request.attempt, waited)
        try:
            return await self._outcome(held, envelope)
        finally:
            self._metrics.ended()

    async def _send(self, held: Held, body: bytes, request: Request) -> Outcome:
        """One attempt, under the objective of the request's lane."""
        held.sent_at = time.monotonic()
        began_at = self._metrics.sending()
        try:
            return await self._dispatch(in_lane(request, self._lane) if self._lane else request, body)
        finally:
            self._metrics.sent(began_at)

    def _with_labels(self, request: Request) -> Request:
        """The queue's own labels win over the request's; those that rank a request are not the request's to give."""
        return labelled(without_labels(request, self._withheld_labels), self._labels)

    async def _outcome(self, held: Held, envelope: Envelope) -> Outcome:
        try:
            self._route.check(envelope.request)
            self._limits.check(envelope.request, self._clock())
            if envelope.request.payload_ref and self._read_payload:
                payload = await self._payload_in_room(held, envelope.request)
                if payload is None:
                    return _without_payload(envelope.request)
                envelope = with_payload(envelope, payload, max_bytes=self._max_request_bytes)
            request = self._with_labels(envelope.request)
            if not self._gates:
                return await self._send(held, envelope.data, request)
            return await gated(request, self._gates, partial(self._send, held, envelope.data), self._clock)
        except InvalidRequest as error:
            return Answered(
                error_result(
                    envelope.request.id, envelope.request.request_token, ErrorCode.INVALID_REQUEST, str(error)
                )
            )
        except Exception as error:  # noqa: BLE001  # a defect of ours must not lose the request: it is tried again
            self._log.error("dispatch failed", id=envelope.request.id, error=repr(error))
            if envelope.request.attempt + 1 >= _DEFECT_ATTEMPTS:
                return _defect(envelope.request, error)
            return Retry(backoff_seconds(envelope.request.attempt, 1.0), "internal_error")

    async def _payload_in_room(self, held: Held, request: Request) -> bytes | None:
        """The payload that is stored apart, once there is room for the largest that may be."""
        room = asyncio.Event()
        if not held.bytes.payload.ask(self._max_request_bytes, room.set):
            await room.wait()
        payload = await self._payload(request)
        held.bytes.payload.hold(len(payload or b""))
        return payload

    @property
    def has_room_for_request(self) -> bool:
        """Whether the byte budget has room for the largest request."""
        return self.budget.requests.has_room(self._max_request_bytes)

    async def _decoded(self, claim: Claim) -> Envelope:
        """The request of a claim; a large one is decoded in a thread, so that heartbeats go on."""
        decode = partial(decode_member, claim.member, claim.queue, max_bytes=self._max_request_bytes)
        return await asyncio.to_thread(decode) if len(claim.member) > BLOCKING_BYTES else decode()

    async def answer_expired(self, claims: Sequence[Claim]) -> None:
        """Settle claims that take no slot: what has expired, was cancelled or is broken is final, all else goes back.

        A producer may score as it likes, so a low score alone does not mean that the deadline has passed.
        """
        for claim in claims:
            self._hold(claim)
        for claim in claims:
            try:
                envelope = await self._decoded(claim)
            except InvalidRequest as error:
                self._ack_batcher.add(refuse(claim, error, self._route, self._clock()))
                continue
            if claim.is_cancelled:
                outcome = cancelled(envelope.request)
            elif envelope.request.deadline <= self._clock():
                outcome = expired(envelope.request, None)
            else:
                self._ack_batcher.add(Release(claim))
                continue
            self._ack_batcher.add(self._settled_as(claim, envelope, outcome))

    async def bury(self, claims: Sequence[Claim], max_deaths: int) -> None:
        """Dead-letter claims whose owners died on them too often; they are ours by now.

        Once an owner has died of dead-lettering itself (more than `max_deaths`), the member is kept without reading it.
        Raises one of `STORE_FAILURES`; what is left then is found again when its lease ends.
        """
        for claim in claims:
            settlement = await self._buried(claim, is_read=claim.deaths <= max_deaths)
            self._hold(claim)
            self._ack_batcher.add(settlement)

    async def _buried(self, claim: Claim, *, is_read: bool) -> Settlement:
        if not is_read:
            return bury_unread(claim, self._route, self._clock())
        try:
            envelope = await self._decoded(claim)
        except InvalidRequest as error:
            return refuse(claim, error, self._route, self._clock())
        except Exception as error:  # noqa: BLE001  # whatever it is, reading it again would fail again
            self._log.error("dead letter not readable", queue=claim.queue, error=repr(error))
            return bury_unread(claim, self._route, self._clock())
        whole = replace(claim, member=await self._whole_member(claim, envelope))
        return self._marked(bury(whole, envelope, self._route, self._clock()), envelope)

    async def _payload(self, request: Request) -> bytes | None:
        if not request.payload_ref or self._read_payload is None:
            return None
        return await self._read_payload(request.payload_ref, request.id, request.request_token)

    async def _whole_member(self, claim: Claim, envelope: Envelope) -> bytes:
        """As the dead letters keep it: with the payload that was stored apart, whose own key ends with the result."""
        payload = await self._payload(envelope.request)
        if payload is None:
            return claim.member
        try:
            whole = with_payload(envelope, payload, max_bytes=self._max_request_bytes)
        except InvalidRequest:
            return claim.member
        return encode_whole(claim.member, whole.data)

    def lose(self, claims: Sequence[Claim]) -> None:
        """The leases of these are gone: stop their work, the next owner does it.

        What has its outcome already is left to the settlement, which the store refuses if it comes too late.
        """
        for claim in claims:
            held = self._held.get(claim.owner_token)
            if held is None or held.is_lost or held.work is None:
                continue
            held.is_lost = True
            self._metrics.renewed(0, 1)
            self._log.warning("lease lost", id=claim.request_id, queue=claim.queue, outcome="lost")
            held.work.cancel()

    def cancel(self, claims: Sequence[Claim]) -> int:
        """Their producers took these back: stop their work, which closes its connection, and answer them.

        What has its outcome already keeps it. Returns how many were stopped by this call. Work that goes on all the
        same is stopped again after a while: a library may have swallowed the first time; but not at once, since it may
        be giving back what a gate had reserved for it.
        """
        count, now = 0, time.monotonic()
        for claim in claims:
            held = self._held.get(claim.owner_token)
            if held is None or held.work is None or held.is_lost or now < held.cancel_again_at:
                continue
            count += not held.is_cancelled
            held.is_cancelled, held.cancel_again_at = True, now + CANCEL_AGAIN_SECONDS
            held.work.cancel()
        return count

    def _cancelled(self, held: Held) -> Settlement:
        claim, envelope = held.claim, held.envelope
        if envelope is None:
            return Release(claim)  # not read yet: whoever claims it next reads that it is cancelled
        outcome = cancelled(envelope.request)
        if held.sent_at and self._route.has_details:  # the gateway was at it
            outcome = lasted(outcome, time.monotonic() - held.sent_at)
        return self._settled_as(claim, envelope, outcome)

    def hand_back(self) -> None:
        """Stop all work; what has no outcome goes back to pending at once."""
        for work in self.work():
            work.cancel()

    def hand_back_unsent(self) -> int:
        """What was not sent yet, such as what waits at a gate, goes back to pending at once; returns how much."""
        unsent = [held.work for held in self._held.values() if held.work is not None and not held.sent_at]
        for work in unsent:
            work.cancel()
        return len(unsent)

    def settled(self, settlement: Settlement, has_taken_effect: bool) -> None:
        """A settlement is recorded, or was refused: either way the claim is no longer ours."""
        claim = settlement.claim
        held = self._forget(claim)
        if has_taken_effect:
            if isinstance(settlement, Ack):
                self._recorded(held, settlement)
        else:
            self._metrics.renewed(0, 1)
            self._log.warning(
                "settlement refused, the lease was lost",
                id=claim.request_id,
                queue=claim.queue,
                outcome="lost",
            )

    def _recorded(self, held: Held | None, ack: Ack) -> None:
        if held is not None and held.decided_at:
            self._metrics.published(time.monotonic() - held.decided_at)
        if ack.dead is not None:
            self._metrics.buried(1)


def _defect(request: Request, error: Exception) -> Answered:
    message = f"the request could not be processed: {type(error).__name__}"
    return Answered(error_result(request.id, request.request_token, ErrorCode.UNDELIVERABLE, message))


def _without_payload(request: Request) -> Answered:
    message = "the payload was stored apart and is gone"
    if "://" in request.payload_ref:
        message = (
            f"payload_ref: expected a Redis key, got the address {without_secrets(request.payload_ref)}; "
            "payloads outside Redis are not read"
        )
    return Answered(error_result(request.id, request.request_token, ErrorCode.PAYLOAD_UNAVAILABLE, message))
