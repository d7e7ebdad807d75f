"""What a client of Redis may choose; every field has a default that fits the published guides."""

from __future__ import annotations

import msgspec

from handlers.contract.errors import InvalidSetting

_MOST_PATIENCE_SECONDS = 100.0
"""What was sent is remembered for two minutes (`submit.lua`): after that, a repetition could run twice."""


class ClientOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Queue names and limits; `retry_queue` is the poller's `RETRY_QUEUE_NAME`, which `where` searches.

    `payload_apart_bytes`: payloads of at least that size are stored under a key of their own; None: never.
    `idempotent_window_seconds`: a second submission of an id that is live, or whose deadline was less than that
    long ago, returns the first one, however that ended; 0: every submission runs. `lease_seconds`: how long a
    reader's crash keeps its results from others. `wait_replicas`: how many replicas of Redis must have a submission
    before it counts (`WAIT`). `patience_seconds`: how long a submission is tried again through a failover, 100 at
    most; a Redis that never answered this client is given up after two seconds. `tombstone_seconds`: how long doubles
    of an acknowledged result are dropped. `idempotency_window_seconds`: for how long an idempotency key is valid after
    its result was acknowledged, or its own result list expired. `own_result_seconds`: how long a result list of one
    request is kept.
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
