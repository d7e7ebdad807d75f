"""Build the Pub/Sub channel and subscriptions from the settings; check topics."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from handlers.contract.errors import InvalidSetting
from handlers.doors.pubsub.push import Subscription
from handlers.pubsub.channel import PubSubChannel, PubSubOptions, topic_path
from handlers.pubsub.errors import PubSubError
from handlers.pubsub.publisher import Publisher, TopicState
from handlers.settings.settings import Settings
from handlers.telemetry.logs import Logger


def channel_of(settings: Settings) -> PubSubChannel:
    """The channel to Pub/Sub, which opens at its first call."""
    env = settings.env
    return PubSubChannel(
        PubSubOptions(
            project_id=settings.project_id,
            emulator_host=env.pubsub_emulator_host,
            endpoint=env.pubsub_endpoint,
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
    named = {
        "RESULT_TOPIC_ID": settings.result_topic_id,
        "DEAD_LETTER_TOPIC_ID": settings.env.dead_letter_topic_id,
    }
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
            raise InvalidSetting(setting, found=f"{topic!r}, which does not exist", accepted=accepted)


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
            return (
                None if topics or not settings.is_own_project(name) else unlisted_subscription(settings, name)
            )
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
    from handlers.doors.pubsub.push import Subscription

    env, short = settings.env, name.rsplit("/", 1)[-1]
    return Subscription(
        short, settings.result_topic_id, {}, env.ack_deadline_seconds, env.min_redelivery_seconds
    )


def _given(value: float | None, default: float) -> float:
    return default if value is None else value
