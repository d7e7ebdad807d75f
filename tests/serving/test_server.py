"""Deliveries go directly to the framework's wrapper, everything else to its router."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import httpx
import pytest
from functions_framework.execution_id import execution_context_var
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from handlers.serving.server import asgi_app

Respond = Callable[[Request], Awaitable[Response]]


@pytest.fixture
def serve_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[Respond], httpx.AsyncClient]:
    """A client of the application whose function answers with `respond`."""

    def client(respond: Respond) -> httpx.AsyncClient:
        class Handler:
            async def respond(self, request: Request) -> Response:
                return await respond(request)

        monkeypatch.setattr("handlers.main.handler_of", lambda _target: Handler())
        transport = httpx.ASGITransport(app=asgi_app("dispatch"))
        return httpx.AsyncClient(transport=transport, base_url="http://door")

    return client


ServeWith = Callable[[Respond], httpx.AsyncClient]


async def _execution_id(_request: Request) -> Response:
    return PlainTextResponse(execution_context_var.get().execution_id)  # type: ignore[attr-defined]  # untyped


@pytest.mark.parametrize("path", ["/", "/push", "/any/other/path"])
async def test_every_post_reaches_the_function_with_an_execution_id_of_its_own(
    serve_with: ServeWith, path: str
) -> None:
    async with serve_with(_execution_id) as client:
        first, second = await client.post(path), await client.post(path)
        own = await client.post(path, headers={"function-execution-id": "the-caller-s"})
    assert first.status_code == second.status_code == 200
    assert first.text and second.text and first.text != second.text
    assert own.text == "the-caller-s"


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_exception_of_the_function_becomes_the_frameworks_500(serve_with: ServeWith, method: str) -> None:
    async def broken(_request: Request) -> Response:
        raise RuntimeError("a defect")

    async with serve_with(broken) as client:
        response = await client.request(method, "/")
    assert (response.status_code, response.text) == (500, "Internal Server Error")
    assert response.headers["x-google-status"] == "crash"


async def test_other_methods_and_reserved_paths_reach_the_router(serve_with: ServeWith) -> None:
    async with serve_with(_execution_id) as client:
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get("/favicon.ico")).status_code == 404
        assert (await client.request("TRACE", "/")).status_code == 405
