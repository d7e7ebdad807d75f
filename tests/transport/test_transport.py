"""The transport with a server of scripted bytes: requests that are sent, kept, resent and given up."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import socket
import ssl
import struct
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from handlers.transport.connection import MAX_RESPONSE_HEADERS, Connection
from handlers.transport.failures import ConnectionLost, ResponseTooLarge, TruncatedBody, UnusableResponse
from handlers.transport.transport import HEAD_ONLY, Transport, TransportOptions, http_client
from tests.servers.certificates import self_signed, serving
from tests.servers.raw_http import Answer, End, RawHttp, answer, running_raw_http
from tests.transport.calls import post, serving_raw
from tests.waiting import wait_until_async

LIMITS_SECONDS = (0.2, 3.0, 30.0)
"""Limits of one request after another: on a busy machine a short one may end before the server has the request."""


def loop_time() -> float:
    return asyncio.get_running_loop().time()


class Watched:
    """A server that answers nothing; `gone` is set when the client has closed the connection."""

    def __init__(self) -> None:
        self.asked, self.gone = asyncio.Event(), asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked.set()
        with contextlib.suppress(OSError):
            while await reader.read(65_536):
                pass
        self.gone.set()
        writer.close()


async def test_cancelling_the_caller_closes_the_connection(transport: Transport) -> None:
    watched = Watched()
    async with serving_raw(watched) as url, asyncio.timeout(60):
        call = asyncio.create_task(post(transport, url))
        await watched.asked.wait()
        call.cancel()
        await watched.gone.wait()
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_the_time_limit_closes_the_connection(transport: Transport) -> None:
    watched = Watched()
    async with serving_raw(watched) as url, asyncio.timeout(100):
        for limit_seconds in LIMITS_SECONDS:
            with pytest.raises(TimeoutError):
                await post(transport, url, until=loop_time() + limit_seconds)
            if watched.asked.is_set():
                break
        await watched.gone.wait()


async def test_the_timer_of_a_connection_follows_each_requests_limit(transport: Transport) -> None:
    """The first request's limit is far off, the second's near, the third's far again."""
    released = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(3):
            await reader.readuntil(b"{}")
            if number == 2:
                await released.wait()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async with serving_raw(serve) as url:
        for limit_seconds in (1.0, 8.0, 30.0):  # on a busy machine the second answer may be late for a short limit
            await post(transport, url, until=loop_time() + 300.0)
            near = loop_time() + limit_seconds
            with contextlib.suppress(TimeoutError):
                await post(transport, url, until=near)
                break
        else:
            raise AssertionError("the second request was never answered in time")
        third = asyncio.create_task(post(transport, url, until=loop_time() + 300.0))
        await wait_until_async(lambda: loop_time() > near, "the second limit to pass")
        released.set()
        assert (await third).body == b"ok"


async def test_no_request_is_written_after_its_time_limit(transport: Transport, server: RawHttp) -> None:
    await post(transport, server.url)
    with pytest.raises(TimeoutError):
        await post(transport, server.url, until=loop_time())
    await post(transport, server.url)
    assert len(server.received) == 2


async def test_a_large_body_is_not_written_after_the_limit(transport: Transport) -> None:
    read = 0
    asked, over, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal read
        read += len(await reader.readexactly(1))
        asked.set()
        await over.wait()  # with the sockets' buffers full
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 20):
                read += len(data)
        writer.close()
        done.set()

    body = bytes(40_000_000)
    async with serving_raw(serve) as url, asyncio.timeout(100):
        for limit_seconds in LIMITS_SECONDS:
            with pytest.raises(TimeoutError):
                await post(transport, url, body, until=loop_time() + limit_seconds)
            if asked.is_set():
                break
        over.set()
        await done.wait()
    assert read < len(body)


@pytest.mark.parametrize("size", [65_536, 65_537, 300_000, 8_000_000])
async def test_bodies_of_all_sizes_arrive_whole(transport: Transport, server: RawHttp, size: int) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    await post(transport, server.url, body)
    assert server.received[0].body == body


async def test_an_unsolicited_response_reaches_no_caller(transport: Transport, server: RawHttp) -> None:
    unasked = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nnobody"
    server.reply(answer(200, b"first" + unasked, declared=5), answer(200, b"second"))
    assert (await post(transport, server.url)).body == b"first"
    assert (await post(transport, server.url)).body == b"second"
    assert server.connections == 2


