"""Convert outcomes to settlements (acks with results, or nacks), and answer duplicate submissions.

A producer that does not know whether its first submission arrived submits again. Detection is off unless a queue
enables it. A submission is identified by its token, or without a token by its body.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Final

import msgspec
from msgspec.structs import replace

from handlers.contract.errors import InvalidRequest
from handlers.contract.request import Envelope, Request, encode_retry, unread
from handlers.contract.result import (
    ErrorCode,
    Result,
    ResultNames,
    answered_result,
    encode_result,
    error_result,
    is_mostly_controls,
    is_plain_name,
)
from handlers.forward.forward import expired
from handlers.forward.middleware.account import detailed
from handlers.forward.outcome import Answered, Outcome, Retry
from handlers.number_text import counted
from handlers.poller.ack_batcher import Settlement
from handlers.redis_store.connection import STORE_FAILURES, Store
from handlers.redis_store.faults import explained
from handlers.redis_store.idempotency.idempotency import IdRecord, RunState, record_for_id
from handlers.redis_store.keys import (
    RESULT_OF,
    ReservedNames,
    batch_results_key,
    own_list_base,
    result_of_key,
    result_payload_key,
)
from handlers.redis_store.queue.queue import Ack, Claim, Nack
from handlers.redis_store.results.payloads import StoredPayload
from handlers.telemetry.logs import Logger

_DAY_SECONDS: Final = 86_400
"""TTL of a per-request reply list for which none is set."""


class ResultRoute(msgspec.Struct, frozen=True):
    """Where and in which form a queue's results are stored.

    - The result list is the queue's own, else the one that the request names, else the default.
    - `is_per_request` gives each request its own reply list, so that consumers do not take each other's results.
    - `has_details` adds the optional fields.
    - Payloads of at least `offload_bytes` (0: none) are offloaded. They expire after `offload_seconds` if the list
      does not expire.
    - A request may name lists that `may_name` allows, and reply lists of the configured lists, but no key in
      `reserved`.
    """

    own_name: str
    own_ttl_seconds: int | None
    default_name: str
    is_per_request: bool = False
    has_details: bool = False
    offload_bytes: int = 0
    offload_seconds: int = 604_800
    may_name: ResultNames = msgspec.field(default_factory=ResultNames)
    reserved: ReservedNames = msgspec.field(default_factory=ReservedNames)

    @property
    def _shared(self) -> tuple[str, ...]:
        """Lists that the operator configured for this queue."""
        return (self.own_name, self.default_name) if self.own_name else (self.default_name,)

    def check(self, request: Request) -> None:
        """Raise `InvalidRequest` if the request names a forbidden list."""
        named, is_ignored = request.result_queue_name, self.own_name and not request.result_routing_resolved
        if not named or is_ignored or self._may_take(named, request.id):
            return
        is_reserved = self.reserved.has(named) or not is_plain_name(named)
        found = "the name of another key" if is_reserved else "a list that is not allowed"
        accepted = "a list that the operator allows (ALLOWED_RESULTS), or none"
        raise InvalidRequest("result_queue_name", found=found, accepted=accepted, request_id=request.id)

    def _may_take(self, name: str, request_id: str) -> bool:
        if not is_plain_name(name) or self.reserved.has(name):
            return False
        base = own_list_base(name, request_id)
        if base is None and RESULT_OF in name and not self.may_name.allows_any:
            return False  # the reply list of another request
        name = base or name
        is_below = any(name == one or name.startswith(batch_results_key(one, "")) for one in self._shared)
        return is_below or self.may_name.allow(name)

    def name(self, named: str, request_id: str = "", *, is_resolved: bool = False) -> str:
        """Result list of a request; `named` is the list that it names."""
        if named and not self._may_take(named, request_id):
            named = ""
        if is_resolved and named:
            return named
        shared = self.own_name or named or self.default_name
        return result_of_key(shared, request_id) if self.is_per_request and request_id else shared

    def ttl_seconds(self, name: str, request: Request) -> int | None:
        """TTL of a list in seconds; None if it does not expire.

        A request's TTL applies only to its own reply list: on a shared list it would delete other results. On a reply
        list of another queue's list it is at least a day, since another tenant may use the same id.
        """
        own, named = self.own_ttl_seconds, request.result_ttl_seconds
        is_resolved = request.result_routing_resolved and bool(request.result_queue_name)
        base = own_list_base(name, request.id)
        if base is None:
            return None if is_resolved and name not in self._shared else own
        seconds = named if own is None or (is_resolved and named is not None) else own
        if named and base not in self._shared and seconds == named:
            return max(named, _DAY_SECONDS)
        return seconds or _DAY_SECONDS if self.is_per_request else seconds

    def refusal_ttl_seconds(self, name: str, request_id: str) -> int | None:
        """`ttl_seconds` for an invalid request of which only the id is known."""
        return self.ttl_seconds(name, Request(id=request_id, deadline=0.0, payload=b""))


class RequestLimits(msgspec.Struct, frozen=True):
    """Limits of a request: attempts, and seconds to its deadline (None: unlimited)."""

    max_attempts: int | None = None
    max_deadline_seconds: float | None = None

    def check(self, request: Request, now: float) -> None:
        """Raise `InvalidRequest` for a deadline too far after `now` (Unix seconds)."""
        most = self.max_deadline_seconds
        if most is not None and request.deadline - now > most:
            accepted = f"at most {most:.0f} s ahead (MAX_DEADLINE_SECONDS)"
            found = f"{request.deadline - now:.0f} s ahead"
            raise InvalidRequest("deadline", found=found, accepted=accepted, request_id=request.id)


def settle(
    claim: Claim,
    envelope: Envelope,
    outcome: Outcome,
    route: ResultRoute,
    now: float,
) -> Ack | Nack:
    """The settlement of one claim. A retry after the deadline becomes final."""
    match outcome:
        case Answered(result, content_type=content_type):
            return ack(claim, envelope.request, result, route, now, content_type=content_type)
        case Retry():
            return _nack(claim, envelope, outcome, route, now)


def ended_by_attempts(request: Request, outcome: Outcome, max_attempts: int | None) -> Outcome:
    """The outcome; a retry beyond `max_attempts` becomes final.

    Its result is the gateway's last response, or an error.
    """
    if max_attempts is None or not isinstance(outcome, Retry) or not outcome.counts_attempt:
        return outcome
    if request.attempt + 1 < max_attempts:
        return outcome
    if outcome.last is not None:
        last = outcome.last
        return Answered(answered_result(request.id, request.request_token, last.status_code, last.body))
    message = f"{counted(max_attempts, 'attempt')} failed (MAX_ATTEMPTS), the last by {outcome.reason}"
    return Answered(error_result(request.id, request.request_token, ErrorCode.UNDELIVERABLE, message))


def ack(
    claim: Claim,
    request: Request,
    result: Result,
    route: ResultRoute,
    now: float,
    *,
    dead: bytes | None = None,
    content_type: str = "",
) -> Ack:
    """The ack with a final result and, optionally, the dead letter `dead`.

    The result of an offloaded payload has `content_type`, the size and the SHA-256 instead of the payload.
    """
    list_name = route.name(request.result_queue_name, request.id, is_resolved=request.result_routing_resolved)
    ttl_seconds = route.ttl_seconds(list_name, request)
    if route.has_details:
        result = detailed(result, request, now)
    stored = _offloaded(claim, result, route, ttl_seconds) if route.offload_bytes else None
    if stored:
        result = replace(
            result,
            payload="",
            payload_base64="",
            payload_ref=stored.key,
            content_type=content_type,
            payload_size=len(stored.payload),
            payload_sha256=hashlib.sha256(stored.payload).hexdigest(),
        )
    return Ack(
        claim=claim,
        result=encode_result(result),
        result_queue_name=list_name,
        result_ttl_seconds=ttl_seconds,
        request_id=request.id,
        request_token=request.request_token,
        payload_ref=request.payload_ref,
        dead=dead,
        stored=stored,
        outcome=result.error_code or f"HTTP {result.status_code}",
    )


def _offloaded(claim: Claim, result: Result, route: ResultRoute, ttl_seconds: int | None) -> StoredPayload | None:
    """The gateway's response as an offloaded payload, if it is large enough."""
    if not result.status_code:
        return None
    encoded = result.payload_base64
    payload = base64.b64decode(encoded) if encoded else result.payload.encode()
    if len(payload) < route.offload_bytes:
        return None
    key = result_payload_key(result.id, claim.owner_token)
    return StoredPayload(key, payload, ttl_seconds or route.offload_seconds)


