"""Options of a client, of Redis and of Pub/Sub."""

from __future__ import annotations

import reprlib
from typing import TypedDict

import msgspec

from handlers.contract.accepted import described
from handlers.contract.errors import InvalidSetting
from handlers.number_text import parse_duration
from handlers.redis_store.submit.client_access import RedisAccess

_MOST_RETRY_SECONDS = 100.0
"""Redis keeps the record of a call for two minutes (`submit.lua`); a later retry could queue a request twice."""


def shown(value: object) -> str:
    """Show a wrong argument in an error. A duration as text gets a hint."""
    seconds = parse_duration(value) if isinstance(value, str) else None
    hint = "" if seconds is None else f" (for {seconds:g} s give timedelta(seconds={seconds:g}))"
    return f"{reprlib.repr(value)}{hint}"


def check_option(name: str, value: object, kind: object, *, is_secret: bool = False) -> None:
    """Refuse a value that is not of the annotated type `kind`. `is_secret`: the error shows only its type."""
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        unit = name.rpartition("_")[2]
        accepted = described(msgspec.inspect.type_info(kind))
        if unit in ("seconds", "bytes"):
            accepted += f" of {unit}"
        found = type(value).__name__ if is_secret else shown(value)
        raise InvalidSetting(name, found=found, accepted=accepted) from None


class ClientOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Queue names and limits of a client.

    - `retry_queue`: the poller's `RETRY_QUEUE_NAME`, which `where` searches.
    - `payload_apart_bytes`: payloads of at least this size are offloaded to keys of their own; None: never.
    - `idempotent_window_seconds`: while an id is live, and for this long after its deadline, another submission of the
      id is not queued and the first one is returned. 0: every submission is queued.
    - `idempotency_window_seconds`: validity of an idempotency key after its result was acknowledged. For a result that
      is never acknowledged, this time starts a week after the deadline; for one in its own list, `own_result_seconds`
      after the deadline.
    - `lease_seconds`: time until the results of a crashed reader are delivered to others.
    - `tombstone_seconds`: time for which duplicates of an acknowledged result are dropped.
    - `own_result_seconds`: time for which the result list of one request is kept.
    - `wait_replicas`: Redis replicas that must confirm a submission (`WAIT`).
    - `patience_seconds`: time for which a submission is retried during a failover, at most 100. Until Redis has
      answered this client once, it is 2 s.
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
        for field in msgspec.structs.fields(type(self)):
            check_option(field.name, getattr(self, field.name), field.type)
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
        if self.patience_seconds > _MOST_RETRY_SECONDS:
            accepted = f"at most {_MOST_RETRY_SECONDS:g}"
            raise InvalidSetting("patience_seconds", found=f"{self.patience_seconds:g}", accepted=accepted)


class PubSubFields(TypedDict, total=False):
    """The optional keyword arguments of `for_pubsub`.

    Requests go to `topic`, results come from the pull `subscription`. `emulator_host` (`host:port`) replaces Google's
    service. `cancel_redis_url` is the push door's `DEDUPE_REDIS_URL`; without it, requests cannot be cancelled.
    """

    topic: str
    subscription: str
    emulator_host: str
    cancel_redis_url: str
    cancel_redis_access: RedisAccess | None
