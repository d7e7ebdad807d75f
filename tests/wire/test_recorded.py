"""Recorded messages of every generation and door, and what each is decoded to.

`recorded/redis-*.json` are members of a sorted set, `recorded/*.http` whole HTTP requests. They are never rewritten:
a new form gets a new file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from handlers.contract.request import Request, decode_body, decode_member, encode_retry, score_of
from handlers.doors.cloudevents.dispatch import DispatchDoor
from handlers.doors.door import Delivery
from handlers.doors.pubsub.push import PushForm, decode_push

RECORDED = Path(__file__).parent / "recorded"
GUIDE_PAYLOAD = b'{ "model":"your-model", "prompt":"Hi, good morning "}'

MEMBERS: dict[str, dict[str, Any]] = {
    "redis-v0.6-bare.json": {
        "id": "testmsg",
        "deadline": 1999999999.0,
        "payload": GUIDE_PAYLOAD,
        "created": None,
        "request_token": "",
        "result_queue_name": "",
        "attempt": 0,
    },
    "redis-v0.7-envelope.json": {
        "id": "req-7",
        "deadline": 1999999999.0,
        "created": 1790000000.0,
        "payload": '{"model":"m","prompt":"café","temperature":0.70}'.encode(),
        "metadata": {"userid": "team-a"},
        "headers": {"X-Trace": "1"},
        "endpoint": "/v1/chat/completions",
        "attempt": 1,
        "result_queue_name": "chat-results",
    },
    "redis-v0.9-envelope-plain.json": {
        "id": "req-9",
        "payload": b'{"model":"m","messages":[{"role":"user","content":"{[ \\"quoted\\" ]}"}]}',
        "labels": {},
        "result_queue_name": "",
    },
    "redis-v0.10-tokens.json": {
        "id": "req-10",
        "model": "m",
        "request_token": "5b2f8c1e",
        "labels": {"classification": "reserved", "tier": "interactive"},
        "result_queue_name": "results:5b2f8c1e",
        "result_ttl_seconds": 600,
    },
    "redis-v0.10-payload-ref.json": {
        "id": "req-11",
        "payload": b"",
        "payload_ref": "request-payload:req-11:77aa",
        "request_token": "77aa",
    },
}

PUSHES: dict[str, dict[str, Any]] = {
    "push-wrapped.http": {"attempt": 2, "attributes": {"userid": "team-a", "result_route": "shard-3"}},
    "push-unwrapped.http": {"subscription": "", "message_id": ""},
    "push-unwrapped-metadata.http": {"attributes": {}},
    "push-cloudevent-binary.http": {"attempt": 2},
    "push-cloudevent-structured.http": {"attempt": 2},
}

EVENTS: dict[str, dict[str, Any]] = {
    "event-binary-poller.http": {
        "queue": "chat-queue",
        "attempt": 2,
        "request_token": "5b2f8c1e",
        "labels": {"tier": "batch"},
    },
    "event-structured-poller.http": {
        "queue": "chat-queue",
        "attempt": 2,
        "request_token": "5b2f8c1e",
        "labels": {"tier": "batch"},
    },
    "event-binary-kafka.http": {"queue": "", "attempt": 0},
    "event-structured.http": {"queue": "chat-queue", "attempt": 2},
    "event-structured-base64.http": {"queue": "", "attempt": 0},
}


def recorded(name: str) -> bytes:
    return (RECORDED / name).read_bytes()


def delivery(name: str) -> Delivery:
    """The delivery as ASGI would give it: header names in lower case."""
    head, _, body = recorded(name).partition(b"\r\n\r\n")
    pairs = [line.split(b": ", 1) for line in head.split(b"\r\n")[1:]]
    return Delivery([(key.lower(), value) for key, value in pairs], body)


def assert_is(request: Request, expected: dict[str, Any]) -> None:
    assert {name: getattr(request, name) for name in expected} == expected


def test_every_recording_is_read_by_a_test() -> None:
    assert {path.name for path in RECORDED.iterdir()} == {*MEMBERS, *PUSHES, *EVENTS}


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_of_every_generation_is_read(name: str) -> None:
    assert_is(decode_member(recorded(name), "q").request, MEMBERS[name])


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_of_every_generation_survives_a_retry(name: str) -> None:
    member = recorded(name)
    first = decode_member(member, "q")
    score = score_of(first.request.deadline, first.internal.enqueue_seq)
    again = decode_member(encode_retry(member, queue="q", attempt=9, score=score), "q")
    assert_is(again.request, {**MEMBERS[name], "attempt": 9})
    assert again.data == first.data
    assert again.internal.request_queue_name == "q"


def test_equal_deadlines_are_ordered_by_a_fraction_of_a_second() -> None:
    envelope = decode_member(recorded("redis-v0.10-tokens.json"), "q")
    assert score_of(envelope.request.deadline, envelope.internal.enqueue_seq) == 1999999999.5


FORMS: dict[str, PushForm] = {
    "push-unwrapped.http": "unwrapped",
    "push-unwrapped-metadata.http": "unwrapped-metadata",
}


@pytest.mark.parametrize("name", PUSHES)
def test_a_push_of_every_form_is_read(name: str) -> None:
    push, expected = decode_push(delivery(name), FORMS.get(name, "wrapped")), PUSHES[name]
    assert decode_body(push.body).payload == GUIDE_PAYLOAD
    full = "projects/demo-project/subscriptions/requests-push"
    assert push.subscription == expected.get("subscription", full)
    assert push.message_id == expected.get("message_id", "11223344")
    assert push.delivery_attempt == expected.get("attempt")
    assert push.attributes == expected.get("attributes", push.attributes)


@pytest.mark.parametrize("name", EVENTS)
async def test_an_event_of_every_mode_is_read(name: str) -> None:
    decoded = await DispatchDoor(max_request_bytes=10_000).decode(delivery(name))
    assert isinstance(decoded, tuple)
    request = decoded[0]
    assert isinstance(request, Request)
    assert_is(request, {"id": "req-10", "payload": b'{"model":"m","max_tokens":16,"top_p":1.0}', **EVENTS[name]})
