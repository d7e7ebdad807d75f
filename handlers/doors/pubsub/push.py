"""The push door: answer Pub/Sub pushes and publish their results.

The answer is 204 (ack) only after the result is published, else 429 or 503 (nack). The subscription's backoff decides
when a nacked message is redelivered, and every nack uses up a delivery attempt. A dead-lettered message that is pushed
to this door becomes a final result.

Pushes have one of three forms (`PUSH_FORM`). `wrapped` is a subscription's default; Eventarc and Knative send it as the
data of an event. In an unwrapped push (`--push-no-wrapper`) the body is the request, and the publisher's attributes are
HTTP headers. So a publisher can set any header. Therefore the form is never guessed from headers, and only
`unwrapped-metadata` reads `x-goog-pubsub-*`.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import msgspec

from handlers.clock import FollowedClock
from handlers.contract.errors import InvalidEvent, InvalidRequest
from handlers.contract.events import is_event
from handlers.contract.lenient_json import MALFORMED, salvage, shape_of
from handlers.contract.request import Request, decode_body_aside
from handlers.contract.result import ErrorCode, Result, ResultNames, encode_result, error_result
from handlers.doors.cloudevents.foreign_event import read_event
from handlers.doors.door import Answer, Delivery, plain, retry_after
from handlers.forward.forward import AttemptOptions, failed, invalid
from handlers.forward.middleware.account import detailed
from handlers.forward.outcome import Answered, Outcome, Retry
from handlers.number_text import counted, whole
from handlers.pubsub.errors import PublishFailed, ResultTooLarge
from handlers.telemetry.dependencies import SkewWatch
from handlers.telemetry.logs import Logger, RareWarning

if TYPE_CHECKING:
    # Imports Redis, which most push doors do not need.
    from handlers.doors.pubsub.deduplicated import AnswerLease, Once


_PREFIX = b"x-goog-pubsub-"
_ATTRIBUTE_LIMIT = 100

PushForm = Literal["wrapped", "unwrapped", "unwrapped-metadata"]


class Push(msgspec.Struct, frozen=True):
    """One push: the request body and its Pub/Sub metadata.

    `subscription` is the full or short name as sent, or empty if unwrapped without metadata. `delivery_attempt`
    counts from 1; None without a dead-letter policy. `published_at` is in Unix seconds; None if unknown.
    """

    body: bytes
    subscription: str = ""
    message_id: str = ""
    attributes: Mapping[str, str] = msgspec.field(default_factory=dict)
    delivery_attempt: int | None = None
    published_at: float | None = None

    def created(self, requested: float | None) -> float | None:
        """The request's creation time, with a fraction of a second if known.

        `requested` is the request's own `created`. The publish time replaces it if it is absent or in the same second.
        """
        if self.published_at is None or (requested is not None and int(requested) != int(self.published_at)):
            return requested
        return self.published_at


class _Wire(msgspec.Struct):
    data: str | None = None
    attributes: dict[str, str] | None = None
    messageId: str = ""  # noqa: N815  # the wire's name
    message_id: str = ""
    publishTime: Any = None  # noqa: N815  # the wire's name; of any type, since nothing depends on it
    publish_time: Any = None


class _Wrapped(msgspec.Struct):
    message: _Wire
    subscription: str = ""
    deliveryAttempt: int | None = None  # noqa: N815  # the wire's name


_decoder = msgspec.json.Decoder(_Wrapped)


def decode_push(delivery: Delivery, form: PushForm = "wrapped") -> Push:
    """Decode a push of this form, but not the request in it. Raises `InvalidEvent`."""
    if form == "unwrapped":
        return Push(body=delivery.body)
    metadata = _metadata_headers(delivery)
    if form == "unwrapped-metadata":
        if "subscription-name" not in metadata:
            raise InvalidEvent(
                "x-goog-pubsub-subscription-name",
                found="nothing",
                accepted="one header, as written by Pub/Sub",
            )
        return Push(
            body=delivery.body,
            subscription=metadata["subscription-name"],
            message_id=metadata.get("message-id", ""),
            published_at=_unix_seconds(metadata.get("publish-time", "")),
        )
    if metadata:
        raise InvalidEvent("push", found="an unwrapped push", accepted="a wrapped one, or PUSH_FORM=unwrapped-metadata")
    if is_event(delivery.headers):
        return _decode_wrapped(read_event(delivery.headers, delivery.body).data)
    return _decode_wrapped(delivery.body)


def _metadata_headers(delivery: Delivery) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in delivery.headers:
        if not name.startswith(_PREFIX):
            continue
        field = name[len(_PREFIX) :].decode("latin-1")
        if field in found:  # the publisher has set an attribute of this name
            raise InvalidEvent(name.decode("latin-1"), found="two headers", accepted="one")
        found[field] = value.decode("latin-1")
    return found


def _decode_wrapped(body: bytes) -> Push:
    try:
        frame = _decoder.decode(body)
        data = base64.b64decode(frame.message.data or "", validate=True)
    except MALFORMED as error:
        raise InvalidEvent("push", found=_found(body, error), accepted="a Pub/Sub push body") from None
    except (binascii.Error, ValueError):
        raise InvalidEvent("message.data", found="a string that is not base64", accepted="a base64 string") from None
    attributes = frame.message.attributes or {}
    if len(attributes) > _ATTRIBUTE_LIMIT:
        raise InvalidEvent("message.attributes", found=f"{len(attributes)}", accepted="at most 100")
    return Push(
        body=data,
        subscription=frame.subscription,
        message_id=frame.message.messageId or frame.message.message_id,
        attributes=attributes,
        delivery_attempt=frame.deliveryAttempt,
        published_at=_unix_seconds(frame.message.publishTime or frame.message.publish_time),
    )


def _unix_seconds(text: object) -> float | None:
    """Unix seconds of an RFC 3339 time; None for other text."""
    try:
        at = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return max(0.0, at.timestamp()) or None if at and at.tzinfo else None


def _found(body: bytes, error: Exception) -> str:
    is_typed = isinstance(error, msgspec.ValidationError) and body.lstrip()[:1] == b"{"
    return str(error).replace("`", "") if is_typed else shape_of(body, error)


MARGIN_SECONDS: Final = 5.0
"""Part of the ack deadline that is reserved for publishing the result and answering."""

_DEAD_LETTER_ATTRIBUTE: Final = "CloudPubSubDeadLetterSourceSubscription"
_REASON_ATTRIBUTE: Final = "async_processor_dead_letter_reason"
_DEAD_LETTER_COUNT: Final = "CloudPubSubDeadLetterSourceDeliveryCount"
_TOPIC = re.compile(r"(projects/(?P<project>[^/]+)/topics/)?[A-Za-z][A-Za-z0-9._~+%-]{2,254}")
_MAX_ATTRIBUTE_BYTES: Final = 1_024
_ROUTE_ATTRIBUTE: Final = "result_route"
_ROUTE: Final = ("metadata", _ROUTE_ATTRIBUTE)
_TOPIC_FIELD: Final = ("result_queue_name",)
_ROUTING: Final[frozenset[tuple[str, ...]]] = frozenset({_ROUTE, _TOPIC_FIELD})
_BUSY: Final = frozenset({"rejected", "gate_closed", "quota_exhausted"})
_ACCEPTED: Final = Answer(204)


class Subscription(msgspec.Struct, frozen=True):
    """Settings of one push subscription; `name` is its key in the routes.

    `is_topic_fixed`: results go to `result_topic`, even if a request names another topic.
    """

    name: str
    result_topic: str
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    ack_deadline_seconds: float = 600.0
    min_redelivery_seconds: float = 10.0
    is_topic_fixed: bool = False


class PushContext(msgspec.Struct, frozen=True):
    """The data for settling one push; `arrived_at` is in monotonic seconds."""

    push: Push
    subscription: Subscription
    topic: str
    arrived_at: float
    route: str = ""
    turn: AnswerLease | None = None
    request: Request | None = None


class ResultPublisher(Protocol):
    """Publishes results to Pub/Sub."""

    async def publish(self, topic: str, data: bytes, attributes: Mapping[str, str] | None = None) -> str:
        """Publish and wait for the confirmation. Raises `PublishFailed` or `ResultTooLarge`."""
        ...


class PushOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a push door accepts, and where it publishes.

    `dead_letters` are the settings for dead letters of unknown subscriptions; `may_name` are the topics that requests
    may name besides the subscription's own.
    """

    project_id: str
    max_request_bytes: int
    dead_letter_topic: str = ""
    dead_letters: Subscription | None = None
    form: PushForm = "wrapped"
    may_name: ResultNames = ResultNames()
    has_details: bool = False


