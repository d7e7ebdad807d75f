"""What was cancelled of the requests on Pub/Sub, which itself takes nothing back.

delivery-cancel:<id>  string  when, in Unix seconds; expires after a week, the longest that a subscription keeps
                              what was published
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from handlers.redis_store.connection import Store, executed

_KEPT_SECONDS: Final = 604_800


def delivery_cancel_key(request_id: str) -> str:
    """STRING: when the requests of that id were cancelled."""
    return f"delivery-cancel:{request_id}"


async def cancel_deliveries(redis: Store, request_ids: Sequence[str], at: float) -> None:
    """Cancel what was submitted under these ids until `at`, in Unix seconds. Raises one of `STORE_FAILURES`."""
    pipeline: Any = redis.pipeline(transaction=False)
    for request_id in request_ids:
        pipeline.set(delivery_cancel_key(request_id), f"{at:.3f}", ex=_KEPT_SECONDS)
    await executed(redis, pipeline)


async def deliveries_cancelled_at(redis: Store, request_ids: Sequence[str]) -> list[float | None]:
    """When each was cancelled; None where it was not. Raises one of `STORE_FAILURES`."""
    pipeline: Any = redis.pipeline(transaction=False)
    for request_id in request_ids:
        pipeline.get(delivery_cancel_key(request_id))
    return [_seconds(text) for text in await executed(redis, pipeline)]


def _seconds(text: bytes | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None  # not written by us
