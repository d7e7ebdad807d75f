"""The dispatch door: CloudEvents from the poller or any Knative source.

Its answers: 200 with the result as an event (also `INVALID_REQUEST`); 202 or 422 if a sink has accepted or refused the
result; 429 or 503 with `Retry-After` for a retry; 400 for an invalid event or one without a readable id.

A sink (Knative's `K_SINK`: a Broker, a channel or a service) gets the results of sources that discard replies. The
delivery is answered once the sink has accepted the result. A failed call is retried for a while, because a redelivered
event is sent to the gateway again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import msgspec

from handlers.backoff import Backoff
from handlers.contract.errors import InvalidEvent, InvalidRequest
from handlers.contract.events import (
    DATA_AT,
    OUTCOME_HEADER,
    REMAINING,
    REQUEST_TYPE,
    RESULT_TYPE,
    RETRY,
    RETRY_TYPE,
    STRUCTURED,
    AnswerEvent,
    Event,
    RetryAnswer,
    answer_of_result,
    binary_headers,
    decode_event,
    encode_answer,
    encode_retry_answer,
    text,
    to_header,
)
from handlers.contract.lenient_json import MALFORMED, aside
from handlers.contract.request import Request, decode_body_aside
from handlers.contract.result import Result, encode_result
from handlers.doors.cloudevents.foreign_event import EventFields, as_request, read_event, with_tenant, write_event
from handlers.doors.door import Answer, Delivery, plain, retry_after
from handlers.forward.forward import NO_OPTIONS, AttemptOptions, Sender, invalid
from handlers.forward.middleware.admission import GATE_CLOSED, QUOTA_EXHAUSTED
from handlers.forward.outcome import FAILURES, OWN_FAULTS, Answered, Outcome, Retry
from handlers.gates.gate import Feedback
from handlers.number_text import whole
from handlers.telemetry.logs import Logger
from handlers.transport.failures import UnusableResponse

_DATA_AT: Final = DATA_AT.encode()
_REQUEST_TYPE: Final = REQUEST_TYPE.encode()
RESULT_SOURCE = "/async-processor/dispatch"

_OWN_RESULT: Final = plain(
    400, f"expected a request event, got a result: exclude the type {RESULT_TYPE} in the Trigger"
)
"""Answer to our own results, which a Trigger without a filter would deliver as new requests, endlessly."""

_ROUTING: Final = frozenset({"queue", "objective", "priority", "labels"})
"""Extensions that route a request; only a poller may set them."""

_labels_decoder = msgspec.json.Decoder(dict[str, str])


class DispatchDoor:
    """Decodes events and answers them. The context is the event itself.

    `fields` maps events of other sources to requests; if there is a `sink`, it gets their results. `trusts_pollers`:
    only pollers can send events of the poller's type here. All other events lose the extensions that route a request.
    `clock` returns Unix seconds.
    """

    def __init__(
        self,
        *,
        max_request_bytes: int,
        fields: EventFields | None = None,
        sink: EventSink | None = None,
        trusts_pollers: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._max_request_bytes = max_request_bytes
        self._fields = fields
        self._sink = sink
        self._trusts_pollers = trusts_pollers
        self._clock = clock

    async def decode(self, delivery: Delivery) -> tuple[Request | Answered, Event] | Answer:
        """The request of an event, or 400 if it is invalid."""
        try:
            event = _event_of(delivery)
            if event.type == RESULT_TYPE:
                return _OWN_RESULT
            if not (self._trusts_pollers and event.is_from_poller):
                event = _without_routing(event)
            fields = None if event.is_from_poller else self._fields
            if fields is not None:
                event = msgspec.structs.replace(event, data=await self._converted(event, delivery, fields))
        except InvalidEvent as error:
            return plain(400, f"not a CloudEvent: {error}")
        try:
            request = await self._request(event)
            return (with_tenant(request, event, delivery, fields) if fields is not None else request), event
        except InvalidRequest as error:
            if not error.request_id:
                return plain(400, f"not a request: {error}")
            return invalid(error, event.extensions.get("requesttoken", "")), event

    async def _converted(self, event: Event, delivery: Delivery, fields: EventFields) -> bytes:
        """The event's data as a request. Large data, which would block the event loop, is converted in a thread."""
        return await aside(len(event.data), partial(as_request, event, delivery, fields, self._clock()))

    async def _request(self, event: Event) -> Request:
        extensions = event.extensions
        request = await decode_body_aside(
            event.data,
            queue=extensions.get("queue", ""),
            attempt=whole(extensions.get("attempt")) or 0,
            request_token=extensions.get("requesttoken", ""),
            labels=_labels(extensions.get("labels", "")),
            extra_metadata=_trace(extensions),
            max_bytes=self._max_request_bytes,
        )
        remaining_ms = whole(extensions.get(REMAINING)) if event.is_from_poller else None
        if remaining_ms is not None:
            request = msgspec.structs.replace(request, deadline=self._clock() + remaining_ms / 1_000)
        objective, priority = extensions.get("objective", ""), whole(extensions.get("priority"))
        if objective or priority is not None:
            request = msgspec.structs.replace(request, objective=objective, priority=priority)
        return request

    def limits(self, context: Event) -> AttemptOptions:  # noqa: ARG002  # the protocol's signature
        """No limits: a source waits as long as the request timeout."""
        return NO_OPTIONS

    async def settle(self, context: Event, outcome: Outcome) -> Answer:
        """The answer: the result as an event, or 429/503 for a retry."""
        match outcome:
            case _ if context.is_from_poller and context.is_structured:
                return _poller_answer(context, outcome)
            case Answered(result, feedback):
                answer = _result_answer(context, result, feedback)
                if self._sink is None or context.is_from_poller:
                    return answer
                return await _delivered(self._sink, answer)
            case Retry():
                return _retry_answer(outcome)


