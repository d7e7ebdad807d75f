"""Paths, methods, callers, sizes and slow clients, at the level of ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping, Sequence
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from handlers.byte_budget import SMALL_BYTES, ByteBudget
from handlers.doors.door import Answer, Delivery, Refusal, plain
from handlers.doors.http_endpoint import DELIVERY_PATHS, EndpointOptions, HttpEndpoint
from tests.waiting import wait_until_async

LIMIT = 100


class FixedAuthenticator:
    """An authenticator that accepts or refuses."""

    def __init__(self, refusal: Refusal | None) -> None:
        self.refusal = refusal

    async def check(self, headers: Sequence[tuple[bytes, bytes]]) -> Refusal | None:
        return self.refusal


class Rig:
    """An endpoint that records what its door gets."""

    def __init__(self, refusal: Refusal | None = None, budget: ByteBudget | None = None, limit: int = LIMIT) -> None:
        self.without_room = 0
        self.walked: list[Delivery] = []
        self.refused: list[Refusal] = []
        self.asked = 0
        self.endpoint = HttpEndpoint(
            self._walk,
            FixedAuthenticator(refusal),
            {"/healthz": lambda: plain(200, "ok")},
            self.refused.append,
            EndpointOptions(
                max_body_bytes=limit,
                receive_timeout_seconds=0.2,
                budget=budget,
                on_no_room=self._count_without_room,
            ),
        )

    def _count_without_room(self) -> None:
        self.without_room += 1

    async def _walk(self, delivery: Delivery) -> Answer:
        self.walked.append(delivery)
        return Answer(204)

    async def respond(
        self,
        *chunks: bytes,
        method: str = "POST",
        path: str = "/",
        headers: dict[str, str] | None = None,
        then: str = "end",
    ) -> Response:
        """The response to a body in chunks that ends, hangs, or is cut off by the client."""
        parts = list(chunks)

        async def receive() -> dict[str, Any]:
            self.asked += 1
            if parts:
                body = parts.pop(0)
                return {"type": "http.request", "body": body, "more_body": bool(parts) or then != "end"}
            if then == "hang":
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        wire = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        scope = {"type": "http", "method": method, "path": path, "headers": wire, "query_string": b""}
        return await self.endpoint.respond(Request(scope, receive))


@pytest.mark.parametrize("path", sorted(DELIVERY_PATHS))
async def test_a_delivery_is_handled_with_its_headers_and_whole_body(path: str) -> None:
    rig = Rig()
    response = await rig.respond(b"ab", b"", b"cd", path=path, headers={"ce-id": "1"})
    assert response.status_code == 204
    assert response.body == b""
    assert rig.walked == [Delivery([(b"ce-id", b"1")], b"abcd")]


async def test_a_delivery_without_a_body_is_handled() -> None:
    rig = Rig()
    assert (await rig.respond(b"")).status_code == 204


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
async def test_methods_other_than_post_get_405(method: str) -> None:
    rig = Rig()
    response = await rig.respond(b"{}", method=method)
    assert (response.status_code, response.headers["allow"], rig.walked) == (405, "POST", [])


@pytest.mark.parametrize("path", ["/admin", "/dispatch/", "//", "/healthz/x", "/..", "/metrics"])
async def test_unknown_paths_get_404(path: str) -> None:
    rig = Rig()
    assert ((await rig.respond(b"{}", path=path)).status_code, rig.walked, rig.asked) == (404, [], 0)


async def test_a_page_accepts_only_get_and_head() -> None:
    rig = Rig(Refusal(401, "no token"))
    assert (await rig.respond(method="GET", path="/healthz")).body == b"ok\n"
    assert (await rig.respond(method="HEAD", path="/healthz")).status_code == 200
    assert (await rig.respond(method="POST", path="/healthz")).status_code == 405


@pytest.mark.parametrize("status", [401, 403, 503])
async def test_a_refused_callers_body_is_not_even_received(status: int) -> None:
    """F79: no parsing, no call to the gateway, and an answer that reveals nothing."""
    rig = Rig(Refusal(status, "a reason for the log"))
    response = await rig.respond(b"{}")
    assert (response.status_code, rig.walked, rig.asked) == (status, [], 0)
    assert b"reason" not in bytes(response.body)
    assert len(response.body) < 40
    assert ("www-authenticate" in response.headers) is (status == 401)
    assert len(rig.refused) == 1


async def test_a_body_is_as_large_as_the_limit_and_no_larger() -> None:
    rig = Rig()
    assert (await rig.respond(b"x" * LIMIT)).status_code == 204
    assert (await rig.respond(b"x" * LIMIT, b"y", then="hang")).status_code == 413
    assert len(rig.walked) == 1


async def test_a_body_that_announces_too_much_is_not_received() -> None:
    rig = Rig()
    response = await rig.respond(b"x", headers={"content-length": str(LIMIT + 1)})
    assert (response.status_code, rig.asked) == (413, 0)


@pytest.mark.parametrize("length", ["-1", "x", "", "1e9", "٣"])
async def test_an_invalid_content_length_is_refused(length: str) -> None:
    rig = Rig()
    assert (await rig.respond(b"x" * (LIMIT + 1), headers={"content-length": length})).status_code == 413


async def test_a_slow_client_is_cut_off() -> None:
    """F82: uvicorn alone would wait indefinitely."""
    rig = Rig()
    response = await asyncio.wait_for(rig.respond(b"x", then="hang"), 60)
    assert (response.status_code, response.headers["connection"], rig.walked) == (408, "close", [])


async def test_a_client_that_disconnects_inside_the_body_makes_no_delivery() -> None:
    rig = Rig()
    response = await rig.respond(b"x", then="go")
    assert (response.status_code, rig.walked) == (400, [])


LARGE = 10 * SMALL_BYTES


async def reply(rig: Rig, response: Response) -> list[dict[str, Any]]:
    """Send a response to a client that reads it at once."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(dict(message))

    await response({"type": "http", "method": "POST"}, receive, send)
    return sent


