"""Responses that break the rules, one for each fault: what a real network or a sick server may send."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from handlers.demo.gateway.faults import Simulate

if TYPE_CHECKING:
    from handlers.demo.gateway.protocol import GatewayProtocol

_JSON: Final = ("content-type", "application/json")
_GZIP: Final = ("content-encoding", "gzip")
_A_LONG_TIME: Final = 3_600.0
_BLOCK: Final = b"x" * 65_536
_BOMB_BYTES: Final = 200_000_000

Break = Callable[[Simulate, bytes, "GatewayProtocol"], Awaitable[None]]


async def break_response(fault: Simulate, body: bytes, to: GatewayProtocol) -> None:
    """Send what `fault` asks for in place of `body`."""
    await _BREAKS[fault.fault](fault, body, to)


async def _reset(_fault: Simulate, _body: bytes, to: GatewayProtocol) -> None:
    to.abort()


async def _reset_after_headers(_fault: Simulate, body: bytes, to: GatewayProtocol) -> None:
    to.transport.write(to.head(200, [_JSON], len(body)))
    await asyncio.sleep(0.02)  # or the kernel drops the head together with the connection
    to.abort()


async def _hang(fault: Simulate, _body: bytes, _to: GatewayProtocol) -> None:
    await asyncio.sleep(fault.seconds or _A_LONG_TIME)


async def _hang_mid_body(fault: Simulate, body: bytes, to: GatewayProtocol) -> None:
    to.transport.write(to.head(200, [_JSON], len(body)) + body[: len(body) // 2])
    await asyncio.sleep(fault.seconds or _A_LONG_TIME)


async def _truncated(_fault: Simulate, body: bytes, to: GatewayProtocol) -> None:
    to.transport.write(to.head(200, [_JSON], len(body) + 100) + body)
    to.transport.close()


async def _bad_chunk(_fault: Simulate, body: bytes, to: GatewayProtocol) -> None:
    to.transport.write(to.head(200, [_JSON, ("transfer-encoding", "chunked")], None) + b"zz\r\n" + body)
    to.transport.close()


async def _bad_gzip(_fault: Simulate, body: bytes, to: GatewayProtocol) -> None:
    to.reply(200, body, [_GZIP])


async def _gzip_bomb(_fault: Simulate, _body: bytes, to: GatewayProtocol) -> None:
    to.reply(200, gzip.compress(b"0" * _BOMB_BYTES, 6), [_GZIP])


async def _slow_body(fault: Simulate, body: bytes, to: GatewayProtocol) -> None:
    to.transport.write(to.head(200, [_JSON], len(body)))
    pause = (fault.seconds or 5.0) / max(1, len(body))
    for at in range(len(body)):
        to.transport.write(body[at : at + 1])
        await asyncio.sleep(pause)


async def _huge_body(fault: Simulate, _body: bytes, to: GatewayProtocol) -> None:
    to.transport.write(to.head(200, [_JSON, ("connection", "close")], None))
    for _ in range(fault.bytes // len(_BLOCK) + 1):
        to.transport.write(_BLOCK)
        await asyncio.sleep(0)
    to.transport.close()


async def _invalid_utf8(_fault: Simulate, _body: bytes, to: GatewayProtocol) -> None:
    to.reply(200, b'{"text":"\xff\xfe\x80"}')


async def _empty(_fault: Simulate, _body: bytes, to: GatewayProtocol) -> None:
    to.reply(200, b"")


async def _redirect(_fault: Simulate, _body: bytes, to: GatewayProtocol) -> None:
    to.reply(302, b"", [("location", "http://127.0.0.2:9/elsewhere")])


async def _hostile_headers(_fault: Simulate, body: bytes, to: GatewayProtocol) -> None:
    to.reply(200, body, [(f"x-hostile-{number}", "a" * 64) for number in range(50)])


async def _garbage(_fault: Simulate, _body: bytes, to: GatewayProtocol) -> None:
    to.transport.write(b"\x00\x01this is no HTTP\r\n\r\n")
    to.transport.close()


_BREAKS: Final[dict[str, Break]] = {
    "reset": _reset,
    "reset_after_headers": _reset_after_headers,
    "hang": _hang,
    "hang_mid_body": _hang_mid_body,
    "truncated": _truncated,
    "bad_chunk": _bad_chunk,
    "bad_gzip": _bad_gzip,
    "gzip_bomb": _gzip_bomb,
    "slow_body": _slow_body,
    "huge_body": _huge_body,
    "invalid_utf8": _invalid_utf8,
    "empty": _empty,
    "redirect": _redirect,
    "hostile_headers": _hostile_headers,
    "garbage": _garbage,
}