async def test_an_unsolicited_response_on_an_idle_connection_reaches_no_caller(transport: Transport) -> None:
    """Written while the loop does not run, so that only the socket has it."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        name = f"n{len(writers)}".encode()
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n" + name)
        await reader.read()

    async with serving_raw(serve) as url:
        assert (await post(transport, url)).body == b"n1"
        raw = writers[0].get_extra_info("socket")
        with socket.socket(fileno=socket.dup(raw.fileno())) as direct:
            direct.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno")
        assert (await post(transport, url)).body == b"n2"
        await transport.aclose()


async def test_a_closed_connection_is_not_used_again(transport: Transport, server: RawHttp) -> None:
    server.reply(answer(200, b"{}", end=End.CLOSE), answer(200, b"{}"))
    for _ in range(2):
        assert (await post(transport, server.url)).status_code == 200
        await wait_until_async(lambda: server.open_connections <= 1, "the server to close")
    assert (server.connections, len(server.received)) == (2, 2)


async def test_a_connection_is_closed_when_it_was_idle_for_too_long(server: RawHttp) -> None:
    transport = Transport(TransportOptions(idle_seconds=0.05))
    await post(transport, server.url)
    await wait_until_async(lambda: server.open_connections == 0, "the idle connection to be closed")
    await post(transport, server.url)
    assert server.connections == 2
    await transport.aclose()


async def test_no_connection_older_than_the_limit_is_used_before_it_is_swept(server: RawHttp) -> None:
    transport = Transport(TransportOptions(idle_seconds=0.0))
    await post(transport, server.url)
    await post(transport, server.url)
    assert server.connections == 2
    await transport.aclose()


async def test_a_reused_connection_gives_each_caller_its_own_response(
    transport: Transport,
) -> None:
    """The connection takes the next request before the previous caller has continued."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                name = (await reader.readuntil(b"]"))[-4:]
                writer.write(b"HTTP/1.1 2" + name[1:3] + b" OK\r\ncontent-length: 4\r\nx: " + name)
                writer.write(b"\r\n\r\n" + name)

    async with serving_raw(serve) as url:

        async def ask(number: int) -> None:
            for _ in range(50):
                response = await post(transport, url, b"[%02d]" % number)
                assert (response.status_code, response.body) == (200 + number, b"[%02d]" % number)
                assert response.headers[1] == (b"x", b"[%02d]" % number)

        await asyncio.gather(*(ask(number) for number in range(20, 40)))
        await transport.aclose()


class Ends:
    """Answers one request per connection, then ends it by `end` once a second request has arrived."""

    def __init__(self, *, reads: bool) -> None:
        self.reads = reads
        self.seen: list[bytes] = []
        self.answered = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.seen.append(await reader.readuntil(b"{}"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await writer.drain()
        if self.reads and len(self.seen) == 1:
            self.seen.append(await reader.readuntil(b"{}"))
            writer.transport.abort()
            return
        await reader.read()
        writer.close()


async def test_a_request_that_the_server_may_have_read_is_not_sent_again(transport: Transport) -> None:
    server = Ends(reads=True)
    async with serving_raw(server) as url:
        await post(transport, url)
        with pytest.raises(ConnectionLost):
            await post(transport, url)
        assert len(server.seen) == 2


async def test_a_repeatable_request_is_sent_again_once(server: RawHttp) -> None:
    server.reply(answer(200, b"{}"), Answer(end=End.CLOSE), answer(200, b"again"))
    async with http_client(TransportOptions(idle_seconds=60.0)) as client:
        await client.get(server.url)
        assert (await client.get(server.url)).content == b"again"
        server.reply(Answer(end=End.CLOSE))
        with pytest.raises(httpx.ReadError):
            await client.get(server.url)
    assert len(server.received) == 5


@pytest.mark.parametrize("is_reset", [False, True])
async def test_a_request_is_sent_again_if_the_closed_connection_shows_that_it_was_unread(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, is_reset: bool
) -> None:
    """The server closes between the check of the connection and the write. A reset alone proves nothing."""
    answered = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"

        def serve_one() -> socket.socket:
            accepted, _ = listener.accept()
            accepted.recv(65_536)
            accepted.sendall(answered)
            return accepted

        serving_first = asyncio.create_task(asyncio.to_thread(serve_one))
        await post(transport, url)
        accepted = await serving_first
        if is_reset:
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        accepted.close()  # and the loop has not seen it yet
        monkeypatch.setattr(Connection, "is_usable", lambda _self: True)
        if is_reset:
            with pytest.raises(ConnectionLost):
                await post(transport, url)
            return
        serving_second = asyncio.create_task(asyncio.to_thread(serve_one))
        assert (await post(transport, url)).body == b"ok"
        (await serving_second).close()


def client_sockets(server: RawHttp) -> list[socket.socket]:
    """Duplicates of this process's sockets that are connected to the server."""
    connections = psutil.Process().net_connections("tcp")
    return [socket.socket(fileno=os.dup(one.fd)) for one in connections if one.raddr and one.raddr.port == server.port]


def unread_bytes(sock: socket.socket) -> int:
    """Bytes that have arrived at a socket and were not read."""
    return int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), sys.byteorder)


