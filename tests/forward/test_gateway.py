"""The client against a server that misbehaves byte for byte: every end has one of the known failures."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import ssl
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from handlers.contract.request import Request
from handlers.forward.forward import gateway_headers
from handlers.forward.gateway import Gateway, GatewayResponse
from handlers.forward.outcome import FAILURES, failure_reason
from handlers.forward.route import Route
from handlers.transport.failures import ResponseTooLarge, UnusableResponse
from handlers.transport.transport import TransportOptions
from tests.forward.conftest import LIMIT
from tests.servers.certificates import self_signed, serving
from tests.servers.raw_http import Answer, End, RawHttp, answer, running_raw_http
from tests.waiting import elapse, wait_until_async

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


async def sent(gateway: Gateway, server: RawHttp, body: bytes = b"{}") -> GatewayResponse:
    async with asyncio.timeout(60):
        return await gateway.send(server.url + "/v1/completions", {"content-type": "application/json"}, body)


async def failure(gateway: Gateway, server: RawHttp) -> str:
    with pytest.raises(FAILURES) as caught:
        await sent(gateway, server)
    return failure_reason(caught.value)


async def test_a_request_reaches_the_wire_as_it_was_given(gateway: Gateway, server: RawHttp) -> None:
    body = b'{ "a": 1.0 }'
    response = await sent(gateway, server, body)
    assert (response.status_code, response.body) == (200, b"{}")
    (received,) = server.received
    assert received.head.startswith(b"POST /v1/completions HTTP/1.1\r\n")
    assert received.body == body
    assert sorted(name for name, _ in received.headers) == ["content-length", "content-type", "host"]


async def test_a_tenant_beyond_ascii_is_utf8_on_the_wire(gateway: Gateway, server: RawHttp) -> None:
    request = Request(id="a", deadline=1e9, payload=b"{}", metadata={"userid": "Zoë 團"})
    headers = gateway_headers(request, Route(server.url))
    async with asyncio.timeout(60):
        await gateway.send(server.url + "/v1/completions", headers, b"{}")
    (received,) = server.received
    assert ": Zoë 團\r\n".encode() in received.head


async def test_f8_a_request_that_a_stalled_loop_would_send_too_late_is_not_sent(
    gateway: Gateway, server: RawHttp
) -> None:
    """I9: the stall, as that of a stopped process, falls between the call and the write."""
    loop = asyncio.get_running_loop()

    def stall() -> None:
        elapse(0.4, "the time limit, while nothing else runs")

    loop.call_soon(stall)  # while the connection is made
    with pytest.raises((TimeoutError, *FAILURES)):
        await gateway.send(server.url + "/late", {}, b"{}", loop.time() + 0.1)
    await sent(gateway, server)

    assert [one.head.split()[1] for one in server.received] == [b"/v1/completions"]


async def test_connections_are_used_again(gateway: Gateway, server: RawHttp) -> None:
    for _ in range(5):
        await sent(gateway, server)
    assert server.connections == 1


async def test_requests_in_flight_are_not_limited_here(gateway: Gateway, server: RawHttp) -> None:
    server.reply(Answer(end=End.HANG))
    work = [asyncio.create_task(sent(gateway, server)) for _ in range(150)]
    await wait_until_async(lambda: server.connections == 150, "all requests to be in flight")
    for task in work:
        task.cancel()
    await asyncio.gather(*work, return_exceptions=True)


@pytest.mark.parametrize("status", [204, 301, 302, 307, 308, 400, 404, 429, 500, 503, 599])
async def test_every_status_is_returned_and_no_redirect_is_followed(
    gateway: Gateway, server: RawHttp, status: int
) -> None:
    body = b"" if status == 204 else b"said"
    server.reply(answer(status, body, {"Location": server.url + "/elsewhere", "Retry-After": "7"}))
    response = await sent(gateway, server)
    assert (response.status_code, response.body) == (status, body)
    assert response.headers["retry-after"] == "7"
    assert len(server.received) == 1


async def test_a_cookie_is_not_kept(gateway: Gateway, server: RawHttp) -> None:
    server.reply(answer(200, b"{}", {"Set-Cookie": "session=1; Path=/"}))
    await sent(gateway, server)
    await sent(gateway, server)
    assert server.received[1].header("cookie") is None


FAULTS = {
    "reset before the request is read": (Answer(end=End.RESET, reads_request=False), "reset"),
    "closed before an answer": (Answer(end=End.CLOSE), "reset"),
    "reset before an answer": (Answer(end=End.RESET), "reset"),
    "closed in the headers": (Answer(b"HTTP/1.1 200 OK\r\ncontent-le", end=End.CLOSE), "reset"),
    "closed in the body": (answer(200, b"half", declared=40, end=End.CLOSE), "broken_body"),
    "closed in a chunk": (Answer(CHUNKED + b"5\r\nab", end=End.CLOSE), "broken_body"),
    "a last chunk is missing": (Answer(CHUNKED + b"2\r\nab\r\n", end=End.CLOSE), "broken_body"),
    "an invalid chunk size": (Answer(CHUNKED + b"zz\r\nab\r\n", end=End.CLOSE), "broken"),
    "no HTTP": (Answer(b"SSH-2.0-OpenSSH_9\r\n\r\n", end=End.CLOSE), "broken_response"),
    "an invalid length": (answer(200, b"x", {"x": "y"}, declared=-5, end=End.CLOSE), "broken_response"),
    "a header without a colon": (Answer(b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n", end=End.CLOSE), "broken"),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_of_the_server_is_a_failure_with_a_name(gateway: Gateway, server: RawHttp, name: str) -> None:
    fault, reason = FAULTS[name]
    server.reply(fault)
    assert (await failure(gateway, server)).startswith(reason)
    server.reply(answer(200, b"{}"))
    assert (await sent(gateway, server)).status_code == 200, "the next request is not harmed"


UNUSABLE = {
    "invalid gzip": (answer(200, b"plain", {"content-encoding": "gzip"}), "cannot be decoded as gzip"),
    "gzip cut off": (
        answer(200, gzip.compress(b"x" * 99)[:-9], {"content-encoding": "gzip"}),
        "cannot be decoded as gzip: the stream ends too early",
    ),
    "an unknown coding": (answer(200, b"x", {"content-encoding": "pack200"}), "'pack200'"),
    "an endless header": (
        Answer(b"HTTP/1.1 200 OK\r\nx: ", b"y" * 100_000, 100, End.CLOSE),
        "has headers of more than",
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
async def test_an_unusable_answer_has_a_reason(gateway: Gateway, server: RawHttp, name: str) -> None:
    unusable, reason = UNUSABLE[name]
    server.reply(unusable)
    with pytest.raises(UnusableResponse, match=reason):
        await sent(gateway, server)
    server.reply(answer(200, b"{}"))
    assert (await sent(gateway, server)).status_code == 200, "the next request is not harmed"


async def test_a_refused_connection_is_reported(gateway: Gateway) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound but not listening, so that no other process gets the port
        nobody = RawHttp(port=bound.getsockname()[1])
        assert await failure(gateway, nobody) == "connect"


async def test_a_name_that_does_not_resolve_is_reported(gateway: Gateway) -> None:
    with pytest.raises(FAILURES) as caught:
        await gateway.send("http://gateway.invalid/v1", {}, b"{}")
    assert failure_reason(caught.value) == "dns"


async def test_an_unanswered_handshake_sends_no_request(server: RawHttp) -> None:
    """A full backlog drops the SYN: nothing was sent, so nothing can have run."""
    gateway = Gateway(TransportOptions(connect_seconds=0.2))
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        assert await failure(gateway, RawHttp(port=full.getsockname()[1])) == "connect"
    await gateway.aclose()


@pytest.mark.parametrize(
    "head",
    [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhalf"],
    ids=["before headers", "in headers", "in the body"],
)
async def test_a_hang_ends_with_the_callers_timeout(gateway: Gateway, server: RawHttp, head: bytes) -> None:
    server.reply(Answer(head, end=End.HANG))
    until = asyncio.get_running_loop().time() + 0.1
    with pytest.raises(TimeoutError):
        await gateway.send(server.url, {}, b"{}", until)
    server.reply(answer(200, b"{}"))
    assert (await sent(gateway, server)).body == b"{}", "the connection is not used again"


@pytest.mark.parametrize(
    "large",
    [
        answer(200, b"", declared=LIMIT + 1),
        answer(200, b"", declared=10**15),
        Answer(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 1_000, 100, End.CLOSE),
        Answer(CHUNKED, b"3e8\r\n" + b"x" * 1_000 + b"\r\n", 1_000_000),
        answer(200, gzip.compress(b"\0" * 50_000_000), {"content-encoding": "gzip"}, end=End.CLOSE),
        answer(200, gzip.compress(b"x" * (LIMIT + 1)), {"content-encoding": "gzip"}),
        answer(200, zlib.compress(b"x" * (LIMIT + 1)), {"content-encoding": "deflate"}),
    ],
    ids=["declared", "declared absurdly", "undeclared", "endless", "gzip bomb", "gzip", "deflate"],
)
async def test_a_body_over_the_limit_is_not_read_further(gateway: Gateway, server: RawHttp, large: Answer) -> None:
    server.reply(large)
    with pytest.raises(ResponseTooLarge):
        await sent(gateway, server)


@pytest.mark.parametrize(
    "exact",
    [
        answer(200, b"x" * LIMIT),
        Answer(CHUNKED + b"4e20\r\n" + b"x" * LIMIT + b"\r\n0\r\n\r\n"),
        answer(200, gzip.compress(b"x" * LIMIT), {"content-encoding": "GZIP"}),
        answer(200, zlib.compress(b"x" * LIMIT), {"content-encoding": "deflate"}),
    ],
    ids=["plain", "chunked", "gzip", "deflate"],
)
async def test_a_body_of_exactly_the_limit_is_whole(gateway: Gateway, server: RawHttp, exact: Answer) -> None:
    server.reply(exact)
    assert (await sent(gateway, server)).body == b"x" * LIMIT


async def test_a_binary_body_is_unchanged(gateway: Gateway, server: RawHttp) -> None:
    server.reply(answer(200, b"\xff\xfe\x00\r\n\r\n"))
    assert (await sent(gateway, server)).body == b"\xff\xfe\x00\r\n\r\n"


async def test_a_server_restart_fails_only_requests_in_flight(gateway: Gateway, server: RawHttp) -> None:
    await sent(gateway, server)
    server.close_connections()
    await wait_until_async(lambda: server.open_connections == 0, "the connection to be cut")
    reasons = []
    for _ in range(2):
        try:
            assert (await sent(gateway, server)).status_code == 200
        except FAILURES as error:
            reasons.append(failure_reason(error))
    assert reasons in ([], ["reset"])


@contextlib.asynccontextmanager
async def tls_gateway(trusted: Path | None) -> AsyncIterator[Gateway]:
    context = ssl.create_default_context(cafile=trusted) if trusted else None
    gateway = Gateway(TransportOptions(connect_seconds=60.0, ssl_context=context))
    try:
        yield gateway
    finally:
        await gateway.aclose()


async def test_a_certificate_of_our_own_ca_is_trusted(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    async with running_raw_http(serving(certificate)) as server, tls_gateway(certificate) as gateway:
        assert (await sent(gateway, server)).status_code == 200


@pytest.mark.parametrize("case", ["unknown CA", "expired", "for another host", "no TLS at all"])
async def test_a_server_without_a_trusted_certificate_gets_no_request(tmp_path: Path, case: str) -> None:
    """F47: refused, with a name, and never tried in the clear."""
    address = "127.0.0.9" if case == "for another host" else "127.0.0.1"
    certificate = self_signed(tmp_path, address, is_expired=case == "expired")
    trusted = None if case == "unknown CA" else certificate
    tls = None if case == "no TLS at all" else serving(certificate)
    async with running_raw_http(tls) as server, tls_gateway(trusted) as gateway:
        server.is_tls = True
        if tls is None:
            server.reply(Answer(b"HTTP/1.1 400 Bad Request\r\n\r\n", end=End.CLOSE, reads_request=False))
        assert await failure(gateway, server) == "tls"
        assert server.received == []
