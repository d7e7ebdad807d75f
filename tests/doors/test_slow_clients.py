"""Slow, silent, endless and half-open clients on a real server are cut and affect no others. F82."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvicorn

from handlers.doors.slow_clients import MAX_HEADER_BYTES, timely_protocol
from tests.waiting import elapse_async

RECEIVE_SECONDS = 0.6
LIMIT_SECONDS = 60
"""Seconds that a test waits for an expected event; far more than it takes."""
LARGE = b"x" * 50_000_000
EARLY = b"GET /early HTTP/1.1\r\nhost: x\r\n\r\n"

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """`/slow` exceeds the receive limit, `/large` answers more than a socket holds, `/early` reads nothing."""
    path, body = scope["path"], b"ok"
    if path == "/slow":
        await elapse_async(3 * RECEIVE_SECONDS, "the time that a receipt may take")
    if path == "/names":
        while (await receive()).get("more_body"):
            pass
        body = b"no" if any(name == b"authorization" for name, _ in scope["headers"]) else b"ok"
    if path == "/large":
        body = LARGE
    if path == "/read":
        while (await receive()).get("more_body"):
            pass
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(receive_seconds: float, read_seconds: float = RECEIVE_SECONDS) -> AsyncIterator[int]:
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        http=timely_protocol(receive_seconds, read_seconds),  # type: ignore[arg-type]  # any maker of protocols will do
        lifespan="off",
        log_config=None,
        timeout_graceful_shutdown=1,
        timeout_keep_alive=3_600,
    )
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    running = asyncio.create_task(server.serve([listening]))
    yield listening.getsockname()[1]
    server.should_exit = True
    await running


@pytest.fixture
async def port(request: pytest.FixtureRequest) -> AsyncIterator[int]:
    async with serving(getattr(request, "param", RECEIVE_SECONDS)) as port:
        yield port


untimed = pytest.mark.parametrize("port", [3_600], indirect=True)
"""For tests of other limits: on a busy machine a request may take longer than `RECEIVE_SECONDS`."""


class Client:
    """One plain connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> bytes:
        """Head and two-byte body of one answer."""
        async with asyncio.timeout(LIMIT_SECONDS):
            head = await self.reader.readuntil(b"\r\n\r\n")
            return head + await self.reader.readexactly(2)

    async def rest(self) -> bytes:
        """Everything until the server closes the connection."""
        found = b""
        async with asyncio.timeout(LIMIT_SECONDS):
            with suppress(ConnectionError):
                while some := await self.reader.read(65_536):
                    found += some
        return found

    async def drip(self, piece: bytes) -> None:
        """Send it now and then, for as long as the server accepts it."""
        with suppress(ConnectionError):
            async with asyncio.timeout(LIMIT_SECONDS):
                while not self.reader.at_eof():
                    await self.send(piece)
                    await elapse_async(0.02, "a slow client's pause")


async def connected(port: int, first: bytes = b"") -> Client:
    """A connection whose `first` bytes arrive before the server accepts it, so before any limit begins."""
    if not first:
        return Client(*await asyncio.open_connection("127.0.0.1", port))
    plain = socket.create_connection(("127.0.0.1", port))
    plain.sendall(first)
    plain.setblocking(False)
    return Client(*await asyncio.open_connection(sock=plain))


Connect = Callable[..., Awaitable[Client]]


@pytest.fixture
async def connect(port: int) -> AsyncIterator[Connect]:
    opened: list[Client] = []

    async def one(first: bytes = b"") -> Client:
        opened.append(await connected(port, first))
        return opened[-1]

    yield one
    for client in opened:
        client.writer.close()


async def test_a_silent_connection_is_closed(connect: Connect) -> None:
    client = await connect()
    assert (await client.rest()).startswith(b"HTTP/1.1 408 ")


async def test_slow_headers_are_cut_off_at_the_time_limit(connect: Connect) -> None:
    client = await connect(b"POST /early HTTP/1.1\r\nhost: x\r\n")
    dripping = asyncio.create_task(client.drip(b"a: b\r\n"))
    assert (await client.rest()).startswith(b"HTTP/1.1 408 ")
    await dripping


