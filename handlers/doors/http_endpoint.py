"""HTTP endpoint of one door: paths, methods, authentication, limits.

Only this file uses Starlette; doors see headers and bytes. Callers are authenticated before the body is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from handlers.byte_budget import SMALL_BYTES, ByteBudget, HeldBytes
from handlers.cancellation import end_if_cancelled
from handlers.doors.door import CONNECTION, Answer, CallerConnection, Delivery, Refusal, plain, retry_after
from handlers.number_text import counted, whole

DELIVERY_PATHS: Final = frozenset({"/", "/dispatch", "/pubsub_push", "/push"})
"""Paths that accept deliveries; all are equivalent."""


_GONE: Final = plain(499, "the client disconnected")
_NO_ROOM: Final = plain(503, "no memory for this delivery at the moment", retry_after(1.0))


class Authenticator(Protocol):
    """Checks the callers of a door or page."""

    async def check(self, headers: Sequence[tuple[bytes, bytes]]) -> Refusal | None:
        """The refusal, or None if the caller is accepted."""
        ...


class GuardedPage(msgspec.Struct, frozen=True):
    """A page with its own authenticator."""

    authenticator: Authenticator
    show: Callable[[], Answer]


class EndpointOptions(msgspec.Struct, frozen=True):
    """Limits of an endpoint.

    `max_body_bytes` bounds a body, `receive_timeout_seconds` the time to receive it. With `ends_with_client`, a client
    (the poller) cancels its delivery by disconnecting. `budget` bounds the bytes of all deliveries in flight: a large
    delivery without room gets 503 before its body is read, and `on_no_room` is called.
    """

    max_body_bytes: int
    receive_timeout_seconds: float
    ends_with_client: bool = False
    budget: ByteBudget | None = None
    on_no_room: Callable[[], None] = lambda: None


class HttpEndpoint:
    """Answers the HTTP requests of a process.

    `pages` are pages by path that anyone may GET (health); `guarded_pages` have their own authenticators (metrics).
    """

    def __init__(
        self,
        handle: Callable[[Delivery], Awaitable[Answer]],
        authenticator: Authenticator | None,
        pages: dict[str, Callable[[], Answer]],
        on_refused: Callable[[Refusal], None],
        options: EndpointOptions,
        *,
        guarded_pages: Mapping[str, GuardedPage] | None = None,
    ) -> None:
        self._handle = handle
        self._authenticator = authenticator
        self._pages = pages
        self._on_refused = on_refused
        self._options = options
        self._guarded_pages = guarded_pages or {}

    async def respond(self, request: Request) -> Response:
        """The response to one request.

        Sending it frees the bytes that the delivery holds of the budget.
        """
        budget = self._options.budget
        held = None if budget is None else HeldBytes(budget, 0)
        try:
            return _Reply(await self._answer(request, held), request.scope.get(CONNECTION), held)
        except BaseException:
            if held is not None:
                held.release()
            raise

    async def _answer(self, request: Request, held: HeldBytes | None) -> Answer:
        path, method = request.scope["path"], request.scope["method"]
        page = self._pages.get(path)
        if page is not None:
            is_read = method in ("GET", "HEAD")
            return page() if is_read else plain(405, "only GET is allowed", {"allow": "GET, HEAD"})
        if path in self._guarded_pages:
            return await self._guarded(self._guarded_pages[path], request)
        if path not in DELIVERY_PATHS:
            return plain(404, "not found")
        if method != "POST":
            return plain(405, "only POST is allowed", {"allow": "POST"})
        headers = request.scope["headers"]
        if self._authenticator is not None:
            refusal = await self._authenticator.check(headers)
            if refusal is not None:
                self._on_refused(refusal)
                return _refused(refusal.status)
        body = await self._body(request, held)
        if isinstance(body, Answer):
            return body
        connection = request.scope.get(CONNECTION) if self._options.ends_with_client else None
        delivery = Delivery(headers, body, held)
        return await (self._handle(delivery) if connection is None else self._handle_for(connection, delivery))

    async def _handle_for(self, connection: CallerConnection, delivery: Delivery) -> Answer:
        """Handle a delivery, and cancel it if the client disconnects.

        That also closes the connection to the gateway.
        """
        task = asyncio.current_task()
        if task is None or connection.is_lost():
            return _GONE
        connection.ends(task)
        try:
            return await self._handle(delivery)
        except asyncio.CancelledError:
            if not connection.is_lost():
                raise
            task.uncancel()
            return _GONE
        finally:
            connection.ends(None)

    async def _guarded(self, page: GuardedPage, request: Request) -> Answer:
        """The page if the caller is accepted, else the door's refusal."""
        refusal = await page.authenticator.check(request.scope["headers"])
        if refusal is not None:
            self._on_refused(refusal)
            return _refused(refusal.status)
        if request.scope["method"] not in ("GET", "HEAD"):
            return plain(405, "only GET is allowed", {"allow": "GET, HEAD"})
        return page.show()

    async def _body(self, request: Request, held: HeldBytes | None) -> bytes | Answer:
        """The complete body, or the answer that refuses it."""
        limit = self._options.max_body_bytes
        length = next((value for name, value in request.scope["headers"] if name == b"content-length"), b"")
        size = whole(length) or 0
        if size > limit:
            return plain(413, f"the body is larger than {counted(limit, 'byte')}")
        if size > SMALL_BYTES and not self._has_room(held, size):
            return _NO_ROOM
        connection = request.scope.get(CONNECTION)
        if connection is not None and connection.has_whole_request:
            return await self._received(request, held)  # without a timer: the body has already arrived
        try:
            async with asyncio.timeout(self._options.receive_timeout_seconds):
                return await self._received(request, held)
        except TimeoutError:
            return plain(408, "the body did not arrive in time", {"connection": "close"})

    async def _received(self, request: Request, held: HeldBytes | None) -> bytes | Answer:
        limit = self._options.max_body_bytes
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                return plain(400, "the client disconnected")
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > limit:
                return plain(413, f"the body is larger than {counted(limit, 'byte')}", {"connection": "close"})
            is_unknown = size > SMALL_BYTES and held is not None and not held.request.size
            if is_unknown and not self._has_room(held, limit):
                return _NO_ROOM
            chunks.append(chunk)
            if not message.get("more_body", False):
                if size > SMALL_BYTES and held is not None:
                    held.request.hold(size)
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)
            end_if_cancelled()

    def _has_room(self, held: HeldBytes | None, size: int) -> bool:
        """Hold `size` bytes of the budget if it has room for them."""
        budget = self._options.budget
        if held is None or budget is None:
            return True
        if not budget.requests.has_room(size):
            self._options.on_no_room()
            return False
        held.request.hold(size)
        return True


class _Reply(Response):
    """An answer as an ASGI response, without Starlette's slow constructor.

    A large answer counts against the budget until the client has read it.
    """

    def __init__(self, answer: Answer, connection: CallerConnection | None, held: HeldBytes | None) -> None:
        self._connection = connection
        self._held = held
        self.status_code = answer.status_code
        self.body = answer.body
        self.background = None
        self.raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers.items()]
        if answer.status_code not in (204, 304):
            self.raw_headers.append((b"content-length", b"%d" % len(answer.body)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer; wait until the client has read a large one."""
        held, size = self._held, len(self.body)
        if held is None:
            await super().__call__(scope, receive, send)
            return
        try:
            held.request.hold(0)
            held.is_settled_with(size if size > SMALL_BYTES else 0)
            await super().__call__(scope, receive, send)
            if size > SMALL_BYTES and self._connection is not None:
                await self._connection.until_read()
        finally:
            held.release()


def _refused(status: int) -> Answer:
    """A constant answer: an unauthenticated caller learns nothing from it."""
    headers = {"www-authenticate": "Bearer"} if status == 401 else None
    return plain(status, {401: "unauthorized", 403: "forbidden"}.get(status, "try again later"), headers)
