"""A small replacement of a Knative source and its dispatcher, for a real RabbitMQ queue.

It follows the delivery rules of Knative Eventing (eventing/pkg/kncloudevents/retries.go): one POST per message. 2xx
acknowledges. 404, 408, 409, 429, 5xx and a broken connection are retried with exponential backoff, up to a limit. All
other messages, and those beyond the limit, go to the dead letter queue. `Retry-After` counts only if the cluster has
the feature `delivery-retryafter`; then the longer of it and the backoff applies. A reply with an event is published
to the reply queue.
"""

from __future__ import annotations

import base64
import http.client
import json
import threading
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pika
import pika.exceptions

from tests.waiting import elapse

RETRIED = frozenset({404, 408, 409, 429})
LONGEST_PAUSE_SECONDS = 1.0


@dataclass(frozen=True)
class Names:
    """The queues of one source."""

    requests: str = "requests"
    replies: str = "replies"
    dead: str = "dead"

    def declare(self, channel: Any) -> None:
        """Create the durable queues."""
        for name in (self.requests, self.replies, self.dead):
            channel.queue_declare(name, durable=True)


@dataclass
class Bridge:
    """Delivers messages of one queue, `prefetch` at a time, each in a thread."""

    parameters: pika.ConnectionParameters
    sink: str
    names: Names = field(default_factory=Names)
    retries: int = 12
    backoff_seconds: float = 0.02
    prefetch: int = 8
    honours_retry_after: bool = False
    is_structured: bool = False
    posts: int = 0
    _stopping: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Deliver until `stop`."""
        self._threads = [threading.Thread(target=self._run) for _ in range(self.prefetch)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Take no more messages and finish those in flight."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        connection = pika.BlockingConnection(self.parameters)
        channel = connection.channel()
        while not self._stopping.is_set():
            method, properties, body = channel.basic_get(self.names.requests)
            if method is None or body is None or method.delivery_tag is None:
                connection.process_data_events(0.05)
                continue
            outcome = self._deliver(properties, body)
            if outcome is None:
                channel.basic_publish("", self.names.dead, body, properties)
            elif outcome[1]:
                self._reply(channel, *outcome)
            channel.basic_ack(method.delivery_tag)
        connection.close()

    def _reply(self, channel: Any, headers: dict[str, str], body: bytes) -> None:
        if "ce-id" in headers:
            channel.basic_publish("", self.names.replies, body, pika.BasicProperties(headers=dict(headers)))

    def _deliver(self, properties: Any, body: bytes) -> tuple[dict[str, str], bytes] | None:
        """The reply's headers and body, or None for the dead letters."""
        pause = self.backoff_seconds
        for _ in range(self.retries + 1):
            self.posts += 1
            status, headers, answer = self._post(properties, body)
            if 200 <= status < 300:
                return headers, answer
            if status and status not in RETRIED and status < 500:
                return None
            hint = float(headers.get("retry-after", 0)) if self.honours_retry_after else 0.0
            elapse(min(LONGEST_PAUSE_SECONDS, max(pause, hint)), "the dispatcher's backoff")
            pause *= 2
        return None

    def _post(self, properties: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
        parts = urlsplit(self.sink)
        own = {f"ce-{name}": str(value) for name, value in (properties.headers or {}).items()}
        headers = {
            "ce-specversion": "1.0",
            "ce-id": properties.message_id,
            "ce-source": "/rabbitmq/requests",
            "ce-type": "dev.knative.rabbitmq.event",
            "content-type": properties.content_type or "application/json",
            **own,
        }
        if self.is_structured:
            attributes = {name[3:]: value for name, value in headers.items() if name.startswith("ce-")}
            data = {
                "datacontenttype": headers["content-type"],
                "data_base64": base64.b64encode(body).decode(),
            }
            headers = {"content-type": "application/cloudevents+json"}
            body = json.dumps({**attributes, **data}).encode()
        connection = http.client.HTTPConnection(str(parts.hostname), parts.port or 80, timeout=60)
        try:
            connection.request("POST", parts.path or "/", body, headers)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, answer.read()
        except OSError:
            return 0, {}, b""
        finally:
            connection.close()
