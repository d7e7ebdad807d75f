"""Publish to topics, and wait for the broker's confirmation.

Publishes to one topic within a few milliseconds share a call; a batch is bounded by time, number, bytes and concurrent
calls. A call that fails for a temporary reason is retried while a caller waits for it. If a batch is refused, its
publishes are sent one by one, so that an invalid publish does not fail the others. A publish is kept in memory only
while its caller waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from handlers.contract.errors import InvalidSetting
from handlers.pubsub.channel import Clients, PubSubChannel, topic_path
from handlers.pubsub.errors import NO_ANSWER, PublishFailed, PubSubFailed, ResultTooLarge


class Waiting:
    """One publish and the future that its caller awaits. `size` is in bytes."""

    __slots__ = ("attributes", "confirmed", "data", "last_failure", "size")

    def __init__(self, data: bytes, attributes: Mapping[str, str], *, size: int) -> None:
        self.data = data
        self.attributes = attributes
        self.size = size
        self.confirmed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.last_failure: PubSubFailed | None = None

    def confirm(self, message_id: str) -> None:
        """Give the caller the broker's message id, if the caller still waits."""
        if not self.confirmed.done():
            self.confirmed.set_result(message_id)

    def fail(self, error: Exception) -> None:
        """Raise `error` in the caller, if it still waits."""
        if not self.confirmed.done():
            self.confirmed.set_exception(error)


class TopicBatches:
    """Batches of the publishes to one topic.

    `deliver` sends a batch and must confirm or fail each of its publishes. `on_idle` is called when nothing waits or is
    in flight.
    """

    def __init__(
        self,
        deliver: Callable[[list[Waiting]], Awaitable[None]],
        options: PublisherOptions,
        on_idle: Callable[[], object],
    ) -> None:
        self._deliver = deliver
        self._options = options
        self._on_idle = on_idle
        self._waiting: deque[Waiting] = deque()
        self._waiting_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._calls: dict[asyncio.Task[None], list[Waiting]] = {}

    def add(self, waiting: Waiting) -> None:
        """Add a publish. Its batch is sent when it is full or its delay has passed."""
        self._waiting.append(waiting)
        self._waiting_bytes += waiting.size
        if len(self._waiting) >= self._options.max_batch or self._waiting_bytes >= self._options.max_batch_bytes:
            self._send()
        elif self._timer is None and len(self._calls) < self._options.max_calls:
            self._timer = asyncio.get_running_loop().call_later(self._options.linger_seconds, self._send)

    async def close(self, grace_seconds: float) -> None:
        """Send all waiting publishes; after `grace_seconds`, fail the unconfirmed ones."""
        self._send()
        try:
            async with asyncio.timeout(grace_seconds):
                while self._calls:
                    await asyncio.wait(self._calls)
        except TimeoutError:
            await self._give_up()

    async def _give_up(self) -> None:
        """Cancel the calls; fail their publishes and the waiting ones.

        The waiting publishes are removed first, so that no new call starts.
        """
        calls = dict(self._calls)
        given_up = [*self._waiting, *(waiting for batch in calls.values() for waiting in batch)]
        self._waiting.clear()
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        for waiting in given_up:
            reason = "not confirmed before the publisher was closed"
            waiting.fail(PublishFailed("publisher", status=NO_ANSWER, reason=reason))

    def _send(self) -> None:
        """Start as many calls as allowed. The end of a call starts the next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting and len(self._calls) < self._options.max_calls:
            batch = self._take()
            call = asyncio.ensure_future(self._deliver(batch))
            self._calls[call] = batch
            call.add_done_callback(self._ended)
        self._tell_if_idle()

    def _take(self) -> list[Waiting]:
        """The next batch. A single publish may exceed the byte limit."""
        batch: list[Waiting] = []
        size = 0
        while self._waiting and len(batch) < self._options.max_batch:
            if batch and size + self._waiting[0].size > self._options.max_batch_bytes:
                break
            waiting = self._waiting.popleft()
            self._waiting_bytes -= waiting.size
            batch.append(waiting)
            size += waiting.size
        return batch

    def _ended(self, call: asyncio.Task[None]) -> None:
        """Called when a call ends: start the next batch.

        If the call ended with an exception (a defect), its publishes fail.
        """
        batch = self._calls.pop(call)
        error = None if call.cancelled() else call.exception()
        if error is not None:
            for waiting in batch:
                waiting.fail(error if isinstance(error, Exception) else RuntimeError(repr(error)))
        if self._timer is None:  # otherwise the waiting publishes are still within their linger time
            self._send()

    def _tell_if_idle(self) -> None:
        if not self._waiting and not self._calls:
            self._on_idle()


if TYPE_CHECKING:
    from google.pubsub_v1.types import PublishRequest

MAX_BYTES: Final = 10_000_000
"""Pub/Sub's limit for one message and for one call; the emulator has none."""

