"""GET a text over HTTP, bounded in size; connections are kept between fetches."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from typing import Final

import aiohttp

from handlers.gates.metric.feed import SourceMissing

_MAX_BYTES: Final = 32_000_000
"""A large router's /metrics is a few megabytes; more than this is another page than we think."""


class HttpText:
    """One session for all sources; opened on first use, closed by `aclose`. The feed sets the timeout.

    `token` gives the bearer token that is sent along, `ssl_context` says whom to trust; None is none, and
    the system's own CAs.
    """

    def __init__(
        self, token: Callable[[], str] | None = None, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self._token = token
        self._ssl_context = ssl_context
        self._session: aiohttp.ClientSession | None = None

    async def get(self, url: str, query: Mapping[str, str] | None = None) -> bytes:
        """The body of a 200. Raises `SourceMissing` for any other status or a body too large."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._ssl_context or True),
                timeout=aiohttp.ClientTimeout(total=None),
            )
        headers = {"Authorization": f"Bearer {self._token()}"} if self._token else None
        async with self._session.get(url, params=query, headers=headers, allow_redirects=False) as response:
            body = (
                await response.content.read(_MAX_BYTES + 1)
                if response.status != 200
                else await _whole(response)
            )
            if response.status != 200:
                raise SourceMissing(f"it answered {response.status}")
            return body

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_chunked(65_536):
        size += len(part)
        if size > _MAX_BYTES:
            raise SourceMissing(f"its answer is over {_MAX_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)
