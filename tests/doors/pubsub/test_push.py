"""The Pub/Sub door with the real publisher and a scripted broker: 204 only with a stored result."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any

import pytest

from handlers.clock import FollowedClock
from handlers.contract.request import Request
from handlers.contract.result import (
    ErrorCode,
    Result,
    ResultNames,
    answered_result,
    decode_result,
    read_result_names,
)
from handlers.doors.door import Answer, Delivery, handle
from handlers.doors.pubsub.push import MARGIN_SECONDS, PubSubPushDoor, PushOptions, Subscription
from handlers.forward.forward import AttemptOptions
from handlers.forward.outcome import Answered, Outcome, Retry
from handlers.pubsub.channel import PubSubChannel, PubSubOptions
from handlers.pubsub.publisher import Publisher, PublisherOptions
from handlers.telemetry.logs import get_logger
from tests.servers.pubsub_broker import PubSubBroker, refusal, running_broker

BODY = b'{"id":"a","deadline":4000000000,"payload":{"p":1}}'
ANSWERED = Answered(answered_result("a", "", 200, b"said"))


@pytest.fixture
async def broker() -> AsyncIterator[PubSubBroker]:
    async with running_broker() as running:
        yield running


@pytest.fixture
async def publisher(broker: PubSubBroker, request: pytest.FixtureRequest) -> AsyncIterator[Publisher]:
    """It fails after the seconds of the parameter; without one, only if the broker is never reached."""
    timeout_seconds = getattr(request, "param", 60.0)
    options = PubSubOptions(project_id="project-1", emulator_host=broker.host)
    async with PubSubChannel(options) as api:
        limits = PublisherOptions(timeout_seconds=timeout_seconds, call_timeout_seconds=60.0, linger_seconds=0.0)
        publisher = Publisher(api, limits)
        yield publisher
        await publisher.close()


class Door:
    """A push door, and its calls to the gateway."""

    def __init__(
        self,
        publisher: Publisher,
        dead_letter_topic: str = "",
        *,
        has_details: bool = False,
        may_name: ResultNames | None = None,
        is_topic_fixed: bool = False,
        local: Callable[[], float] = time.time,
    ) -> None:
        self.now = 100.0
        self.forwarded: list[tuple[Request, AttemptOptions]] = []
        self.door = PubSubPushDoor(
            publisher,
            lambda name: Subscription(
                name.rsplit("/", 1)[-1], "results", {"tier": "batch"}, 60.0, 10.0, is_topic_fixed
            ),
            get_logger("test"),
            PushOptions(
                project_id="project-1",
                max_request_bytes=10_000,
                dead_letter_topic=dead_letter_topic,
                may_name=may_name or ResultNames(),
                has_details=has_details,
            ),
            monotonic=lambda: self.now,
            clock=FollowedClock(lambda: self.now, local),
        )

    async def push(
        self, body: bytes = BODY, outcome: Outcome = ANSWERED, attempt: int | None = None, **attributes: str
    ) -> Answer:
        message = {"data": base64.b64encode(body).decode(), "messageId": "7", "attributes": attributes}
        frame = {
            "message": message,
            "subscription": "projects/project-1/subscriptions/s",
            "deliveryAttempt": attempt,
        }
        return await self.raw(json.dumps(frame).encode(), outcome)

    async def raw(self, body: bytes, outcome: Outcome = ANSWERED) -> Answer:
        async def forward(request: Request, limits: AttemptOptions) -> Outcome:
            self.forwarded.append((request, limits))
            return outcome

        return await handle(self.door, Delivery([], body), forward)


def published(broker: PubSubBroker) -> list[tuple[str, bytes, dict[str, str]]]:
    """The publishes at the broker: topic, data, attributes."""
    return [(topic.rpartition("/")[2], data, attributes) for topic, data, attributes in broker.published]


def result_of(broker: PubSubBroker) -> tuple[str, Result, dict[str, str]]:
    ((topic, data, attributes),) = published(broker)
    return topic, decode_result(data), attributes


async def test_a_result_is_published_before_the_204(publisher: Publisher, broker: PubSubBroker) -> None:
    answered = await Door(publisher).push(attempt=3, result_route="shard-1")
    assert (answered.status_code, answered.body) == (204, b"")
    topic, result, attributes = result_of(broker)
    assert (topic, result) == ("results", answered_result("a", "", 200, b"said"))
    expected = {"id": "a", "pubsub_message_id": "7", "attempt": "3", "result_route": "shard-1"}
    assert attributes == expected


async def test_a_request_was_created_in_the_moment_of_its_publication_if_in_the_same_second(
    publisher: Publisher,
) -> None:
    """A cancellation has fractions of a second, and a request queued after it is another submission."""
    door = Door(publisher)
    data = base64.b64encode(BODY.replace(b'"id"', b'"created":2000000000,"id"')).decode()
    message = {"data": data, "messageId": "7", "publishTime": "2033-05-18T03:33:20.250Z"}
    await door.raw(json.dumps({"message": message, "subscription": "s"}).encode())
    ((request, _),) = door.forwarded
    assert request.created == 2_000_000_000.25


async def test_a_published_result_has_details_if_they_are_enabled(publisher: Publisher, broker: PubSubBroker) -> None:
    await Door(publisher, has_details=True).push(attempt=3, userid="me")
    _, result, _ = result_of(broker)
    assert (result.attempts, result.metadata) == (2, {"userid": "me"})
    assert result.finished_at is not None


async def test_a_request_knows_its_subscription_its_attempt_and_its_attributes(publisher: Publisher) -> None:
    door = Door(publisher)
    body = b'{"id":"a","deadline":4000000000,"payload":{},"metadata":{"userid":"body","team":"x"}}'
    await door.push(body, attempt=4, userid="attribute")
    ((request, limits),) = door.forwarded
    assert (request.queue, request.attempt, request.labels) == ("s", 3, {"tier": "batch"})
    assert request.metadata == {"userid": "attribute", "team": "x"}
    assert limits == AttemptOptions(60.0 - MARGIN_SECONDS, 10.0)


async def test_without_a_dead_letter_policy_every_attempt_counts_as_the_first(publisher: Publisher) -> None:
    door = Door(publisher)
    await door.push()
    assert door.forwarded[0][0].attempt == 0


@pytest.mark.parametrize(("reason", "status"), [("rejected", 429), ("unavailable", 503), ("reset", 503)])
async def test_a_retry_is_a_nack_and_publishes_nothing(
    publisher: Publisher, broker: PubSubBroker, reason: str, status: int
) -> None:
    answered = await Door(publisher).push(outcome=Retry(7.5, reason))
    assert (answered.status_code, answered.headers["retry-after"]) == (status, "8")
    assert broker.published == []


@pytest.mark.parametrize("publisher", [2.0], indirect=True)
@pytest.mark.parametrize("status", ["UNAVAILABLE", "PERMISSION_DENIED", "INTERNAL", "RESOURCE_EXHAUSTED"])
async def test_a_result_that_is_not_confirmed_is_never_acked(
    publisher: Publisher, broker: PubSubBroker, status: str
) -> None:
    """F64, I5."""
    broker.fault = lambda _method, _request: refusal(status)
    answered = await Door(publisher).push()
    assert answered.status_code == 503
    assert "retry-after" in answered.headers


async def test_a_requests_own_topic_wins(publisher: Publisher, broker: PubSubBroker) -> None:
    for name in ("mine", "projects/project-1/topics/mine"):
        body = json.dumps({**json.loads(BODY), "result_queue_name": name}).encode()
        assert (await Door(publisher).push(body)).status_code == 204
    assert [topic for topic, _, _ in published(broker)] == ["mine", "mine"]


@pytest.mark.parametrize("body", [BODY, b'{"id":"a","deadline":"soon","payload":{}}'], ids=["answered", "invalid"])
@pytest.mark.parametrize("name", ["mine", "projects/project-1/topics/mine", "projects/other/topics/mine", "a/b"])
async def test_the_topic_of_the_subscription_wins_over_the_one_that_a_request_names(
    publisher: Publisher, broker: PubSubBroker, name: str, body: bytes
) -> None:
    door = Door(publisher, is_topic_fixed=True)
    assert (await door.push(json.dumps({**json.loads(body), "result_queue_name": name}).encode())).status_code == 204
    assert [topic for topic, _, _ in published(broker)] == ["results"]


@pytest.mark.parametrize("name", ["projects/other/topics/mine", "a/b", "x", "1abc", "mine:publish", "mi\nne"])
async def test_a_topic_of_another_project_or_with_an_invalid_name_is_an_invalid_request(
    publisher: Publisher, broker: PubSubBroker, name: str
) -> None:
    door = Door(publisher)
    await door.push(json.dumps({**json.loads(BODY), "result_queue_name": name}).encode())
    topic, result, _ = result_of(broker)
    assert (topic, result.error_code, door.forwarded) == ("results", ErrorCode.INVALID_REQUEST, [])


@pytest.mark.parametrize(
    ("name", "takes"),
    [
        ("mine", "mine"),
        ("projects/project-1/topics/mine", "projects/project-1/topics/mine"),
        ("team-a", "team-a"),
        ("results", "results"),
        ("others", None),
        ("projects/project-1/topics/others", None),
    ],
)
async def test_a_request_that_names_a_topic_not_in_allowed_results_is_invalid(
    publisher: Publisher, broker: PubSubBroker, name: str, takes: str | None
) -> None:
    """F75."""
    door = Door(publisher, may_name=read_result_names("mine, team-*"))
    await door.push(json.dumps({**json.loads(BODY), "result_queue_name": name}).encode())
    topic, result, _ = result_of(broker)
    assert (topic.rpartition("/")[2], result.error_code) == (
        (takes.rpartition("/")[2], "") if takes else ("results", ErrorCode.INVALID_REQUEST)
    )
    assert len(door.forwarded) == (1 if takes else 0)


@pytest.mark.parametrize("status", ["INVALID_ARGUMENT", "PERMISSION_DENIED", "NOT_FOUND"])
async def test_a_result_refused_by_the_requests_topic_goes_to_the_subscriptions(
    publisher: Publisher, broker: PubSubBroker, status: str
) -> None:
    broker.fault = lambda _method, request: refusal(status) if b"nowhere" in request else None
    body = json.dumps({**json.loads(BODY), "result_queue_name": "nowhere"}).encode()
    assert (await Door(publisher).push(body)).status_code == 204
    assert [topic for topic, _, _ in published(broker)] == ["nowhere", "results"]


async def test_a_result_too_large_for_pubsub_is_a_final_error_without_a_retry(
    publisher: Publisher, broker: PubSubBroker
) -> None:
    large = Answered(answered_result("a", "", 200, b"x" * 10_500_000))
    assert (await Door(publisher).push(outcome=large)).status_code == 204
    assert result_of(broker)[1].error_code == ErrorCode.INFERENCE_ERROR


@pytest.mark.parametrize(
    "body",
    [
        b'{"id":"a","deadline":"soon","payload":{}}',
        b'{"id":"a","deadline":4000000000,"payload":{"x":"' + b"y" * 10_000 + b'"}}',
        b'{"id":"a","deadline":4000000000',
        json.dumps({"id": "a" * 5_000, "deadline": 5, "payload": {}}).encode(),
    ],
)
async def test_an_invalid_request_gets_its_result_and_is_acked(
    publisher: Publisher, broker: PubSubBroker, body: bytes
) -> None:
    door = Door(publisher)
    assert (await door.push(body)).status_code == 204
    assert result_of(broker)[1].error_code == ErrorCode.INVALID_REQUEST
    assert door.forwarded == []


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b"{}", b"\xff\xfe", b'{"deadline":5}'])
async def test_a_body_without_an_id_is_published_unchanged_to_the_dead_letter_topic(
    publisher: Publisher, broker: PubSubBroker, body: bytes
) -> None:
    assert (await Door(publisher, "dead").push(body)).status_code == 204
    ((topic, data, attributes),) = published(broker)
    assert (topic, data) == ("dead", body)
    assert attributes["async_processor_dead_letter_reason"] == ErrorCode.INVALID_REQUEST
    assert attributes["field"]


async def test_without_a_dead_letter_topic_its_error_goes_to_the_result_topic(
    publisher: Publisher, broker: PubSubBroker
) -> None:
    assert (await Door(publisher).push(b"not json")).status_code == 204
    topic, result, _ = result_of(broker)
    assert (topic, result.id, result.error_code) == ("results", "", ErrorCode.INVALID_REQUEST)


@pytest.mark.parametrize("publisher", [2.0], indirect=True)
async def test_a_dead_letter_that_is_not_confirmed_is_not_acked(publisher: Publisher, broker: PubSubBroker) -> None:
    broker.fault = lambda _method, _request: refusal("UNAVAILABLE")
    assert (await Door(publisher, "dead").push(b"not json")).status_code == 503


async def test_a_dead_lettered_delivery_is_a_final_result_without_another_attempt(
    publisher: Publisher, broker: PubSubBroker
) -> None:
    """F66."""
    door = Door(publisher)
    given: dict[str, Any] = {
        "CloudPubSubDeadLetterSourceSubscription": "s",
        "CloudPubSubDeadLetterSourceSubscriptionProject": "project-1",
        "CloudPubSubDeadLetterSourceDeliveryCount": "5",
    }
    assert (await door.push(**given)).status_code == 204
    _, result, _ = result_of(broker)
    assert (result.id, result.error_code, door.forwarded) == ("a", ErrorCode.UNDELIVERABLE, [])
    assert "5 deliveries" in result.error_message


async def test_an_invalid_push_frame_gets_a_400(publisher: Publisher, broker: PubSubBroker) -> None:
    assert (await Door(publisher).raw(b'{"message":{"data":"%%%"}}')).status_code == 400
    assert broker.published == []


async def test_an_attribute_that_pubsub_would_refuse_is_left_out(publisher: Publisher, broker: PubSubBroker) -> None:
    await Door(publisher).push(result_route="x" * 1_025)
    assert "result_route" not in result_of(broker)[2]


async def test_time_spent_before_forwarding_is_taken_from_the_ack_deadline(publisher: Publisher) -> None:
    door = Door(publisher)
    frame = {"message": {"data": base64.b64encode(BODY).decode()}, "subscription": "s"}
    decoded = await door.door.decode(Delivery([], json.dumps(frame).encode()))
    assert isinstance(decoded, tuple)
    for later, left in ((10.0, 45.0), (100.0, 0.0)):
        door.now = 100.0 + later
        assert door.door.limits(decoded[1]).seconds == left


async def test_a_dead_letter_without_an_id_is_not_dead_lettered_again(
    publisher: Publisher, broker: PubSubBroker
) -> None:
    door = Door(publisher, "dead")
    for name in ("CloudPubSubDeadLetterSourceSubscription", "async_processor_dead_letter_reason"):
        assert (await door.push(b"not json", **{name: "x"})).status_code == 204  # type: ignore[arg-type]  # an attribute
    assert broker.published == []


@pytest.mark.parametrize("ahead_seconds", [7_200.0, -7_200.0, 2.0])
@pytest.mark.parametrize("by", ["date", "publishTime"])
async def test_a_deadline_counts_by_googles_clock_if_the_local_one_is_wrong(
    publisher: Publisher, ahead_seconds: float, by: str
) -> None:
    """The request has a minute left by Google's clock."""
    if by == "publishTime" and ahead_seconds > 0:
        pytest.skip("a message may be old: its time never shows that the local clock is ahead")
    google = 1_900_000_000.0
    door = Door(publisher, local=lambda: google + ahead_seconds)
    message: dict[str, str] = {
        "data": base64.b64encode(b'{"id":"a","deadline":%d,"payload":{}}' % (google + 60)).decode()
    }
    headers = [(b"date", formatdate(google, usegmt=True).encode())] if by == "date" else []
    if by == "publishTime":
        message["publishTime"] = datetime.fromtimestamp(google, UTC).isoformat()
    body = json.dumps({"message": message, "subscription": "projects/project-1/subscriptions/s"}).encode()
    decoded = await door.door.decode(Delivery(headers, body))
    assert isinstance(decoded, tuple)
    assert isinstance(decoded[0], Request)
    shift = ahead_seconds if abs(ahead_seconds) > 5 else 0.0
    assert decoded[0].deadline == google + 60 + shift
