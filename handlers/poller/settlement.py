"""What an outcome means for a claim: an ack with its result, or a nack with its retry member. Pure."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from typing import Final

import msgspec

from handlers.contract.envelope import Envelope, encode_retry, unread
from handlers.contract.errors import InvalidRequest
from handlers.contract.request import Request
from handlers.contract.result import ErrorCode, Result, answered_result, encode_result, error_result
from handlers.contract.result_names import ResultNames, is_plain_name
from handlers.forward.forward import expired
from handlers.forward.middleware.details import detailed
from handlers.forward.outcome import Answered, Outcome, Retry
from handlers.redis_store.keys import (
    RESULT_OF,
    ReservedNames,
    batch_results_key,
    own_list_base,
    result_of_key,
    result_payload_key,
)
from handlers.redis_store.queue.payloads import StoredPayload
from handlers.redis_store.queue.queue import Ack, Claim, Nack

_DAY_SECONDS: Final = 86_400
"""How long the result of one request waits in a list of its own, where nobody says."""


@dataclass(frozen=True, slots=True)
class ResultRoute:
    """Where a queue's results go, and in which form: its own list, else the request's, else the default.

    `is_per_request` gives each request a list of its own beside that list, named as our client names it, so that
    consumers do not take each other's. `has_details` adds the optional fields. Payloads of at least `apart_bytes`
    (0: none) are stored apart, for `apart_seconds` where the list does not expire. A request may name the lists that
    `may_name` allows and those below the queue's own, but no key that `reserved` says holds something else.
    """

    own_name: str
    own_ttl_seconds: int | None
    default_name: str
    is_per_request: bool = False
    has_details: bool = False
    apart_bytes: int = 0
    apart_seconds: int = 604_800
    may_name: ResultNames = field(default_factory=ResultNames)
    reserved: ReservedNames = field(default_factory=ReservedNames)

    @property
    def _shared(self) -> tuple[str, ...]:
        """The lists that the operator gave this queue."""
        return (self.own_name, self.default_name) if self.own_name else (self.default_name,)

    def check(self, request: Request) -> None:
        """Raises `InvalidRequest` where the request's own list would take its result, but may not."""
        wished, is_ignored = request.result_queue_name, self.own_name and not request.result_routing_resolved
        if not wished or is_ignored or self._may_take(wished, request.id):
            return
        is_reserved = self.reserved.has(wished) or not is_plain_name(wished)
        found = "the name of another key" if is_reserved else "a list that is not allowed"
        accepted = "a list that the operator allows (ALLOWED_RESULTS), or none"
        raise InvalidRequest("result_queue_name", found=found, accepted=accepted, request_id=request.id)

    def _may_take(self, name: str, request_id: str) -> bool:
        if not is_plain_name(name) or self.reserved.has(name):
            return False
        base = own_list_base(name, request_id)
        if base is None and RESULT_OF in name and not self.may_name.allows_any:
            return False  # the list of another request
        name = base or name
        is_below = any(name == one or name.startswith(batch_results_key(one, "")) for one in self._shared)
        return is_below or self.may_name.allow(name)

    def name(self, wished: str, request_id: str = "", *, is_resolved: bool = False) -> str:
        """The list for the request `request_id` that wishes for `wished` (or nothing, or what it may not have)."""
        if wished and not self._may_take(wished, request_id):
            wished = ""
        if is_resolved and wished:
            return wished
        shared = self.own_name or wished or self.default_name
        return result_of_key(shared, request_id) if self.is_per_request and request_id else shared

    def ttl_seconds(self, name: str, request: Request) -> int | None:
        """Seconds until the list `name` expires; None: it does not.

        A request's wish counts only for a list that is the request's alone: on any other list it would delete the
        results of others. Below another queue's list it counts from a day on, since another tenant may use the id.
        """
        own, wished = self.own_ttl_seconds, request.result_ttl_seconds
        is_resolved = request.result_routing_resolved and bool(request.result_queue_name)
        base = own_list_base(name, request.id)
        if base is None:
            return None if is_resolved and name not in self._shared else own
        seconds = wished if own is None or (is_resolved and wished is not None) else own
        if base not in self._shared and seconds == wished and not self.is_per_request:
            return max(wished, _DAY_SECONDS) if wished else wished
        return seconds or _DAY_SECONDS if self.is_per_request else seconds

    def refusal_ttl_seconds(self, name: str, request_id: str) -> int | None:
        """The same for a request that cannot be read, of which only the id is known."""
        return self.ttl_seconds(name, Request(id=request_id, deadline=0.0, payload=b""))


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """How long one request may occupy a queue: attempts, and seconds until its deadline. None: for ever."""

    max_attempts: int | None = None
    max_deadline_seconds: float | None = None

    def check(self, request: Request, now: float) -> None:
        """Raises `InvalidRequest` for a deadline too far ahead of `now`, in Unix seconds."""
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
    """The settlement of one claim. A retry that could only come after the deadline is final already."""
    match outcome:
        case Answered(result, content_type=content_type):
            return ack(claim, envelope.request, result, route, now, content_type=content_type)
        case Retry():
            return _nack(claim, envelope, outcome, route, now)


