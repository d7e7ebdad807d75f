"""Publish a result and return when the broker has confirmed it.

Publishes to one topic that come within a few milliseconds share a call. A call that fails for a passing
reason is repeated while somebody still waits for it; one that is refused as a whole is repeated one by one,
so that a bad publish harms nobody else's. What is held in memory is what the callers wait for, and its
encoded form in at most `max_calls` calls per topic.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, Self

import msgspec

from handlers.contract.errors import InvalidSetting
from handlers.pubsub.api import PubSubApi
from handlers.pubsub.batch import TopicBatches, Waiting
from handlers.pubsub.errors import NO_ANSWER, PublishFailed, PubSubFailed, ResultTooLarge
from handlers.pubsub.limits import CERTAIN_BYTES, check_limits
from handlers.pubsub.names import topic_path

_BAD_REQUEST: Final = 400
_TOO_LARGE_STATUSES: Final = (_BAD_REQUEST, 413)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublisherOptions:
    """How long to wait, and how much to send at once.

    `timeout_seconds`: until a publish counts as failed, repeats included;
    `call_timeout_seconds`: of one call.
    `linger_seconds`: how long the first publish of a batch waits for others. A batch ends at `max_batch`
    publishes or `max_batch_bytes`; `max_calls` run at once per topic.
    """

    timeout_seconds: float = 30.0
    call_timeout_seconds: float = 10.0
    linger_seconds: float = 0.003
    max_batch: int = 200
    max_batch_bytes: int = 1_000_000
    max_calls: int = 4


class TopicState(Enum):
    """What a look at a topic shows."""

    PRESENT = "present"
    MISSING = "missing"
    HIDDEN = "hidden"
    """Our account may not look: publishing may still be allowed."""


class Publisher:
    """Publishes through `api`, which stays its opener's to close."""

    def __init__(
        self,
        api: PubSubApi,
        options: PublisherOptions | None = None,
        *,
        random_fraction: Callable[[], float] = random.random,
    ) -> None:
        self._api = api
        self._options = options or PublisherOptions()
        self._random_fraction = random_fraction
        self._topics: dict[str, TopicBatches] = {}
        self._is_closed = False

    async def publish(
        self,
        topic: str,
        data: bytes,
        attributes: Mapping[str, str] | None = None,
        *,
        timeout_seconds: float | None = None,
    ) -> str:
        """Publish `data` to `topic` (short or full name); returns the broker's id for it.

        Raises `ResultTooLarge` for what no attempt could publish, `PublishFailed` where the broker refused or
        did not confirm in time (then it may have it all the same), and for a name that no topic can have.
        """
        try:
            path = topic_path(self._api.options.project_id, topic)
        except InvalidSetting as error:  # a request may name its own topic: that must not surprise a door
            raise PublishFailed(topic, status=_BAD_REQUEST, reason=str(error)) from error
        waiting = _waiting(path, data, attributes or {})
        if self._is_closed:
            raise PublishFailed(path, status=NO_ANSWER, reason="the publisher is closed")
        seconds = self._options.timeout_seconds if timeout_seconds is None else timeout_seconds
        self._batches(path).add(waiting)
        try:
            async with asyncio.timeout(seconds):
                return await waiting.confirmed
        except TimeoutError:
            last = waiting.last_failure
            reason = f"not confirmed in {seconds:g} s" + (f"; last: {last.reason}" if last else "")
            raise PublishFailed(path, status=NO_ANSWER, reason=reason) from last

    async def check(self, topic: str) -> TopicState:
        """Whether `topic` exists. Raises `InvalidSetting` for a name that cannot be, else `PubSubFailed`."""
        path = topic_path(self._api.options.project_id, topic)
        try:
            await self._api.call("GET", path, timeout_seconds=self._options.call_timeout_seconds)
        except PubSubFailed as error:
            match error.status:
                case 404:
                    return TopicState.MISSING
                case 403:
                    return TopicState.HIDDEN
            raise
        return TopicState.PRESENT

    async def close(self, grace_seconds: float = 10.0) -> None:
        """Take no more, send what waits, and wait for it; what is not confirmed by then fails."""
        self._is_closed = True
        async with asyncio.TaskGroup() as group:
            for batches in list(self._topics.values()):
                group.create_task(batches.close(grace_seconds))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    def _batches(self, path: str) -> TopicBatches:
        """The batches of a topic; forgotten when idle, since requests may name topics of their own."""
        batches = self._topics.get(path)
        if batches is None:
            batches = self._topics[path] = TopicBatches(
                lambda batch: self._deliver(path, batch),
                linger_seconds=self._options.linger_seconds,
                max_batch=self._options.max_batch,
                max_batch_bytes=self._options.max_batch_bytes,
                max_calls=self._options.max_calls,
                on_idle=lambda: self._topics.pop(path, None),
            )
        return batches

    async def _deliver(self, path: str, batch: list[Waiting]) -> None:
        """Send a batch until it is confirmed, refused, or nobody waits for it any more."""
        attempt = 0
        while batch := [waiting for waiting in batch if not waiting.confirmed.done()]:
            try:
                ids = await self._send(path, batch)
            except PubSubFailed as error:
                if not error.is_retryable:
                    await self._refused(path, batch, error)
                    return
                for waiting in batch:
                    waiting.last_failure = error
                await asyncio.sleep(retry_delay_seconds(attempt, self._random_fraction()))
                attempt += 1
                continue
            for waiting, message_id in zip(batch, ids, strict=True):
                waiting.confirm(message_id)

    async def _refused(self, path: str, batch: list[Waiting], error: PubSubFailed) -> None:
        """Tell the one it concerns; of several, find out which by sending each alone."""
        if len(batch) == 1:
            batch[0].fail(_refusal(path, batch[0], error))
        elif error.status in _TOO_LARGE_STATUSES:
            for waiting in batch:
                await self._deliver(path, [waiting])
        else:
            for waiting in batch:
                waiting.fail(PublishFailed(path, status=error.status, reason=error.reason))

    async def _send(self, path: str, batch: list[Waiting]) -> list[str]:
        body = _encoder.encode(
            _PublishCall([_Publishing(data=waiting.data, attributes=waiting.attributes) for waiting in batch])
        )
        answer = await self._api.call(
            "POST", path, "publish", body=body, timeout_seconds=self._options.call_timeout_seconds
        )
        try:
            ids = _decoder.decode(answer).message_ids
        except msgspec.MsgspecError:
            ids = []
        if len(ids) != len(batch):
            reason = f"an answer that confirms {len(ids)} of {len(batch)}"
            raise PubSubFailed(path, status=NO_ANSWER, reason=reason)
        return ids


