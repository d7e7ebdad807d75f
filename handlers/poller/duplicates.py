"""Answer duplicate submissions of an id that is live or finished recently.

A producer that does not know whether its first submission arrived submits again. Detection is off unless a queue
enables it. A submission is identified by its token, or without a token by its body.
"""

from __future__ import annotations

import hashlib
import json

import msgspec
from msgspec.structs import replace

from handlers.contract.lenient_json import BLOCKING_BYTES
from handlers.contract.request import Envelope, Request
from handlers.contract.result import ErrorCode, error_result
from handlers.poller.ack_batcher import Settlement
from handlers.poller.settlement import ResultRoute, ack
from handlers.redis_store.connection import STORE_FAILURES, Store
from handlers.redis_store.faults import explained
from handlers.redis_store.idempotency.idempotency import IdRecord, RunState, record_for_id
from handlers.redis_store.queue.queue import Ack, Claim
from handlers.telemetry.logs import Logger


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
        return msgspec.structs.replace(settlement, result=b"", request_token="", payload_ref="")

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
        return msgspec.structs.replace(settlement, id_record=replace(id_record, is_dead=settlement.dead is not None))

    def _id_record(self, envelope: Envelope) -> IdRecord:
        request = envelope.request
        known_by = f"token {request.request_token}" if request.request_token else f"body {_digest(request)}"
        return IdRecord(request.id, known_by, self._window_seconds, queue=request.queue)


def _digest(request: Request) -> str:
    """Digest of the fields that stay the same in a retry.

    When another implementation schedules a retry, it may rewrite the body: spaces, order, escapes, numbers as floats, a
    trace in the metadata. If that changed the digest, the retry would be dropped as a duplicate. Large and deeply
    nested payloads are compared byte for byte, since parsing them would block the event loop.
    """
    payload: object
    try:
        is_large = len(request.payload) > BLOCKING_BYTES
        payload = None if is_large else json.loads(request.payload or b"null", parse_int=float)
    except RecursionError:
        is_large = True
    if is_large:
        payload = hashlib.sha1(request.payload, usedforsecurity=False).hexdigest()
    known = [request.created, request.deadline, request.endpoint, payload]
    return hashlib.sha1(json.dumps(known, sort_keys=True).encode(), usedforsecurity=False).hexdigest()