def _event_of(delivery: Delivery) -> Event:
    """Decode the poller's events with our codec, others with the SDK. Raises `InvalidEvent`."""
    for name, value in delivery.headers:
        if name == _DATA_AT or (name == b"ce-type" and value == _REQUEST_TYPE):
            return decode_event(delivery.headers, delivery.body)
    return read_event(delivery.headers, delivery.body)


def _without_routing(event: Event) -> Event:
    """The event without the extensions that its sender may not set."""
    kept = {name: value for name, value in event.extensions.items() if name not in _ROUTING}
    return msgspec.structs.replace(event, extensions=kept)


async def _delivered(sink: EventSink, event: Answer) -> Answer:
    """Send a result to the sink; return the answer to the source.

    If the sink refuses the result, 422 makes the source dead-letter the event, so that it is not sent to the gateway
    again.
    """
    try:
        await sink.send(event)
    except SinkUnavailable:
        return plain(503, "the sink is unavailable", retry_after(5.0))
    except SinkRefused as error:
        return plain(422, f"the sink refused the result with {error.status_code}")
    return Answer(202)


def _poller_answer(event: Event, outcome: Outcome) -> Answer:
    """The outcome as a structured event: its headers have no client data."""
    headers = {"content-type": STRUCTURED}
    feedback = outcome.feedback
    match outcome:
        case Answered(result, content_type=content_type):
            status, answer = 200, answer_of_result(event.id, RESULT_SOURCE, result, content_type)
        case Retry(delay_seconds=delay, reason=reason, last=last):
            status = 429 if reason in _TOO_MANY else 503
            headers |= {OUTCOME_HEADER: RETRY, **retry_after(delay)}
            answer = AnswerEvent(
                specversion="1.0",
                id=f"{event.id}.retry",
                source=RESULT_SOURCE,
                type=RETRY_TYPE,
                requestid=event.id,
                statuscode=last.status_code if last else 0,
                reason=reason,
                delayseconds=text(round(delay, 3)),
                countsattempt=outcome.counts_attempt,
                data_base64=last.body if last else b"",
            )
    if feedback is not None:
        answer = msgspec.structs.replace(
            answer,
            wassent=True,
            droppedreason=feedback.dropped_reason,
            retryafterseconds=text(feedback.retry_after_seconds),
            queuedurationms=text(feedback.queue_duration_ms),
            bandheadroom=text(feedback.band_headroom),
        )
    return Answer(status, encode_answer(answer), headers)


def _result_answer(event: Event, result: Result, feedback: Feedback | None) -> Answer:
    extensions = {"requestid": result.id}
    if feedback is not None and feedback.queue_duration_ms is not None:
        extensions["queuedurationms"] = str(feedback.queue_duration_ms)
    if feedback is not None and feedback.band_headroom is not None:
        extensions["bandheadroom"] = str(feedback.band_headroom)
    data = encode_result(result)
    if event.is_from_poller:
        return Answer(200, data, binary_headers(f"{event.id}.result", RESULT_SOURCE, RESULT_TYPE, extensions))
    # The id of an event is unique only together with its source.
    event_id = f"{event.source}#{event.id}.result"
    headers, body = write_event(event_id, RESULT_SOURCE, RESULT_TYPE, extensions, data)
    return Answer(200, body, headers)