def _nack(claim: Claim, envelope: Envelope, retry: Retry, route: ResultRoute, now: float) -> Ack | Nack:
    request = envelope.request
    if now + retry.delay_seconds >= request.deadline:
        result = replace(expired(request, retry.last).result, gateway_seconds=retry.gateway_seconds)
        if retry.counts_attempt and retry.gateway_seconds is None:  # an attempt of unknown duration
            request = replace(request, attempt=request.attempt + 1)
        return ack(claim, request, result, route, now)
    attempt = request.attempt + (1 if retry.counts_attempt else 0)
    member = encode_retry(
        claim.member, queue=claim.queue, attempt=attempt, score=claim.score, traceparent=retry.traceparent
    )
    return Nack(claim=claim, retry_member=member, delay_seconds=retry.delay_seconds)


def refuse(
    claim: Claim,
    error: InvalidRequest,
    route: ResultRoute,
    now: float,
    *,
    code: ErrorCode = ErrorCode.INVALID_REQUEST,
    message: str = "",
) -> Ack:
    """The settlement of an invalid member: a result if its id is known, else a dead letter."""
    if not error.request_id:
        dead = dead_record(claim, ErrorCode.INVALID_REQUEST, str(error), now)
        return Ack(claim, b"", route.name(""), None, "", "", dead=dead)
    result = error_result(error.request_id, error.request_token, code, message or str(error))
    if route.has_details:  # nothing else is known of an invalid request
        result = detailed(result, None, now)
    list_name = route.name(error.result_queue_name, error.request_id)
    return Ack(
        claim=claim,
        result=encode_result(result),
        result_queue_name=list_name,
        result_ttl_seconds=route.refusal_ttl_seconds(list_name, error.request_id),
        request_id=error.request_id,
        request_token=error.request_token,
        payload_ref=error.payload_ref,
        outcome=code,
    )