class PubSubPushDoor:
    """Decodes pushes and publishes results.

    `subscription` returns a subscription's settings, or None if it is unknown. `on_dead_lettered` is called with the
    subscription of each message that this door dead-letters. `monotonic` returns monotonic seconds. `clock` follows
    Google's clock by the times in the pushes.
    """

    def __init__(
        self,
        publisher: ResultPublisher,
        subscription: Callable[[str], Subscription | None],
        log: Logger,
        options: PushOptions,
        *,
        dedup_store: Once | None = None,
        on_dead_lettered: Callable[[str], None] = lambda _subscription: None,
        monotonic: Callable[[], float] = time.monotonic,
        clock: FollowedClock | None = None,
    ) -> None:
        self._publisher = publisher
        self._subscription = subscription
        self._unknown = RareWarning(log, "push of an unknown subscription refused")
        self._log = log
        self._options = options
        self._dedup_store = dedup_store
        self._on_dead_lettered = on_dead_lettered
        self._monotonic = monotonic
        self._clock = clock or FollowedClock()
        self._skew = SkewWatch(self._clock, log, "Pub/Sub")

    async def decode(self, delivery: Delivery) -> tuple[Request | Answered, PushContext] | Answer:
        """The request of the push, its final outcome, or an immediate answer."""
        try:
            push = decode_push(delivery, self._options.form)
        except InvalidEvent as error:
            return plain(400, f"not a Pub/Sub push: {error}")
        self._observe_clock(push, delivery)
        subscription = self._subscription(push.subscription)
        if subscription is None and _is_dead_letter(push):
            subscription = self._options.dead_letters
        if subscription is None:
            self._unknown.report(subscription=push.subscription[:256])
            return plain(400, "unknown subscription: add it to CONFIG_FILE (topics)")
        context = PushContext(push, subscription, subscription.result_topic, self._monotonic())
        try:
            request = await self._request(push, subscription)
            context = self._routed(context, request)
        except InvalidRequest as error:
            context = self._salvaged(context)
            if not error.request_id:
                return await self._dead_letter(context, error)
            return invalid(error, ""), context
        if _is_dead_letter(push):
            return _undeliverable(request, push), context
        return await self._in_turn(request, context)

    def _observe_clock(self, push: Push, delivery: Delivery) -> None:
        """Estimate Google's clock from the push.

        The push was sent at its `Date`, which is not before its message was published.
        """
        if (sent_at := _date(delivery)) is not None:
            self._clock.observe_sent(sent_at)
        if push.published_at is not None:
            self._clock.observe_at_least(push.published_at)
        self._skew.check()

    async def _in_turn(self, request: Request, context: PushContext) -> tuple[Request, PushContext] | Answer:
        """The request, or the answer if it is a duplicate delivery."""
        turn = await self._dedup_store.begin(request, context.push.body) if self._dedup_store else None
        if isinstance(turn, Answer):
            return turn
        if turn is not None and turn.previous_traceparent:
            request = msgspec.structs.replace(request, previous_traceparent=turn.previous_traceparent)
        return request, msgspec.structs.replace(context, turn=turn)

    async def _request(self, push: Push, subscription: Subscription) -> Request:
        request = await decode_body_aside(
            push.body,
            queue=subscription.name,
            attempt=max(0, (push.delivery_attempt or 1) - 1),
            labels=subscription.labels,
            extra_metadata=push.attributes,
            max_bytes=self._options.max_request_bytes,
        )
        # `created` is made exact, to distinguish a cancelled request from its resubmission within the same second.
        return msgspec.structs.replace(
            request,
            created=push.created(request.created),
            deadline=self._clock.local_deadline(request.deadline),
        )

    def _routed(self, context: PushContext, request: Request) -> PushContext:
        """The context with the topic and route of the result."""
        topic = self._own_topic(context, request.result_queue_name, request.id)
        return msgspec.structs.replace(
            context, topic=topic, route=request.metadata.get(_ROUTE_ATTRIBUTE, ""), request=request
        )

    def _salvaged(self, context: PushContext) -> PushContext:
        """The context with the topic and route for an invalid body's error."""
        found = salvage(context.push.body, _ROUTING)
        route = context.push.attributes.get(_ROUTE_ATTRIBUTE, found.get(_ROUTE, ""))
        try:
            topic = self._own_topic(context, found.get(_TOPIC_FIELD, ""), "")
        except InvalidRequest:
            topic = context.topic
        return msgspec.structs.replace(context, topic=topic, route=route)

    def _own_topic(self, context: PushContext, topic: str, request_id: str) -> str:
        """The result topic: the subscription's own, else the request's, else the default.

        Raises `InvalidRequest` for a topic of another project, or one that requests may not name.
        """
        if context.subscription.is_topic_fixed:
            return context.topic
        match = _TOPIC.fullmatch(topic) if topic else None
        if topic and (match is None or match["project"] not in (None, self._options.project_id)):
            accepted = "the name of a topic of this project"
            found = "a topic of another project" if match else "text that cannot name a topic"
            raise InvalidRequest("result_queue_name", found=found, accepted=accepted, request_id=request_id)
        own = context.topic.rpartition("/")[2]
        short = topic.rpartition("/")[2]
        if topic and short != own and not (self._options.may_name.allow(short) or self._options.may_name.allow(topic)):
            accepted = "a topic that the operator allows (ALLOWED_RESULTS), or none"
            raise InvalidRequest(
                "result_queue_name",
                found="a topic that is not allowed",
                accepted=accepted,
                request_id=request_id,
            )
        return topic or context.topic

    def limits(self, context: PushContext) -> AttemptOptions:
        """The remaining ack deadline less a margin, and the redelivery backoff."""
        spent = self._monotonic() - context.arrived_at
        seconds = context.subscription.ack_deadline_seconds - MARGIN_SECONDS - spent
        return AttemptOptions(max(0.0, seconds), context.subscription.min_redelivery_seconds)

    async def settle(self, context: PushContext, outcome: Outcome) -> Answer:
        """Ack once the result is published; nack a retry or failed publish."""
        match outcome:
            case Answered(result):
                if self._options.has_details:
                    result = detailed(result, context.request, time.time())
                return await self._publish(context, result)
            case Retry():
                if context.turn is not None:
                    await context.turn.abandon(outcome.traceparent)
                status = 429 if outcome.reason in _BUSY else 503
                return plain(status, f"retry: {outcome.reason}", retry_after(outcome.delay_seconds))

    async def _publish(self, context: PushContext, result: Result) -> Answer:
        attributes = _attributes(context, result.id)
        try:
            published_id = await self._publisher.publish(context.topic, encode_result(result), attributes)
        except ResultTooLarge:
            message = "the result is larger than Pub/Sub allows"
            small = error_result(result.id, result.request_token, ErrorCode.INFERENCE_ERROR, message)
            return await self._publish(context, small)
        except PublishFailed as error:
            own = context.subscription.result_topic
            if not error.is_retryable and context.topic != own:
                # The topic that the request names does not exist or is forbidden: use the subscription's own.
                return await self._publish(msgspec.structs.replace(context, topic=own), result)
            self._log.error("result not published", id=result.id, topic=context.topic, error=str(error))
            if context.turn is not None:
                await context.turn.abandon()
            return plain(503, "the result could not be published", retry_after(1.0))
        if context.turn is not None:
            await context.turn.finish(published_id)
        return _ACCEPTED

    async def _dead_letter(self, context: PushContext, error: InvalidRequest) -> Answer:
        """Dead-letter a body without an id.

        Without a dead-letter topic, the error is published as a result.
        """
        self._log.warning("delivery unreadable", pubsub_message_id=context.push.message_id, field=error.field)
        if _is_dead_letter(context.push):
            return _ACCEPTED  # dead-lettered already: publishing it again would loop
        if not self._options.dead_letter_topic:
            return await self._publish(context, invalid(error, "").result)
        attributes = {
            **_attributes(context, ""),
            _REASON_ATTRIBUTE: ErrorCode.INVALID_REQUEST,
            "field": error.field,
        }
        try:
            await self._publisher.publish(self._options.dead_letter_topic, context.push.body, attributes)
        except (PublishFailed, ResultTooLarge):
            return plain(503, "the dead letter could not be published", retry_after(1.0))
        self._on_dead_lettered(context.subscription.name)
        return _ACCEPTED