@pytest.mark.parametrize("headers", [{"content-length": str(LARGE)}, {}], ids=["a length", "chunks"])
async def test_a_large_delivery_without_room_is_refused_before_the_rest_of_its_body_is_read(
    headers: dict[str, str],
) -> None:
    budget = ByteBudget(2 * LARGE)
    rig = Rig(budget=budget, limit=LARGE)
    budget.requests.give(-LARGE)  # another delivery
    refused = await rig.respond(b"x" * (LARGE - 1), b"x", headers=headers)
    assert (refused.status_code, refused.headers["retry-after"], rig.without_room) == (503, "1", 1)
    assert rig.asked == (0 if headers else 1), "the size of chunks is not known before"
    await reply(rig, refused)
    budget.requests.give(LARGE)
    accepted = await rig.respond(b"x" * LARGE, headers=headers)
    assert (accepted.status_code, len(rig.walked), rig.without_room) == (204, 1, 1)
    await reply(rig, accepted)
    assert (budget.requests.held, budget.answers.held, budget.results.held) == (0, 0, 0)


async def test_small_deliveries_pass_while_there_is_no_room() -> None:
    budget = ByteBudget(2 * LARGE)
    budget.requests.give(-LARGE)
    rig = Rig(budget=budget, limit=LARGE)
    assert (await rig.respond(b"{}", headers={"content-length": "2"})).status_code == 204


async def test_a_failed_delivery_frees_its_bytes() -> None:
    budget = ByteBudget(2 * LARGE)
    rig = Rig(budget=budget, limit=LARGE)
    waiting = asyncio.create_task(rig.respond(b"x", headers={"content-length": str(LARGE)}, then="hang"))
    await wait_until_async(lambda: budget.requests.held == LARGE, "the body to be received")
    waiting.cancel()
    await asyncio.wait([waiting])
    assert budget.requests.held == 0
