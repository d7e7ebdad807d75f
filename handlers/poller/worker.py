"""Process the claims of one queue: decode, send, settle."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from functools import partial

import msgspec

from handlers.backoff import backoff_seconds
from handlers.byte_budget import ByteBudget, HeldBytes
from handlers.contract.errors import InvalidRequest
from handlers.contract.lenient_json import aside
from handlers.contract.masked_text import without_secrets
from handlers.contract.request import Envelope, Request, decode_member, encode_whole, with_payload
from handlers.contract.result import ErrorCode, error_result
from handlers.forward.forward import AttemptOptions, Forward, cancelled, expired
from handlers.forward.middleware.account import account, counted_attempt, lasted
from handlers.forward.outcome import Answered, Outcome, Retry, result_bytes
from handlers.gates.gate import labelled, without_labels
from handlers.poller.ack_batcher import AckBatcher, OnSettled, Release, Settlement, size_of
from handlers.poller.settlement import (
    Duplicates,
    RequestLimits,
    ResultRoute,
    dead_lettered,
    dead_lettered_unread,
    ended_by_attempts,
    refuse,
    settle,
)
from handlers.redis_store.connection import STORE_FAILURES
from handlers.redis_store.faults import explained
from handlers.redis_store.queue.queue import Ack, Claim
from handlers.telemetry.logs import Logger
from handlers.telemetry.metrics import QueueMetrics

ReadPayload = Callable[[str, str, str, int], Awaitable[bytes | None]]
"""Reads an offloaded payload by key, request id, token and most bytes; None if it is missing or another request's."""


_DEFECT_ATTEMPTS = 3
"""Attempts that may fail because of a defect of this program; then the request is answered with an error."""

