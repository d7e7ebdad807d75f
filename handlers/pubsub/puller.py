"""Receive from a pull subscription under a lease: pull, extend, acknowledge, return.

The lease is the subscription's ack deadline. A delivery that is not acknowledged by then is delivered again, to this
consumer or another, and Pub/Sub may deliver twice at any time. A consumer that must not handle a result twice therefore
compares `id` and `request_token`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from handlers.pubsub.channel import Clients, PubSubChannel, subscription_path
from handlers.pubsub.errors import NoAnswerInTime, PubSubFailed

MAX_PULL: Final = 1_000
"""Pub/Sub's own limit for one pull."""

_IDS_PER_CALL: Final = 1_000
"""Maximum number of ids in one call: about 200 kB, and the service accepts 512 kB."""

_CALL_TIMEOUT_SECONDS: Final = 10.0
_RETRIED_FOR_SECONDS: Final = 20.0


class Pulled(msgspec.Struct, frozen=True):
    """One delivery; `ack_id` names its lease.

    `delivery_attempt` is 0 without a dead-letter policy.
    """

    ack_id: str
    data: bytes
    attributes: Mapping[str, str]
    message_id: str
    delivery_attempt: int = 0


class Puller:
    """Reads `subscription` (short or full name) through `channel`."""

    def __init__(self, channel: PubSubChannel, subscription: str) -> None:
        self._channel = channel
        self._path = subscription_path(channel.options.project_id, subscription)

    async def lease_seconds(self) -> float:
        """The subscription's ack deadline in seconds.

        Raises `PubSubFailed`; its status is 404 if there is no such subscription.
        """
        found = await self._call(
            lambda clients: clients.subscriber.get_subscription(
                subscription=self._path, retry=None, timeout=_CALL_TIMEOUT_SECONDS
            )
        )
        return float(found.ack_deadline_seconds)

    async def receive(self, limit: int, *, wait_seconds: float = 1.0) -> list[Pulled]:
        """Up to `limit` deliveries, at most `MAX_PULL`.

        Returns an empty list if nothing arrives within `wait_seconds`. Raises `PubSubFailed`; if the error
        `is_retryable`, call again.
        """

        async def pull(clients: Clients) -> Any:
            return await clients.subscriber.pull(
                subscription=self._path,
                max_messages=min(limit, MAX_PULL),
                retry=None,
                timeout=wait_seconds,
            )

        try:
            answer = await self._channel.call(self._path, pull, wait_seconds + 1.0)
        except NoAnswerInTime:
            return []
        return [_pulled(each) for each in type(answer).pb(answer).received_messages]

    async def ack(self, ack_ids: Sequence[str]) -> None:
        """Acknowledge deliveries. Repeating it is a no-op."""

        async def acknowledge(clients: Clients, ids: Sequence[str]) -> None:
            await clients.subscriber.acknowledge(
                subscription=self._path, ack_ids=list(ids), retry=None, timeout=_CALL_TIMEOUT_SECONDS
            )

        await self._each(ack_ids, acknowledge)

    async def extend(self, ack_ids: Sequence[str], seconds: int) -> None:
        """Extend the leases to `seconds` (0 to 600) from now."""

        async def modify(clients: Clients, ids: Sequence[str]) -> None:
            await clients.subscriber.modify_ack_deadline(
                subscription=self._path,
                ack_ids=list(ids),
                ack_deadline_seconds=seconds,
                retry=None,
                timeout=_CALL_TIMEOUT_SECONDS,
            )

        await self._each(ack_ids, modify)

    async def give_back(self, ack_ids: Sequence[str]) -> None:
        """Return deliveries, so that they are delivered again at once."""
        await self.extend(ack_ids, 0)

    async def _call(self, call: Callable[[Clients], Awaitable[Any]]) -> Any:
        return await self._channel.call(self._path, call, _CALL_TIMEOUT_SECONDS)

    async def _each(self, ack_ids: Sequence[str], call: Callable[[Clients, Sequence[str]], Awaitable[None]]) -> None:
        """Call with all ids, `_IDS_PER_CALL` at a time; retry temporary failures."""
        from google.api_core.exceptions import RetryError
        from google.api_core.retry import AsyncRetry

        retry = AsyncRetry(predicate=_is_retryable, initial=0.1, maximum=2.0, timeout=_RETRIED_FOR_SECONDS)
        for start in range(0, len(ack_ids), _IDS_PER_CALL):
            ids = ack_ids[start : start + _IDS_PER_CALL]

            async def once(clients: Clients, ids: Sequence[str] = ids) -> None:
                await call(clients, ids)

            try:
                await retry(self._call)(once)
            except RetryError as error:
                raise error.cause or error from None


def _is_retryable(error: Exception) -> bool:
    return isinstance(error, PubSubFailed) and error.is_retryable


def _pulled(received: Any) -> Pulled:
    """Convert a protobuf `ReceivedMessage`, which is cheaper than proto-plus's."""
    message = received.message
    return Pulled(
        received.ack_id,
        message.data,
        dict(message.attributes),
        message.message_id,
        received.delivery_attempt,
    )
