"""De-duplicate Pub/Sub deliveries, which may arrive twice, even at the same time.

The record of a delivery is one key, `delivery:<length>:<subscription>:<length>:<id>:<generation>`, a hash. While the
delivery is being answered, the hash has an `owner` and expires with the owner's lease. Once it is answered, the hash
has a `reference` and expires after `keep_seconds`. With tracing, an abandoned attempt leaves its span as `previous` for
the next one. All times are the server's. Calls raise one of `connection.STORE_FAILURES`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import msgspec

from handlers.contract.errors import InvalidSetting
from handlers.number_text import decimal
from handlers.redis_store.connection import Store, executed
from handlers.redis_store.scripts import lua_script

DELIVERY_PREFIX: Final = "delivery:"
"""Prefix of the records' keys, so that no id can name another key."""

_LONGEST_TIME: Final = 32
_TAKEN, _HELD, _ANSWERED = 0, 1, 2  # what begin_delivery.lua returns


class Fresh(msgspec.Struct, frozen=True):
    """The caller holds the delivery and must answer it. No other caller gets it during the lease.

    `previous_traceparent` is the trace span of an abandoned attempt, if there is one.
    """

    previous_traceparent: str = ""


class InProgress(msgspec.Struct, frozen=True):
    """Another delivery of the request is being answered. Its lease ends in `seconds_left`."""

    seconds_left: float


class AlreadyAnswered(msgspec.Struct, frozen=True):
    """The delivery was answered. `reference` is the argument that `finish` got."""

    reference: bytes


Beginning: TypeAlias = Fresh | InProgress | AlreadyAnswered


class DedupOptions(msgspec.Struct, frozen=True):
    """Lifetimes of a delivery's record.

    A crashed owner blocks a delivery for `lease_seconds`, a third of which is the interval of renewals. An answered
    delivery is known for `keep_seconds`: Pub/Sub may deliver again for seven days (the subscription's retention), but
    usually does so within minutes. The span of an abandoned attempt is kept for `span_seconds`, twice the longest
    backoff of a subscription.
    """

    lease_seconds: float = 15.0
    keep_seconds: float = 86_400.0
    span_seconds: float = 1_200.0

    def __post_init__(self) -> None:
        for name in ("lease_seconds", "keep_seconds", "span_seconds"):
            if not getattr(self, name) > 0:
                raise InvalidSetting(name, found=str(getattr(self, name)), accepted="a number > 0")


class DeliveryRecords:
    """The records in one Redis. `owner` is a random token for one attempt to answer a delivery."""

    def __init__(self, redis: Store, options: DedupOptions | None = None) -> None:
        self.options = options or DedupOptions()
        self._lease_ms = max(1, round(self.options.lease_seconds * 1000))
        self._keep_ms = max(1, round(self.options.keep_seconds * 1000))
        self._span_ms = max(1, round(self.options.span_seconds * 1000))
        self._begin = lua_script(redis, "begin_delivery")
        self._renew = lua_script(redis, "renew_delivery")
        self._finish = lua_script(redis, "finish_delivery")
        self._abandon = lua_script(redis, "abandon_delivery")

    async def begin(self, key: str, owner: str) -> Beginning:
        """Take the delivery, unless it is held or answered."""
        outcome, value = await self._begin([key], [owner, self._lease_ms])
        if outcome == _TAKEN:
            return Fresh(bytes(value).decode())
        if outcome == _HELD:
            return InProgress(max(0, int(value)) / 1000)
        assert outcome == _ANSWERED  # noqa: S101  # a fourth would be a fault of the script
        return AlreadyAnswered(bytes(value))

    async def renew(self, key: str, owner: str) -> bool:
        """Extend the lease. False if it was lost, so another owner may be answering."""
        return bool(await self._renew([key], [owner, self._lease_ms]))

    async def finish(self, key: str, owner: str, reference: bytes) -> bool:
        """Record the answer's `reference`; False if another owner took the delivery."""
        return bool(await self._finish([key], [owner, reference, self._keep_ms]))

    async def abandon(self, key: str, owner: str, traceparent: str = "") -> bool:
        """Release the delivery unanswered. It can be taken again at once.

        False if the lease was lost. `traceparent` is the span of this attempt, to which the next one links.
        """
        return bool(await self._abandon([key], [owner, traceparent, self._span_ms]))


def delivery_key(request_id: str, request_token: str, body: bytes, subscription: str = "") -> str:
    """The key of a request's record.

    It contains the subscription, since another subscription may receive the same bytes. An id may be reused for a later
    request, so the key also contains the request token, or without a token the digest of the request: a publisher's
    retry has the same bytes, while a new request has another deadline.
    """
    generation = request_token or hashlib.sha256(body).hexdigest()
    names = f"{len(subscription)}:{subscription}:{len(request_id)}:{request_id}"
    return f"{DELIVERY_PREFIX}{names}:{generation}"


_KEPT_SECONDS: Final = 604_800


def delivery_cancel_key(request_id: str) -> str:
    """STRING: when the id was cancelled, Unix seconds."""
    return f"delivery-cancel:{request_id}"


async def cancel_deliveries(redis: Store, request_ids: Sequence[str], at: float) -> None:
    """Cancel requests submitted under these ids up to `at` (Unix seconds).

    Raises one of `STORE_FAILURES`.
    """
    pipeline: Any = redis.pipeline(transaction=False)
    for request_id in request_ids:
        pipeline.set(delivery_cancel_key(request_id), f"{at:.3f}", ex=_KEPT_SECONDS)
    await executed(redis, pipeline)


async def deliveries_cancelled_at(redis: Store, request_ids: Sequence[str]) -> list[float | None]:
    """When each id was cancelled (Unix seconds), or None. Raises one of `STORE_FAILURES`."""
    pipeline: Any = redis.pipeline(transaction=False)
    for request_id in request_ids:
        pipeline.getrange(delivery_cancel_key(request_id), 0, _LONGEST_TIME)
    return [decimal(text) for text in await executed(redis, pipeline)]