CANCEL_AGAIN_SECONDS = 5.0
"""Seconds until work that was cancelled but still runs is cancelled again; longer than a call to Redis."""


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of one queue's claims. A claim keeps the options with which it began.

    `forward` makes one attempt. `labels` are the queue's; `withheld_labels` are removed from requests.
    """

    route: ResultRoute
    forward: Forward
    metrics: QueueMetrics
    max_request_bytes: int
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    withheld_labels: Collection[str] = ()
    duplicates: Duplicates | None = None
    limits: RequestLimits = RequestLimits()


class Held(msgspec.Struct):
    """A claim held by this process until its settlement is recorded.

    `on_freed` frees the claim's slot in its pool; None if it uses no slot. `work` is None once the outcome is known.
    Times are `time.monotonic`, or 0: `sent_at` when the gates admitted the request, `decided_at` when the outcome was
    known, `cancel_again_at` when its work may be cancelled again.
    """

    claim: Claim
    options: WorkerOptions
    bytes: HeldBytes
    on_freed: Callable[[], None] | None = None
    is_retry: bool = False
    work: asyncio.Task[Settlement] | None = None
    envelope: Envelope | None = None
    is_lost: bool = False
    decided_at: float = 0.0
    sent_at: float = 0.0
    is_cancelled: bool = False
    cancel_again_at: float = 0.0

    def sending(self) -> None:
        """Note that the gates have admitted the request."""
        self.sent_at = time.monotonic()


class Worker:
    """Processes the claims of one queue.

    `clock` returns Unix seconds of the Redis server. `on_outcome` is called with each outcome, `on_settled` with each
    settlement that Redis has recorded or refused.
    """

    def __init__(
        self,
        ack_batcher: AckBatcher,
        options: WorkerOptions,
        log: Logger,
        *,
        clock: Callable[[], float],
        budget: ByteBudget | None = None,
        read_payload: ReadPayload | None = None,
        on_outcome: Callable[[Request, Outcome], None] = lambda _request, _outcome: None,
        on_settled: OnSettled | None = None,
    ) -> None:
        self._ack_batcher = ack_batcher
        self._options = options
        self._log = log
        self._clock = clock
        self.budget = budget or ByteBudget(sys.maxsize)
        self._read_payload = read_payload
        self._on_outcome = on_outcome
        self._on_settled = on_settled
        self._held: dict[bytes, Held] = {}
        self._without_slot = 0
        self._users = 0
        self._is_retired = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.in_flight = 0
        self.retries_in_slots = 0

    def change(self, options: WorkerOptions) -> None:
        """Use `options` for claims that start from now on."""
        self._options = options

    @property
    def metrics(self) -> QueueMetrics:
        return self._options.metrics

    @property
    def waiting(self) -> int:
        """Number of requests in slots that their gates have not admitted yet."""
        return sum(held.work is not None and not held.sent_at for held in self._held.values())

    @property
    def is_settling_without_slots(self) -> bool:
        """Whether claims without a slot await settlement.

        No more such claims are made until these are settled.
        """
        return self._without_slot > 0

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Count the worker as busy while a caller may add claims."""
        self._users += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._users -= 1
            self._note_idle()

    async def idle(self) -> None:
        """Return once no claim is held and no caller may add one."""
        await self._idle.wait()

    def _note_idle(self) -> None:
        if not (self._held or self._users):
            self._idle.set()

    def retire(self) -> None:
        """Release unsent requests now, and every claim that is added later."""
        self._is_retired = True
        self.hand_back_unsent()

    def revive(self) -> None:
        self._is_retired = False

    def held_claims(self) -> list[Claim]:
        return [held.claim for held in self._held.values() if not held.is_lost]

    def work(self) -> list[asyncio.Task[Settlement]]:
        """Tasks of requests without an outcome."""
        return [held.work for held in self._held.values() if held.work is not None]

    def start(self, claims: Sequence[Claim], on_freed: Callable[[], None]) -> None:
        """Process claims; call `on_freed` whenever one frees its slot."""
        for claim in claims:
            held = self._hold(claim, on_freed)
            if self._is_retired:
                self._add(held, Release(claim))
                continue
            self.in_flight += 1
            held.work = asyncio.create_task(self._settlement(held))
            # A callback, because `finally` does not run in a task that is cancelled before its first step.
            held.work.add_done_callback(partial(self._finish, held))

    def _finish(self, held: Held, work: asyncio.Task[Settlement]) -> None:
        held.work = None
        self.in_flight -= 1
        if held.is_lost:
            # The next owner settles it; Redis would refuse a settlement from here.
            self._forget(held.claim)
        elif work.cancelled():
            self._add(held, self._cancelled(held) if held.is_cancelled else Release(held.claim))
        elif error := work.exception():
            # A defect of this program. The claim is not settled, so its lease expires and its delivery count rises.
            # A request that always fails here is finally dead-lettered.
            self._log.error("settlement failed", id=held.claim.request_id, queue=held.claim.queue, error=repr(error))
            self._forget(held.claim)
        else:
            held.decided_at = time.monotonic()
            self._add(held, work.result())

    def _add(self, held: Held, settlement: Settlement) -> None:
        held.bytes.is_settled_with(size_of(settlement))
        self._ack_batcher.add(settlement, self.settled)

    def _hold(self, claim: Claim, on_freed: Callable[[], None] | None = None) -> Held:
        """Hold a claim. Without `on_freed` it uses no slot."""
        held = Held(
            claim,
            self._options,
            HeldBytes(self.budget, len(claim.member)),
            on_freed,
            is_retry=on_freed is not None and claim.is_retry,
        )
        self._held[claim.owner_token] = held
        self._idle.clear()
        if on_freed is None:
            self._without_slot += 1
        else:
            self.retries_in_slots += held.is_retry
        return held

    def _forget(self, claim: Claim) -> Held | None:
        held = self._held.pop(claim.owner_token, None)
        if held is None:
            return None
        held.bytes.release()
        if held.on_freed is None:
            self._without_slot -= 1
        else:
            self.retries_in_slots -= held.is_retry
            held.on_freed()
        self._note_idle()
        return held

    async def _settlement(self, held: Held) -> Settlement:
        claim, options, began_at = held.claim, held.options, time.monotonic()
        try:
            envelope = held.envelope = await self._decoded(held)
        except InvalidRequest as error:
            return self._refused(claim, options, error)
        if claim.is_cancelled:
            outcome: Outcome = cancelled(envelope.request)
        elif envelope.request.deadline <= self._clock():
            outcome = expired(envelope.request, None)
        else:
            if options.duplicates:
                duplicate = await options.duplicates.answer(claim, envelope, self._clock())
                if duplicate:
                    return duplicate
            attempt = self._outcome(held, envelope)
            outcome = await counted_attempt(attempt, envelope.request, self._clock(), options.metrics)
            await held.bytes.room_for_result(result_bytes(outcome, options.route.offload_bytes))
        outcome = ended_by_attempts(envelope.request, outcome, options.limits.max_attempts)
        # A retry encodes the member again, which takes as long as decoding it.
        encoded_bytes = len(claim.member) if isinstance(outcome, Retry) else 0
        make = partial(settle, claim, envelope, outcome, options.route, self._clock())
        return self._noted(held, envelope, outcome, await aside(encoded_bytes, make), began_at)

    def _refused(self, claim: Claim, options: WorkerOptions, error: InvalidRequest) -> Settlement:
        """The settlement of an invalid request, counted and logged."""
        self._log.warning(
            "invalid request",
            id=error.request_id,
            queue=claim.queue,
            outcome="failed",
            reason=ErrorCode.INVALID_REQUEST,
            field=error.field,
        )
        options.metrics.answered(0, ErrorCode.INVALID_REQUEST, 0)
        self._note_without_attempt(error.request_id, claim, ErrorCode.INVALID_REQUEST)
        return refuse(claim, error, options.route, self._clock())

    def _note_without_attempt(self, request_id: str, claim: Claim, code: ErrorCode) -> None:
        request = Request(id=request_id, deadline=0.0, payload=b"", queue=claim.queue)
        self._on_outcome(request, Answered(error_result(request_id, "", code, "")))

    def _answered(self, held: Held, envelope: Envelope, outcome: Answered) -> Settlement:
        """The settlement of a claim without work, counted and logged."""
        settlement = settle(held.claim, envelope, outcome, held.options.route, self._clock())
        return self._noted(held, envelope, outcome, settlement, None)

    def _noted(
        self, held: Held, envelope: Envelope, outcome: Outcome, settlement: Settlement, began_at: float | None
    ) -> Settlement:
        """The settlement of an outcome, after it is counted and logged.

        A retry after the deadline counts as expired. `began_at` is when the work began (`time.monotonic`); None for a
        claim without work.
        """
        options, now = held.options, self._clock()
        if isinstance(outcome, Retry) and isinstance(settlement, Ack):
            outcome = expired(envelope.request, outcome.last)
        account(
            envelope.request,
            outcome,
            now=now,
            seconds=0.0 if began_at is None else time.monotonic() - began_at,
            log=self._log,
            metrics=options.metrics,
        )
        self._on_outcome(envelope.request, outcome)
        return _marked(options, settlement, envelope)

    async def _outcome(self, held: Held, envelope: Envelope) -> Outcome:
        options = held.options
        try:
            options.route.check(envelope.request)
            options.limits.check(envelope.request, self._clock())
            if envelope.request.payload_ref and self._read_payload:
                try:
                    payload = await self._payload_in_room(held, envelope.request)
                except STORE_FAILURES as error:
                    self._log.warning("payload not read", id=envelope.request.id, error=explained(error))
                    delay = backoff_seconds(envelope.request.attempt, 1.0)
                    return Retry(delay, "payload_not_read", counts_attempt=False)
                if payload is None:
                    return _without_payload(envelope.request)
                fill = partial(with_payload, envelope, payload, max_bytes=options.max_request_bytes)
                envelope = await aside(len(payload), fill)
            # The queue's labels win over the request's, and a request may not choose its own priority.
            request = labelled(without_labels(envelope.request, options.withheld_labels), options.labels)
            attempt = AttemptOptions(body=envelope.data, ask_for_room=held.bytes.answer.ask, on_sending=held.sending)
            return await options.forward(request, attempt)
        except InvalidRequest as error:
            return Answered(
                error_result(envelope.request.id, envelope.request.request_token, ErrorCode.INVALID_REQUEST, str(error))
            )
        except Exception as error:  # noqa: BLE001  # a defect must not lose the request: it is retried
            self._log.error("dispatch failed", id=envelope.request.id, error=repr(error))
            if envelope.request.attempt + 1 >= _DEFECT_ATTEMPTS:
                return _defect(envelope.request, error)
            return Retry(backoff_seconds(envelope.request.attempt, 1.0), "internal_error")

    async def _payload_in_room(self, held: Held, request: Request) -> bytes | None:
        """The offloaded payload, read once the byte budget has room for it."""
        room = asyncio.Event()
        if not held.bytes.payload.ask(held.options.max_request_bytes, room.set):
            await room.wait()
        payload = await self._payload(request)
        held.bytes.payload.hold(len(payload or b""))
        return payload

    @property
    def has_room_for_request(self) -> bool:
        """Whether the byte budget has room for the largest request."""
        return self.budget.requests.has_room(self._options.max_request_bytes)

    async def _decoded(self, held: Held) -> Envelope:
        """Decode the request of a claim; a large one in a thread.

        Otherwise it would block the event loop, and leases would not be renewed.
        """
        claim, most = held.claim, held.options.max_request_bytes
        decode = partial(decode_member, claim.member, claim.queue, max_bytes=most)
        return await aside(len(claim.member), decode)

    async def answer_expired(self, claims: Sequence[Claim]) -> None:
        """Settle claims without a slot: answer overdue, cancelled and invalid requests.

        Other claims return to their queue. A low score alone does not prove that the deadline has passed, because
        producers may choose any score.
        """
        for held in [self._hold(claim) for claim in claims]:
            try:
                envelope = await self._decoded(held)
            except InvalidRequest as error:
                self._settle(self._refused(held.claim, held.options, error))
                continue
            if held.claim.is_cancelled:
                outcome = cancelled(envelope.request)
            elif envelope.request.deadline <= self._clock():
                outcome = expired(envelope.request, None)
            else:
                self._settle(Release(held.claim))
                continue
            self._settle(self._answered(held, envelope, outcome))

    def _settle(self, settlement: Settlement) -> None:
        self._ack_batcher.add(settlement, self.settled)

    async def dead_letter(self, claims: Sequence[Claim], max_deliveries: int) -> None:
        """Dead-letter reclaimed claims that were delivered too often.

        A claim with more than `max_deliveries` has probably crashed a process here, so its member is not decoded.
        Raises one of `STORE_FAILURES`; the remaining claims are found again when their leases expire.
        """
        for claim in claims:
            settlement = await self._dead_lettered(claim, is_read=claim.delivery_count <= max_deliveries)
            self._hold(claim)
            self._settle(settlement)

    async def _dead_lettered(self, claim: Claim, *, is_read: bool) -> Settlement:
        options = self._options
        if not is_read:
            return self._undeliverable(dead_lettered_unread(claim, options.route, self._clock()))
        try:
            envelope = await self._decoded(Held(claim, options, HeldBytes(self.budget, 0)))
        except InvalidRequest as error:
            return self._refused(claim, options, error)
        except Exception as error:  # noqa: BLE001  # any defect: decoding it again would fail again
            self._log.error("dead letter unreadable", queue=claim.queue, error=repr(error))
            return self._undeliverable(dead_lettered_unread(claim, options.route, self._clock()))
        whole = msgspec.structs.replace(claim, member=await self._whole_member(claim, envelope))
        settlement = self._undeliverable(dead_lettered(whole, envelope, options.route, self._clock()))
        return _marked(options, settlement, envelope)

    def _undeliverable(self, settlement: Ack) -> Ack:
        self._note_without_attempt(settlement.request_id, settlement.claim, ErrorCode.UNDELIVERABLE)
        return settlement

    async def _payload(self, request: Request) -> bytes | None:
        if not request.payload_ref or self._read_payload is None:
            return None
        most = self._options.max_request_bytes
        return await self._read_payload(request.payload_ref, request.id, request.request_token, most)

    async def _whole_member(self, claim: Claim, envelope: Envelope) -> bytes:
        """The member with its offloaded payload, whose key the ack deletes."""
        payload = await self._payload(envelope.request)
        if payload is None:
            return claim.member
        try:
            fill = partial(with_payload, envelope, payload, max_bytes=self._options.max_request_bytes)
            whole = await aside(len(payload), fill)
        except InvalidRequest:
            return claim.member
        return await aside(len(whole.data), partial(encode_whole, claim.member, whole.data))

    def lose(self, claims: Sequence[Claim]) -> None:
        """Stop the work of claims whose leases are lost.

        Their next owner repeats it. A claim with an outcome keeps its settlement; Redis refuses it if another owner has
        the claim.
        """
        for claim in claims:
            held = self._held.get(claim.owner_token)
            if held is None or held.is_lost or held.work is None:
                continue
            held.is_lost = True
            held.options.metrics.renewed(0, 1)
            self._log.warning("lease lost", id=claim.request_id, queue=claim.queue, outcome="lost")
            held.work.cancel()

    def cancel(self, claims: Sequence[Claim]) -> int:
        """Stop the work of cancelled requests and answer them; return their number.

        A claim with an outcome keeps it. A library may swallow a cancellation, so work that continues is cancelled
        again, but only after `CANCEL_AGAIN_SECONDS`, because a gate may still be releasing its reservation.
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
        envelope = held.envelope
        if envelope is None:
            return Release(held.claim)  # not decoded yet: the next claim finds that it is cancelled
        outcome = cancelled(envelope.request)
        if held.sent_at and held.options.route.has_details:
            outcome = lasted(outcome, time.monotonic() - held.sent_at)
        return self._answered(held, envelope, outcome)

    def hand_back(self) -> None:
        """Stop all work and return claims without an outcome to pending."""
        for work in self.work():
            work.cancel()

    def hand_back_unsent(self) -> int:
        """Return unsent claims to pending; return their number."""
        unsent = [held.work for held in self._held.values() if held.work is not None and not held.sent_at]
        for work in unsent:
            work.cancel()
        return len(unsent)

    def settled(self, settlement: Settlement, has_taken_effect: bool) -> None:
        """Stop holding a claim whose settlement Redis has recorded or refused."""
        claim = settlement.claim
        if self._on_settled is not None:
            self._on_settled(settlement, has_taken_effect)
        held = self._forget(claim)
        metrics = held.options.metrics if held is not None else self._options.metrics
        if not has_taken_effect:
            metrics.renewed(0, 1)
            self._log.warning("settlement refused: lease lost", id=claim.request_id, queue=claim.queue, outcome="lost")
        elif isinstance(settlement, Ack):
            if held is not None and held.decided_at:
                metrics.published(time.monotonic() - held.decided_at)
            if settlement.dead is not None:
                metrics.dead_lettered(1)


def _marked(options: WorkerOptions, settlement: Settlement, envelope: Envelope) -> Settlement:
    """The settlement with its idempotency record, if the queue detects duplicates."""
    return options.duplicates.marked(settlement, envelope) if options.duplicates else settlement


def _defect(request: Request, error: Exception) -> Answered:
    message = f"the request could not be processed: {type(error).__name__}"
    return Answered(error_result(request.id, request.request_token, ErrorCode.UNDELIVERABLE, message))


def _without_payload(request: Request) -> Answered:
    message = "the offloaded payload no longer exists"
    if "://" in request.payload_ref:
        message = (
            f"payload_ref: expected a Redis key, got the address {without_secrets(request.payload_ref)}; "
            "payloads outside Redis are not read"
        )
    return Answered(error_result(request.id, request.request_token, ErrorCode.PAYLOAD_UNAVAILABLE, message))
