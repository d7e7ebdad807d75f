"""The topics and subscriptions that the push door needs.

requests ──push──▶ door                  after too many deliveries ──▶ dead letters
dead letters ──push──▶ same door         publishes their final results
dead letters ──pull──▶ operators
results ──pull──▶ clients
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from handlers.contract.errors import InvalidSetting
from handlers.pubsub.channel import subscription_path, topic_path

if TYPE_CHECKING:
    from google.pubsub_v1.types import Subscription, Topic

DEAD_LETTER_FILTER: Final = "attributes:CloudPubSubDeadLetterSourceSubscription"
"""Selects messages that Pub/Sub dead-lettered, not those that a door dead-lettered because they had no id.

The emulator ignores the filter. Without it, a door recognizes its own dead letters by their attributes.
"""

_DAY: Final = 86_400


class LayoutOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a layout. Names may be short or full.

    `push_endpoint` is the door's URL. Pushes have a token of `push_service_account` for `push_audience`; without an
    account, they have no token. `ack_deadline_seconds` is also the longest time of a request. `max_delivery_attempts`
    is high because closed gates and busy gateways use up attempts too: with 10 to 600 s of backoff, 35 attempts take
    about five hours. `filter` selects requests by attribute. If its name is empty, an optional subscription is not
    created (`dead_letter_push_subscription`, `dead_letter_subscription`, `result_subscription`).
    """

    project_id: str
    push_endpoint: str
    push_service_account: str = ""
    push_audience: str = ""
    request_topic: str = "async-proc-requests"
    request_subscription: str = "async-proc-requests-sub"
    result_topic: str = "async-proc-results"
    result_subscription: str = "async-proc-results-sub"
    dead_letter_topic: str = "async-proc-requests-dlq"
    dead_letter_push_subscription: str = "async-proc-requests-dlq-push"
    dead_letter_subscription: str = "sub-async-proc-requests-dlq"
    filter: str = ""
    is_unwrapped: bool = False
    ack_deadline_seconds: int = 600
    minimum_backoff_seconds: int = 10
    maximum_backoff_seconds: int = 600
    max_delivery_attempts: int = 35
    retention_seconds: int = 7 * _DAY
    topic_retention_seconds: int | None = None
    expiration_seconds: int | None = None
    result_ack_deadline_seconds: int = 60

    def __post_init__(self) -> None:
        url = urlsplit(self.push_endpoint)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise InvalidSetting(
                "push_endpoint", found=repr(self.push_endpoint), accepted="the https:// URL of the push door"
            )
        if bool(self.push_service_account) != bool(self.push_audience):
            lacks = "push_audience" if self.push_service_account else "push_service_account"
            raise InvalidSetting(lacks, found="nothing", accepted="both account and audience, or neither")
        for name, least, most in _BOUNDS:
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise InvalidSetting(name, found=str(value), accepted=f"{least} to {most}")
        if self.minimum_backoff_seconds > self.maximum_backoff_seconds:
            accepted = f"at most maximum_backoff_seconds, {self.maximum_backoff_seconds}"
            raise InvalidSetting("minimum_backoff_seconds", found=str(self.minimum_backoff_seconds), accepted=accepted)


_BOUNDS: Final = (
    ("ack_deadline_seconds", 10, 600),
    ("result_ack_deadline_seconds", 10, 600),
    ("minimum_backoff_seconds", 0, 600),
    ("maximum_backoff_seconds", 0, 600),
    ("max_delivery_attempts", 5, 100),
    ("retention_seconds", 600, 31 * _DAY),
    ("topic_retention_seconds", 600, 31 * _DAY),
    ("expiration_seconds", _DAY, 365 * _DAY),
)
"""Pub/Sub's own limits."""


class Layout(msgspec.Struct, frozen=True):
    """All resources; `topics` are requests, results and dead letters."""

    topics: tuple[Topic, ...]
    subscriptions: tuple[Subscription, ...]

    @property
    def resources(self) -> tuple[Topic | Subscription, ...]:
        """All resources, in the order in which they must be created."""
        return (*self.topics, *self.subscriptions)


def layout(options: LayoutOptions) -> Layout:
    """The resources for these options. Raises `InvalidSetting` for an invalid name."""
    from google.pubsub_v1.types import Topic

    requests, results, dead = (
        topic_path(options.project_id, name)
        for name in (options.request_topic, options.result_topic, options.dead_letter_topic)
    )
    topics = (
        Topic(name=requests, message_retention_duration=_span(options.topic_retention_seconds)),
        Topic(name=results),
        Topic(name=dead),
    )
    wanted = [_request_push(options, requests, dead)]
    if options.dead_letter_push_subscription:
        wanted.append(_dead_letter_push(options, dead))
    if options.dead_letter_subscription:
        wanted.append(_pull(options, options.dead_letter_subscription, dead))
    if options.result_subscription:
        wanted.append(_pull(options, options.result_subscription, results))
    return Layout(topics, tuple(wanted))


def _request_push(options: LayoutOptions, requests: str, dead: str) -> Subscription:
    from google.pubsub_v1.types import DeadLetterPolicy

    policy = DeadLetterPolicy(dead_letter_topic=dead, max_delivery_attempts=options.max_delivery_attempts)
    return _subscription(
        options,
        options.request_subscription,
        topic=requests,
        filter=options.filter,
        ack_deadline_seconds=options.ack_deadline_seconds,
        dead_letter_policy=policy,
        **_push(options),
    )


def _dead_letter_push(options: LayoutOptions, dead: str) -> Subscription:
    """The push subscription of dead letters.

    It has no dead-letter policy, which would send its messages to the topic that it reads.
    """
    return _subscription(
        options,
        options.dead_letter_push_subscription,
        topic=dead,
        filter=DEAD_LETTER_FILTER,
        ack_deadline_seconds=60,  # it only publishes a result and needs no inference
        **_push(options),
    )


def _pull(options: LayoutOptions, name: str, topic: str) -> Subscription:
    return _subscription(options, name, topic=topic, ack_deadline_seconds=options.result_ack_deadline_seconds)


def _subscription(options: LayoutOptions, name: str, **fields: Any) -> Subscription:
    from google.pubsub_v1.types import ExpirationPolicy, Subscription

    return Subscription(
        name=subscription_path(options.project_id, name),
        message_retention_duration=_span(options.retention_seconds),
        # Without a ttl, the subscription never expires.
        expiration_policy=ExpirationPolicy(ttl=_span(options.expiration_seconds)),
        **fields,
    )


def _push(options: LayoutOptions) -> dict[str, Any]:
    """The push configuration and retry policy of a push subscription."""
    from google.pubsub_v1.types import PushConfig, RetryPolicy

    config = PushConfig(push_endpoint=options.push_endpoint)
    if options.push_service_account:
        config.oidc_token = PushConfig.OidcToken(
            service_account_email=options.push_service_account, audience=options.push_audience
        )
    if options.is_unwrapped:
        config.no_wrapper = PushConfig.NoWrapper(write_metadata=True)
    backoff = RetryPolicy(
        minimum_backoff=_span(options.minimum_backoff_seconds),
        maximum_backoff=_span(options.maximum_backoff_seconds),
    )
    return {"push_config": config, "retry_policy": backoff}


def _span(seconds: int | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)
