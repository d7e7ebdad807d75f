"""Topics and subscriptions as values, and their form on the wire of Pub/Sub's REST API.

Only the fields that we set are here; an update names its fields, so all others stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec


class TopicSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A topic; `retention_seconds` None: it keeps nothing beyond its subscriptions."""

    path: str
    retention_seconds: int | None = None

    wire_fields: ClassVar[Mapping[str, str]] = {"retention_seconds": "messageRetentionDuration"}
    """Our field to the wire's; what is missing is set once, at creation."""

    def to_wire(self) -> dict[str, Any]:
        """The body of a create or an update."""
        kept = self.retention_seconds
        return {} if kept is None else {"messageRetentionDuration": f"{kept}s"}


class SubscriptionSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A subscription: push where `push_endpoint` is set, else pull.

    `expiration_seconds` None: it never expires. `minimum_backoff_seconds` None: no retry policy. No
    `dead_letter_topic`: no dead-letter policy, and `max_delivery_attempts` is 0.
    """

    path: str
    topic: str
    filter: str = ""
    push_endpoint: str = ""
    push_service_account: str = ""
    push_audience: str = ""
    is_unwrapped: bool = False
    ack_deadline_seconds: int = 10
    retention_seconds: int = 604_800
    expiration_seconds: int | None = None
    minimum_backoff_seconds: int | None = None
    maximum_backoff_seconds: int | None = None
    dead_letter_topic: str = ""
    max_delivery_attempts: int = 0

    wire_fields: ClassVar[Mapping[str, str]] = {
        "push_endpoint": "pushConfig",
        "push_service_account": "pushConfig",
        "push_audience": "pushConfig",
        "is_unwrapped": "pushConfig",
        "ack_deadline_seconds": "ackDeadlineSeconds",
        "retention_seconds": "messageRetentionDuration",
        "expiration_seconds": "expirationPolicy",
        "minimum_backoff_seconds": "retryPolicy",
        "maximum_backoff_seconds": "retryPolicy",
        "dead_letter_topic": "deadLetterPolicy",
        "max_delivery_attempts": "deadLetterPolicy",
    }

    def to_wire(self) -> dict[str, Any]:
        """The body of a create or an update; a policy that is not wanted is left out, which clears it."""
        expires = self.expiration_seconds
        body: dict[str, Any] = {
            "topic": self.topic,
            "ackDeadlineSeconds": self.ack_deadline_seconds,
            "messageRetentionDuration": f"{self.retention_seconds}s",
            "expirationPolicy": {} if expires is None else {"ttl": f"{expires}s"},
            "pushConfig": self._push_config(),
        }
        if self.filter:
            body["filter"] = self.filter
        if self.minimum_backoff_seconds is not None and self.maximum_backoff_seconds is not None:
            body["retryPolicy"] = {
                "minimumBackoff": f"{self.minimum_backoff_seconds}s",
                "maximumBackoff": f"{self.maximum_backoff_seconds}s",
            }
        if self.dead_letter_topic:
            body["deadLetterPolicy"] = {
                "deadLetterTopic": self.dead_letter_topic,
                "maxDeliveryAttempts": self.max_delivery_attempts,
            }
        return body

    def _push_config(self) -> dict[str, Any]:
        config: dict[str, Any] = {}
        if self.push_endpoint:
            config["pushEndpoint"] = self.push_endpoint
        if self.push_service_account:
            config["oidcToken"] = {
                "serviceAccountEmail": self.push_service_account,
                "audience": self.push_audience,
            }
        if self.is_unwrapped:
            config["noWrapper"] = {"writeMetadata": True}
        return config


Spec = TopicSpec | SubscriptionSpec


def topic_from_wire(body: bytes) -> TopicSpec:
    """Read the service's answer to a GET."""
    wire = msgspec.json.decode(body, type=_WireTopic)
    return TopicSpec(path=wire.name, retention_seconds=_seconds(wire.message_retention_duration))


def subscription_from_wire(body: bytes) -> SubscriptionSpec:
    """Read the service's answer to a GET."""
    wire = msgspec.json.decode(body, type=_WireSubscription)
    push, oidc = wire.push_config, wire.push_config.oidc_token
    retry, dead = wire.retry_policy, wire.dead_letter_policy
    return SubscriptionSpec(
        path=wire.name,
        topic=wire.topic,
        filter=wire.filter,
        push_endpoint=push.push_endpoint,
        push_service_account=oidc.service_account_email if oidc else "",
        push_audience=oidc.audience if oidc else "",
        is_unwrapped=push.no_wrapper is not None,
        ack_deadline_seconds=wire.ack_deadline_seconds,
        retention_seconds=_seconds(wire.message_retention_duration) or 0,
        expiration_seconds=_expiration(wire.expiration_policy),
        # A policy without its numbers means the service's defaults.
        minimum_backoff_seconds=(_seconds(retry.minimum_backoff) or 10) if retry else None,
        maximum_backoff_seconds=(_seconds(retry.maximum_backoff) or 600) if retry else None,
        dead_letter_topic=dead.dead_letter_topic if dead else "",
        max_delivery_attempts=(dead.max_delivery_attempts or 5) if dead else 0,
    )


class _WireTopic(msgspec.Struct, rename="camel"):
    name: str
    message_retention_duration: str = ""


class _WireOidc(msgspec.Struct, rename="camel"):
    service_account_email: str = ""
    audience: str = ""


class _WireNoWrapper(msgspec.Struct, rename="camel"):
    write_metadata: bool = False


class _WirePush(msgspec.Struct, rename="camel"):
    push_endpoint: str = ""
    oidc_token: _WireOidc | None = None
    no_wrapper: _WireNoWrapper | None = None


class _WireRetry(msgspec.Struct, rename="camel"):
    minimum_backoff: str = ""
    maximum_backoff: str = ""


class _WireDeadLetter(msgspec.Struct, rename="camel"):
    dead_letter_topic: str = ""
    max_delivery_attempts: int = 0


class _WireExpiration(msgspec.Struct):
    ttl: str = ""


class _WireSubscription(msgspec.Struct, rename="camel"):
    name: str
    topic: str
    filter: str = ""
    push_config: _WirePush = msgspec.field(default_factory=_WirePush)
    ack_deadline_seconds: int = 10
    message_retention_duration: str = ""
    expiration_policy: _WireExpiration | None = None
    retry_policy: _WireRetry | None = None
    dead_letter_policy: _WireDeadLetter | None = None


_DEFAULT_EXPIRATION_SECONDS = 2_678_400
"""31 days: what a subscription without a policy has."""


def _expiration(policy: _WireExpiration | None) -> int | None:
    return _DEFAULT_EXPIRATION_SECONDS if policy is None else _seconds(policy.ttl)


def _seconds(duration: str) -> int | None:
    """`"600s"` or `"600.500s"` as whole seconds; None where there is none."""
    return round(float(duration.removesuffix("s"))) if duration else None
