"""Answers a second submission of an id that is live, or finished lately, in place of running it.

For producers that queue again because they do not know whether they did. Opt-in, for a queue; a submission is known
by its token, or by its body where it has none.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from handlers.contract.envelope import Envelope
from handlers.contract.result import ErrorCode, error_result
from handlers.poller.settlement import ResultRoute, ack
from handlers.poller.settler import Settlement
from handlers.redis_store.connection import STORE_FAILURES, Store
from handlers.redis_store.faults import explained
from handlers.redis_store.queue import Ack, Claim
from handlers.redis_store.standing import Mark, Standing, stand_for_id
from handlers.telemetry.logs import Logger


class Repeats:
    """One queue's; a submission stands for its id for `window_seconds` after it is finished."""

    def __init__(self, redis: Store, route: ResultRoute, log: Logger, *, window_seconds: int) -> None:
        self._redis = redis
        self._route = route
        self._log = log
        self._window_seconds = window_seconds

    async def answer(self, claim: Claim, envelope: Envelope, now: float) -> Ack | None:
        """How a repeated submission is settled; None for one that may run.

        Only a token tells one result from another of the same id: without one, the first submission's result is
        the only one, and the second is dropped.
        """
        request = envelope.request
        standing = await self._standing(claim, envelope)
        if standing is Standing.RUNS:
            return None
        self._log.info("duplicate", id=request.id, queue=claim.queue, first=str(standing))
        message = f"another submission of this id stands for it, which is {standing}"
        result = error_result(request.id, request.request_token, ErrorCode.DUPLICATE, message)
        settlement = ack(claim, request, result, self._route, now)
        return settlement if request.request_token else replace(settlement, result=b"")

    async def _standing(self, claim: Claim, envelope: Envelope) -> Standing:
        if claim.claim_key.endswith(claim.owner_token):
            return Standing.LIVE  # the claim got another name than its id's, because that is claimed
        try:
            return await stand_for_id(self._redis, self._mark(envelope), envelope.request.deadline)
        except STORE_FAILURES as error:
            self._log.warning("not known whether it is a duplicate", error=explained(error))
            return Standing.RUNS  # twice is better than not at all

    def marked(self, settlement: Settlement, envelope: Envelope) -> Settlement:
        """The settlement of what has run: a final one makes it stand for its id as finished."""
        return replace(settlement, mark=self._mark(envelope)) if isinstance(settlement, Ack) else settlement

    def _mark(self, envelope: Envelope) -> Mark:
        request = envelope.request
        digest = hashlib.sha1(envelope.data, usedforsecurity=False).hexdigest
        return Mark(request.id, request.request_token or f"body {digest()}", self._window_seconds)