_TOO_MANY: Final = ("rejected", GATE_CLOSED, QUOTA_EXHAUSTED)
"""Reasons that are answered with 429 (no capacity); all others with 503."""


def _retry_answer(retry: Retry) -> Answer:
    last, feedback = retry.last, retry.feedback
    body = RetryAnswer(
        reason=retry.reason,
        retry_after_seconds=round(retry.delay_seconds, 3),
        counts_attempt=retry.counts_attempt,
        status_code=last.status_code if last else 0,
        payload=str(last.body, "utf-8", "replace") if last else "",
        was_sent=feedback is not None,
        dropped_reason=feedback.dropped_reason if feedback else "",
        gateway_retry_after_seconds=feedback.retry_after_seconds if feedback else None,
        queue_duration_ms=feedback.queue_duration_ms if feedback else None,
        band_headroom=feedback.band_headroom if feedback else None,
    )
    headers = {"content-type": "application/json", OUTCOME_HEADER: RETRY, **retry_after(retry.delay_seconds)}
    return Answer(429 if retry.reason in _TOO_MANY else 503, encode_retry_answer(body), headers)


def _trace(extensions: Mapping[str, str]) -> dict[str, str] | None:
    """The sender's trace context. It is newer than the producer's in the body."""
    parent = extensions.get("traceparent")
    if not parent:
        return None
    state = extensions.get("tracestate")
    return {"traceparent": parent, "tracestate": state} if state else {"traceparent": parent}


def _labels(text: str) -> dict[str, str]:
    if not text:
        return {}
    try:
        return _labels_decoder.decode(text)
    except MALFORMED:
        return {}


_PAUSES: Final = (0.1, 5.0)
"""First and longest pause between two calls, in seconds."""
_ASKED_AGAIN: Final = frozenset({404, 408, 409, 425, 429})
"""Statuses that are retried in addition to 5xx: those of Knative's dispatcher (404, 408, 409, 429), and 425."""


class SinkUnavailable(Exception):
    """The sink did not accept the result in time. A redelivery may succeed."""


class SinkRefused(Exception):
    """The sink will never accept this result.

    `status_code` is its answer, or 0 if the result could not be sent.
    """

    def __init__(self, status_code: int) -> None:
        super().__init__(f"the sink answered {status_code}")
        self.status_code = status_code


class SinkOptions(msgspec.Struct, frozen=True):
    """Options of a sink; times are in seconds.

    `overrides` are extensions that are added to every event (`K_CE_OVERRIDES`).
    """

    url: str
    overrides: Mapping[str, str] = msgspec.field(default_factory=dict)
    call_seconds: float = 10.0
    give_up_seconds: float = 60.0


class EventSink:
    """Posts result events to a sink."""

    def __init__(self, sender: Sender, options: SinkOptions, log: Logger) -> None:
        self._sender = sender
        self._options = options
        self._log = log

    async def send(self, event: Answer) -> None:
        """Send a result. Raises `SinkUnavailable` or `SinkRefused`."""
        overrides = {f"ce-{name}": to_header(value) for name, value in self._options.overrides.items()}
        headers = {**event.headers, **overrides}
        backoff = Backoff(*_PAUSES)
        try:
            async with asyncio.timeout(self._options.give_up_seconds):
                while not await self._is_taken(headers, event.body):
                    await backoff.pause()
        except TimeoutError:
            raise SinkUnavailable from None

    async def _is_taken(self, headers: Mapping[str, str], body: bytes) -> bool:
        try:
            until = asyncio.get_running_loop().time() + self._options.call_seconds
            response = await self._sender.send(self._options.url, headers, body, until)
            status = response.status_code
        except UnusableResponse as error:
            status = error.status_code  # the rest of the response is not needed
        except OWN_FAULTS as error:
            self._log.error("result not sent to the sink", error=type(error).__name__)
            raise SinkRefused(0) from None
        except FAILURES as error:
            self._log.warning("sink unreachable", error=type(error).__name__)
            return False
        if 200 <= status < 300:
            return True
        self._log.warning("result refused by the sink", status=status)
        if status in _ASKED_AGAIN or status >= 500:
            return False
        raise SinkRefused(status)
