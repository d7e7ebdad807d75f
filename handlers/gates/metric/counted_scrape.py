"""`endpoint-scrape` with `admission: counted`: each reading admits as many requests as it found free places."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from handlers.contract.request import Request
from handlers.gates.gate import CLOSED_RETRY_SECONDS, NO_LABELS, Gate, GateState, Go, Refuse, Verdict

if TYPE_CHECKING:
    from handlers.gates.metric.endpoint_scrape import ScrapedValue

_TURN_SECONDS = 0.05
"""How soon a refused request asks again: about when the next reading may be there."""


class CountedScrapeGate(Gate):
    """At most floor(capacity - value) requests pass for each reading; a failed reading admits none.

    `scraped` gives the first sample of the page as a part of the capacity. Source of the rule: the reference's
    `admission: counted`. The budget is 1 while a place of the reading is free, else 0.
    """

    gate_type = "endpoint-scrape"

    def __init__(self, scraped: ScrapedValue, label: str) -> None:
        self._scraped = scraped
        self._label = label
        self._read_at: float | None = None
        self._free = 0
        self._value: float | None = None

    async def start(self) -> None:
        """Start reading the page."""
        self._scraped.listen(self._count)
        await self._scraped.start()

    async def aclose(self) -> None:
        """Stop reading it."""
        await self._scraped.aclose()

    def budget(self) -> float:
        """1 while a place of the last reading is free, else 0."""
        return 1.0 if self._free > 0 else 0.0

    def room(self, labels: Mapping[str, str] = NO_LABELS) -> int | None:  # noqa: ARG002 - a count is for all
        """The free places that are left of the last reading."""
        return self._free

    async def admit(self, request: Request) -> Verdict:  # noqa: ARG002 - a count is for all alike
        """Go, and take one place of the reading."""
        if self._free <= 0:
            return Refuse(_TURN_SECONDS if self._value is not None else CLOSED_RETRY_SECONDS, self._why())
        self._free -= 1
        return Go()

    def state(self) -> GateState:
        """The last value and its capacity."""
        return GateState(
            self.gate_type,
            budget=self.budget(),
            value=self._value,
            threshold=self._scraped.full,
            is_source_available=self._value is not None,
            why_closed="" if self._free > 0 else self._why(),
            label=self._label,
            figures={"free_places": float(self._free)},
        )

    def _why(self) -> str:
        return "no free place in the last reading" if self._value is not None else "no usable reading"

    def _count(self) -> None:
        """Take the places of a new reading; a failed, negative, NaN or infinite one has none."""
        reading = self._scraped.reading
        if self._scraped.failure or reading is None:
            self._free, self._value = 0, None
            return
        if reading.at == self._read_at:
            return
        self._read_at = reading.at
        value = reading.value.value
        if value is None or not math.isfinite(value) or value < 0:
            self._free, self._value = 0, None
            return
        self._value = value * self._scraped.full
        self._free = max(0, math.floor(round(self._scraped.full - self._value, 9)))