async def test_a_dead_peer_is_probed_for(transport: Transport, server: RawHttp) -> None:
    await post(transport, server.url)
    (sock,) = client_sockets(server)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    found = [
        sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_KEEP{name}")) for name in ("IDLE", "INTVL", "CNT")
    ]
    assert found[0] + found[1] * found[2] <= 60
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
    sock.close()


OK = b"HTTP/1.1 200 OK\r\n"
WHOLE = {
    "100, 103, then the answer": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    + OK
    + b"content-length: 2\r\n\r\nok",
    "HTTP/1.0, until it closes": b"HTTP/1.0 200 OK\r\n\r\nok",
    "HTTP/1.0 with a length": b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    "until it closes": OK + b"\r\nok",
    "connection: close": OK + b"connection: close\r\ncontent-length: 2\r\n\r\nok",
    "chunks with extensions and trailers": OK
    + b"transfer-encoding: chunked\r\n\r\n1;a=b\r\no\r\n1\r\nk\r\n0\r\nx-late: 1\r\n\r\n",
    "a length beside chunks": OK + b"content-length: 9\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "more than the length": OK + b"content-length: 2\r\n\r\nokay",
    "many headers": OK
    + b"".join(b"x-%d: y\r\n" % n for n in range(MAX_RESPONSE_HEADERS - 1))
    + b"content-length: 2\r\n\r\nok",
    "250 KB of headers": OK + b"x: " + b"y" * 250_000 + b"\r\ncontent-length: 2\r\n\r\nok",
}


@pytest.mark.parametrize("name", WHOLE)
async def test_every_form_of_a_whole_answer_is_read(transport: Transport, server: RawHttp, name: str) -> None:
    server.reply(Answer(WHOLE[name], end=End.CLOSE))
    response = await post(transport, server.url)
    assert (response.status_code, response.body) == (200, b"ok")
    assert b"x-late" not in dict(response.headers)


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_a_body_leaves_the_connection_usable(
    transport: Transport, server: RawHttp, status: int
) -> None:
    head = (
        f"HTTP/1.1 {status} Nothing\r\ncontent-length: 5\r\n\r\n" if status == 304 else f"HTTP/1.1 {status} N\r\n\r\n"
    )
    server.reply(Answer(head.encode()), answer(200, b"next"))
    assert (await post(transport, server.url)).body == b""
    assert (await post(transport, server.url)).body == b"next"
    assert server.connections == 1


TRUNCATED = {
    "less than the length": OK + b"content-length: 9\r\n\r\nok",
    "no last chunk": OK + b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n",
}


@pytest.mark.parametrize("name", TRUNCATED)
async def test_a_truncated_answer_differs_from_a_complete_one(transport: Transport, server: RawHttp, name: str) -> None:
    server.reply(Answer(TRUNCATED[name], end=End.CLOSE))
    with pytest.raises(TruncatedBody):
        await post(transport, server.url)


TOO_LARGE = {
    "too many headers": OK + b"x: y\r\n" * (MAX_RESPONSE_HEADERS + 1) + b"\r\n",
    "headers too large": OK + b"x: " + b"y" * 263_000 + b"\r\n\r\n",
    "trailers without an end": OK + b"transfer-encoding: chunked\r\n\r\n0\r\n" + b"x: y\r\n" * 100_000,
    "interim answers without an end": b"HTTP/1.1 102 Processing\r\n\r\n" * 20_000,
    "another transfer coding": OK + b"transfer-encoding: gzip\r\n\r\nabc",
}


