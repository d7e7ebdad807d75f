"""Pushes in every form of Pub/Sub, Eventarc and Knative."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.contract.errors import InvalidEvent
from handlers.doors.door import Delivery
from handlers.doors.pubsub.push import Push, PushForm, decode_push
from tests.contract.json_texts import JSON, STRINGS, broken, text

BODY = b'{ "id":"a" , "deadline": 5,"payload":{"x": 1.0}}'
SUBSCRIPTION = "projects/p/subscriptions/s"


def wrapped(data: bytes = BODY, **message: Any) -> dict[str, Any]:
    given = {"data": base64.b64encode(data).decode(), "messageId": "7", **message}
    return {"message": given, "subscription": SUBSCRIPTION}


def pushed(frame: Any, *headers: tuple[bytes, bytes]) -> Delivery:
    return Delivery(headers, frame if isinstance(frame, bytes) else json.dumps(frame).encode())


def refused(delivery: Delivery) -> InvalidEvent:
    with pytest.raises(InvalidEvent) as caught:
        decode_push(delivery)
    return caught.value


def test_a_wrapped_push_is_unwrapped_byte_for_byte() -> None:
    push = decode_push(pushed({**wrapped(attributes={"k": "v"}), "deliveryAttempt": 5}))
    assert push.body == BODY
    assert (push.subscription, push.message_id, push.delivery_attempt) == (SUBSCRIPTION, "7", 5)
    assert push.attributes == {"k": "v"}


def test_both_spellings_of_the_message_id_field_are_read() -> None:
    frame = wrapped()
    frame["message"] = {"data": "e30=", "message_id": "8", "publish_time": "x", "orderingKey": "o"}
    push = decode_push(pushed(frame))
    assert (push.message_id, push.body, push.delivery_attempt) == ("8", b"{}", None)


@pytest.mark.parametrize(
    ("published", "seconds"),
    [
        ("2033-05-18T03:33:20.250Z", 2_000_000_000.25),
        ("2033-05-18T05:33:20.250000000+02:00", 2_000_000_000.25),
        ("2033-05-18T03:33:20", None),
        ("0001-01-01T00:00:00+23:59", None),
        ("soon", None),
        (5, None),
        (None, None),
    ],
)
def test_the_publish_time_is_read_if_it_is_a_valid_time(published: Any, seconds: float | None) -> None:
    assert decode_push(pushed(wrapped(publishTime=published))).published_at == seconds
    assert decode_push(pushed(wrapped(publish_time=published))).published_at == seconds


@pytest.mark.parametrize(
    ("requested", "published_at", "created"),
    [
        (100, 100.7, 100.7),
        (None, 100.7, 100.7),
        (99, 100.7, 99),
        (101, 100.7, 101),
        (100, None, 100),
        (None, None, None),
    ],
)
def test_created_gets_its_fraction_from_the_publish_time(
    requested: float | None, published_at: float | None, created: float | None
) -> None:
    assert Push(b"", published_at=published_at).created(requested) == created


@pytest.mark.parametrize("data", [{}, {"data": None}, {"data": ""}])
def test_a_push_of_attributes_alone_has_an_empty_body(data: dict[str, Any]) -> None:
    push = decode_push(pushed({"message": {"attributes": {"k": "v"}, **data}}))
    assert (push.body, push.attributes, push.subscription) == (b"", {"k": "v"}, "")


def test_an_unwrapped_push_is_the_body_itself() -> None:
    push = decode_push(pushed(BODY, (b"x-goog-pubsub-subscription-name", b"sub-b"), (b"ce-id", b"7")), "unwrapped")
    assert (push.body, push.subscription, push.message_id) == (BODY, "", ""), "headers are the publisher's"


@pytest.mark.parametrize("form", ["unwrapped", "unwrapped-metadata"])
def test_a_publisher_of_unwrapped_pushes_does_not_choose_the_subscription(form: PushForm) -> None:
    """Its message looks like a wrapped push of another subscription, its attributes like an event."""
    event = [(b"ce-specversion", b"1.0"), (b"ce-id", b"e"), (b"ce-source", b"s"), (b"ce-type", b"t")]
    frame = {**wrapped(), "subscription": "projects/p/subscriptions/sub-b"}
    push = decode_push(pushed(frame, (b"x-goog-pubsub-subscription-name", SUBSCRIPTION.encode()), *event), form)
    assert json.loads(push.body) == frame, "it is the request itself, and a broken one"
    assert push.subscription == ("" if form == "unwrapped" else SUBSCRIPTION)


def test_two_names_of_a_subscription_are_refused() -> None:
    two = [(b"x-goog-pubsub-subscription-name", name) for name in (b"sub-a", b"sub-b")]
    with pytest.raises(InvalidEvent, match="subscription-name"):
        decode_push(pushed(BODY, *two), "unwrapped-metadata")


def test_an_unwrapped_push_without_its_metadata_is_refused() -> None:
    with pytest.raises(InvalidEvent, match="subscription-name"):
        decode_push(pushed(BODY), "unwrapped-metadata")


@pytest.mark.parametrize("delivery", [pushed(BODY), pushed(wrapped(), (b"x-goog-pubsub-subscription-name", b"sub-a"))])
def test_an_unwrapped_push_is_refused_if_wrapped_ones_are_expected(delivery: Delivery) -> None:
    assert refused(delivery).field == "push"


def test_other_headers_of_an_unwrapped_push_are_not_read_as_metadata() -> None:
    push = decode_push(
        pushed(
            BODY,
            (b"x-goog-pubsub-subscription-name", SUBSCRIPTION.encode()),
            (b"x-goog-pubsub-message-id", b"7"),
            (b"x-goog-pubsub-publish-time", b"2027"),
            (b"userid", b"forged"),
            (b"authorization", b"Bearer forged"),
        ),
        "unwrapped-metadata",
    )
    assert (push.body, push.subscription, push.message_id, push.attributes) == (BODY, SUBSCRIPTION, "7", {})
    assert push.published_at is None, "2027 is no time"


def test_an_unwrapped_request_with_a_field_called_message_is_not_unwrapped() -> None:
    body = b'{"id":"a","deadline":5,"payload":{},"message":{"data":"e30="}}'
    assert decode_push(pushed(body), "unwrapped").body == body


@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_a_cloud_event_holds_the_wrapped_push(mode: str) -> None:
    frame = wrapped(attributes={"k": "v"})
    attributes = {"specversion": "1.0", "id": "7", "source": "//pubsub", "type": "google.cloud.pubsub"}
    if mode == "binary":
        delivery = pushed(frame, *((f"ce-{n}".encode(), v.encode()) for n, v in attributes.items()))
    else:
        delivery = pushed({**attributes, "data": frame}, (b"content-type", b"application/cloudevents+json"))
    push = decode_push(delivery)
    assert (push.body, push.subscription, push.attributes) == (BODY, SUBSCRIPTION, {"k": "v"})


@pytest.mark.parametrize(
    ("frame", "field"),
    [
        ({"message": None}, "push"),
        ({"message": []}, "push"),
        ({"message": {"data": 5}}, "push"),
        ({"message": {"data": "é"}}, "message.data"),
        ({"message": {"data": "a"}}, "message.data"),
        ({"message": {"data": "YQ==!"}}, "message.data"),
        ({"message": {"attributes": {"k": 1}}}, "push"),
        ({"message": {"attributes": {str(n): "" for n in range(101)}}}, "message.attributes"),
        ({"message": {}, "deliveryAttempt": "x"}, "push"),
        ({"message": {}, "subscription": 5}, "push"),
    ],
)
def test_a_broken_frame_is_named(frame: Any, field: str) -> None:
    assert refused(pushed(frame)).field == field


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"\xff", b"{" * 9_000, b"not json"])
def test_an_unwrapped_push_with_any_body_is_a_request(body: bytes) -> None:
    """An unwrapped push of an invalid request gets a record, not endless redeliveries."""
    assert decode_push(pushed(body), "unwrapped").body == body
    assert refused(pushed(body)).field == "push"


@given(data=st.binary(max_size=50), attributes=STRINGS, attempt=st.none() | st.integers(1, 100))
def test_a_wrapped_message_is_unwrapped_unchanged(data: bytes, attributes: dict[str, str], attempt: int | None) -> None:
    push = decode_push(pushed({**wrapped(data, attributes=attributes), "deliveryAttempt": attempt}))
    assert (push.body, push.attributes, push.delivery_attempt) == (data, attributes, attempt)


@given(
    body=st.fixed_dictionaries({"message": JSON}, optional={"subscription": JSON, "deliveryAttempt": JSON}).map(text)
    | broken()
    | st.binary(max_size=30),
    is_event=st.booleans(),
)
def test_no_push_crashes(body: bytes, is_event: bool) -> None:
    headers = [(b"ce-specversion", b"1.0"), (b"ce-id", b"e"), (b"ce-source", b"s"), (b"ce-type", b"t")]
    try:
        decode_push(Delivery(headers if is_event else [], body))
    except InvalidEvent as error:
        assert error.found
