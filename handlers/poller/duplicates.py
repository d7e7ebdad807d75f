"""Answers a second submission of an id that is live, or finished lately, in place of running it.

For producers that queue again because they do not know whether they did. Opt-in, for a queue; a submission is known
by its token, or by what its body says where it has none.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import msgspec

from handlers.contract.envelope import Envelope
from handlers.contract.json_limits import BLOCKING_BYTES
from handlers.contract.request import Request
from handlers.contract.result import ErrorCode, error_result
from handlers.poller.ack_batcher import Settlement
from handlers.poller.settlement import ResultRoute, ack
from handlers.redis_store.connection import STORE_FAILURES, Store
from handlers.redis_store.faults import explained
from handlers.redis_store.idempotency.by_id import Mark, Standing, stand_for_id
from handlers.redis_store.queue.queue import Ack, Claim
from handlers.telemetry.logs import Logger


class Duplicates:
    """One queue's; a submission stands for its id for `window_seconds` after it is finished."""

    def __init__(self, redis: Store, route: ResultRoute, log: Logger, *, window_seconds: int) -> None:
        self._redis = redis
        self._route = route
        self._log = log
        self._window_seconds = window_seconds

    async def answer(self, claim: Claim, envelope: Envelope, now: float) -> Ack | None:
        """How a repeated submission is settled; None for one that may run.

        Only a token tells one result from another of the same id: without one, or with the first one's, the first
        submission's result is the only one, and the second is dropped.
        """
        request = envelope.request
        standing = await self._standing(claim, envelope)
        if standing is Standing.RUNS:
            return None
        self._log.info("duplicate", id=request.id, queue=claim.queue, first=str(standing))
        message = f"another submission of this id stands for it, which is {standing}"
        result = error_result(request.id, request.request_token, ErrorCode.DUPLICATE, message)
        settlement = ack(claim, request, result, self._route, now)
        if request.request_token and standing is not Standing.REPEATED:
            return settlement
        # What the other one may still need, such as its live marker and its payload, is not this one's to delete.
        return msgspec.structs.replace(settlement, result=b"", request_token="", payload_ref="")

    async def _standing(self, claim: Claim, envelope: Envelope) -> Standing:
        if claim.claim_key.endswith(claim.owner_token):
            return Standing.REPEATED  # the claim got another name than its own, because that is claimed
        try:
            found = await stand_for_id(self._redis, self._mark(envelope), envelope.request.deadline)
        except STORE_FAILURES as error:
            self._log.warning("not known whether it is a duplicate", error=explained(error))
            return Standing.RUNS  # twice is better than not at all
        if found is Standing.REPEATED and claim.deaths:
            return Standing.RUNS  # a failover forgot its result, and its claim came back
        return found

    def marked(self, settlement: Settlement, envelope: Envelope) -> Settlement:
        """The settlement of what was claimed: a final one makes it stand for its id as finished, if it did."""
        if not isinstance(settlement, Ack):
            return settlement
        mark = self._mark(envelope)
        return msgspec.structs.replace(settlement, mark=replace(mark, is_dead=settlement.dead is not None))

    def _mark(self, envelope: Envelope) -> Mark:
        request = envelope.request
        known_by = f"token {request.request_token}" if request.request_token else f"body {_digest(request)}"
        return Mark(request.id, known_by, self._window_seconds, queue=request.queue)


def _digest(request: Request) -> str:
    """Of what no processor changes for a retry.

    Another one may write the body anew: other spaces, order, escapes, numbers as floats, a trace in the metadata. A
    retry that was not known for itself would be dropped as a double. A large or deep payload counts byte for byte:
    to parse it would hold the event loop.
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