@untimed
async def test_headers_without_an_end_are_cut_by_size(connect: Connect) -> None:
    client = await connect()
    await client.send(b"POST /early HTTP/1.1\r\nhost: x\r\n")
    with suppress(ConnectionError):
        for _ in range(2 * MAX_HEADER_BYTES // 4_096):
            await client.send(b"a: " + b"b" * 4_091 + b"\r\n")
    rest = await client.rest()
    assert rest == b"" or rest.startswith(b"HTTP/1.1 431 ")


@untimed
async def test_a_request_line_without_an_end_is_cut_by_size(connect: Connect) -> None:
    client = await connect()
    with suppress(ConnectionError):
        await client.send(b"POST /" + b"a" * 4 * MAX_HEADER_BYTES)
    rest = await client.rest()
    assert rest == b"" or rest.startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize("path", [b"/early", b"/read"])
async def test_a_body_that_drips_is_cut_whether_it_is_read_or_not(connect: Connect, path: bytes) -> None:
    client = await connect()
    await client.send(b"POST " + path + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n")
    dripping = asyncio.create_task(client.drip(b"a"))
    await client.rest()
    await dripping


async def test_an_answer_that_takes_longer_than_a_receipt_may_is_given(connect: Connect) -> None:
    client = await connect(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await client.answer()).startswith(b"HTTP/1.1 200 ")


async def test_a_second_request_begun_behind_a_slow_one_is_not_late_for_that(connect: Connect) -> None:
    client = await connect(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n" + EARLY)
    assert (await client.answer()).startswith(b"HTTP/1.1 200 ")
    assert (await client.answer()).startswith(b"HTTP/1.1 200 ")


async def test_a_connection_kept_open_may_be_idle_but_its_next_request_may_not_drip(connect: Connect) -> None:
    client = await connect(EARLY)
    assert (await client.answer()).startswith(b"HTTP/1.1 200 ")
    await elapse_async(2 * RECEIVE_SECONDS, "the time that a receipt may take")
    await client.send(EARLY)
    assert (await client.answer()).startswith(b"HTTP/1.1 200 ")
    await elapse_async(2 * RECEIVE_SECONDS, "the time that a receipt may take")
    await client.send(b"GET /ear")
    assert (await client.rest()).startswith(b"HTTP/1.1 408 ")


@untimed
async def test_a_client_that_does_not_read_its_answer_is_cut(connect: Connect) -> None:
    client = await connect()
    await client.send(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
    async with asyncio.timeout(LIMIT_SECONDS):
        await client.reader.readuntil(b"\r\n\r\n")  # the server has begun to answer
    await elapse_async(4 * RECEIVE_SECONDS, "the time that an unread answer may take")
    assert len(await client.rest()) < len(LARGE)


@pytest.mark.parametrize("port", [5.0], indirect=True)
async def test_five_hundred_slow_connections_leave_room_for_the_others(connect: Connect) -> None:
    async def slow_one() -> Client:
        client = await connect()
        with suppress(ConnectionError):  # on a busy machine, its time may be over
            await client.send(b"POST /early HTTP/1.1\r\nx: ")
        return client

    slow = await asyncio.gather(*(slow_one() for _ in range(500)))

    healthy = await connect(EARLY)
    assert (await healthy.answer()).startswith(b"HTTP/1.1 200 ")

    ends = await asyncio.gather(*(one.rest() for one in slow))
    # A client whose time was over while it was sending does not read the answer.
    assert all(end == b"" or end.startswith(b"HTTP/1.1 408 ") for end in ends)


@untimed
@pytest.mark.parametrize(
    "lines",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\ncontent-length: 5\r\n",
        b"content-length: 5\r\ncontent-length: 3\r\n",
        b"content-length: 5, 5\r\n",
        b"content-length: 5\r\ncontent-length: 5\r\n",
        b"content-length: 0x5\r\n",
        b"content-length: 5 5\r\n",
        b"content-length:\r\n 5\r\n",
        b"transfer-encoding: chunked, chunked\r\n",
        b"transfer-encoding: ,chunked\r\n",
        b"transfer-encoding: \x0bchunked\r\n",
        b"transfer-encoding:\r\n chunked\r\n",
        b"content-length: +5\r\n",
        b"transfer-encoding: chunked, identity\r\n",
        b"transfer-encoding : chunked\r\n",
        b"content-length: 5\r\na: b\r\n c\r\n",
        b"content-length: 5\na: b\n",
        b"content-length: 5\r\na: b\rc: d\r\n",
    ],
)
async def test_f83_an_ambiguous_request_is_refused_and_the_connection_closed(connect: Connect, lines: bytes) -> None:
    client = await connect()
    with suppress(ConnectionError):
        await client.send(b"POST /read HTTP/1.1\r\nhost: x\r\n" + lines + b"\r\n0\r\n\r\n")
    rest = await client.rest()
    assert rest.startswith(b"HTTP/1.1 400 ")
    assert rest.count(b"HTTP/1.1 ") == 1


@untimed
@pytest.mark.parametrize("framing", [b"content-length: 34", b"transfer-encoding: chunked"])
async def test_f83_a_body_after_an_upgrade_is_never_read_as_a_request(connect: Connect, framing: bytes) -> None:
    client = await connect()
    head = b"POST /read HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n"
    await client.send(head + framing + b"\r\n\r\n")
    with suppress(ConnectionError):
        await client.send(b"GET /early HTTP/1.1\r\nhost: body\r\n\r\n")
    rest = await client.rest()
    assert rest.startswith(b"HTTP/1.1 400 ")
    assert rest.count(b"HTTP/1.1 ") == 1


@untimed
async def test_a_request_that_offers_an_upgrade_is_answered_and_is_the_last_one(connect: Connect) -> None:
    """The parser reads nothing after it, so the connection would stay open without a limit."""
    client = await connect()
    upgrade = b"GET /early HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
    await client.send(upgrade + b"GET /early HTTP/1.1\r\nhost: x\r\n\r\n")
    rest = await client.rest()
    assert rest.startswith(b"HTTP/1.1 200 ")
    assert rest.count(b"HTTP/1.1 ") == 1


async def test_blank_lines_do_not_keep_an_idle_connection_open(connect: Connect) -> None:
    client = await connect(EARLY)
    assert (await client.answer()).startswith(b"HTTP/1.1 200 ")
    dripping = asyncio.create_task(client.drip(b"\r\n"))
    assert (await client.rest()).startswith(b"HTTP/1.1 408 ")
    await dripping


@untimed
async def test_invalid_requests_and_offers_of_an_upgrade_log_one_line_a_minute(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    garbage = [b"\x16\x03\x01", b"GET / HTTP/2.0\r\nhost: x\r\n\r\n", ODD["no host"]]
    garbage.append(b"GET /early HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
    for one in garbage * 5:
        client = await connect()
        await client.send(one)
        await client.rest()
    assert [record.getMessage() for record in caplog.records] == ["invalid HTTP request refused"]


CHUNKED = b" HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


@untimed
async def test_a_trailer_never_becomes_a_header(connect: Connect) -> None:
    client = await connect()
    await client.send(b"POST /names" + CHUNKED + b"1\r\na\r\n0\r\nAuthorization: Bearer x\r\n\r\n")
    assert (await client.answer()).endswith(b"ok")


@pytest.mark.parametrize("start", [b"0\r\n", b"1\r\na\r\n0\r\n", b"0\r\na: ", b"1;a="])
async def test_trailers_and_chunk_extensions_without_an_end_are_cut_by_size(start: bytes) -> None:
    """By size, because the time is not limited here."""
    piece = b"x" * 4_096 if start.endswith((b" ", b"=")) else b"a: " + b"b" * 4_091 + b"\r\n"
    async with serving(3_600) as port, asyncio.timeout(LIMIT_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with suppress(ConnectionError):
            writer.write(b"POST /read" + CHUNKED + start)
            for _ in range(64 * MAX_HEADER_BYTES // 4_096):
                writer.write(piece)
                await writer.drain()
            assert await reader.read() == b""
        writer.close()


async def test_a_body_in_many_small_chunks_is_taken() -> None:
    async with serving(3_600) as port:
        client = Client(*await asyncio.open_connection("127.0.0.1", port))
        await client.send(b"POST /read" + CHUNKED + b"1\r\na\r\n" * 50_000 + b"0\r\n\r\n")
        assert (await client.answer()).endswith(b"ok")
        client.writer.close()


FRAMED = b"content-length: 2\r\n\r\nok"
CHUNKS = b"\r\n2\r\nok\r\n0\r\n\r\n"
ODD = {
    "identity, chunked": b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: identity, chunked\r\n" + CHUNKS,
    "gzip, chunked": b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n" + CHUNKS,
    "chunked in two lines": b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n"
    b"transfer-encoding: chunked\r\n" + CHUNKS,
    "chunked in HTTP/1.0": b"POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n" + CHUNKS,
    "a length beside chunks": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n"
    + CHUNKS,
    "no host": b"POST / HTTP/1.1\r\n" + FRAMED,
    "two hosts": b"POST / HTTP/1.1\r\nhost: a\r\nhost: b\r\n" + FRAMED,
    "a host with a user": b"POST / HTTP/1.1\r\nhost: u@a\r\n" + FRAMED,
    "a host with a path": b"POST / HTTP/1.1\r\nhost: a/b\r\n" + FRAMED,
    "joined hosts": b"POST / HTTP/1.1\r\nhost: a, b\r\n" + FRAMED,
    "hosts joined without a space": b"POST / HTTP/1.1\r\nhost: a,b\r\n" + FRAMED,
    "a fragment": b"POST /#a HTTP/1.1\r\nhost: a\r\n" + FRAMED,
    "HTTP/2.0": b"POST / HTTP/2.0\r\nhost: a\r\n" + FRAMED,
    "two hosts in HTTP/1.0": b"POST / HTTP/1.0\r\nhost: a\r\nhost: a\r\n" + FRAMED,
}


@untimed
@pytest.mark.parametrize("name", ODD)
async def test_a_request_that_a_proxy_may_parse_differently_is_refused(port: int, name: str) -> None:
    async with asyncio.timeout(LIMIT_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(ODD[name])
        answered = await reader.read()
        writer.close()
    assert answered.startswith(b"HTTP/1.1 400 ")
    assert answered.count(b"HTTP/1.1 ") == 1


@untimed
@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST / HTTP/1.0\r\n" + FRAMED,
        b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: Chunked\r\n" + CHUNKS,
        b"POST / HTTP/1.1\r\nhost: [::1]:8080\r\nconnection: close\r\n" + FRAMED,
        b"POST / HTTP/1.1\r\nhost: a_b.example:\r\nconnection: close\r\n" + FRAMED,
        b"POST / HTTP/1.1\r\nhost:\r\nconnection: close\r\n" + FRAMED,
    ],
    ids=["HTTP/1.0 without a host", "chunked in capitals", "an address as host", "an empty port", "an empty host"],
)
async def test_unusual_but_valid_requests_are_served(port: int, request_bytes: bytes) -> None:
    async with asyncio.timeout(LIMIT_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes)
        answered = await reader.read()
        writer.close()
    assert answered.startswith(b"HTTP/1.1 200 ")


async def test_a_client_that_pauses_longer_than_a_receipt_may_take_still_gets_its_answer() -> None:
    """A poller without room for a large answer reads it later."""
    async with serving(RECEIVE_SECONDS, read_seconds=3_600) as port:
        client = await connected(port, b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        await elapse_async(4 * RECEIVE_SECONDS, "more than a receipt may take")
        async with asyncio.timeout(LIMIT_SECONDS):
            await client.reader.readuntil(b"\r\n\r\n")
            assert await client.reader.readexactly(len(LARGE)) == LARGE
        client.writer.close()