@pytest.mark.parametrize("name", TOO_LARGE)
async def test_an_answer_over_a_limit_is_given_up(transport: Transport, server: RawHttp, name: str) -> None:
    server.reply(Answer(TOO_LARGE[name]))
    with pytest.raises(UnusableResponse) as caught:
        await post(transport, server.url)
    assert name == "another transfer coding" or isinstance(caught.value, ResponseTooLarge)


async def test_a_switch_of_protocols_is_no_answer(transport: Transport, server: RawHttp) -> None:
    server.reply(Answer(b"HTTP/1.1 101 Switching\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\nabc"))
    with pytest.raises(httpx.RemoteProtocolError):
        await post(transport, server.url)


async def test_a_refusal_before_the_body_was_read_is_the_answer(transport: Transport) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig")
        await writer.drain()
        writer.close()  # with bytes unread, which makes it a reset

    async with serving_raw(serve) as url:
        response = await post(transport, url, bytes(20_000_000))
    assert (response.status_code, response.body) == (413, b"big")


@pytest.mark.parametrize("header", ["a\r\nx: y", "a\nb", "a\rb", "a\0b"])
async def test_a_header_cannot_end_its_line(transport: Transport, server: RawHttp, header: str) -> None:
    with pytest.raises(httpx.LocalProtocolError):
        await transport.post(server.url, {"x": header}, b"{}")
    assert server.received == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://a/", "expected http:// or https://, got 'ftp'"),
        ("http:///a", "expected a host after http://, got nothing"),
    ],
)
async def test_an_error_of_a_url_names_the_wrong_part(transport: Transport, url: str, message: str) -> None:
    with pytest.raises(httpx.UnsupportedProtocol, match=re.escape(message)):
        await transport.post(url, {}, b"{}")


async def test_user_and_password_of_a_url_are_sent_as_basic(transport: Transport, server: RawHttp) -> None:
    await post(transport, server.url.replace("://", "://us%40er:p%3Aw@"))
    assert server.received[0].header("authorization") == "Basic dXNAZXI6cDp3"
    assert server.received[0].header("host") == f"127.0.0.1:{server.port}"


