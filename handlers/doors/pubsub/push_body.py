"""Decode a Pub/Sub push in the configured form (`PUSH_FORM`).

`wrapped` is a subscription's default; Eventarc and Knative send it as the data of an event. In an unwrapped push
(`--push-no-wrapper`) the body is the request, and the publisher's attributes are HTTP headers. So a publisher can set
any header. Therefore the form is never guessed from headers, and only `unwrapped-metadata` reads `x-goog-pubsub-*`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec

from handlers.contract.errors import InvalidEvent
from handlers.contract.events import is_event
from handlers.contract.json_limits import MALFORMED, shape_of
from handlers.doors.cloudevents.foreign_event import read_event
from handlers.doors.door import Delivery

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