MAX_ATTRIBUTES: Final = 100
MAX_ATTRIBUTE_NAME_BYTES: Final = 256
MAX_ATTRIBUTE_BYTES: Final = 1_024
_FRAME_BYTES: Final = 512
"""Other bytes of a call with one message: the topic's name (at most 300) and protobuf's lengths."""

_ATTRIBUTE_FRAME_BYTES: Final = 12
"""Protobuf's tags and lengths around one attribute."""

CERTAIN_BYTES: Final = 9_000_000
"""A larger publish that is refused when sent alone counts as too large, because the service may count differently."""

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 2.0
_BAD_REQUEST: Final = 400
_TOO_LARGE_STATUSES: Final = (_BAD_REQUEST, 413)


class PublisherOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Time limits and batch sizes.

    A publish fails after `timeout_seconds`, including retries; `call_timeout_seconds` is the gRPC deadline of one call.
    The first publish of a batch waits `linger_seconds` for others, since a gRPC call costs as much as about 50 of its
    publishes. A batch has at most `max_batch` publishes and `max_batch_bytes` bytes. At most `max_calls` per topic
    run at once.
    """

    timeout_seconds: float = 30.0
    call_timeout_seconds: float = 10.0
    linger_seconds: float = 0.01
    max_batch: int = 200
    max_batch_bytes: int = 1_000_000
    max_calls: int = 4


class TopicState(Enum):
    """Whether a topic exists, as far as our account can read."""

    PRESENT = "present"
    MISSING = "missing"
    HIDDEN = "hidden"
    """Our account cannot read the topic, but may still be allowed to publish."""


class Publisher:
    """Publishes through `channel`, which it does not close."""

    def __init__(self, channel: PubSubChannel, options: PublisherOptions | None = None) -> None:
        self._channel = channel
        self._options = options or PublisherOptions()
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
        """Publish `data` to `topic`; return the broker's message id.

        `topic` is a short or full name. Raises `ResultTooLarge` if no attempt could succeed. Raises `PublishFailed` for
        an invalid topic name, if the broker refused, or if it did not confirm in time; in the last case it may have the
        message.
        """
        try:
            path = topic_path(self._channel.options.project_id, topic)
        # Not the door's setting: a request may name its own topic.
        except InvalidSetting as error:
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
        """Whether `topic` exists. Raises `InvalidSetting` for an invalid name, else `PubSubFailed`."""
        path = topic_path(self._channel.options.project_id, topic)
        try:
            seconds = self._options.call_timeout_seconds
            await self._channel.call(
                path,
                lambda clients: clients.publisher.get_topic(topic=path, retry=None, timeout=seconds),
                seconds,
            )
        except PubSubFailed as error:
            match error.status:
                case 404:
                    return TopicState.MISSING
                case 403:
                    return TopicState.HIDDEN
            raise
        return TopicState.PRESENT

    async def close(self, grace_seconds: float = 10.0) -> None:
        """Accept no more publishes; wait at most `grace_seconds` for the others."""
        self._is_closed = True
        async with asyncio.TaskGroup() as group:
            for batches in list(self._topics.values()):
                group.create_task(batches.close(grace_seconds))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    def _batches(self, path: str) -> TopicBatches:
        """The batches of a topic.

        They are dropped when idle, since requests may name any number of topics.
        """
        batches = self._topics.get(path)
        if batches is None:
            batches = self._topics[path] = TopicBatches(
                lambda batch: self._deliver(path, batch), self._options, lambda: self._topics.pop(path, None)
            )
        return batches

    async def _deliver(self, path: str, batch: list[Waiting]) -> None:
        """Send a batch until it is confirmed, refused or no longer awaited."""
        from google.api_core.retry import AsyncRetry

        def is_wanted(error: Exception) -> bool:
            if not isinstance(error, PubSubFailed) or not error.is_retryable:
                return False
            for waiting in batch:
                waiting.last_failure = error
            return bool(_unconfirmed(batch))

        retry = AsyncRetry(
            predicate=is_wanted,
            initial=_FIRST_PAUSE_SECONDS,
            maximum=_LONGEST_PAUSE_SECONDS,
            timeout=None,  # the callers' timeouts end this loop
        )
        try:
            await retry(self._send)(path, batch)
        except PubSubFailed as error:
            if not error.is_retryable:
                await self._refused(path, batch, error)

    async def _refused(self, path: str, batch: list[Waiting], error: PubSubFailed) -> None:
        """Fail a refused publish. To find it, send a batch one by one."""
        if len(batch) == 1:
            batch[0].fail(_refusal(path, batch[0], error))
        elif error.status in _TOO_LARGE_STATUSES:
            for waiting in batch:
                await self._deliver(path, [waiting])
        else:
            for waiting in batch:
                waiting.fail(PublishFailed(path, status=error.status, reason=error.reason))

    async def _send(self, path: str, batch: list[Waiting]) -> None:
        """Send the publishes that are still awaited, and confirm them. Raises `PubSubFailed`."""
        wanted = _unconfirmed(batch)
        if not wanted:
            return
        seconds = self._options.call_timeout_seconds

        async def publish(clients: Clients) -> Any:
            return await clients.publisher.publish(request=_publish_request(path, wanted), retry=None, timeout=seconds)

        answer = await self._channel.call(path, publish, seconds)
        ids = answer.message_ids if answer else []  # None: gRPC could not decode the answer
        if len(ids) != len(wanted):
            reason = f"an answer that confirms {len(ids)} of {len(wanted)}"
            raise PubSubFailed(path, status=NO_ANSWER, reason=reason)
        for waiting, message_id in zip(wanted, ids, strict=True):
            waiting.confirm(message_id)


def check_limits(data: bytes, attributes: Mapping[str, str]) -> int:
    """The size of a publish in bytes. Raises `ResultTooLarge`, which names the exceeded limit.

    Raises `UnicodeEncodeError` for an attribute with a lone surrogate, which protobuf cannot encode.
    """
    size = len(data) + _FRAME_BYTES
    if len(attributes) > MAX_ATTRIBUTES:
        raise ResultTooLarge("number of attributes", size=len(attributes), limit=MAX_ATTRIBUTES)
    for name, value in attributes.items():
        name_size, value_size = len(name.encode()), len(value.encode())
        if name_size > MAX_ATTRIBUTE_NAME_BYTES:
            what = f"bytes in the name of attribute {name[:40]!r}…"
            raise ResultTooLarge(what, size=name_size, limit=MAX_ATTRIBUTE_NAME_BYTES)
        if value_size > MAX_ATTRIBUTE_BYTES:
            raise ResultTooLarge(f"bytes in attribute {name!r}", size=value_size, limit=MAX_ATTRIBUTE_BYTES)
        size += name_size + value_size + _ATTRIBUTE_FRAME_BYTES
    if size > MAX_BYTES:
        raise ResultTooLarge("bytes of data and attributes", size=size, limit=MAX_BYTES)
    return size


def _waiting(path: str, data: bytes, attributes: Mapping[str, str]) -> Waiting:
    try:
        size = check_limits(data, attributes)
    except UnicodeEncodeError as error:
        reason = "an attribute that is not valid Unicode"
        raise PublishFailed(path, status=_BAD_REQUEST, reason=reason) from error
    return Waiting(data, attributes, size=size)


def _unconfirmed(batch: list[Waiting]) -> list[Waiting]:
    return [waiting for waiting in batch if not waiting.confirmed.done()]


def _publish_request(path: str, batch: list[Waiting]) -> PublishRequest:
    """The request for a batch, made of protobuf's classes.

    Those of proto-plus cost four times as much CPU time.
    """
    from google.pubsub_v1.types import PublishRequest, PubsubMessage

    message, request = PubsubMessage.pb(), PublishRequest.pb()
    messages = [message(data=waiting.data, attributes=waiting.attributes) for waiting in batch]
    return PublishRequest.wrap(request(topic=path, messages=messages))  # type: ignore[no-any-return]  # untyped


def _refusal(path: str, waiting: Waiting, error: PubSubFailed) -> Exception:
    """The error of a publish that was refused when sent alone."""
    if error.status in _TOO_LARGE_STATUSES and waiting.size > CERTAIN_BYTES:
        return ResultTooLarge("bytes of data and attributes", size=waiting.size, limit=CERTAIN_BYTES)
    return PublishFailed(path, status=error.status, reason=error.reason)
