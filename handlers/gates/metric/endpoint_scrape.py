"""`endpoint-scrape`: a budget from a /metrics page, without a Prometheus server."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from handlers.contract.masked_text import without_secrets
from handlers.contract.request import Request
from handlers.gates.gate import CLOSED_RETRY_SECONDS, NO_LABELS, Gate, GateState, Go, Refuse, Verdict
from handlers.gates.metric.reading_gate import ReadingGate, ReadingParameters, Rule
from handlers.gates.parameters import (
    Senseless,
    choice,
    http_address,
    number,
    parameter,
    seconds,
    string_map,
    text,
)
from handlers.gates.sources import Feed, GateSources, Reading, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointScrapeParameters(ReadingParameters):
    """`max_count_per_pod` 0 means that the value is a part already; else it is a count, and this is full.

    `absent_value` is the value of a page without such a sample; `fallback` the budget while it is missing.
    With `pods_url` and `pods_metric`, full is `max_count_per_pod` times the ready pods.
    """

    url: str = parameter(http_address(), means="Metrics page to read, in the Prometheus text format.")
    metric: str = parameter(text(), means="Name of the metric on that page.")
    labels: Mapping[str, str] | None = parameter(
        string_map(), default=None, means="Labels that the series must have."
    )
    value_type: str = parameter(
        choice("saturation", "budget"),
        default="saturation",
        means=(
            "`saturation`: 1 means full, the budget is 1 minus the value. `budget`: the value is the budget."
        ),
    )
    absent_value: float | None = parameter(
        number(),
        default=None,
        means="Value to take if the page has no such series; unset: the reading is missing.",
    )
    max_count_per_pod: float = parameter(
        number(least=0),
        default=0.0,
        means=(
            "If above 0, the metric is a count: the saturation is the count divided by this and by the "
            "number of pods."
        ),
    )
    admission: str = parameter(
        choice("budget", "counted"),
        default="budget",
        means=(
            "`budget`: the reading opens a share of the slots. `counted`: each reading admits at most "
            "floor(capacity - value) requests; needs `value_type: saturation` and `max_count_per_pod`."
        ),
    )
    baseline: float = parameter(
        number(least=0, below=1),
        default=0.0,
        means="Share of the budget that is kept free for real-time traffic, 0 to 1.",
    )
    fallback: float = parameter(
        number(least=0, most=1),
        default=0.0,
        means="Budget while there is no reading and `on_missing` does not say otherwise, 0 to 1.",
    )
    pods_url: str = parameter(
        http_address(),
        default="",
        means="Page with the number of pods; goes with `pods_metric` and `max_count_per_pod`.",
    )
    pods_metric: str = parameter(
        text(may_be_empty=True),
        default="",
        means="Metric on that page that holds the number of pods; empty: one pod.",
    )
    pods_labels: Mapping[str, str] | None = parameter(
        string_map(), default=None, means="Labels that its series must have."
    )
    reading_lag_seconds: float = parameter(
        seconds(),
        default=1.0,
        means=(
            "As for every gate of one reading; for a page that is read directly, what the page itself caches."
        ),
    )

    def __post_init__(self) -> None:
        if bool(self.pods_url) != bool(self.pods_metric):
            raise Senseless("pods_url", found="one of pods_url and pods_metric", accepted="both, or neither")
        if self.pods_url and not self.max_count_per_pod:
            raise Senseless("max_count_per_pod", found="0 with pods_url", accepted="a number above 0")
        if self.admission == "counted" and not self.max_count_per_pod:
            raise Senseless(
                "max_count_per_pod", found="0 with admission counted", accepted="a number above 0"
            )
        if self.admission == "counted" and self.value_type != "saturation":
            raise Senseless("value_type", found="budget with admission counted", accepted="saturation")


class EndpointScrapeGate(ReadingGate):
    """Publishes 1 - saturation - baseline (or budget - baseline); an idle source gives all slots."""

    gate_type = "endpoint-scrape"

    def __init__(self, parameters: EndpointScrapeParameters, sources: GateSources) -> None:
        baseline = parameters.baseline
        is_budget = parameters.value_type == "budget"

        def published(value: float) -> float:
            # Below 0 it says by how much the pool is over-full.
            left = min(1.0, value) if is_budget else 1.0 - max(0.0, value)
            return left - baseline

        super().__init__(
            ScrapedValue(parameters, sources),
            Rule(
                published,
                threshold=baseline if is_budget else 1 - baseline,
                full=1 - baseline,
                fallback=parameters.fallback,
            ),
            parameters,
            log=sources.log,
            clock=sources.clock,
            label=parameters.metric,
        )


def endpoint_scrape_gate(parameters: EndpointScrapeParameters, sources: GateSources) -> Gate:
    """The gate of the admission that the parameters name."""
    if parameters.admission == "counted":
        return CountedScrapeGate(ScrapedValue(parameters, sources), parameters.metric)
    return EndpointScrapeGate(parameters, sources)


class ScrapedValue:
    """The value of one metric on one page, as a part of full; the page is shared with other gates."""

    def __init__(self, parameters: EndpointScrapeParameters, sources: GateSources) -> None:
        self.name = f"{without_secrets(parameters.url)} {parameters.metric}"
        self._parameters = parameters
        self._page = page_feed(parameters.url, sources)
        self._pods_page = page_feed(parameters.pods_url, sources) if parameters.pods_url else None
        self._reading: Reading[Sample] | None = None
        self._failure = "it was not read yet"
        self.full = parameters.max_count_per_pod or 1.0
        """The capacity of the last reading: what stands for a saturation of 1."""
        self._listeners: list[Callable[[], None]] = []

    @property
    def reading(self) -> Reading[Sample] | None:
        """The last value, however old."""
        return self._reading

    @property
    def failure(self) -> str:
        """Why there is none now."""
        return self._failure

    async def start(self) -> None:
        """Start reading the pages."""
        for page in self._pages():
            page.listen(self._take)
            await page.start()
        self._take()

    async def aclose(self) -> None:
        """Stop reading them."""
        for page in self._pages():
            await page.aclose()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each fetch, when its value has been taken."""
        self._listeners.append(listener)

    def _pages(self) -> list[Feed[bytes]]:
        return [page for page in (self._page, self._pods_page) if page is not None]

    def _take(self) -> None:
        self._read_pages()
        for listener in self._listeners:
            listener()

    def _read_pages(self) -> None:
        failures = [page.failure for page in self._pages() if page.failure]
        page = self._page.reading
        if failures or page is None:
            self._failure = failures[0] if failures else "it was not read yet"
            return
        wanted = self._parameters
        try:
            full = self._full()
            values = samples_of(page.value, wanted.metric, wanted.labels or {})
        except ValueError as error:
            self._failure = str(error) or "the page is not in the Prometheus text format"
            return
        value = self._combined(values)
        self._failure = ""
        self.full = full
        self._reading = Reading(Sample(None if value is None else value / full), page.at)

    def _combined(self, values: list[float]) -> float | None:
        """Counts add up (engines, models); of several parts the one that leaves least room counts."""
        wanted = self._parameters
        if wanted.admission == "counted" and values:
            return values[0]
        values = [value for value in values if not math.isnan(value)]
        if not values:
            return wanted.absent_value
        if wanted.max_count_per_pod:
            return sum(values)
        return min(values) if wanted.value_type == "budget" else max(values)

    def _full(self) -> float:
        wanted = self._parameters
        if self._pods_page is None or self._pods_page.reading is None:
            return wanted.max_count_per_pod or 1.0
        pods = samples_of(self._pods_page.reading.value, wanted.pods_metric, wanted.pods_labels or {})
        if not pods or not max(pods) > 0:
            raise ValueError(f"no ready pods in {wanted.pods_metric}")
        return max(pods) * wanted.max_count_per_pod


def page_feed(address: str, sources: GateSources) -> Feed[bytes]:
    """The feed of a page: one for all gates that look at it."""

    async def read() -> bytes:
        return await sources.http.get(address)

    return sources.feeds.feed(("page", address), read, name=without_secrets(address))


_LINE_BYTES: Final = 16_384
"""Most bytes of one sample: the parser's time grows with the square of a line's length."""


def samples_of(page: bytes, metric: str, labels: Mapping[str, str]) -> list[float]:
    """The values of `metric` with these labels. Raises ValueError for lines that are not of the format."""
    # Only the metric's own lines are parsed: a router's page has megabytes of others.
    start = metric.encode()
    lines = [
        line
        for line in page.splitlines()
        if line.startswith(start) and line[len(start) : len(start) + 1] in b"{ \t"
    ]
    if any(len(line) > _LINE_BYTES for line in lines):
        raise ValueError(f"a line of more than {_LINE_BYTES} bytes")
    text_lines = b"\n".join(lines).decode(errors="replace") + "\n"
    return [
        sample.value
        for family in text_string_to_metric_families(text_lines)
        for sample in family.samples
        if sample.name == metric and all(sample.labels.get(name) == value for name, value in labels.items())
    ]


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
