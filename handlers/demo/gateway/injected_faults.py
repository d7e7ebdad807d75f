"""Choose a fault from the payload, or at random, and send it.

"simulate": {"status": 503, "retry_after": "2", "times": 2, "key": "r1"}    the first two times for r1
"simulate": {"fault": "reset"}                                              always
"""

from __future__ import annotations

import asyncio
import gzip
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from handlers.number_text import whole

if TYPE_CHECKING:
    from handlers.demo.gateway.service import GatewayProtocol


FAULTS: Final = (
    *("reset", "reset_after_headers", "hang", "hang_mid_body", "truncated", "bad_chunk", "bad_gzip", "gzip_bomb"),
    *("slow_body", "huge_body", "invalid_utf8", "empty", "redirect", "hostile_headers", "garbage"),
)
"""Faults other than status codes."""


class Simulate(msgspec.Struct, frozen=True):
    """A fault in a payload.

    The fault applies to the first `times` requests with this `key` (0: to all). `bytes` is the size of a `huge_body`.
    """

    key: str = ""
    status: int = 0
    fault: str = ""
    retry_after: str = ""
    times: int = 0
    bytes: int = 50_000_000
    seconds: float | None = None


class CompletionBody(msgspec.Struct):
    """The fields of a payload that the gateway reads."""

    model: str = ""
    prompt: object = ""
    input: object = ""
    max_tokens: int | None = None
    user: str = ""
    simulate: Simulate | None = None


class UnknownFault(ValueError):
    """An unknown fault; the message lists the known ones."""


class Faults:
    """Chooses faults; `rates` are shares of all requests, by fault or status."""

    def __init__(self, rates: Mapping[str, float], seed: int) -> None:
        self._random = random.Random(seed)  # a simulation
        self._seen: dict[str, int] = {}
        self.set_rates(rates)

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """Replace all rates. Raises `UnknownFault`."""
        for name in rates:
            if name not in FAULTS and not name.isdigit():
                raise UnknownFault(f"unknown fault {name!r}: expected a status code, or one of {', '.join(FAULTS)}")
        self.rates = dict(rates)

    def choose(self, payload: CompletionBody) -> Simulate | None:
        """The fault of one request, or None."""
        asked = payload.simulate
        if asked is not None and (asked.status or asked.fault):
            return asked if self._is_due(asked) else None
        if not self.rates:
            return None
        position = self._random.random()
        for name, share in self.rates.items():
            if position < share:
                retry_after = "1" if name in ("429", "503") else ""
                status = whole(name)
                return Simulate(fault=name) if status is None else Simulate(status=status, retry_after=retry_after)
            position -= share
        return None

    def _is_due(self, asked: Simulate) -> bool:
        if not asked.times:
            return True
        seen = self._seen.get(asked.key, 0)
        self._seen[asked.key] = seen + 1
        return seen < asked.times


_JSON: Final = ("content-type", "application/json")
_GZIP: Final = ("content-encoding", "gzip")
_A_LONG_TIME: Final = 3_600.0
_BLOCK: Final = b"x" * 65_536
_BOMB_BYTES: Final = 200_000_000

Break = Callable[[Simulate, bytes, "GatewayProtocol"], Awaitable[None]]


async def break_response(fault: Simulate, body: bytes, to: GatewayProtocol) -> None:
    """Send the fault instead of `body`."""
    await _BREAKS[fault.fault](fault, body, to)


async def _reset(_fault: Simulate, _body: bytes, to: GatewayProtocol) -> None:
    to.abort()


async def _reset_after_headers(_fault: Simulate, body: bytes, to: GatewayProtocol) -> None:
    to.transport.write(to.head(200, [_JSON], len(body)))
    await asyncio.sleep(0.02)  # otherwise the kernel drops the head together with the connection
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
