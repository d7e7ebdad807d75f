"""GET a text over HTTP, bounded in size."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from typing import Final

from handlers.gates.metric.feed import SourceMissing
from handlers.transport.failures import UnusableResponse
from handlers.transport.transport import TransportOptions, http_client

_MAX_BYTES: Final = 32_000_000
"""A large router's /metrics is a few megabytes; more than this is another page than we think."""


class HttpText:
    """One client for all sources; closed by `aclose`. The feed sets the timeout.

    `token` gives the bearer token that is sent along, `ssl_context` says whom to trust; None is none, and
    the system's own CAs.
    """

    def __init__(
        self, token: Callable[[], str] | None = None, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self._token = token
        self._client = http_client(TransportOptions(max_response_bytes=_MAX_BYTES, ssl_context=ssl_context))

    async def get(self, url: str, query: Mapping[str, str] | None = None) -> bytes:
        """The body of a 200. Raises `SourceMissing` for any other status or a body that cannot be used."""
        headers = {"authorization": f"Bearer {self._token()}"} if self._token else None
        try:
            response = await self._client.get(url, params=query, headers=headers)
        except UnusableResponse as error:
            raise SourceMissing(f"its answer {error}") from None
        if response.status_code != 200:
            raise SourceMissing(f"it answered {response.status_code}")
        return response.content

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()
