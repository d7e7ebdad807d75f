"""Results to a sink: retried while it is unavailable, given up at once if it refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from handlers.doors.cloudevents.dispatch import EventSink, SinkOptions, SinkRefused, SinkUnavailable
from handlers.doors.door import Answer as Event
from handlers.forward.gateway import Gateway
from handlers.telemetry.logs import get_logger
from handlers.transport.transport import TransportOptions
from tests.servers.raw_http import End, RawHttp, answer, running_raw_http

EVENT = Event(200, b'{"id":"a"}', {"ce-id": "e-1.result", "ce-type": "t"})


@pytest.fixture
async def server() -> AsyncIterator[RawHttp]:
    async with running_raw_http() as running:
        yield running


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    opened = Gateway(TransportOptions(connect_seconds=60.0, max_response_bytes=100))
    yield opened
    await opened.aclose()


def sink(gateway: Gateway, server: RawHttp, give_up_seconds: float = 300.0) -> EventSink:
    options = SinkOptions(f"{server.url}/sink", {"team": "red é"}, call_seconds=60, give_up_seconds=give_up_seconds)
    return EventSink(gateway, options, get_logger("test"))


async def test_an_event_arrives_whole_with_the_operators_extensions(gateway: Gateway, server: RawHttp) -> None:
    server.reply(answer(202))
    await sink(gateway, server).send(EVENT)
    (got,) = server.received
    assert (got.path, got.body, got.header("ce-id"), got.header("ce-team")) == (
        "/sink",
        EVENT.body,
        "e-1.result",
        "red%20%C3%A9",
    )


@pytest.mark.parametrize("status", [404, 408, 409, 425, 429, 500, 503])
async def test_a_sink_that_is_unavailable_is_called_again(gateway: Gateway, server: RawHttp, status: int) -> None:
    server.reply(answer(status), answer(status, end=End.RESET), answer(200))
    await sink(gateway, server).send(EVENT)
    assert len(server.received) == 3
    assert len({got.body for got in server.received}) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 413, 422, 301])
async def test_a_sink_that_refuses_is_not_called_again(gateway: Gateway, server: RawHttp, status: int) -> None:
    server.reply(answer(status))
    with pytest.raises(SinkRefused) as caught:
        await sink(gateway, server).send(EVENT)
    assert caught.value.status_code == status
    assert len(server.received) == 1


async def test_a_2xx_response_with_a_large_body_is_accepted(gateway: Gateway, server: RawHttp) -> None:
    server.reply(answer(200, b"x" * 1_000))
    await sink(gateway, server).send(EVENT)


async def test_an_unavailable_sink_is_reported_at_the_time_limit(gateway: Gateway, server: RawHttp) -> None:
    server.reply(answer(503))
    for give_up_seconds in (0.3, 3.0, 30.0):  # on a busy machine a short limit may end before the first call
        with pytest.raises(SinkUnavailable):
            await sink(gateway, server, give_up_seconds).send(EVENT)
        if server.received:
            break
    assert len(server.received) >= 1
