"""Whole doors with hostile input: real handlers, and a gateway and broker that record calls.

A door always answers at once, never asks for the same invalid input again (5xx, 429), shows no traceback, and leaves
a record of everything it has accepted.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Coroutine, Iterator, MutableMapping
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import Response

from handlers.contract.result import decode_result
from handlers.settings.settings import load_settings
from handlers.wiring.handler import Handler
from tests.contract.json_texts import BODIES, FIELDS, JSON, STRANGE, broken, text
from tests.servers.pubsub_broker import PubSubBroker, running_broker
from tests.servers.raw_http import RawHttp, answer, running_raw_http

ANSWER_SECONDS = 60
"""Far longer than an answer takes, to find a door that never answers."""
RETRIED = {429, 500, 502, 503, 504}
ResultT = TypeVar("ResultT")

_NASTY = (
    "",
    "\0",
    "\r\n",
    "a\r\nhost: evil",
    "//evil/v1",
    "http://evil/",
    "/v1/../../admin",
    "/v1/%2e%2e/admin",
    "/v1\\..\\admin",
    "@evil",
    "/v1/completions?x=1#y",
    "é",
    "\u2028",
    "😀" * 50,
    "x" * 5_000,
    "{}",
    "null",
    "projects/other/topics/t",
    "request-sortedset:claimed",
    "Infinity",
    "1e400",
    "-1",
)
HOSTILE = st.sampled_from(_NASTY) | st.text(max_size=8).filter(lambda text: text.isprintable())
HEADER_NAMES = st.sampled_from(
    [
        "Host",
        "Content-Length",
        "Transfer-Encoding",
        "Authorization",
        "Connection",
        "x-a",
        "X A",
        "x:y",
        "é",
        "",
    ]
)
GOOD = {"id": "a", "deadline": 4_000_000_000, "payload": {"p": 1}}
SPOILS = st.fixed_dictionaries(
    {},
    optional={
        "headers": st.dictionaries(HEADER_NAMES | HOSTILE, HOSTILE, max_size=4),
        "endpoint": HOSTILE,
        "model": HOSTILE | JSON,
        "metadata": st.dictionaries(HOSTILE, HOSTILE, max_size=3),
        "result_queue_name": HOSTILE,
    },
)
SPOILT = SPOILS.map(lambda spoils: {**GOOD, **spoils}) | st.builds(
    lambda name, value: {**GOOD, name: value}, st.sampled_from(sorted(GOOD)), HOSTILE | JSON
)
DEEP = st.sampled_from([b"[", b'{"a":', b'{"id":"a","payload":[']).flatmap(
    lambda piece: st.integers(1, 20_000).map(lambda count: piece * count)
)
REQUESTS = st.one_of(
    SPOILT.map(text),
    SPOILT.map(text),
    BODIES.map(text),
    STRANGE.map(text),
    broken(),
    DEEP,
    st.binary(max_size=40),
)
CE_NAMES = st.sampled_from(
    [
        "specversion",
        "id",
        "source",
        "type",
        "attempt",
        "labels",
        "requesttoken",
        "queue",
        "priority",
        "objective",
    ]
)
HEADER_BYTES = st.binary(max_size=20).filter(lambda value: not set(value) & {0, 10, 13})
CE_HEADERS = st.dictionaries(CE_NAMES.map(lambda name: f"ce-{name}".encode()), HEADER_BYTES, max_size=5)
CONTENT_TYPES = st.sampled_from(
    [
        b"application/json",
        b"application/cloudevents+json",
        b"application/cloudevents-batch+json",
        b"text/plain",
        b"",
    ]
)


class Rig:
    """Both doors on one loop, with their gateway and broker."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self.gateway, self.broker, self._doors = self.run(self._open())

    def run(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        return self._runner.run(work)

    async def _open(self) -> tuple[RawHttp, PubSubBroker, dict[str, Handler]]:
        gateway = await self._stack.enter_async_context(running_raw_http())
        broker = await self._stack.enter_async_context(running_broker())
        gateway.reply(answer(200, b'{"said":1}'))
        variables = {
            "IGW_BASE_URL": gateway.url,
            "PROJECT_ID": "project-1",
            "RESULT_TOPIC_ID": "results",
            "DEAD_LETTER_TOPIC_ID": "dead",
            "PUBSUB_EMULATOR_HOST": broker.host,
            "PUSH_AUTH": "none",
            "CONNECT_TIMEOUT_SECONDS": "60",
        }
        doors = {target: Handler(load_settings(variables), target) for target in ("dispatch", "pubsub_push")}
        for door in doors.values():
            await door.start()
        return gateway, broker, doors

    def post(self, target: str, headers: dict[bytes, bytes], body: bytes) -> Response:
        """The door's response to one delivery."""

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def ask() -> Response:
            scope = {"type": "http", "method": "POST", "path": "/", "headers": list(headers.items())}
            async with asyncio.timeout(ANSWER_SECONDS):
                response = await self._doors[target].respond(Request({**scope, "query_string": b""}, receive))
                await response(scope, receive, _dropped)
                return response

        return self.run(ask())

    def newly_published(self) -> int:
        """Records that reached the broker since the last call; a publish call that was repeated counts once."""
        found = {(topic, data, tuple(attributes.items())) for topic, data, attributes in self.broker.published}
        self.broker.published.clear()
        return len(found)

    def close(self) -> None:
        async def closed() -> None:
            for door in self._doors.values():
                await door.aclose()
            await self._stack.aclose()

        self.run(closed())
        self._runner.close()


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    opened = Rig()
    yield opened
    opened.close()


async def _dropped(_message: MutableMapping[str, Any]) -> None:
    """A client that reads the response at once."""


def judge(response: Response) -> None:
    """Rules for every answer to invalid input while all dependencies work."""
    assert response.status_code not in RETRIED, response.body
    assert len(response.body) < 20_000
    assert b"Traceback" not in response.body
    assert b"handlers/" not in response.body


def judge_gateway(gateway: RawHttp) -> None:
    """Calls to the gateway use allowed paths and only our headers."""
    for request in gateway.received:
        names = [name for name, _ in request.headers]
        assert request.path.startswith("/v1/"), request.path
        assert ".." not in request.path
        assert names.count("host") == names.count("content-length") == 1
        assert request.header("host") == gateway.url.removeprefix("http://")
        assert not {"transfer-encoding", "authorization"} & set(names)
    gateway.received.clear()


@settings(max_examples=250)
@given(
    body=REQUESTS,
    extensions=CE_HEADERS,
    content_type=CONTENT_TYPES,
    is_whole=st.booleans(),
)
@example(body=b'{"id":"a","deadline":4000000000,"payload":{}}', extensions={}, content_type=b"", is_whole=True)
def test_no_event_breaks_the_dispatch_door(
    rig: Rig, body: bytes, extensions: dict[bytes, bytes], content_type: bytes, is_whole: bool
) -> None:
    whole = {b"ce-specversion": b"1.0", b"ce-id": b"e", b"ce-source": b"/s", b"ce-type": b"t"}
    headers = {b"content-type": content_type, **(whole if is_whole else {}), **extensions}

    response = rig.post("dispatch", headers, body)

    judge(response)
    assert response.status_code in {200, 400, 413}
    if response.status_code == 200:
        decode_result(bytes(response.body))  # any final record
    judge_gateway(rig.gateway)


STRUCTURED = st.dictionaries(
    st.sampled_from(["specversion", "id", "source", "type", "data", "data_base64", "datacontenttype", "attempt"]),
    JSON | REQUESTS.map(lambda body: body.decode("utf-8", "replace")),
    max_size=8,
)


@settings(max_examples=150)
@given(event=STRUCTURED, data=SPOILT)
def test_no_structured_event_breaks_the_dispatch_door(rig: Rig, event: dict[str, Any], data: dict[str, Any]) -> None:
    whole = {"specversion": "1.0", "id": "e", "source": "/s", "type": "t", "data": data, **event}
    response = rig.post("dispatch", {b"content-type": b"application/cloudevents+json"}, text(whole))
    judge(response)
    judge_gateway(rig.gateway)


@settings(max_examples=250)
@given(
    body=REQUESTS,
    attributes=st.dictionaries(HOSTILE, HOSTILE, max_size=3),
    attempt=st.none() | st.integers(-5, 2**40),
    subscription=HOSTILE,
)
@example(body=b"", attributes={}, attempt=None, subscription="s")
def test_every_push_that_pubsub_can_send_is_settled_and_leaves_one_record(
    rig: Rig, body: bytes, attributes: dict[str, str], attempt: int | None, subscription: str
) -> None:
    message = {"data": base64.b64encode(body).decode(), "messageId": "7", "attributes": attributes}
    frame = {"message": message, "subscription": subscription, "deliveryAttempt": attempt}
    rig.newly_published()

    response = rig.post("pubsub_push", {b"content-type": b"application/json"}, json.dumps(frame).encode())

    judge(response)
    assert response.status_code == 204, response.body
    assert rig.newly_published() == 1
    judge_gateway(rig.gateway)


@settings(max_examples=200)
@given(
    body=STRANGE.map(text) | broken() | DEEP | st.dictionaries(st.sampled_from([*FIELDS, "message"]), JSON).map(text),
    headers=st.dictionaries(
        st.sampled_from([b"x-goog-pubsub-subscription-name", b"x-goog-pubsub-message-id", b"ce-id", b"ce-type"]),
        HEADER_BYTES,
        max_size=3,
    ),
)
def test_an_invalid_push_is_refused_or_recorded_but_never_redelivered(
    rig: Rig, body: bytes, headers: dict[bytes, bytes]
) -> None:
    rig.newly_published()

    response = rig.post("pubsub_push", headers, body)

    judge(response)
    assert response.status_code in {204, 400}
    assert rig.newly_published() == (1 if response.status_code == 204 else 0)
    judge_gateway(rig.gateway)


@pytest.mark.parametrize("target", ["dispatch", "pubsub_push"])
@pytest.mark.parametrize("content_type", [b"application/json", b"application/cloudevents+json"])
@pytest.mark.parametrize("piece", [b"[", b'{"a":', b'{"message":', b'{"data":{"id":"a","payload":[', b'"'])
def test_bottomless_nesting_is_refused(rig: Rig, target: str, content_type: bytes, piece: bytes) -> None:
    judge(rig.post(target, {b"content-type": content_type}, piece * 200_000))
