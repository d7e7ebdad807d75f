"""Both event loops: uvloop, as in our processes, and asyncio's, as in programs with the client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import uvloop

from handlers.transport.transport import Transport, TransportOptions
from tests.servers.raw_http import RawHttp, running_raw_http

LIMIT = 1_000_000
"""Most bytes of a response that `transport` reads."""


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    opened = Transport(TransportOptions(connect_seconds=60.0, idle_seconds=60.0, max_response_bytes=LIMIT))
    yield opened
    await opened.aclose()


@pytest.fixture
async def server() -> AsyncIterator[RawHttp]:
    async with running_raw_http() as running:
        yield running
