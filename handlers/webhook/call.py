"""One call of a webhook: the event, its signatures, and what the receiver said."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp
import msgspec

from handlers.contract.result import Result, encode_result
from handlers.forward.backoff import parse_retry_after
from handlers.webhook.destinations import Target
from handlers.webhook.guard import PublicOnly, outside_socket
from handlers.webhook.signature import signature_headers

EVENT_TYPE: Final = "async_processor.result"
_GONE: Final = 410
_TOO_MANY: Final = 429
_MOST_ANSWER_BYTES: Final = 65_536


@dataclass(frozen=True, slots=True)
class CallAnswer:
    """What a call came to; `status` is 0 where there was no answer."""

    status: int = 0
    retry_after_seconds: float | None = None

    @property
    def is_taken(self) -> bool:
        """Whether the receiver has the result."""
        return 200 <= self.status < 300

    @property
    def is_gone(self) -> bool:
        """Whether the receiver wants no more, ever."""
        return self.status == _GONE

    @property
    def is_trouble(self) -> bool:
        """Whether it is the receiver's trouble, and not of this result alone: it should rest."""
        if self.is_taken or self.is_gone:
            return False
        return self.status in (0, _TOO_MANY) or self.status >= 500 or bool(self.retry_after_seconds)


class Caller:
    """Posts events; `clock` gives Unix seconds. Connects to public addresses alone, unless `allow_private`."""

    def __init__(
        self, *, allow_private: bool, call_seconds: float, clock: Callable[[], float] = time.time
    ) -> None:
        guard: dict[str, Any] = {"resolver": PublicOnly(), "socket_factory": outside_socket}
        if allow_private:
            guard = {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, use_dns_cache=False, **guard),
            timeout=aiohttp.ClientTimeout(total=call_seconds),
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # what a receiver says is thrown away: it need not be unpacked
        )
        self._clock = clock

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def post(self, target: Target, result: Result, since: float, undelivered: str = "") -> CallAnswer:
        """Send the event once, signed; see `event_body`."""
        body = event_body(result, since, undelivered)
        signed = signature_headers(target.keys, webhook_id(result), int(self._clock()), body)
        headers: dict[str, Any] = {"content-type": "application/json", **signed}
        try:
            async with self._session.post(
                target.url, data=body, headers=headers, allow_redirects=False
            ) as answer:
                retry_after = parse_retry_after(answer.headers.get("retry-after"), self._clock())
                with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                    await answer.content.read(_MOST_ANSWER_BYTES)  # for the next call on this connection
                return CallAnswer(answer.status, retry_after)
        except (aiohttp.ClientError, OSError, TimeoutError):
            return CallAnswer()


def event_body(result: Result, since: float, undelivered: str = "") -> bytes:
    """The event as JSON, the same for every call; `since` is when the result came here, in Unix seconds."""
    at = since if result.finished_at is None else result.finished_at
    event = {
        "type": EVENT_TYPE,
        "timestamp": datetime.fromtimestamp(at, UTC).isoformat(),
        "data": msgspec.Raw(encode_result(result)),
    }
    if undelivered:
        event["undelivered"] = undelivered
    return msgspec.json.encode(event)


def webhook_id(result: Result) -> str:
    """The same for every delivery of a result, so that a receiver can drop the second one."""
    name = f"{result.id}\0{result.request_token}"
    return f"res_{hashlib.sha256(name.encode()).hexdigest()[:32]}"
