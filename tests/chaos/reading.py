"""The consumer of a run: it takes results from Redis and detects the end of all work."""

from __future__ import annotations

import json
import re
from typing import Any, cast

from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import BusyLoadingError, ReadOnlyError, ResponseError
from redis.exceptions import ConnectionError as NoConnection
from redis.retry import Retry

from handlers.redis_store.idempotency.idempotency import DELIVERY_PREFIX
from tests.chaos.history import RESULTS
from tests.waiting import wait_until

QUEUE, RETRIES = "request-sortedset", "retry-sortedset"
_TAKEN = "chaos-results-taken"
_JUDGED = ("id", "status_code", "error_code")


class ResultReader:
    """Takes all results of the list; `results` has their checked fields, unordered."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.results: list[dict[str, Any]] = []

    def take(self) -> int:
        """Take all results, in repeatable steps; returns the total so far."""
        try:
            # Never overwrite results that were taken but not read yet.
            self.redis.renamenx(RESULTS, _TAKEN)
        except ResponseError as error:
            if "no such key" not in str(error):
                raise
        for text in cast(list[bytes], self.redis.lrange(_TAKEN, 0, -1)):
            result = json.loads(text)
            self.results.append({name: result[name] for name in _JUDGED if name in result})
        self.redis.delete(_TAKEN)
        return len(self.results)

    def wait_until_drained(self, count: int) -> None:
        """Wait until there are `count` results and nothing is queued or claimed.

        Raises `NotInTime`; the run is then invalid.
        """
        held = (QUEUE, f"{QUEUE}:claimed", RETRIES)
        wait_until(lambda: self.take() >= count, "all results", timeout_seconds=90 + count / 50)
        wait_until(lambda: not self.redis.exists(*held), "nothing is held")
        self.take()  # unexpected keys


def store_client(url: str) -> Redis:
    """A connection of the harness, which waits for a restarting server."""
    failures: list[type[Exception]] = [NoConnection, BusyLoadingError, ReadOnlyError]
    return Redis.from_url(url, retry=Retry(ConstantBackoff(0.1), 100), retry_on_error=failures)


def keys_left(redis: Redis) -> set[str]:
    """All keys that do not expire by themselves."""
    passing = re.compile(rf".*:(settled|status):|.*:cancellations-swept$|request-sent:|{DELIVERY_PREFIX}")
    return {name for key in redis.scan_iter(count=1_000) if not passing.match(name := key.decode())}