def retry_delay_seconds(attempt: int, random_fraction: float) -> float:
    """0.1 s, doubled each attempt, at most 2 s, of which half is at random (`random_fraction` in 0..1)."""
    full = min(2.0, 0.1 * 2.0 ** min(attempt, 10))
    return full / 2 + full / 2 * random_fraction


def _waiting(path: str, data: bytes, attributes: Mapping[str, str]) -> Waiting:
    try:
        size = check_limits(data, attributes)
    except UnicodeEncodeError as error:
        reason = "an attribute that is no valid Unicode"
        raise PublishFailed(path, status=_BAD_REQUEST, reason=reason) from error
    return Waiting(data, attributes, size=size)


def _refusal(path: str, waiting: Waiting, error: PubSubFailed) -> Exception:
    """A large publish that is refused alone is refused for its size: see `CERTAIN_BYTES`."""
    if error.status in _TOO_LARGE_STATUSES and waiting.size > CERTAIN_BYTES:
        return ResultTooLarge("bytes of data and attributes", size=waiting.size, limit=CERTAIN_BYTES)
    return PublishFailed(path, status=error.status, reason=error.reason)


class _Publishing(msgspec.Struct):
    """A PubsubMessage; msgspec writes bytes as base64."""

    data: bytes
    attributes: Mapping[str, str]


class _PublishCall(msgspec.Struct):
    messages: list[_Publishing]


class _PublishAnswer(msgspec.Struct):
    message_ids: list[str] = msgspec.field(name="messageIds", default_factory=list)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_PublishAnswer)
