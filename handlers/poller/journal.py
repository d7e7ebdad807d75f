"""Tells Redis now and then what this poller did, for the status page and `top`: counts, failures, pools and gates."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from handlers.contract.request import Request
from handlers.contract.result import ErrorCode, Result
from handlers.forward.outcome import Answered, Outcome
from handlers.redis_store.activity import Failure, PollerReport, write_activity
from handlers.redis_store.connection import Store
from handlers.telemetry.activity_counts import ActivityCounts

JOURNAL_SECONDS: Final = 5.0
"""How often: what people look at may be so old."""
_MOST_BETWEEN: Final = 50
"""Failures kept between two writes: the latest. A storm is in the counts."""
_LONGEST_ID: Final = 256


class Journal:
    """One poller's. `report` says how it is now; `clock` gives the Redis server's Unix seconds."""

    def __init__(
        self,
        redis: Store,
        counts: ActivityCounts,
        report: Callable[[float], PollerReport],
        clock: Callable[[], float],
    ) -> None:
        self._redis = redis
        self._counts = counts
        self._report = report
        self._clock = clock
        self._failures: deque[Failure] = deque(maxlen=_MOST_BETWEEN)

    def note(self, request: Request, outcome: Outcome) -> None:
        """Remember an attempt that did not succeed; what a gate sent back was none."""
        match outcome:
            case Answered(result):
                if not 200 <= result.status_code < 300:
                    self._keep(request, _word(result), result.error_code or "answered", result.status_code)
            case _:
                if outcome.counts_attempt:
                    self._keep(
                        request, "retry", outcome.reason, outcome.last.status_code if outcome.last else 0
                    )

    def _keep(self, request: Request, outcome: str, reason: str, status: int) -> None:
        self._failures.append(
            Failure(
                at=round(self._clock(), 3),
                queue=request.queue,
                id=request.id[:_LONGEST_ID],
                attempt=request.attempt + 1,
                outcome=outcome,
                reason=reason,
                status=status,
            )
        )

    async def tick(self) -> None:
        """One write; raises what Redis raises, then the next one carries what this one should have."""
        failures = list(self._failures)
        await write_activity(self._redis, self._report(self._clock()), self._counts.look(), failures)
        self._counts.keep()
        for _ in range(min(len(failures), len(self._failures))):
            self._failures.popleft()


def _word(result: Result) -> str:
    return "expired" if result.error_code == ErrorCode.DEADLINE_EXCEEDED else "failed"
