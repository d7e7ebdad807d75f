"""Backoff of a poller's part while its calls to Redis fail."""

from __future__ import annotations

from handlers.backoff import Backoff
from handlers.redis_store.faults import explained, refusal
from handlers.telemetry.logs import Logger


class StoreBackoff(Backoff):
    """Growing pauses for the part `name` of a poller.

    The first of several failures is logged with `fields`. If Redis refuses the calls, `refusal` gives the reason (a
    missing right, a key of another type) and a fix; otherwise it is empty.
    """

    __slots__ = ("_fields", "_log", "_name", "refusal")

    def __init__(self, name: str, log: Logger, *, first_seconds: float = 0.05, **fields: str) -> None:
        super().__init__(first_seconds)
        self._name = name
        self._log = log
        self._fields = fields
        self.refusal = ""

    def failed(self, error: BaseException) -> float:
        """Record a failure; return the seconds to pause."""
        if not self.has_failed:
            self._log.warning(
                f"{self._name} paused: Redis unavailable", **self._fields, error=explained(error)
            )
        refused = refusal(error)
        self.refusal = f"{self._name} is refused: {refused}" if refused else ""
        return self.next_seconds()

    def reset(self) -> None:
        """Record a success: the next pause is short again, `refusal` is empty."""
        super().reset()
        self.refusal = ""
