"""Send requests to the dispatch door over HTTP.

While a handler starts, or the platform's queue is full, the platform answers instead of the door. Such an answer lacks
the door's header. 400, 413 and 415 are final. 401, 403, 404 and 405 become a retry after about 10 s, all others a retry
after about a second. These retries do not count as attempts.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Final

from handlers.backoff import jittered
from handlers.contract.errors import InvalidRequest
from handlers.contract.events import (
    MOST_REMAINING_MS,
    OUTCOME_HEADER,
    RETRY,
    STRUCTURED,
    AnswerEvent,
    decode_answer,
    decode_retry_answer,
    encode_request,
)
from handlers.contract.lenient_json import Malformed
from handlers.contract.request import Request
from handlers.contract.result import ErrorCode, Result, decode_result, error_result
from handlers.forward.forward import AttemptOptions, Sender, invalid, not_sent
from handlers.forward.gateway import GatewayResponse
from handlers.forward.outcome import (
    FAILURES,
    OWN_FAULTS,
    Answered,
    LastResponse,
    Outcome,
    Retry,
    failure_reason,
)
from handlers.gates.gate import Feedback
from handlers.number_text import decimal
from handlers.telemetry.logs import RareWarning
from handlers.transport.failures import UnusableResponse

HANDLER_UNAVAILABLE: Final = "handler_unavailable"
HANDLER_LOST: Final = "handler_lost"
HANDLER_REFUSED: Final = "handler_refused"
_SOON_SECONDS: Final = 1.0
_REFUSED_SECONDS: Final = 10.0
_REFUSALS: Final = {
    **dict.fromkeys((401, 403), "give the poller and the handler the same DISPATCH_TOKEN"),
    **dict.fromkeys((404, 405), "let HANDLER_URL name the dispatch handler"),
}
"""Status -> fix, for the log."""
_NOT_REACHED: Final = frozenset({"connect", "dns", "tls"})


class HttpDispatcher:
    """Posts CloudEvents to `handler_url`.

    `timeout_seconds` exceeds the handler's request timeout. `clock` returns Unix seconds of the Redis server; the event
    contains the time left, because the handler's clock may differ. With `keeps_bytes`, a result's payload that is not
    UTF-8 is also kept as base64. `refusals` logs that the handler does not accept this poller.
    """

    def __init__(
        self,
        poster: Sender,
        handler_url: str,
        *,
        timeout_seconds: float,
        tokens: Callable[[], tuple[str, ...]] = tuple,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.time,
        keeps_bytes: bool = False,
        refusals: RareWarning | None = None,
    ) -> None:
        self._poster = poster
        self._url = handler_url
        self._timeout_seconds = timeout_seconds
        self._tokens = tokens
        self._jitter = jitter
        self._clock = clock
        self._keeps_bytes = keeps_bytes
        self._refusals = refusals
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count()

    async def forward(self, request: Request, options: AttemptOptions) -> Outcome:
        """Send `options.body` to the handler. A platform failure is not counted as an attempt."""
        try:
            headers, content = self._event(request, options.body)
        except InvalidRequest as error:
            return invalid(error, request.request_token)
        except ValueError as error:
            return not_sent(request, error)
        try:
            until = asyncio.get_running_loop().time() + self._timeout_seconds
            response = await self._poster.send(self._url, headers, content, until, options.ask_for_room)
        except UnusableResponse as error:
            message = f"the handler's answer {error}"
            return Answered(error_result(request.id, request.request_token, ErrorCode.INFERENCE_ERROR, message))
        except OWN_FAULTS as error:
            return not_sent(request, error)
        except FAILURES as error:
            if failure_reason(error) in _NOT_REACHED:
                return self._soon(HANDLER_UNAVAILABLE)
            # The handler may have crashed because of this request, so this counts as an attempt.
            return self._soon(HANDLER_LOST, counts_attempt=True)
        return self._outcome(request, response)

    def _event(self, request: Request, body: bytes) -> tuple[dict[str, str], bytes]:
        left_ms = round(1_000 * (request.deadline - self._clock()))
        headers, content = encode_request(request, body, min(max(0, left_ms), MOST_REMAINING_MS))
        # Without this header the framework generates a random id, which costs as much as decoding the delivery.
        headers["function-execution-id"] = f"{self._prefix}-{next(self._numbers)}"
        tokens = self._tokens()
        if tokens:
            headers["authorization"] = f"Bearer {tokens[0]}"
        return headers, content

    def _outcome(self, request: Request, response: GatewayResponse) -> Outcome:
        if response.headers.get("content-type") == STRUCTURED:
            return self._answered(request, decode_answer(response.body)) or self._soon(HANDLER_LOST)
        if response.status_code == 200:  # a handler of an earlier version
            result = _result(response.body)
            # The result of another request must not settle this one.
            if result is None or result.id != request.id:
                return self._soon(HANDLER_LOST)
            return Answered(result, _feedback(result, response.headers))
        if response.headers.get(OUTCOME_HEADER) == RETRY:
            return _retry(response.body) or self._soon(HANDLER_LOST)
        if response.status_code in (400, 413, 415):
            message = f"the handler refused the delivery with {response.status_code}"
            return Answered(error_result(request.id, request.request_token, ErrorCode.INVALID_REQUEST, message))
        if response.status_code in _REFUSALS:
            if self._refusals is not None:
                self._refusals.report(status=response.status_code, fix=_REFUSALS[response.status_code])
            return Retry(jittered(_REFUSED_SECONDS, self._jitter()), HANDLER_REFUSED, counts_attempt=False)
        return self._soon(HANDLER_UNAVAILABLE)

    def _answered(self, request: Request, answer: AnswerEvent | None) -> Outcome | None:
        # The result of another request must not settle this one.
        if answer is None or answer.requestid != request.id:
            return None
        feedback = Feedback(
            status_code=answer.statuscode or None,
            dropped_reason=answer.droppedreason,
            retry_after_seconds=decimal(answer.retryafterseconds),
            queue_duration_ms=decimal(answer.queuedurationms),
            band_headroom=decimal(answer.bandheadroom),
        )
        sent = feedback if answer.wassent else None
        if not answer.reason:
            return Answered(answer.result(keeps_bytes=self._keeps_bytes), sent, answer.contenttype)
        last = LastResponse(answer.statuscode, answer.data_base64) if answer.statuscode else None
        delay = decimal(answer.delayseconds)
        return None if delay is None or delay < 0 else Retry(delay, answer.reason, last, answer.countsattempt, sent)

    def _soon(self, reason: str, *, counts_attempt: bool = False) -> Retry:
        return Retry(jittered(_SOON_SECONDS, self._jitter()), reason, counts_attempt=counts_attempt)


def _result(body: bytes) -> Result | None:
    try:
        return decode_result(body)
    except Malformed:
        return None


def _retry(body: bytes) -> Retry | None:
    answer = decode_retry_answer(body)
    if answer is None or answer.retry_after_seconds < 0:
        return None
    last = LastResponse(answer.status_code, answer.payload.encode()) if answer.status_code else None
    feedback = Feedback(
        status_code=answer.status_code or None,
        dropped_reason=answer.dropped_reason,
        retry_after_seconds=answer.gateway_retry_after_seconds,
        queue_duration_ms=answer.queue_duration_ms,
        band_headroom=answer.band_headroom,
    )
    sent = feedback if answer.was_sent else None
    return Retry(answer.retry_after_seconds, answer.reason, last, answer.counts_attempt, sent)


def _feedback(result: Result, headers: Mapping[str, str]) -> Feedback | None:
    """Feedback for gates; None if the gateway was not called."""
    if not result.status_code:
        return None
    return Feedback(
        status_code=result.status_code,
        queue_duration_ms=decimal(headers.get("ce-queuedurationms")),
        band_headroom=decimal(headers.get("ce-bandheadroom")),
    )
