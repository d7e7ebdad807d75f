"""Any queue in front of the dispatch door: RabbitMQ, a bridge with Knative's rules, real handlers."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pika
import pytest

from handlers.contract.events import RESULT_TYPE, decode_event
from handlers.contract.result import Result, decode_result
from handlers.demo.stack import ready_port
from tests.servers.forked import COMMAND, ForkedChild, running_gateway
from tests.servers.rabbitmq import running_rabbitmq
from tests.waiting import wait_until
from tests.way.knative_bridge import Bridge, Names

COUNT = 60
Serve = Callable[..., str]

pytestmark = pytest.mark.xdist_group("rabbitmq")


@pytest.fixture(scope="module")
def broker() -> Iterator[pika.ConnectionParameters]:
    with running_rabbitmq() as parameters:
        yield parameters


@pytest.fixture
def channel(broker: pika.ConnectionParameters) -> Iterator[Any]:
    connection = pika.BlockingConnection(broker)
    opened = connection.channel()
    Names().declare(opened)
    for name in ("requests", "replies", "dead"):
        opened.queue_purge(name)
    yield opened
    connection.close()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a simulated gateway with these faults, and a dispatch door with these variables."""
    with ExitStack() as parts:

        def start(*gateway_arguments: str, **variables: str) -> str:
            url = parts.enter_context(running_gateway(*gateway_arguments))
            own = {"IGW_BASE_URL": url, "PORT": "0", "LOG_FORMAT": "json", **variables}
            door = parts.enter_context(ForkedChild("door", [COMMAND, "serve", "--target", "dispatch"], own))
            return f"http://127.0.0.1:{door.wait_for(ready_port)}"

        yield start


def put(channel: Any, name: str, body: bytes, **headers: str) -> None:
    properties = pika.BasicProperties(message_id=name, delivery_mode=2, headers=headers)
    channel.basic_publish("", "requests", body, properties)


def take(channel: Any, queue: str, count: int) -> list[tuple[dict[str, str], bytes]]:
    found: list[tuple[dict[str, str], bytes]] = []

    def some() -> bool:
        method, properties, body = channel.basic_get(queue, auto_ack=True)
        if method is not None:
            found.append((properties.headers or {}, body))
        return len(found) >= count

    wait_until(some, f"{count} in {queue}")
    return found


def results(taken: list[tuple[dict[str, str], bytes]]) -> dict[str, Result]:
    events = [
        decode_event([(name.encode(), value.encode()) for name, value in headers.items()], body)
        for headers, body in taken
    ]
    assert {event.type for event in events} == {RESULT_TYPE}
    found = [decode_result(event.data) for event in events]
    assert len({one.id for one in found}) == len(found), "no result twice"
    return {one.id: one for one in found}


@pytest.mark.parametrize(("honours_retry_after", "is_structured"), [(False, False), (True, False), (False, True)])
def test_requests_of_a_broker_are_answered_by_reply_events_through_a_failing_gateway(
    channel: Any,
    broker: pika.ConnectionParameters,
    serve: Serve,
    honours_retry_after: bool,
    is_structured: bool,
) -> None:
    door = serve("--fault", "503=0.2", "--time-to-first-token", "0.01")
    deadline = int(time.time()) + 600
    for number in range(COUNT):
        put(
            channel,
            f"m{number}",
            json.dumps({"id": f"r{number}", "deadline": deadline, "payload": {}}).encode(),
        )
    put(channel, "broken", b'{"deadline":1}')
    bridge = Bridge(broker, door, honours_retry_after=honours_retry_after, is_structured=is_structured)
    bridge.start()
    try:
        found = results(take(channel, "replies", COUNT))
        ((_, dead),) = take(channel, "dead", 1)
    finally:
        bridge.stop()
    assert set(found) == {f"r{number}" for number in range(COUNT)}
    assert {one.status_code for one in found.values()} == {200}
    assert dead == b'{"deadline":1}', "what has no id is the source's dead letter"
    assert bridge.posts > COUNT + 1, "the gateway failed, and the deliveries came again"


def test_plain_payloads_become_requests_by_the_sources_own_attributes(
    channel: Any, broker: pika.ConnectionParameters, serve: Serve
) -> None:
    door = serve(
        EVENT_DATA="payload",
        EVENT_ID_FROM="orderid",
        EVENT_TENANT_FROM="team",
        EVENT_DEADLINE_SECONDS="300",
    )
    put(channel, "m1", b'{"prompt":"hi"}', orderid="o-1", team="red")
    put(channel, "m2", b"not json", orderid="o-2")
    put(channel, "m3", b'{"prompt":"late"}', orderid="o-3", time="2020-01-01T00:00:00Z")
    bridge = Bridge(broker, door)
    bridge.start()
    try:
        found = results(take(channel, "replies", 3))
    finally:
        bridge.stop()
    assert (found["o-1"].status_code, found["o-1"].error_code) == (200, "")
    assert found["o-2"].error_code == "INVALID_REQUEST"
    assert found["o-3"].error_code == "DEADLINE_EXCEEDED"


class Sink:
    """A sink that takes events over HTTP and refuses the first few."""

    def __init__(self, refusals: int) -> None:
        self.taken: list[tuple[dict[str, str], bytes]] = []
        outer, self.refusals_left = self, refusals

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # the name that the server requires
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.refusals_left -= 1
                if outer.refusals_left < 0:
                    outer.taken.append(({k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(202 if outer.refusals_left < 0 else 503)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_args: object) -> None:
                """Log nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/results"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def test_results_are_sent_to_the_sink_of_knative_and_not_as_replies_too(
    channel: Any, broker: pika.ConnectionParameters, serve: Serve
) -> None:
    sink = Sink(refusals=3)
    door = serve(K_SINK=sink.url, K_CE_OVERRIDES='{"extensions":{"team":"red"}}')
    deadline = int(time.time()) + 600
    for number in range(10):
        put(
            channel,
            f"m{number}",
            json.dumps({"id": f"r{number}", "deadline": deadline, "payload": {}}).encode(),
        )
    bridge = Bridge(broker, door)
    bridge.start()
    try:
        wait_until(lambda: len({decode_result(body).id for _, body in sink.taken}) >= 10, "ten results at the sink")
    finally:
        bridge.stop()
        sink.close()
    # A call that a busy machine answers too late is repeated, so a result may come twice.
    taken = {decode_result(body).id: (headers, body) for headers, body in sink.taken}
    events = [({k: v for k, v in headers.items() if k.startswith("ce-")}, body) for headers, body in taken.values()]
    assert set(results(events)) == {f"r{number}" for number in range(10)}
    assert {headers["ce-team"] for headers, _ in events} == {"red"}
    assert channel.basic_get("replies")[0] is None
    assert bridge.posts == 10, "an event whose result waits for the sink is not sent to the gateway again"