def ended_by_attempts(request: Request, outcome: Outcome, max_attempts: int | None) -> Outcome:
    """The outcome; the gateway's last answer, or an error that names the reason, in place of one retry too many."""
    if max_attempts is None or not isinstance(outcome, Retry) or not outcome.counts_attempt:
        return outcome
    if request.attempt + 1 < max_attempts:
        return outcome
    if outcome.last is not None:
        last = outcome.last
        return Answered(answered_result(request.id, request.request_token, last.status_code, last.body))
    message = f"{max_attempts} attempts failed (MAX_ATTEMPTS), the last by {outcome.reason}"
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
    """A final result for a request that could be read; `dead` is kept among the dead letters as well.

    An offloaded payload is described by `content_type`, its size and its SHA-256.
    """
    list_name = route.name(request.result_queue_name, request.id, is_resolved=request.result_routing_resolved)
    ttl_seconds = route.ttl_seconds(list_name, request)
    if route.has_details:
        result = detailed(result, request, now)
    stored = _stored_apart(claim, result, route, ttl_seconds) if route.apart_bytes else None
    if stored:
        result = msgspec.structs.replace(
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


def _stored_apart(
    claim: Claim, result: Result, route: ResultRoute, ttl_seconds: int | None
) -> StoredPayload | None:
    """The gateway's answer if it is large, as the bytes that it was."""
    if not result.status_code:
        return None
    encoded = result.payload_base64
    payload = base64.b64decode(encoded) if encoded else result.payload.encode()
    if len(payload) < route.apart_bytes:
        return None
    key = result_payload_key(result.id, claim.owner_token)
    return StoredPayload(key, payload, ttl_seconds or route.apart_seconds)


def _nack(claim: Claim, envelope: Envelope, retry: Retry, route: ResultRoute, now: float) -> Ack | Nack:
    request = envelope.request
    if now + retry.delay_seconds >= request.deadline:
        result = msgspec.structs.replace(
            expired(request, retry.last).result, gateway_seconds=retry.gateway_seconds
        )
        if retry.counts_attempt and retry.gateway_seconds is None:  # its time is not known, but it was one
            request = msgspec.structs.replace(request, attempt=request.attempt + 1)
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
    """A member that breaks the contract: a result where an id could be read, else a dead letter."""
    if not error.request_id:
        dead = dead_record(claim, ErrorCode.INVALID_REQUEST, str(error), now)
        return Ack(claim, b"", route.name(""), None, "", "", dead=dead)
    result = error_result(error.request_id, error.request_token, code, message or str(error))
    if route.has_details:  # all that is known of what cannot be read
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
        outcome=ErrorCode.INVALID_REQUEST,
    )


def bury(claim: Claim, envelope: Envelope, route: ResultRoute, now: float) -> Ack:
    """A request whose owners died on it too often: final, and kept among the dead."""
    request = envelope.request
    message = f"{claim.deaths} owners died while they held this request"
    result = error_result(request.id, request.request_token, ErrorCode.UNDELIVERABLE, message)
    dead = dead_record(claim, ErrorCode.UNDELIVERABLE, message, now)
    return ack(claim, request, result, route, now, dead=dead)


def bury_unread(claim: Claim, route: ResultRoute, now: float) -> Ack:
    """The same without decoding the member, which is kept as it is; a result if an id stands in its first 64 KiB."""
    message = f"{claim.deaths} owners died while they held this request"
    error = unread(claim.member, message)
    dead = dead_record(claim, ErrorCode.UNDELIVERABLE, message, now)
    return msgspec.structs.replace(
        refuse(claim, error, route, now, code=ErrorCode.UNDELIVERABLE, message=message),
        dead=dead,
        payload_ref="",
    )


def dead_record(claim: Claim, reason: str, message: str, now: float) -> bytes:
    """What is kept of a dead letter, as JSON: why, when (Unix seconds), how often, and the member itself.

    A member that is no UTF-8 is kept as base64 under `member_base64`.
    """
    record: dict[str, object] = {
        "reason": reason,
        "message": message,
        "at": round(now, 3),
        "deaths": claim.deaths,
        "queue": claim.queue,
        "score": claim.score,
    }
    try:
        record["member"] = claim.member.decode()
    except UnicodeDecodeError:
        record["member_base64"] = base64.b64encode(claim.member).decode()
    return msgspec.json.encode(record)