def dead_lettered(claim: Claim, envelope: Envelope, route: ResultRoute, now: float) -> Ack:
    """The final result and dead letter of a request delivered too often."""
    request = envelope.request
    message = _crashed(claim)
    result = error_result(request.id, request.request_token, ErrorCode.UNDELIVERABLE, message)
    dead = dead_record(claim, ErrorCode.UNDELIVERABLE, message, now)
    return ack(claim, request, result, route, now, dead=dead)


def _crashed(claim: Claim) -> str:
    pollers = counted(claim.delivery_count, "poller")
    held = "its lease while it held" if claim.delivery_count == 1 else "their leases while they held"
    return f"{pollers} crashed or lost {held} this request (MAX_DEATHS)"


def dead_lettered_unread(claim: Claim, route: ResultRoute, now: float) -> Ack:
    """`dead_lettered` without decoding the member.

    Includes a result if an id is found in the first 64 KiB of the member.
    """
    message = _crashed(claim)
    error = unread(claim.member, message)
    dead = dead_record(claim, ErrorCode.UNDELIVERABLE, message, now)
    return replace(
        refuse(claim, error, route, now, code=ErrorCode.UNDELIVERABLE, message=message),
        dead=dead,
        payload_ref="",
    )


def dead_record(claim: Claim, reason: str, message: str, now: float) -> bytes:
    """A dead letter as JSON, with the member and the reason.

    A member that is not UTF-8, or mostly control characters (much longer as a JSON string), is stored as base64 under
    `member_base64`.
    """
    record: dict[str, object] = {
        "reason": reason,
        "message": message,
        "at": round(now, 3),
        "deaths": claim.delivery_count,
        "queue": claim.queue,
        "score": claim.score,
    }
    text = "" if is_mostly_controls(claim.member) else _text(claim.member)
    if text or not claim.member:
        record["member"] = text
    else:
        record["member_base64"] = base64.b64encode(claim.member).decode()
    return msgspec.json.encode(record)


