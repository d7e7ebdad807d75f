"""HTTP client for gateways and handlers. It makes no retries."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import httpx
import msgspec

from handlers.transport.connection import AskForRoom, Response
from handlers.transport.transport import Transport, TransportOptions

DROPPED_REASON_HEADER: Final = "x-llm-d-request-dropped-reason"
QUEUE_DURATION_HEADER: Final = "x-llm-d-flow-queue-duration-ms"
BAND_HEADROOM_HEADER: Final = "x-llm-d-flow-band-headroom"


class GatewayResponse(msgspec.Struct, frozen=True):
    """A complete response: header names in lower case, `body` decompressed."""

    status_code: int
    headers: Mapping[str, str]
    body: bytes


class Gateway:
    """Connections to all gateways, opened on first use and closed by `aclose`.

    `token` returns our bearer token; it is called for each request.
    """

    def __init__(self, options: TransportOptions, token: Callable[[], str] | None = None) -> None:
        self._token = token
        self._transport = Transport(options)
        self.in_use = 0
        """Calls in flight; each uses its own connection."""

    async def send(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        until: float = math.inf,
        ask_for_room: AskForRoom | None = None,
    ) -> GatewayResponse:
        """POST `body` and read the whole response.

        At `until`, a time of the event loop's clock, the connection is closed and `TimeoutError` is raised. Raises
        one of `handlers.forward.outcome.FAILURES`, or `UnusableResponse`.
        """
        if self._token is not None:
            headers = {**headers, "authorization": f"Bearer {self._token()}"}
        self.in_use += 1
        try:
            response = await self._transport.post(url, headers, body, until, ask_for_room)
        finally:
            self.in_use -= 1
        return _by_name(response)

    async def get(self, url: str, headers: Mapping[str, str] | None = None) -> GatewayResponse:
        """GET a small page of the gateway (models, health), for checks."""
        request = httpx.Request("GET", url, headers=headers)
        response = await self._transport.handle_async_request(request)
        return _by_name(Response(response.status_code, response.headers.raw, await response.aread()))

    async def aclose(self) -> None:
        await self._transport.aclose()


def _by_name(response: Response) -> GatewayResponse:
    """The response with its headers by name. Of repeated headers, the last one counts."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in response.headers}
    return GatewayResponse(response.status_code, headers, response.body)
