"""The pages of a poller: health, readiness and metrics, on their own port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import httpx
import pytest

from handlers.doors.slow_clients import MAX_HEADER_BYTES, timely_protocol
from handlers.telemetry.metrics import CONTENT_TYPE, Metrics
from handlers.telemetry.pages import Page, PagesServer


def protocol() -> Callable[..., Any]:
    return timely_protocol(60.0, 60.0)


@pytest.fixture
async def address() -> AsyncIterator[str]:
    metrics = Metrics()

    def broken() -> Page:
        raise RuntimeError("a defect")

    pages: dict[str, Callable[[], Page]] = {
        "/healthz": lambda: Page(200, b"ok\n"),
        "/readyz": lambda: Page(503, b"stopping\n"),
        "/metrics": lambda: Page(200, metrics.render(), CONTENT_TYPE),
        "/broken": broken,
    }
    server = PagesServer(pages, "127.0.0.1", 0, protocol)
    port = server.listen()
    await server.serve()
    yield f"http://127.0.0.1:{port}"
    await server.aclose()


async def asked(url: str, method: str = "GET") -> tuple[int, bytes, str]:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        response = await client.request(method, url)
        return response.status_code, response.content, response.headers.get("content-type", "")


async def test_a_page_returns_the_current_result_of_its_function(address: str) -> None:
    assert await asked(f"{address}/healthz") == (200, b"ok\n", "text/plain")
    assert (await asked(f"{address}/readyz"))[:2] == (503, b"stopping\n")
    status, body, content_type = await asked(f"{address}/metrics")
    assert (status, content_type) == (200, CONTENT_TYPE)
    assert b"process_cpu_seconds_total" in body


async def test_other_paths_get_404_and_other_methods_405(address: str) -> None:
    assert (await asked(f"{address}/"))[0] == 404
    assert (await asked(f"{address}/healthz", "POST"))[0] == 405
    assert (await asked(f"{address}/healthz", "HEAD"))[:2] == (200, b"")


async def test_headers_without_an_end_are_cut_by_size(address: str) -> None:
    """They would fill the memory of a poller."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
    writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n")
    async with asyncio.timeout(60):
        with suppress(ConnectionError):
            for _ in range(64 * MAX_HEADER_BYTES // 4_096):
                writer.write(b"a: " + b"b" * 4_091 + b"\r\n")
                await writer.drain()
            answered = await reader.read()
            assert answered == b"" or answered.startswith(b"HTTP/1.1 431 ")
    writer.close()


async def test_a_failing_page_discloses_nothing_and_breaks_no_other_page(address: str) -> None:
    status, body, _ = await asked(f"{address}/broken")
    assert status == 500
    assert b"defect" not in body
    assert (await asked(f"{address}/healthz"))[0] == 200


async def test_a_taken_port_is_an_error_at_the_start_and_can_be_cleaned_up() -> None:
    first = PagesServer({}, "127.0.0.1", 0, protocol)
    port = first.listen()
    second = PagesServer({}, "127.0.0.1", port, protocol)
    with pytest.raises(OSError, match=str(port)):
        second.listen()
    await second.aclose()
    await first.aclose()


async def test_an_open_client_connection_does_not_delay_the_shutdown() -> None:
    server = PagesServer({"/healthz": lambda: Page(200, b"ok\n")}, "127.0.0.1", 0, protocol)
    port = server.listen()
    await server.serve()
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        response = await client.get(f"http://127.0.0.1:{port}/healthz")
        assert response.status_code == 200
        async with asyncio.timeout(60):
            await server.aclose()
