"""Options of a client, of Redis and of Pub/Sub."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Annotated, TypedDict

import msgspec
from msgspec import Meta

from handlers.contract.accepted import described
from handlers.contract.errors import InvalidSetting
from handlers.number_text import parse_duration
from handlers.redis_store.submit.submissions import RedisAccess

_MOST_RETRY_SECONDS = 100.0
"""Redis keeps the record of a call for two minutes (`submit.lua`); a later retry could queue a request twice."""
_Name = Annotated[str, Meta(min_length=1)]


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
            accepted = accepted.replace("number", f"number of {unit}").replace("integer", f"integer of {unit}")
        found = type(value).__name__ if is_secret else shown(value)
        raise InvalidSetting(name, found=found, accepted=accepted) from None


class ClientOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Queue names and limits of a client.

    - `retry_queue`: the poller's `RETRY_QUEUE_NAME`, which `where` searches.
    - `other_queues`: queues that `where` searches too.
    - `payload_apart_bytes`: payloads of at least this size are offloaded to keys of their own; None: never.
    - `idempotent_window_seconds`: until this long after the deadline, another submission of the id is not queued, even
      if the first has finished, and the first one is returned. 0: every submission is queued.
    - `idempotency_window_seconds`: validity of an idempotency key after its result was acknowledged. For a result that
      is never acknowledged, this time starts a week after the deadline; for one in its own list, `own_result_seconds`
      after the deadline.
    - `lease_seconds`: time until the results of a crashed reader are delivered to others.
    - `tombstone_seconds`: time for which duplicates of an acknowledged result are dropped.
    - `own_result_seconds`: time for which the result list of one request is kept after the result was written.
    - `wait_replicas`: Redis replicas that must confirm a submission (`WAIT`).
    - `patience_seconds`: time for which a submission is retried during a failover, at most 100. Until Redis has
      answered this client once, it is 2 s.
    """

    queue: _Name = "request-sortedset"
    results: _Name = "result-list"
    retry_queue: _Name = "retry-sortedset"
    other_queues: Sequence[_Name] = ()
    tenant_attribute: _Name = "userid"
    payload_apart_bytes: int | None = None
    idempotent_window_seconds: Annotated[int, Meta(ge=0)] = 0
    idempotency_window_seconds: Annotated[int, Meta(gt=0)] = 86_400
    lease_seconds: Annotated[float, Meta(gt=0)] = 30.0
    tombstone_seconds: Annotated[int, Meta(gt=0)] = 3600
    own_result_seconds: Annotated[int, Meta(gt=0)] = 86_400
    wait_replicas: Annotated[int, Meta(ge=0)] = 0
    patience_seconds: Annotated[float, Meta(ge=0, le=_MOST_RETRY_SECONDS)] = 30.0

    def __post_init__(self) -> None:
        for field in msgspec.structs.fields(type(self)):
            check_option(field.name, getattr(self, field.name), field.type)


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