def _date(delivery: Delivery) -> float | None:
    """Unix seconds of the HTTP `Date`; None if missing or invalid."""
    text = next((value for name, value in delivery.headers if name == b"date"), b"")
    return _date_seconds(text) if text else None


@lru_cache(maxsize=16)  # all pushes of a second carry the same date
def _date_seconds(text: bytes) -> float | None:
    try:
        return parsedate_to_datetime(text.decode("latin-1")).timestamp()
    except ValueError:
        return None


def _is_dead_letter(push: Push) -> bool:
    """Whether Pub/Sub or this door has dead-lettered the message."""
    return _DEAD_LETTER_ATTRIBUTE in push.attributes or _REASON_ATTRIBUTE in push.attributes


def _undeliverable(request: Request, push: Push) -> Answered:
    count = whole(push.attributes.get(_DEAD_LETTER_COUNT))
    tried = "" if count is None else f" after {counted(count, 'delivery', 'deliveries')}"
    return failed(request, ErrorCode.UNDELIVERABLE, f"Pub/Sub dead-lettered the request{tried}")


def _attributes(context: PushContext, request_id: str) -> dict[str, str]:
    """Message attributes, by which consumers route results and detect duplicates."""
    attributes = {
        "id": request_id,
        "pubsub_message_id": context.push.message_id,
        "attempt": str(context.push.delivery_attempt or ""),
        _ROUTE_ATTRIBUTE: context.route,
    }
    return {name: value for name, value in attributes.items() if value and _fits(value)}


def _fits(value: str) -> bool:
    return len(value.encode("utf-8", "replace")) <= _MAX_ATTRIBUTE_BYTES
