"""Pauses of one part of a poller while its calls to Redis fail."""

from __future__ import annotations

from handlers.backoff import Backoff
from handlers.redis_store.faults import explained, refusal
from handlers.telemetry.logs import Logger


class StoreBackoff(Backoff):
    """Growing pauses of the part `name`; the first failure in a row is logged, with `fields`.

    `refusal` names the missing right or the wrong key because of which Redis refuses the calls, with a fix; else it is
    empty.
    """

    __slots__ = ("_fields", "_log", "_name", "refusal")

    def __init__(self, name: str, log: Logger, *, first_seconds: float = 0.05, **fields: str) -> None:
        super().__init__(first_seconds)
        self._name = name
        self._log = log
        self._fields = fields
        self.refusal = ""

    def failed(self, error: BaseException) -> float:
        """Note a failure; returns the seconds to pause."""
        if not self.has_failed:
            self._log.warning(
                f"{self._name} paused: Redis unavailable", **self._fields, error=explained(error)
            )
        refused = refusal(error)
        self.refusal = f"{self._name} is refused: {refused}" if refused else ""
        return self.next_seconds()

    def reset(self) -> None:
        """Record a success: the next pause is the first one again, and nothing is refused."""
        super().reset()
        self.refusal = ""
