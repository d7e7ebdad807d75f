"""Record the leases of each request from Redis, to find the crash of its last owner."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any, Self, cast

from redis import Redis

from tests.chaos.reading import QUEUE

_SAMPLE_SECONDS = 0.2
"""Sampling interval; a crashed owner's claim stays for a whole lease, so no sample misses it."""


@dataclass
class Lease:
    """One owner's claim: its first sighting and its last end, in Unix seconds."""

    seen_at: float
    ends_at: float


@dataclass
class Leases:
    """Samples the claims of a queue in a thread; `by_id` has each request's leases in order."""

    redis: Redis
    by_id: dict[str, dict[bytes, Lease]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._sample_all, name="leases")

    def _sample_all(self) -> None:
        while not self._is_over.wait(_SAMPLE_SECONDS):
            self.sample()

    def sample(self) -> None:
        """Read all claims once."""
        pipeline = self.redis.pipeline()
        pipeline.time()
        pipeline.hgetall(f"{QUEUE}:claim-owners")
        pipeline.zrange(f"{QUEUE}:claims-idx", 0, -1, withscores=True)
        (seconds, micros), owners, ends = cast(tuple[Any, Any, Any], tuple(pipeline.execute()))
        for key, ends_at in ends:
            if key not in owners:
                continue
            leases = self.by_id.setdefault(key.split(b"\0")[0].decode(), {})
            lease = leases.setdefault(owners[key], Lease(seconds + micros / 1e6, ends_at))
            lease.ends_at = max(lease.ends_at, ends_at)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._is_over.set()
        self._thread.join()


@dataclass(frozen=True)
class SentAgain:
    """A repeated request: seconds since the crash of its last owner, and the number of crashed owners."""

    seconds: float
    leases: int


def sent_again(
    leases: list[Lease], killed_at: float, started_at: float, kills: list[float], lease_seconds: float
) -> SentAgain:
    """The return of a request that was in flight at `killed_at` and sent again at `started_at`.

    An owner that crashed before it sent the request shows only in its lease: it crashed at the first kill after its
    last renewal, or later.
    """
    dead = [one for one in leases if killed_at < one.seen_at and one.ends_at < started_at]
    if not dead:
        return SentAgain(started_at - killed_at, 1)
    renewed_at = max(one.ends_at for one in dead) - lease_seconds
    died_at = min((at for at in kills if renewed_at <= at <= started_at), default=renewed_at)
    return SentAgain(started_at - max(died_at, killed_at), 1 + len(dead))