def _text(member: bytes) -> str:
    """The member as text; empty if it is not UTF-8."""
    try:
        return member.decode()
    except UnicodeDecodeError:
        return ""


_LONGEST_TOKEN: Final = 256
_PARSED_BYTES: Final = 1_000_000
"""Maximum bytes of a payload that `_digest` parses. A change would make retries look like other submissions."""


class Duplicates:
    """Duplicate detection of one queue; a finished submission counts for `window_seconds`."""

    def __init__(self, redis: Store, route: ResultRoute, log: Logger, *, window_seconds: int) -> None:
        self._redis = redis
        self._route = route
        self._log = log
        self._window_seconds = window_seconds

    async def answer(self, claim: Claim, envelope: Envelope, now: float) -> Ack | None:
        """The settlement of a duplicate submission; None if the submission may run.

        A duplicate with a token of its own gets a result `DUPLICATE`. Other duplicates are dropped, because their
        producers could not distinguish that result from the one of the first submission.
        """
        request = envelope.request
        standing = await self._standing(claim, envelope)
        if standing is RunState.RUNS:
            return None
        self._log.info("duplicate found", id=request.id, queue=claim.queue, first=str(standing))
        message = f"duplicate of another submission of this id, which is {standing}"
        result = error_result(request.id, request.request_token, ErrorCode.DUPLICATE, message)
        settlement = ack(claim, request, result, self._route, now)
        if request.request_token and standing is not RunState.REPEATED:
            return settlement
        # The first submission may still need its live marker and its payload, so the ack must not delete them.
        return replace(settlement, result=b"", request_token="", payload_ref="")

    async def _standing(self, claim: Claim, envelope: Envelope) -> RunState:
        if claim.claim_key.endswith(claim.owner_token):
            return RunState.REPEATED  # its usual claim key is in use: the first submission is in flight
        try:
            found = await record_for_id(self._redis, self._id_record(envelope), envelope.request.deadline)
        except STORE_FAILURES as error:
            self._log.warning("duplicate check failed", error=explained(error))
            return RunState.RUNS  # running twice is better than never
        if found is RunState.REPEATED and claim.delivery_count:
            return RunState.RUNS  # a failover lost its result and restored its claim
        return found

    def marked(self, settlement: Settlement, envelope: Envelope) -> Settlement:
        """The settlement; if final, with its finished idempotency record."""
        if not isinstance(settlement, Ack):
            return settlement
        id_record = self._id_record(envelope)
        return replace(settlement, id_record=replace(id_record, is_dead=settlement.dead is not None))

    def _id_record(self, envelope: Envelope) -> IdRecord:
        request = envelope.request
        token = request.request_token
        if len(token) > _LONGEST_TOKEN:  # Redis would keep all of it for the window
            token = f"sha256:{hashlib.sha256(token.encode()).hexdigest()}"
        known_by = f"token {token}" if token else f"body {_digest(request)}"
        return IdRecord(request.id, known_by, self._window_seconds, queue=request.queue)


def _digest(request: Request) -> str:
    """Digest of the fields that stay the same in a retry.

    When another implementation schedules a retry, it may rewrite the body: spaces, order, escapes, numbers as floats, a
    trace in the metadata. If that changed the digest, the retry would be dropped as a duplicate. Large and deeply
    nested payloads are compared byte for byte, since parsing them would block the event loop.
    """
    payload: object
    try:
        is_large = len(request.payload) > _PARSED_BYTES
        payload = None if is_large else json.loads(request.payload or b"null", parse_int=float)
    except RecursionError:
        is_large = True
    if is_large:
        payload = hashlib.sha1(request.payload, usedforsecurity=False).hexdigest()
    known = [request.created, request.deadline, request.endpoint, payload]
    return hashlib.sha1(json.dumps(known, sort_keys=True).encode(), usedforsecurity=False).hexdigest()
