"""Delivers results to a webhook: each under its lease until the receiver has it, signed, tried again, and guarded.

The receiver is addressed by name at every connection, and only public addresses are connected to, whatever the name
resolves to at that moment: a name cannot be turned to the inside of the network afterwards. Redirects are never
followed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import random
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver

from handlers.client.errors import LeaseLost
from handlers.client.result_stream import Delivery, ResultStream
from handlers.client.webhook_destinations import (
    METADATA_FIELD,
    Destination,
    DestinationRefused,
    Target,
    target_of,
)
from handlers.client.webhook_signature import signature_headers
from handlers.contract.errors import InvalidSetting
from handlers.contract.result import Result, encode_result

EVENT_TYPE: Final = "async_processor.result"
_FIRST_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 300.0
_GONE: Final = 410
_MOST_ANSWER_BYTES: Final = 65_536
_GLOBAL_UNICAST: Final = ipaddress.ip_network("2000::/3")


class WebhookGone(Exception):
    """The receiver says that it is gone for good (410): nothing more is sent to it."""


@dataclass(frozen=True, slots=True)
class WebhookOptions:
    """Where to, with which keys. `allow_private` also connects to addresses inside, and without TLS: for a receiver
    of your own. What is not taken in `give_up_seconds` is handed to `on_given_up`.

    A request may name one of `destinations` in its metadata (see `webhook_destinations`; it takes `RESULT_DETAILS`).
    What that one does not take in `destination_seconds`, and what names another one, goes to `url`, which is told why:
    one receiver that is down holds up the others for that long at most.
    """

    url: str
    keys: Sequence[bytes]
    allow_private: bool = False
    at_once: int = 16
    call_seconds: float = 20.0
    give_up_seconds: float = 86_400.0
    first_pause_seconds: float = _FIRST_PAUSE_SECONDS
    destinations: Sequence[Destination] = ()
    destination_seconds: float = 300.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        schemes = ("https", "http") if self.allow_private else ("https",)
        if parts.scheme not in schemes or not parts.hostname or parts.username or parts.password:
            accepted = "https://host/path without user or password"
            raise InvalidSetting("url", found="no such URL", accepted=accepted)
        if not self.allow_private and not _is_public_host(parts.hostname):
            raise InvalidSetting("url", found="an address inside the network", accepted="a public host")
        for one in self.destinations:
            if not self.allow_private and not _is_public_host(one.host.partition(":")[0]):
                found = "an address inside the network"
                raise InvalidSetting("destinations", found=found, accepted="public hosts")

    def __repr__(self) -> str:
        return "WebhookOptions(…)"  # keys, and a URL that may hold a token


def _is_public_host(host: str) -> bool:
    """Whether a literal address is public; a name is judged when it is resolved.

    A name of digits and dots alone (`2130706433`, `127.1`) is an old form of an address, which aiohttp connects to
    without asking the resolver: never public.
    """
    try:
        return _is_public(host)
    except ValueError:
        return not host.replace(".", "").isdigit()


def _is_public(address: str) -> bool:
    """Of IPv6 only global unicast (RFC 4291, 2.4) counts, and nothing that a translator or a tunnel turns into IPv4."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return _is_public(str(found.ipv4_mapped))
        if found not in _GLOBAL_UNICAST or found.sixtofour is not None or found.teredo is not None:
            return False
    return found.is_global and not found.is_multicast


class PublicOnly(AbstractResolver):
    """Resolves names to public addresses alone; a name that has an inner one too is refused whole."""

    def __init__(self, resolver: AbstractResolver | None = None) -> None:
        self._resolver = resolver or DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Raises `OSError` for a host that is not public."""
        found = await self._resolver.resolve(host, port, family)
        if not found or not all(_is_public(one["host"].split("%")[0]) for one in found):
            raise OSError(None, f"{host} is not a public host")
        return found

    async def close(self) -> None:
        """Close the resolver below."""
        await self._resolver.close()


class Webhook:
    """One receiver. `clock` gives Unix seconds, `draw` a number in [0, 1)."""

    def __init__(
        self,
        options: WebhookOptions,
        on_given_up: Callable[[Result], Awaitable[object]],
        *,
        clock: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._options = options
        self._on_given_up = on_given_up
        self._clock = clock
        self._draw = draw
        self.delivered = 0
        self.given_up = 0

    async def __aenter__(self) -> Self:
        resolver = None if self._options.allow_private else PublicOnly()
        connector = aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False)
        timeout = aiohttp.ClientTimeout(total=self._options.call_seconds)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=timeout, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def run(self, stream: ResultStream) -> None:
        """Deliver until the stream ends. Raises `WebhookGone`; what was not delivered then goes back."""
        room = asyncio.Semaphore(self._options.at_once)
        try:
            async with asyncio.TaskGroup() as group:
                async for delivery in stream:
                    await room.acquire()
                    task = group.create_task(self._deliver(delivery))
                    task.add_done_callback(lambda _task: room.release())
        except* WebhookGone:
            raise WebhookGone from None

    async def _deliver(self, delivery: Delivery) -> None:
        if await self._is_delivered_somewhere(delivery.result):
            self.delivered += 1
        else:
            self.given_up += 1
            await self._on_given_up(delivery.result)
        with contextlib.suppress(LeaseLost):
            await delivery.ack()  # lost meanwhile: the next reader sends it again, under the same id

    async def _is_delivered_somewhere(self, result: Result) -> bool:
        """To the receiver that its request names, else to our own."""
        options, undelivered = self._options, ""
        if options.destinations:
            try:
                target = target_of(result.metadata, options.destinations, allow_private=options.allow_private)
                seconds = min(options.give_up_seconds, options.destination_seconds)
                if target is not None and await self._is_delivered(result, target, seconds):
                    return True
                undelivered = f"metadata.{METADATA_FIELD}: not taken in {seconds:g} s" if target else ""
            except DestinationRefused as error:
                undelivered = str(error)
            except WebhookGone:
                undelivered = f"metadata.{METADATA_FIELD}: the receiver is gone (410)"
        return await self._is_delivered(
            result, Target(options.url, options.keys), options.give_up_seconds, undelivered
        )

    async def _is_delivered(
        self, result: Result, target: Target, seconds: float, undelivered: str = ""
    ) -> bool:
        body = msgspec.json.encode(
            {
                "type": EVENT_TYPE,
                "timestamp": datetime.fromtimestamp(self._clock(), UTC).isoformat(),
                "data": msgspec.Raw(encode_result(result)),
                **({"undelivered": undelivered} if undelivered else {}),
            }
        )
        until, pause = self._clock() + seconds, self._options.first_pause_seconds
        while True:
            if await self._is_taken(target, webhook_id(result), body):
                return True
            if self._clock() + pause >= until:
                return False
            await asyncio.sleep(pause * (0.5 + self._draw()))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _is_taken(self, target: Target, name: str, body: bytes) -> bool:
        signed = signature_headers(target.keys, name, int(self._clock()), body)
        headers: dict[str, Any] = {"content-type": "application/json", **signed}
        try:
            async with self._session.post(
                target.url, data=body, headers=headers, allow_redirects=False
            ) as answer:
                await answer.content.read(_MOST_ANSWER_BYTES)
                if answer.status == _GONE:
                    raise WebhookGone
                return 200 <= answer.status < 300
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False


def webhook_id(result: Result) -> str:
    """The same for every delivery of a result, so that a receiver can drop the second one."""
    name = f"{result.id}\0{result.request_token}"
    return f"res_{hashlib.sha256(name.encode()).hexdigest()[:32]}"
