"""The dispatch door: events in, result events or retries out, 400 only without a readable id."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.contract.events import REQUEST_TYPE, decode_event
from handlers.contract.request import Request
from handlers.contract.result import ErrorCode, answered_result, decode_result
from handlers.doors.cloudevents.dispatch import DispatchDoor, EventSink, SinkOptions
from handlers.doors.door import Answer, Delivery, handle
from handlers.forward.forward import AttemptOptions
from handlers.forward.gateway import GatewayResponse
from handlers.forward.outcome import Answered, LastResponse, Outcome, Retry
from handlers.telemetry.logs import get_logger
from handlers.transport.connection import AskForRoom
from tests.contract.json_texts import STRANGE, broken, text

DOOR = DispatchDoor(max_request_bytes=10_000)
BODY = b'{"id":"a","deadline":4000000000,"payload":{"p":1}}'
BINARY = {"ce-specversion": "1.0", "ce-id": "e-1", "ce-source": "/kafka", "ce-type": "t"}


def delivery(body: bytes = BODY, **extensions: str) -> Delivery:
    headers = {**BINARY, **{f"ce-{name}": value for name, value in extensions.items()}}
    return Delivery([(name.encode(), value.encode("latin-1")) for name, value in headers.items()], body)


async def decoded(given: Delivery) -> Request:
    found = await DOOR.decode(given)
    assert isinstance(found, tuple), found
    assert isinstance(found[0], Request), found
    return found[0]


async def walked(given: Delivery, outcome: Outcome | None = None) -> Answer:
    async def forward(request: Request, _limits: AttemptOptions) -> Outcome:
        assert outcome is not None, "the gateway was asked"
        return outcome

    return await handle(DOOR, given, forward)


async def test_extensions_carry_the_pollers_data() -> None:
    request = await decoded(
        delivery(
            type=REQUEST_TYPE,
            queue="q",
            attempt="3",
            requesttoken="t",
            labels='{"tier":"batch"}',
            objective="low",
            priority="4",
        )
    )
    assert (request.queue, request.attempt, request.request_token) == ("q", 3, "t")
    assert (request.labels, request.objective, request.priority) == ({"tier": "batch"}, "low", 4)
    assert request.payload == b'{"p":1}'


ROUTING = {
    "queue": "qb",
    "objective": "critical",
    "priority": "0",
    "labels": '{"classification":"reserved"}',
}


@pytest.mark.parametrize(("event_type", "trusts_pollers"), [("dev.knative.kafka.event", True), (REQUEST_TYPE, False)])
async def test_an_event_of_another_source_does_not_route_its_request(event_type: str, trusts_pollers: bool) -> None:
    door = DispatchDoor(max_request_bytes=10_000, trusts_pollers=trusts_pollers)
    found = await door.decode(delivery(BODY, type=event_type, **ROUTING))
    assert not isinstance(found, Answer)
    request, _ = found
    assert isinstance(request, Request)
    assert (request.queue, request.objective, request.priority) == ("", "", None)
    assert dict(request.labels) == {}


async def test_an_event_of_any_source_needs_nothing_but_a_request() -> None:
    request = await decoded(delivery())
    assert (request.queue, request.attempt, request.labels, request.priority) == ("", 0, {}, None)


async def test_an_extension_that_is_not_text_makes_the_event_invalid() -> None:
    """The HTTP binding requires a refusal (section 3.1.3.2)."""
    answer = await walked(delivery(attempt="%FF"))
    assert (answer.status_code, b"attempt" in answer.body) == (400, True)


@pytest.mark.parametrize("junk", ["x", "-1", "1.5", "9" * 30, "%D9%A3", "[1]", '{"a":1}', "{"])
async def test_an_invalid_extension_counts_as_absent(junk: str) -> None:
    request = await decoded(delivery(attempt=junk, labels=junk, priority=junk))
    assert (request.attempt, request.labels, request.priority) == (0, {}, None)


async def test_a_structured_event_with_its_data_as_text_is_taken() -> None:
    event = {
        "specversion": "1.0",
        "id": "e",
        "source": "/s",
        "type": "t",
        "data": BODY.decode(),
        "attempt": 2,
    }
    request = await decoded(Delivery([(b"content-type", b"application/cloudevents+json")], json.dumps(event).encode()))
    assert (request.id, request.attempt) == ("a", 2)


async def test_a_result_is_a_cloud_event() -> None:
    answer = await walked(delivery(), Answered(answered_result("a", "t", 404, b"said")))
    assert answer.status_code == 200
    event = decode_event([(n.encode(), v.encode()) for n, v in answer.headers.items()], answer.body)
    assert (event.id, event.type, event.extensions["requestid"]) == (
        "/kafka#e-1.result",
        "ai.llm-d.async.result.v1",
        "a",
    )
    assert decode_result(event.data).status_code == 404


async def test_results_of_two_sources_with_equal_ids_are_two_events() -> None:
    """A consumer that takes one for a copy of the other would lose a result."""
    outcome = Answered(answered_result("a", "", 200, b"{}"))
    answers = [await walked(delivery(source=f"/kafka#{topic}"), outcome) for topic in ("one", "two")]
    ids = {(answer.headers["ce-source"], answer.headers["ce-id"]) for answer in answers}
    assert len(ids) == 2


async def test_a_result_that_a_broker_delivers_as_a_request_is_refused() -> None:
    """A Trigger without a filter would have it answered indefinitely."""
    own = await walked(delivery(), Answered(answered_result("a", "", 200, b"{}")))
    back = Delivery([(n.encode(), v.encode()) for n, v in own.headers.items()], own.body)
    answer = await walked(back)
    assert answer.status_code == 400
    assert b"Trigger" in answer.body


class Kept:
    """A sink that keeps its events."""

    def __init__(self) -> None:
        self.events: list[Answer] = []

    async def send(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        until: float = math.inf,
        ask_for_room: AskForRoom | None = None,  # the signature of the protocol
    ) -> GatewayResponse:
        self.events.append(Answer(200, body, headers))
        return GatewayResponse(202, {}, b"")


@pytest.mark.parametrize(("extensions", "status"), [({"queue": "q"}, 200), ({}, 202)])
async def test_results_go_to_the_sink_except_those_of_the_pollers_events(
    extensions: dict[str, str], status: int
) -> None:
    """Another source may use our type: its reply would be discarded, with the result."""
    kept = Kept()
    sink = EventSink(kept, SinkOptions("http://sink"), get_logger("test"))
    door = DispatchDoor(max_request_bytes=10_000, sink=sink)

    async def forward(request: Request, _limits: AttemptOptions) -> Outcome:
        return Answered(answered_result(request.id, "", 200, b"{}"))

    answer = await handle(door, delivery(BODY, type=REQUEST_TYPE, **extensions), forward)
    assert answer.status_code == status
    assert len(kept.events) == (status == 202)


@pytest.mark.parametrize(
    ("reason", "status"), [("rejected", 429), ("unavailable", 503), ("timeout", 503), ("connect", 503)]
)
async def test_a_retry_has_delay_reason_and_last_response(reason: str, status: int) -> None:
    answer = await walked(delivery(), Retry(2.3456, reason, LastResponse(503, b"busy\xff")))
    assert answer.status_code == status
    assert (answer.headers["retry-after"], answer.headers["x-async-processor-outcome"]) == ("3", "retry")
    message = json.loads(answer.body)
    assert (message["reason"], message["retry_after_seconds"]) == (reason, 2.346)
    assert (message["status_code"], message["payload"]) == (503, "busy�")


@pytest.mark.parametrize(
    "body",
    [
        b'{"id":"a","deadline":4000000000,"payload":[]}',
        b'{"id":"a","deadline":0,"payload":{}}',
        b'{"id":"a","deadline":4000000000,"payload":{"x":"' + b"y" * 10_000 + b'"}}',
        b'{"id":"a","payload":' + b'{"x":' * 9_000,
    ],
)
async def test_an_invalid_request_is_a_final_result(body: bytes) -> None:
    answer = await walked(delivery(body, requesttoken="t"))
    result = decode_result(answer.body)
    assert answer.status_code == 200
    assert (result.id, result.error_code, result.request_token) == ("a", ErrorCode.INVALID_REQUEST, "t")


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{}", b"not json", b'{"deadline":5}', b"\xff"])
async def test_a_body_without_an_id_is_a_plain_400_in_one_line(body: bytes) -> None:
    answer = await walked(delivery(body))
    assert answer.status_code == 400
    assert answer.body.count(b"\n") == 1


@pytest.mark.parametrize("missing", sorted(BINARY))
async def test_an_invalid_event_gets_a_400_that_names_the_attribute(missing: str) -> None:
    headers = [(n.encode(), v.encode()) for n, v in BINARY.items() if n != missing]
    answer = await walked(Delivery(headers, BODY))
    assert answer.status_code == 400
    assert missing.removeprefix("ce-") in answer.body.decode()


HEADERS = st.lists(
    st.tuples(
        st.sampled_from([*(n.encode() for n in BINARY), b"ce-attempt", b"ce-labels", b"content-type"]),
        st.binary(max_size=10) | st.sampled_from([b"1.0", b"application/cloudevents+json", b"{}"]),
    ),
    max_size=6,
)


@given(headers=HEADERS, is_whole=st.booleans(), body=STRANGE.map(text) | broken() | st.binary(max_size=40))
async def test_no_delivery_crashes_or_is_redelivered_indefinitely(headers: Any, is_whole: bool, body: bytes) -> None:
    """F70: every delivery of untrusted input ends in 200 or 400; a 5xx would be redelivered indefinitely."""
    whole = [(n.encode(), v.encode()) for n, v in BINARY.items()] if is_whole else []
    answer = await walked(Delivery([*headers, *whole], body), Answered(answered_result("a", "", 200, b"")))
    assert answer.status_code in (200, 400)


async def test_the_pollers_event_carries_the_time_left_independent_of_clocks() -> None:
    """With a clock two hours ahead, a handler would find every deadline passed."""
    door = DispatchDoor(max_request_bytes=10_000, clock=lambda: 5e9)
    for event, deadline in (
        (delivery(remainingms="1500", type=REQUEST_TYPE), 4e9),  # of another source: its deadline is absolute
        (delivery(queue="q", remainingms="1500", type=REQUEST_TYPE), 5e9 + 1.5),
        (delivery(queue="q", remainingms="junk", type=REQUEST_TYPE), 4e9),
    ):
        found = await door.decode(event)
        assert isinstance(found, tuple)
        assert isinstance(found[0], Request)
        assert found[0].deadline == deadline
