"""Receive from a pull subscription under a lease: pull, extend, acknowledge, give back.

The lease is the subscription's ack deadline. What is not acknowledged by then comes again, to this reader or
another; and Pub/Sub may deliver twice at any time. An acknowledgement therefore proves nothing: a reader that
must not see a result twice compares `id` and `request_token`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import msgspec

from handlers.pubsub.api import PubSubApi
from handlers.pubsub.errors import PubSubFailed
from handlers.pubsub.names import subscription_path
from handlers.pubsub.publisher import retry_delay_seconds

MAX_PULL: Final = 1_000
"""Pub/Sub's own limit for one pull."""

_IDS_PER_CALL: Final = 1_000
"""About 200 kB: the service takes 512 kB of ack ids."""

_CALL_TIMEOUT_SECONDS: Final = 10.0
_ATTEMPTS: Final = 4


class Pulled(msgspec.Struct, frozen=True):
    """One delivery: `ack_id` names its lease; `delivery_attempt` is 0 without a dead-letter policy."""

    ack_id: str
    data: bytes
    attributes: Mapping[str, str]
    message_id: str
    delivery_attempt: int = 0


class Puller:
    """Reads `subscription` (short or full name) through `api`, which stays its opener's to close."""

    def __init__(self, api: PubSubApi, subscription: str) -> None:
        self._api = api
        self._path = subscription_path(api.options.project_id, subscription)

    async def lease_seconds(self) -> float:
        """The subscription's ack deadline. Raises `PubSubFailed`, with status 404 where there is none."""
        answer = await self._api.call("GET", self._path, timeout_seconds=_CALL_TIMEOUT_SECONDS)
        return float(msgspec.json.decode(answer, type=_Subscription).ack_deadline_seconds)

    async def receive(self, limit: int, *, wait_seconds: float = 0.0) -> list[Pulled]:
        """At most `limit` deliveries (and at most `MAX_PULL`); empty when none came in `wait_seconds`.

        With 0 it says what is there now, and may miss some: the service then asks only some of its servers.
        Raises `PubSubFailed`; calling again is right where it `is_retryable`.
        """
        body = _encoder.encode(_Pull(min(limit, MAX_PULL), is_immediate=wait_seconds <= 0))
        # A pull that waits is ended from here: without an answer it means that nothing came.
        seconds = wait_seconds if wait_seconds > 0 else _CALL_TIMEOUT_SECONDS
        try:
            async with asyncio.timeout(seconds):
                answer = await self._api.call(
                    "POST", self._path, "pull", body=body, timeout_seconds=seconds + 1.0
                )
        except TimeoutError:
            return []
        return [received.pulled() for received in _answer_decoder.decode(answer).received]

    async def ack(self, ack_ids: Sequence[str]) -> None:
        """Drop deliveries that are safe with their reader; sending it twice does no harm."""
        await self._each("acknowledge", ack_ids, _Ids)

    async def extend(self, ack_ids: Sequence[str], seconds: int) -> None:
        """Hold them for `seconds` (0 to 600) from now."""
        await self._each("modifyAckDeadline", ack_ids, lambda ids: _Deadline(ids, seconds))

    async def give_back(self, ack_ids: Sequence[str]) -> None:
        """Let them be delivered again at once."""
        await self.extend(ack_ids, 0)

    async def _each(
        self, verb: str, ack_ids: Sequence[str], body: Callable[[Sequence[str]], msgspec.Struct]
    ) -> None:
        for start in range(0, len(ack_ids), _IDS_PER_CALL):
            encoded = _encoder.encode(body(ack_ids[start : start + _IDS_PER_CALL]))
            await _repeated(lambda: self._post(verb, encoded))  # noqa: B023  # awaited before the next turn

    async def _post(self, verb: str, body: bytes) -> bytes:
        return await self._api.call(
            "POST", self._path, verb, body=body, timeout_seconds=_CALL_TIMEOUT_SECONDS
        )


async def _repeated(call: Callable[[], Awaitable[bytes]]) -> bytes:
    """`call`, again where it fails for a passing reason, `_ATTEMPTS` times in all."""
    for attempt in range(_ATTEMPTS - 1):
        try:
            return await call()
        except PubSubFailed as error:
            if not error.is_retryable:
                raise
            await asyncio.sleep(retry_delay_seconds(attempt, random.random()))
    return await call()


class _Pull(msgspec.Struct):
    limit: int = msgspec.field(name="maxMessages")
    is_immediate: bool = msgspec.field(name="returnImmediately")


class _Ids(msgspec.Struct, rename="camel"):
    ack_ids: Sequence[str]


class _Deadline(msgspec.Struct, rename="camel"):
    ack_ids: Sequence[str]
    ack_deadline_seconds: int


class _Subscription(msgspec.Struct, rename="camel"):
    ack_deadline_seconds: int = 10


class _Message(msgspec.Struct, rename="camel"):
    message_id: str = ""
    data: bytes = b""
    attributes: dict[str, str] = msgspec.field(default_factory=dict)


class _Received(msgspec.Struct, rename="camel"):
    ack_id: str
    message: _Message = msgspec.field(default_factory=_Message)
    delivery_attempt: int = 0

    def pulled(self) -> Pulled:
        """In our words."""
        message = self.message
        return Pulled(
            self.ack_id, message.data, message.attributes, message.message_id, self.delivery_attempt
        )


class _PullAnswer(msgspec.Struct):
    received: list[_Received] = msgspec.field(name="receivedMessages", default_factory=list)


_encoder = msgspec.json.Encoder()
_answer_decoder = msgspec.json.Decoder(_PullAnswer)