async def test_ipv6_is_spoken(transport: Transport) -> None:
    watched: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        watched.append(await reader.readuntil(b"{}"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        writer.close()

    async with serving_raw(serve, "::1") as url:
        assert (await post(transport, url)).body == b"ok"
    assert b"host: [::1]:" in watched[0]


async def test_the_address_that_works_is_found_and_remembered(
    transport: Transport, server: RawHttp, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    loop = asyncio.get_running_loop()
    original = loop.getaddrinfo

    async def resolve(host: str, port: int, **options: Any) -> list[Any]:
        nonlocal asked
        if host != "gateway.example":
            return await original(host, port, **options)
        asked += 1
        places = ((socket.AF_INET6, ("::1", port, 0, 0)), (socket.AF_INET, ("127.0.0.1", port)))
        return [(family, socket.SOCK_STREAM, 6, "", place) for family, place in places]

    monkeypatch.setattr(loop, "getaddrinfo", resolve)
    url = f"http://gateway.example:{server.port}/"
    await asyncio.gather(*(post(transport, url) for _ in range(20)))
    assert asked == 1


async def test_no_proxy_of_the_environment_is_used(
    transport: Transport, server: RawHttp, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert (await post(transport, server.url)).status_code == 200
    async with http_client(TransportOptions()) as client:
        assert (await client.get(server.url)).status_code == 200


async def test_tls_names_the_host_and_shows_our_certificate(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    context = serving(certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(certificate)
    names: list[str] = []
    context.sni_callback = lambda _tls, name, _context: names.append(name)
    trusted = ssl.create_default_context(cafile=str(certificate))
    trusted.check_hostname = False
    trusted.load_cert_chain(certificate)
    transport = Transport(TransportOptions(idle_seconds=60.0, ssl_context=trusted))
    async with running_raw_http(context) as server:
        url = f"https://localhost:{server.port}/"
        assert (await post(transport, url)).status_code == 200
        assert (await post(transport, url)).status_code == 200
        assert (names, server.connections) == (["localhost"], 1)
        await transport.aclose()


@pytest.mark.parametrize("is_announced", [True, False])
async def test_over_tls_only_an_announced_end_completes_a_body_without_a_length(
    tmp_path: Path, is_announced: bool
) -> None:
    """Anybody on the way can close the connection, but only the server can send TLS' close_notify."""
    certificate = self_signed(tmp_path)
    transport = Transport(TransportOptions(ssl_context=ssl.create_default_context(cafile=str(certificate))))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(OK + b"\r\nhalf")
        await writer.drain()
        if not is_announced:
            raw = writer.get_extra_info("socket")
            with socket.socket(fileno=socket.dup(raw.fileno())) as direct:
                direct.shutdown(socket.SHUT_WR)
            await reader.read()

    async with serving_raw(serve, tls=serving(certificate)) as url:
        if is_announced:
            assert (await post(transport, url)).body == b"half"
        else:
            with pytest.raises(TruncatedBody):
                await post(transport, url)
        await transport.aclose()


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_caller_cancelled_while_connecting_leaves_nothing_behind(tmp_path: Path, scheme: str) -> None:
    """A socket that is closed below its transport breaks the next connection, which gets the same number."""
    certificate = self_signed(tmp_path)
    trusted = ssl.create_default_context(cafile=str(certificate))
    async with running_raw_http(serving(certificate) if scheme == "https" else None) as server:
        for turns in range(40):
            transport = Transport(TransportOptions(ssl_context=trusted))
            call = asyncio.create_task(post(transport, f"{scheme}://127.0.0.1:{server.port}/"))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                assert (await call).status_code == 200
            await transport.aclose()
        await wait_until_async(lambda: server.open_connections == 0, "all connections to be closed")
        await wait_until_async(lambda: not client_sockets(server), "this side's sockets to be closed")


async def test_a_head_only_request_does_not_wait_for_the_body(server: RawHttp) -> None:
    server.reply(Answer(OK + b"content-length: 50\r\n\r\nhalf", end=End.HANG))
    async with http_client(TransportOptions()) as client, asyncio.timeout(60):
        response = await client.post(server.url, content=b"{}", extensions={HEAD_ONLY: True})
    assert (response.status_code, response.content) == (200, b"")


async def test_no_cookie_is_kept(server: RawHttp) -> None:
    server.reply(answer(200, b"{}", {"set-cookie": "a=b; Path=/"}))
    async with http_client(TransportOptions()) as client:
        for _ in range(2):
            await client.get(server.url)
    assert server.received[1].header("cookie") is None


async def test_a_large_answer_is_read_once_there_is_room(transport: Transport, server: RawHttp) -> None:
    asked: list[tuple[int, Callable[[], None]]] = []

    def ask(most: int, on_room: Callable[[], None]) -> bool:
        asked.append((most, on_room))
        return False

    server.reply(answer(200, b"x" * 900_000))
    call = asyncio.create_task(transport.post(server.url, {}, b"{}", ask_for_room=ask))
    await wait_until_async(lambda: asked, "the transport to ask for room")
    (sock,) = client_sockets(server)
    await wait_until_async(lambda: unread_bytes(sock), "the rest of the answer")
    for _ in range(100):
        await asyncio.sleep(0)
    assert unread_bytes(sock) > 0, "it is left where it is"
    sock.close()
    ((most, on_room),) = asked
    assert most == 900_000
    on_room()
    assert len((await call).body) == 900_000
    on_room()  # late and twice: it is the next request's connection by now
    assert (await post(transport, server.url)).status_code == 200


async def test_the_time_without_room_does_not_count_against_the_request(transport: Transport, server: RawHttp) -> None:
    asked: list[Callable[[], None]] = []

    def ask(_most: int, on_room: Callable[[], None]) -> bool:
        asked.append(on_room)
        return False

    server.reply(answer(200, b"x" * 900_000))
    for limit_seconds in (
        0.5,
        5.0,
        50.0,
    ):  # on a busy machine the answer may begin too late for a short limit
        until = loop_time() + limit_seconds
        call = asyncio.create_task(transport.post(server.url, {}, b"{}", until, ask))
        await wait_until_async(lambda: asked or call.done(), "the transport to ask for room")  # noqa: B023  # awaited in this turn of the loop
        if asked:
            break
    await wait_until_async(lambda: loop_time() > until + 0.2, "the end of the request's time")
    assert not call.done()
    asked[0]()
    assert len((await call).body) == 900_000
