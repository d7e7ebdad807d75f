"""What a push door knows of its deliveries beside them: which were answered, and which were cancelled."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from handlers.forward.forward import Forward
from handlers.settings.settings import Settings
from handlers.telemetry.dependencies import MEMORY
from handlers.wiring.parts import Parts

if TYPE_CHECKING:
    from handlers.doors.pubsub.deduplicated import Once


def with_memory(settings: Settings, forward: Forward, parts: Parts) -> tuple[Forward, Once | None]:
    """Forwarding that ends with a cancellation, and who remembers answers, if a Redis is named for it."""
    if not settings.env.dedupe_redis_url:
        return forward, None
    from handlers.doors.pubsub.deduplicated import Once
    from handlers.forward.middleware.cancellable import CancellableForward
    from handlers.redis_store.connection import STORE_FAILURES, connect
    from handlers.redis_store.idempotency.deliveries import (
        DedupOptions,
        DeliveryRecords,
        deliveries_cancelled_at,
    )
    from handlers.wiring.redis_options import redis_options

    redis = connect(replace(redis_options(settings), url=settings.env.dedupe_redis_url))
    parts.closers.append(redis.aclose)
    look_up = partial(deliveries_cancelled_at, redis)
    cancellable = CancellableForward(forward, look_up, STORE_FAILURES, parts.log)
    parts.starters.append(cancellable.start)
    parts.closers.append(cancellable.aclose)
    options = DedupOptions(lease_seconds=settings.env.lease_seconds)
    return cancellable.forward, Once(
        DeliveryRecords(redis, options), parts.log, parts.dependencies.add(MEMORY)
    )
