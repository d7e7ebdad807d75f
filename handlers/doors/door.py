"""The interface of doors, which decode, forward and settle deliveries.

Deliveries and answers are plain headers and bytes, independent of the web framework.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

import msgspec

from handlers.byte_budget import HeldBytes
from handlers.contract.request import Request
from handlers.forward.forward import AttemptOptions, Forward
from handlers.forward.outcome import Answered, Outcome, result_bytes

CONNECTION: Final = "async_processor.connection"
"""Key of the `CallerConnection` in the scope of a request."""


class CallerConnection:
    """The connection of a client.

    `has_whole_request`: each request that was read from it has arrived completely. `until_read` returns once the client
    has read most of the data, or has disconnected.
    """

    __slots__ = ("_is_lost", "_task", "has_whole_request", "until_read")

    def __init__(self, until_read: Callable[[], Awaitable[None]]) -> None:
        self._is_lost = False
        self.until_read = until_read
        self.has_whole_request = False
        self._task: asyncio.Task[Any] | None = None

    def is_lost(self) -> bool:
        return self._is_lost

    def lose(self) -> None:
        self._is_lost = True
        if self._task is not None:
            self._task.cancel()

    def ends(self, task: asyncio.Task[Any] | None) -> None:
        """Cancel `task` if the client disconnects from now on (None: nothing)."""
        self._task = task


class Delivery(msgspec.Struct, frozen=True):
    """One HTTP delivery: headers with names in lower case, and the body.

    `held` are the bytes of the byte budget that the delivery uses; None in a process without a budget.
    """

    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    held: HeldBytes | None = None

    def header(self, name: bytes) -> str:
        """The first header of that name, or an empty string."""
        return next((value.decode("latin-1") for key, value in self.headers if key == name), "")


class Answer(msgspec.Struct, frozen=True):
    """The HTTP answer to a delivery. 200 and 204 ack, 429 and 503 nack."""

    status_code: int
    body: bytes = b""
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)


def plain(status_code: int, text: str, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer with one line of text."""
    return Answer(status_code, (text + "\n").encode(), {"content-type": "text/plain; charset=utf-8", **(headers or {})})


def retry_after(seconds: float) -> dict[str, str]:
    """`Retry-After` in whole seconds, rounded up, at least 1."""
    return {"retry-after": str(max(1, -int(-seconds // 1)))}


ContextT = TypeVar("ContextT")


class Door(Protocol[ContextT]):
    """A kind of delivery; `ContextT` holds the data for settling one."""

    async def decode(self, delivery: Delivery) -> tuple[Request | Answered, ContextT] | Answer:
        """The request in a delivery, its final outcome, or an immediate answer."""
        ...

    def limits(self, context: ContextT) -> AttemptOptions:
        """The attempt options that follow from this delivery."""
        ...

    async def settle(self, context: ContextT, outcome: Outcome) -> Answer:
        """The answer to the caller for an outcome."""
        ...


async def handle(door: Door[ContextT], delivery: Delivery, forward: Forward) -> Answer:
    """The answer to one delivery. Never raises: invalid input is a final result or a 4xx."""
    decoded = await door.decode(delivery)
    if isinstance(decoded, Answer):
        return decoded
    request, context = decoded
    if isinstance(request, Answered):
        return await door.settle(context, request)
    limits, held = door.limits(context), delivery.held
    if held is not None:
        limits = msgspec.structs.replace(limits, ask_for_room=held.answer.ask)
    outcome = await forward(request, limits)
    if held is not None:
        await held.room_for_result(result_bytes(outcome))
    return await door.settle(context, outcome)
