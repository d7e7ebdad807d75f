"""A scripted gateway and the real client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from handlers.forward.gateway import Gateway
from handlers.transport.transport import TransportOptions
from tests.servers.raw_http import RawHttp, running_raw_http

LIMIT = 20_000


@pytest.fixture
async def server() -> AsyncIterator[RawHttp]:
    async with running_raw_http() as running:
        yield running


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    gateway = Gateway(TransportOptions(connect_seconds=60.0, idle_seconds=60.0, max_response_bytes=LIMIT))
    yield gateway
    await gateway.aclose()
