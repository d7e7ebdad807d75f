"""Options of a client: of Redis with defaults that fit the published guides, and of Pub/Sub."""

from __future__ import annotations

from typing import TypedDict

import msgspec

from handlers.contract.errors import InvalidSetting
from handlers.redis_store.submit.client_access import RedisAccess

_MOST_PATIENCE_SECONDS = 100.0
"""Redis remembers a call for two minutes (`submit.lua`); a later retry could queue it twice."""


class ClientOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Queue names and limits of a client.

    - `retry_queue`: the poller's `RETRY_QUEUE_NAME`, which `where` searches.
    - `payload_apart_bytes`: payloads of at least that size are offloaded to a key of their own; None: never.
    - `idempotent_window_seconds`: a second submission of an id that is live, or whose deadline was less than that long
      ago, returns the first one; 0: every submission runs.
    - `idempotency_window_seconds`: validity of an idempotency key after its result was acknowledged, or after the
      request's own result list expired.
    - `lease_seconds`: time for which a crashed reader's results are unavailable to others.
    - `tombstone_seconds`: time for which duplicates of an acknowledged result are dropped.
    - `own_result_seconds`: time for which the result list of one request is kept.
    - `wait_replicas`: Redis replicas that must confirm a submission (`WAIT`).
    - `patience_seconds`: time for which a submission is retried through a failover, at most 100; 2 s for a Redis that
      never answered this client.
    """

    queue: str = "request-sortedset"
    results: str = "result-list"
    retry_queue: str = "retry-sortedset"
    tenant_attribute: str = "userid"
    payload_apart_bytes: int | None = None
    idempotent_window_seconds: int = 0
    idempotency_window_seconds: int = 86_400
    lease_seconds: float = 30.0
    tombstone_seconds: int = 3600
    own_result_seconds: int = 86_400
    wait_replicas: int = 0
    patience_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("queue", "results", "retry_queue", "tenant_attribute"):
            if not getattr(self, name):
                raise InvalidSetting(name, found="nothing", accepted="a name")
        for name in (
            "lease_seconds",
            "tombstone_seconds",
            "own_result_seconds",
            "idempotency_window_seconds",
        ):
            if not getattr(self, name) > 0:
                raise InvalidSetting(name, found=str(getattr(self, name)), accepted="a number > 0")
        for name in ("idempotent_window_seconds", "wait_replicas", "patience_seconds"):
            if getattr(self, name) < 0:
                raise InvalidSetting(name, found=str(getattr(self, name)), accepted="0 or more")
        if self.patience_seconds > _MOST_PATIENCE_SECONDS:
            accepted = f"at most {_MOST_PATIENCE_SECONDS:g}"
            raise InvalidSetting("patience_seconds", found=f"{self.patience_seconds:g}", accepted=accepted)


class PubSubFields(TypedDict, total=False):
    """The optional keyword arguments of `for_pubsub`.

    Requests go to `topic`, results come from the pull `subscription`. `emulator_host` (`host:port`) stands in for
    Google's service. `cancel_redis_url` is the push door's `DEDUPE_REDIS_URL`; without it nothing can be cancelled.
    """

    topic: str
    subscription: str
    emulator_host: str
    cancel_redis_url: str
    cancel_redis_access: RedisAccess | None
