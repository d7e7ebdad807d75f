"""A handler reports failing dependencies; they make it unready only with `READINESS=dependencies`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import msgspec
import pytest

from handlers.demo.servers import free_port
from handlers.demo.stack import ready_port
from tests.servers.forked import COMMAND, ForkedChild
from tests.servers.pubsub_broker import Refusal, broker_in_threads, refusal
from tests.waiting import wait_until
from tests.way.push_rig import PROJECT, delivery_of

DEADLINE = 1_999_999_999
EVENT = {
    "ce-specversion": "1.0",
    "ce-id": "e",
    "ce-source": "/s",
    "ce-type": "t",
    "content-type": "application/json",
}


class Broker:
    """A broker that refuses everything until it `is_well`."""

    host = ""
    is_well = False

    def fault(self, _method: str, _request: bytes) -> Refusal | None:
        return None if self.is_well else refusal("PERMISSION_DENIED")


@pytest.fixture
def broker() -> Iterator[Broker]:
    broker = Broker()
    with broker_in_threads(broker.fault) as broker.host:
        yield broker


class _Answering(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", "14")
        self.end_headers()
        self.wfile.write(b'{"choices":[]}')

    def log_message(self, *_words: object) -> None:
        """Log nothing."""


@pytest.fixture
def gateway_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answering) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.02,))
        serving.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        serving.join()


@contextmanager
def door(target: str, **variables: str) -> Iterator[httpx.Client]:
    own = {"HOST": "127.0.0.1", "PORT": "0", "LOG_FORMAT": "json", **variables}
    with ForkedChild(target, [COMMAND, "serve", "--target", target], own) as child:
        port = child.wait_for(ready_port, 60)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client


@pytest.mark.parametrize(("readiness", "status"), [("process", 200), ("dependencies", 503)])
def test_a_gateway_that_fails_is_named(readiness: str, status: int) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    with door("dispatch", IGW_BASE_URL=nobody, READINESS=readiness) as client:
        assert (client.get("/readyz").status_code, client.get("/readyz").text) == (200, "ready\n")
        for number in range(3):
            body = msgspec.json.encode({"id": f"r{number}", "payload": {}, "deadline": DEADLINE})
            client.post("/", content=body, headers=EVENT)

        reported = client.get("/readyz")

    assert reported.status_code == status
    assert "failing: gateway for" in reported.text


def test_a_topic_and_a_memory_that_fail_are_named_until_they_work(broker: Broker, gateway_url: str) -> None:
    variables = {
        "IGW_BASE_URL": gateway_url,
        "PUBSUB_EMULATOR_HOST": broker.host,
        "PROJECT_ID": PROJECT,
        "RESULT_TOPIC_ID": "results",
        "PUSH_AUTH": "none",
        "DEDUPE_REDIS_URL": f"redis://127.0.0.1:{free_port()}",
        "METRICS_TOKEN": "a-token-of-this-test",
    }
    with door("pubsub_push", **variables) as client:

        def push(number: int) -> int:
            request = {"id": f"r{number}", "payload": {}, "deadline": DEADLINE}
            return client.post("/push", json=delivery_of(request, f"{number}")).status_code

        assert {push(number) for number in range(3)} == {503}, "what is not published is not acked"
        reported = client.get("/readyz")
        assert reported.status_code == 200
        assert "results for" in reported.text
        assert "memory for" in reported.text
        page = client.get("/metrics", headers={"authorization": "Bearer a-token-of-this-test"}).text
        ups = dict(line.rsplit(" ", 1) for line in page.splitlines() if "_dependency_up{" in line)
        assert {name.split('"')[1]: value for name, value in ups.items()} == {
            "gateway": "1.0",
            "results": "0.0",
            "memory": "0.0",
        }

        broker.is_well = True
        wait_until(lambda: push(9) == 204, "a push that is acked")
        assert "results" not in client.get("/readyz").text
