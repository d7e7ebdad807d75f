"""Send results as events to a sink (Knative's `K_SINK`).

A sink is a Broker, a channel or a service, for sources that discard replies. The delivery is answered once the sink has
accepted the result. A failed call is retried for a while, because a redelivered event is sent to the gateway again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import msgspec

from handlers.backoff import Backoff
from handlers.contract.events import to_header
from handlers.doors.door import Answer
from handlers.forward.forward import Sender
from handlers.forward.outcome import FAILURES, OWN_FAULTS
from handlers.telemetry.logs import Logger
from handlers.transport.failures import UnusableResponse

_PAUSES: Final = (0.1, 5.0)
"""First and longest pause between two calls, in seconds."""
_ASKED_AGAIN: Final = frozenset({404, 408, 409, 425, 429})
"""Statuses that are retried in addition to 5xx: those of Knative's dispatcher (404, 408, 409, 429), and 425."""


class SinkUnavailable(Exception):
    """The sink did not accept the result in time. A redelivery may succeed."""


class SinkRefused(Exception):
    """The sink will never accept this result.

    `status_code` is its answer, or 0 if the result could not be sent.
    """

    def __init__(self, status_code: int) -> None:
        super().__init__(f"the sink answered {status_code}")
        self.status_code = status_code


class SinkOptions(msgspec.Struct, frozen=True):
    """Options of a sink; times are in seconds.

    `overrides` are extensions that are added to every event (`K_CE_OVERRIDES`).
    """

    url: str
    overrides: Mapping[str, str] = msgspec.field(default_factory=dict)
    call_seconds: float = 10.0
    give_up_seconds: float = 60.0


class EventSink:
    """Posts result events to a sink."""

    def __init__(self, sender: Sender, options: SinkOptions, log: Logger) -> None:
        self._sender = sender
        self._options = options
        self._log = log

    async def send(self, event: Answer) -> None:
        """Send a result. Raises `SinkUnavailable` or `SinkRefused`."""
        overrides = {f"ce-{name}": to_header(value) for name, value in self._options.overrides.items()}
        headers = {**event.headers, **overrides}
        backoff = Backoff(*_PAUSES)
        try:
            async with asyncio.timeout(self._options.give_up_seconds):
                while not await self._is_taken(headers, event.body):
                    await backoff.pause()
        except TimeoutError:
            raise SinkUnavailable from None

    async def _is_taken(self, headers: Mapping[str, str], body: bytes) -> bool:
        try:
            until = asyncio.get_running_loop().time() + self._options.call_seconds
            response = await self._sender.send(self._options.url, headers, body, until)
            status = response.status_code
        except UnusableResponse as error:
            status = error.status_code  # the rest of the response is not needed
        except OWN_FAULTS as error:
            self._log.error("result not sent to the sink", error=type(error).__name__)
            raise SinkRefused(0) from None
        except FAILURES as error:
            self._log.warning("sink unreachable", error=type(error).__name__)
            return False
        if 200 <= status < 300:
            return True
        self._log.warning("result refused by the sink", status=status)
        if status in _ASKED_AGAIN or status >= 500:
            return False
        raise SinkRefused(status)
