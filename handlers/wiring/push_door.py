"""Build the push door: Pub/Sub channel, subscriptions, check of topics and of identities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial

from handlers.clock import FollowedClock
from handlers.contract.errors import InvalidSetting
from handlers.contract.masked_text import shown_value
from handlers.doors.auth.oidc import PushIdentity, PushIdentityOptions
from handlers.doors.http_endpoint import Authenticator
from handlers.doors.pubsub.push import PubSubPushDoor, PushContext, PushOptions, Subscription
from handlers.gates.gate import Gate
from handlers.pubsub.channel import PubSubChannel, PubSubOptions, topic_path
from handlers.pubsub.errors import PublishFailed, PubSubError
from handlers.pubsub.publisher import Publisher, TopicState
from handlers.settings.settings import Settings
from handlers.telemetry.dependencies import RESULTS, Dependency
from handlers.telemetry.logs import Logger
from handlers.wiring.forward_stack import Handle, Parts, push_stack, recorded_handle


def push_door(settings: Settings, parts: Parts) -> tuple[Handle, Authenticator | None]:
    """The push door, and the check of its senders' identity. Raises `InvalidSetting`."""
    if not settings.project_id:
        raise InvalidSetting("PROJECT_ID", found="nothing", accepted="the project of the result topic")
    env, log = settings.env, parts.log
    channel = channel_of(settings)
    publisher = Publisher(channel)
    parts.closers.extend([channel.close, publisher.close])
    parts.starters.append(partial(check_topics, publisher, settings, log))
    forward, dedup_store = push_stack(settings, parts)
    clock = FollowedClock()

    async def take_effect() -> list[Gate]:
        if parts.metrics is not None:
            parts.metrics.metrics.watch_connections("pubsub", lambda: channel.in_use)
            parts.metrics.metrics.watch_clock(lambda: clock.skew_seconds)
        return []

    parts.effects.append(take_effect)
    door = PubSubPushDoor(
        ObservedPublisher(publisher, parts.dependencies.add(RESULTS)),
        subscriptions(settings),
        log,
        PushOptions(
            project_id=settings.project_id,
            max_request_bytes=env.max_request_bytes,
            dead_letter_topic=env.dead_letter_topic_id,
            dead_letters=unlisted_subscription(settings, "dead-letters") if settings.result_topic_id else None,
            form=env.push_form,
            may_name=settings.may_name_topics,
            has_details=env.result_details,
        ),
        dedup_store=dedup_store,
        on_dead_lettered=parts.metrics.dead_lettered if parts.metrics else lambda _subscription: None,
        clock=clock,
    )

    def queue_name(context: PushContext) -> str:
        return context.subscription.name

    return recorded_handle(door, queue_name, forward, parts), _push_identity(settings, parts)


def _push_identity(settings: Settings, parts: Parts) -> Authenticator | None:
    env = settings.env
    if env.push_auth == "none":
        parts.log.warning("push authentication is disabled (PUSH_AUTH=none)")
        return None
    identity = PushIdentity(
        PushIdentityOptions(audience=env.push_audience, service_account_email=env.push_service_account)
    )

    async def start() -> None:
        identity.start()

    parts.starters.append(start)
    parts.closers.append(identity.close)
    return identity


class ObservedPublisher:
    """A publisher that reports the health of the result topic.

    A refused result that is too large does not count as a failure.
    """

    def __init__(self, publisher: Publisher, results: Dependency) -> None:
        self._publisher = publisher
        self._results = results

    async def publish(self, topic: str, data: bytes, attributes: Mapping[str, str] | None = None) -> str:
        """Publish, and report the outcome."""
        try:
            published_id = await self._publisher.publish(topic, data, attributes)
        except PublishFailed:
            self._results.report(has_failed=True)
            raise
        self._results.report(has_failed=False)
        return published_id


def channel_of(settings: Settings) -> PubSubChannel:
    """The channel to Pub/Sub, which opens at its first call."""
    env = settings.env
    return PubSubChannel(
        PubSubOptions(
            project_id=settings.project_id, emulator_host=env.pubsub_emulator_host, endpoint=env.pubsub_endpoint
        )
    )


def check_topic_names(settings: Settings) -> None:
    """Raise `InvalidSetting` with the setting of an invalid topic name."""
    named = {"RESULT_TOPIC_ID": settings.result_topic_id}
    named["DEAD_LETTER_TOPIC_ID"] = settings.env.dead_letter_topic_id
    for number, entry in enumerate(settings.file.topics):
        named[f"topics[{number}].result_topic_id"] = entry.result_topic_id
    for setting, topic in named.items():
        try:
            if topic:
                topic_path(settings.project_id, topic)
        except InvalidSetting as error:
            name = setting if error.setting == "topic" else error.setting
            raise InvalidSetting(name, found=error.found, accepted=error.accepted) from None


async def check_topics(publisher: Publisher, settings: Settings, log: Logger) -> None:
    """Raise `InvalidSetting` for a missing topic: publishing would always fail."""
    check_topic_names(settings)
    named = {"RESULT_TOPIC_ID": settings.result_topic_id, "DEAD_LETTER_TOPIC_ID": settings.env.dead_letter_topic_id}
    for setting, topic in named.items():
        if not topic:
            continue
        try:
            state = await publisher.check(topic)
        except PubSubError as error:
            log.warning("topic check failed", topic=topic, error=str(error))
            continue
        if state is TopicState.MISSING:
            accepted = "a topic that exists (`async-processor pubsub setup` creates it)"
            raise InvalidSetting(setting, found=f"{shown_value(topic)}, which does not exist", accepted=accepted)


def subscriptions(settings: Settings) -> Callable[[str], Subscription | None]:
    """A function that returns the settings of a push's subscription."""
    env = settings.env
    topics = settings.file.topics
    names_all = bool(topics) and all(topic.result_topic_id or topic.result_queue_name for topic in topics)
    if not settings.result_topic_id and not names_all:
        raise InvalidSetting("RESULT_TOPIC_ID", found="nothing", accepted="the topic for results")

    @lru_cache(maxsize=1_024)
    def of(name: str) -> Subscription | None:
        entry = settings.subscription(name)
        if entry is None:
            return None if topics or not settings.is_own_project(name) else unlisted_subscription(settings, name)
        own_topic = entry.result_topic_id or entry.result_queue_name
        return Subscription(
            name=entry.subscriber_id,
            result_topic=own_topic or settings.result_topic_id,
            is_topic_fixed=bool(own_topic),
            labels=entry.labels,
            ack_deadline_seconds=entry.ack_deadline_seconds or env.ack_deadline_seconds,
            min_redelivery_seconds=_given(entry.min_redelivery_seconds, env.min_redelivery_seconds),
        )

    return of


def unlisted_subscription(settings: Settings, name: str) -> Subscription:
    """Settings of a subscription that is not in the configuration file."""
    env, short = settings.env, name.rsplit("/", 1)[-1]
    return Subscription(short, settings.result_topic_id, {}, env.ack_deadline_seconds, env.min_redelivery_seconds)


def _given(value: float | None, default: float) -> float:
    return default if value is None else value
