"""A Pub/Sub server that answers as the real service may and the emulator never does.

It speaks gRPC with bytes. Every topic exists and takes everything; `fault` may answer in its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.pubsub_v1.types import PublishRequest, PublishResponse, Topic
from grpc import aio

PUBLISH = "/google.pubsub.v1.Publisher/Publish"
GET_TOPIC = "/google.pubsub.v1.Publisher/GetTopic"


@dataclass(frozen=True)
class Refusal:
    """A gRPC status in place of an answer."""

    status: grpc.StatusCode
    message: str = "told to fail"


Fault = Callable[[str, bytes], Refusal | bytes | None]
"""Given a call's method and request: the answer in place of the broker's, or None."""


def refusal(status: str, message: str = "told to fail") -> Refusal:
    return Refusal(grpc.StatusCode[status], message)


def confirmed(*ids: str) -> bytes:
    """The answer to a publish that gives these ids."""
    answer: bytes = PublishResponse.serialize(PublishResponse(message_ids=ids))
    return answer


def refuses(status: str) -> Fault:
    """Every publish is refused; topics can be read."""
    return lambda method, _request: refusal(status) if method == PUBLISH else None


@dataclass
class PubSubBroker:
    """Counts the publishes; while `is_hanging` they wait; while `is_resetting` connections are cut."""

    fault: Fault = field(default=lambda _method, _request: None)
    host: str = ""
    calls: int = 0
    most_at_once: int = 0
    published: list[tuple[str, bytes, dict[str, str]]] = field(default_factory=list)
    """Topic, data and attributes of all publishes, also refused ones."""
    headers: list[dict[str, str]] = field(default_factory=list)
    keeps: bool = True
    is_resetting: bool = False
    _running: int = 0
    _goes_on: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_hanging(self) -> bool:
        return not self._goes_on.is_set()

    @is_hanging.setter
    def is_hanging(self, hangs: bool) -> None:
        (self._goes_on.clear if hangs else self._goes_on.set)()

    async def answer(self, method: str, request: bytes, context: Any) -> bytes:
        if self.keeps:
            self.headers.append({name: str(value) for name, value in context.invocation_metadata()})
        self.calls += 1
        self._running += 1
        self.most_at_once = max(self.most_at_once, self._running)
        try:
            if method == PUBLISH:
                if self.keeps:
                    sent = PublishRequest.deserialize(request)
                    self.published += [(sent.topic, m.data, dict(m.attributes)) for m in sent.messages]
                await self._goes_on.wait()
            found = self.fault(method, request)
            if isinstance(found, Refusal):
                await context.abort(found.status, found.message)
            return found if isinstance(found, bytes) else _taken(method, request)
        finally:
            self._running -= 1


class _AnyMethod(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Hands every unary call to the broker, as bytes."""

    def __init__(self, broker: PubSubBroker) -> None:
        self._broker = broker

    def service(self, details: Any) -> Any:
        async def answer(request: bytes, context: Any) -> bytes:
            return await self._broker.answer(details.method, request, context)

        return grpc.unary_unary_rpc_method_handler(answer)


@asynccontextmanager
async def running_broker(*, keeps: bool = True) -> AsyncIterator[PubSubBroker]:
    """A broker on a free port; a broker that does not keep messages may run for long."""
    broker = PubSubBroker(keeps=keeps)
    broker.is_hanging = False
    server = aio.server(options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)])
    server.add_generic_rpc_handlers((_AnyMethod(broker),))
    inner = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with _resettable(broker, inner):
        try:
            yield broker
        finally:
            broker.is_hanging = False
            await server.stop(None)


@contextmanager
def broker_in_threads(fault: Fault = lambda _method, _request: None) -> Iterator[str]:
    """A broker for tests without an event loop, which takes all that `fault` does not answer; its `host:port`."""

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
        def service(self, details: Any) -> Any:
            def answer(request: bytes, context: Any) -> bytes:
                found = fault(details.method, request)
                if isinstance(found, Refusal):
                    context.abort(found.status, found.message)
                return found if isinstance(found, bytes) else _taken(details.method, request)

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def _taken(method: str, request: bytes) -> bytes:
    """The answer of a broker on which every topic exists."""
    if method == PUBLISH:
        sent = PublishRequest.deserialize(request)
        return confirmed(*(str(number) for number in range(len(sent.messages))))
    topic: bytes = Topic.serialize(Topic(name="projects/p/topics/t"))
    return topic


@asynccontextmanager
async def _resettable(broker: PubSubBroker, inner: int) -> AsyncIterator[None]:
    """A TCP front before the server, which resets connections while `broker.is_resetting`."""
    fronts: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if broker.is_resetting:
                broker.calls += 1
                break
            writer.write(data)
            await writer.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", inner)
        except OSError:  # the server behind has stopped
            writer.transport.abort()
            return
        both = [asyncio.ensure_future(pump(reader, back)), asyncio.ensure_future(pump(there, writer))]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            writer.transport.abort()
            back.transport.abort()
            for each in both:
                each.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            await asyncio.gather(writer.wait_closed(), back.wait_closed(), return_exceptions=True)

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Not a coroutine: a task cancelled before its first step would leave its writer open.
        if not front.is_serving():  # accepted just before the end
            writer.transport.abort()
            return
        front_task = asyncio.create_task(serve(reader, writer))
        fronts[front_task] = writer
        front_task.add_done_callback(fronts.pop)

    front = await asyncio.start_server(accepted, "127.0.0.1", 0)
    broker.host = f"127.0.0.1:{front.sockets[0].getsockname()[1]}"
    try:
        yield
    finally:
        front.close()
        await front.wait_closed()
        left = dict(fronts)
        for front_task, writer in left.items():
            front_task.cancel()
            writer.transport.abort()
        await asyncio.gather(*left, return_exceptions=True)
