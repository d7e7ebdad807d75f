"""Responses that break a rule, or use one that few servers use: each is read, refused or abandoned by the rule."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import math
import socket

import httpx
import pytest

from handlers.demo.servers import free_port
from handlers.transport.failures import ConnectionLost, TruncatedBody, UnusableResponse
from handlers.transport.transport import Transport, TransportOptions, http_client
from tests.servers.raw_http import Answer, End, RawHttp, answer
from tests.transport.calls import post, serving_raw
from tests.waiting import wait_until_async

LIMIT = 1_000_000  # of the fixture `transport`
OK = b"HTTP/1.1 200 OK\r\n"
WHOLE = OK + b"content-length: 2\r\n\r\nok"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"


REUSED = {
    "a status line without a reason": b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok",
    "line breaks before it": b"\r\n\r\n" + WHOLE,
    "line breaks after it": WHOLE + b"\r\n\r\n",
    "an interim one with a length": b"HTTP/1.1 100 C\r\ncontent-length: 2\r\n\r\n" + WHOLE,
    "unknown interim ones": b"HTTP/1.1 150 X\r\n\r\n" * 50 + WHOLE,
    "an offer to upgrade": OK + b"upgrade: h2c\r\nconnection: upgrade\r\ncontent-length: 2\r\n\r\nok",
    "a coding in capitals": OK + b"Transfer-Encoding: Chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "a quoted chunk extension": CHUNKED + b'2;a="b;c"\r\nok\r\n0\r\n\r\n',
    "two equal lengths": OK + b"content-length: 2\r\nx: y\r\nContent-Length: 2\r\n\r\nok",
    "three equal lengths in two lines": OK + b"content-length: 2, 2\r\ncontent-length:2\r\n\r\nok",
    "equal lengths after an interim one": b"HTTP/1.1 103 E\r\nlink: a\r\n\r\n" + OK + b"content-length: 2,2\r\n\r\nok",
    "folded header lines": OK + b"x: a\r\n b\r\n\tc\r\ncontent-length: 2\r\n\r\nok",
}
NOT_REUSED = {
    "a length beside chunks": OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "equal lengths beside chunks": OK + b"content-length: 2\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n"
    b"2\r\nok\r\n0\r\n\r\n",
    "a second response at once": WHOLE + WHOLE,
    "half a response after it": WHOLE + OK,
    "other bytes after it": WHOLE + b"!!!",
    "keep-alive for no time": OK + b"keep-alive: timeout=0\r\ncontent-length: 2\r\n\r\nok",
}


@pytest.mark.parametrize("name", [*REUSED, *NOT_REUSED])
async def test_a_connection_is_reused_only_if_the_next_response_must_be_ours(
    transport: Transport, server: RawHttp, name: str
) -> None:
    server.reply(Answer({**REUSED, **NOT_REUSED}[name]), answer(200, b"next"))
    first = await post(transport, server.url)
    assert (first.status_code, first.body) == (200, b"ok")
    assert (await post(transport, server.url)).body == b"next"
    assert server.connections == (1 if name in REUSED else 2)


async def test_equal_lengths_are_read_byte_by_byte_too(transport: Transport) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"HTTP/1.1 100 C\r\n\r\n" + OK + b"content-length: 2\r\ncontent-length: 2\r\nx: y\r\n\r\nok":
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        await reader.read()

    async with serving_raw(serve) as url:
        found = await post(transport, url)
        assert (found.body, [name for name, _ in found.headers]) == (b"ok", [b"x", b"content-length"])


async def test_headers_that_repeat_a_length_without_an_end_are_refused_by_size(
    transport: Transport, server: RawHttp
) -> None:
    endless = Answer(OK + b"content-length: 2\r\n", b"content-length: 2\r\n", repeats=40_000, end=End.HANG)
    server.reply(endless)
    with pytest.raises(UnusableResponse, match="headers of more than"):
        await post(transport, server.url)


@pytest.mark.parametrize(
    "body", [b"content-length: 2\r\n\r\nno", b"transfer-encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n"]
)
async def test_bytes_after_a_204_are_not_its_body(transport: Transport, server: RawHttp, body: bytes) -> None:
    server.reply(Answer(b"HTTP/1.1 204 N\r\n" + body), answer(200, b"next"))
    assert (await post(transport, server.url))[::2] == (204, b"")
    assert (await post(transport, server.url)).body == b"next"
    assert server.connections == 2


async def test_folded_lines_and_forbidden_bytes_of_a_header_become_spaces(
    transport: Transport, server: RawHttp
) -> None:
    server.reply(Answer(OK + b"x: a\r\n b\0c\r\ncontent-length: 2\r\n\r\nok"))
    (value,) = [value for name, value in (await post(transport, server.url)).headers if name == b"x"]
    assert value.split() == [b"a", b"b", b"c"]
    assert not set(value) & set(b"\r\n\0")


NO_RESPONSE = {
    "a status below 100": b"HTTP/1.1 099 X\r\ncontent-length: 2\r\n\r\nno" + WHOLE,
    "an interim one with a body": b"HTTP/1.1 199 X\r\ncontent-length: 2\r\n\r\nno" + WHOLE,
    "an interim one with chunks": b"HTTP/1.1 150 X\r\ntransfer-encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n" + WHOLE,
    "two lengths": OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\nok",
    "two lengths in one line": OK + b"content-length: 2, 3\r\n\r\nok",
    "two lengths of different digits": OK + b"content-length: 2\r\ncontent-length: 02\r\n\r\nok",
    "equal lengths with a sign": OK + b"content-length: +2\r\ncontent-length: +2\r\n\r\nok",
    "equal lengths of nothing": OK + b"content-length: ,\r\n\r\nok",
    "equal lengths, one folded": OK + b"content-length: 2\r\ncontent-length: 2\r\n 2\r\n\r\nok",
    "a length with a sign": OK + b"content-length: +2\r\n\r\nok",
    "a length beyond all numbers": OK + b"content-length: 99999999999999999999999\r\n\r\nok",
    "a space before the colon": OK + b"x : y\r\ncontent-length: 2\r\n\r\nok",
    "HTTP/2": b"HTTP/2 200 OK\r\ncontent-length: 2\r\n\r\nok",
    "lines that end without CR": WHOLE.replace(b"\r", b""),
    "no HTTP": b"220 mail.example ESMTP\r\n",
}
BROKEN_BODIES = {
    "a chunk extension with a control character": CHUNKED + b"2;\0=\r\nok\r\n0\r\n\r\n",
    "a chunk extension without CR": CHUNKED + b"2;a\nok\r\n0\r\n\r\n",
    "a chunk size beyond all numbers": CHUNKED + b"fffffffffffffffff\r\nok\r\n0\r\n\r\n",
    "a chunk size with a sign": CHUNKED + b"-2\r\nok\r\n0\r\n\r\n",
    "a chunk longer than its size": CHUNKED + b"1\r\nok\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", [*NO_RESPONSE, *BROKEN_BODIES])
async def test_an_invalid_response_is_reported_and_its_connection_closed(
    transport: Transport, server: RawHttp, name: str
) -> None:
    server.reply(Answer({**NO_RESPONSE, **BROKEN_BODIES}[name]), answer(200, b"next"))
    with pytest.raises(httpx.RemoteProtocolError) as caught:
        await post(transport, server.url)
    assert isinstance(caught.value, TruncatedBody) == (name in BROKEN_BODIES)
    assert (await post(transport, server.url)).body == b"next"


FAILING = {
    "no response": b"",
    "no HTTP": b"220 mail.example ESMTP\r\n",
    "a truncated body": OK + b"content-length: 9\r\n\r\nok",
    "a body over the limit": OK + b"content-length: 1000001\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 X\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\nabc",
    "an undecodable body": OK + b"content-encoding: gzip\r\ncontent-length: 2\r\n\r\nok",
    "no response in time": None,
    "no connection": None,
}


@pytest.mark.parametrize("name", FAILING)
async def test_a_failed_request_is_freed_at_once(transport: Transport, server: RawHttp, name: str) -> None:
    """A reference cycle would keep its body until the garbage collector runs, beyond the limit of bytes held."""
    data, until = FAILING[name], math.inf
    server.reply(Answer(data or b"", end=End.HANG if data is None else End.CLOSE))
    if name == "no response in time":
        until = asyncio.get_running_loop().time() + 0.1
    url = f"http://127.0.0.1:{free_port()}/" if name == "no connection" else server.url
    gc.disable()
    gc.freeze()  # so that only objects of this test are checked
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        with contextlib.suppress(httpx.TransportError, TimeoutError, UnusableResponse):
            await post(transport, url, until=until)
            pytest.fail("it did not fail")
        await wait_until_async(lambda: server.open_connections == 0, "the connection to be closed")
        await asyncio.sleep(0)  # until the loop has dropped the call that woke this task
        gc.collect()
        assert [each for each in gc.garbage if isinstance(each, BaseException)] == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.unfreeze()
        gc.enable()


async def test_all_parts_of_a_body_stay_in_their_order(transport: Transport, server: RawHttp) -> None:
    body = b"".join(b"%06d" % number for number in range(5_000))
    chunks = b"".join(b"3\r\n" + body[at : at + 3] + b"\r\n" for at in range(0, len(body), 3))
    server.reply(Answer(CHUNKED + chunks + b"0\r\n\r\n"))
    assert (await post(transport, server.url)).body == body


async def test_a_connection_is_given_up_before_the_server_closes_it(transport: Transport) -> None:
    """The server announces two seconds: after one second the pool closes it, long before its own limit of a minute."""
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(OK + b"keep-alive: max=9, Timeout = 2\r\ncontent-length: 2\r\n\r\nok")
        assert await reader.read() == b""
        closed.set()

    async with serving_raw(serve) as url, asyncio.timeout(60):
        await post(transport, url)
        await closed.wait()


@pytest.mark.parametrize("coding", ["deflate, gzip", "br, gzip", "zstd, gzip", "gzip, gzip"])
async def test_an_empty_body_with_two_codings_is_empty(transport: Transport, server: RawHttp, coding: str) -> None:
    server.reply(answer(200, gzip.compress(b""), {"content-encoding": coding}))
    assert (await post(transport, server.url)).body == b""


async def test_an_unknown_coding_below_a_known_one_is_reported(transport: Transport, server: RawHttp) -> None:
    server.reply(answer(200, gzip.compress(b"abc"), {"content-encoding": "pack200, gzip"}))
    with pytest.raises(UnusableResponse, match="unknown content-encoding 'pack200'"):
        await post(transport, server.url)


@pytest.mark.parametrize(("excess", "is_read"), [(0, True), (1, False)])
async def test_a_compressed_body_may_decompress_to_exactly_the_limit(
    transport: Transport, server: RawHttp, excess: int, is_read: bool
) -> None:
    half = LIMIT // 2
    body = gzip.compress(b"x" * half) + gzip.compress(b"y" * (half + excess)) + gzip.compress(b"")
    server.reply(answer(200, body, {"content-encoding": "gzip"}))
    if is_read:
        assert len((await post(transport, server.url)).body) == LIMIT
    else:
        with pytest.raises(UnusableResponse, match="size limit"):
            await post(transport, server.url)


async def test_a_response_to_head_ends_with_its_headers(server: RawHttp) -> None:
    server.reply(Answer(OK + b"content-length: 2\r\n\r\n"), answer(200, b"next"))
    async with http_client(TransportOptions()) as client, asyncio.timeout(60):
        assert (await client.head(server.url)).content == b""
        assert (await client.get(server.url)).content == b"next"


async def test_a_server_that_closes_its_side_first_has_lost_the_request(transport: Transport) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write_eof()
        await reader.read()

    async with serving_raw(serve) as url:
        with pytest.raises(ConnectionLost) as caught:
            await post(transport, url)
        assert not caught.value.may_resend


async def test_a_reset_while_a_large_request_is_written_is_a_loss(transport: Transport) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    async with serving_raw(serve) as url:
        with pytest.raises(ConnectionLost):
            await post(transport, url, bytes(20_000_000))


async def test_a_response_byte_by_byte_is_read_and_its_time_is_limited(transport: Transport) -> None:
    is_endless = False

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"{}")
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in WHOLE[:-1] if is_endless else WHOLE:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0)

    async with serving_raw(serve) as url:
        assert (await post(transport, url)).body == b"ok"
        is_endless = True
        with pytest.raises(TimeoutError):
            await post(transport, url, until=asyncio.get_running_loop().time() + 0.3)
