"""What a handler says of itself: its deliveries by what became of them, whoever counts the requests.

Apart from the reference's names: behind the poller it is the poller that counts requests under those, and a
sum over all pods must not count them twice.
"""

from __future__ import annotations

from typing import Final

from handlers.telemetry.families import Families

OUTCOMES: Final = ("answered", "retry", "not_recorded")
"""`not_recorded`: there was a result, and nobody to take it; the delivery comes again."""


class DoorMetrics:
    """The series of one door; `door` is the target that the process serves."""

    def __init__(self, families: Families, door: str) -> None:
        self._in_flight = 0
        self._outcomes = {outcome: families.deliveries.labels(door, outcome) for outcome in OUTCOMES}
        self._seconds = families.delivery_time.labels(door)
        families.deliveries_in_flight.labels(door).set_function(lambda: self._in_flight)

    def started(self) -> None:
        """A request is on its way."""
        self._in_flight += 1

    def ended(self) -> None:
        """It has an outcome, or was given up."""
        self._in_flight -= 1

    def settled(self, outcome: str, seconds: float) -> None:
        """A delivery is over, as one of `OUTCOMES`, after so long."""
        self._outcomes[outcome].inc()
        self._seconds.observe(seconds * 1000)
