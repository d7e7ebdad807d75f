"""`endpoint-scrape`: budget from a /metrics page, without a Prometheus server."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Final, Literal

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from handlers.contract.accepted import about, nearest
from handlers.contract.masked_text import shown_value, without_secrets
from handlers.contract.request import Request
from handlers.gates.gate import CLOSED_RETRY_SECONDS, NO_LABELS, Gate, Go, Refuse, Verdict
from handlers.gates.metric.reading_gate import Baseline, Fallback, ReadingGate, ReadingParameters, Rule
from handlers.gates.parameters import Duration, HttpUrl, InconsistentParameters, Labels, Text
from handlers.gates.sources import NOT_READ_YET, Feed, GateSources, MetricSample, Reading
from handlers.telemetry.dependencies import GateState


class EndpointScrapeParameters(ReadingParameters, frozen=True, kw_only=True):
    """Parameters of `endpoint-scrape`.

    With `max_count_per_pod` the metric is a count, and the capacity is this number times the pods of `pods_metric`.
    """

    url: Annotated[HttpUrl, about("Metrics page to read, in the Prometheus text format.")]
    metric: Annotated[Text, about("Name of the metric on that page.")]
    labels: Annotated[Labels, about("Labels that the series must have.")] = msgspec.field(default_factory=dict)
    value_type: Annotated[
        Literal["saturation", "budget"],
        about("`saturation`: 1 means full, the budget is 1 minus the value. `budget`: the value is the budget."),
    ] = "saturation"
    absent_value: Annotated[
        float | None, about("Value to use if the page has no such series; unset: the reading is missing.")
    ] = None
    max_count_per_pod: Annotated[
        float,
        about(
            "If above 0, the metric is a count: the saturation is the count divided by this and by the number of pods.",
            ge=0,
        ),
    ] = 0.0
    admission: Annotated[
        Literal["budget", "counted"],
        about(
            "`budget`: the reading opens a share of the slots. `counted`: each reading admits at most "
            "(capacity - value) requests, rounded down. The capacity is `max_count_per_pod` times the "
            "number of pods. Needs `value_type: saturation` and `max_count_per_pod`."
        ),
    ] = "budget"
    baseline: Baseline = 0.0
    fallback: Fallback = 0.0
    pods_url: Annotated[
        HttpUrl, about("Page with the number of pods; goes with `pods_metric` and `max_count_per_pod`.")
    ] = ""
    pods_metric: Annotated[str, about("Metric on that page that holds the number of pods; empty: one pod.")] = ""
    pods_labels: Annotated[Labels, about("Labels that its series must have.")] = msgspec.field(default_factory=dict)
    reading_lag_seconds: Annotated[Duration, about("As above. If the page is read directly, use its cache time.")] = 1.0

    def __post_init__(self) -> None:
        if bool(self.pods_url) != bool(self.pods_metric):
            given = (
                f"pods_url {shown_value(self.pods_url)}"
                if self.pods_url
                else f"pods_metric {shown_value(self.pods_metric)}"
            )
            raise InconsistentParameters("pods_url", found=f"{given} alone", accepted="both, or neither")
        if self.pods_url and not self.max_count_per_pod:
            raise InconsistentParameters("max_count_per_pod", found="0 with pods_url", accepted="a number above 0")
        if self.admission == "counted" and not self.max_count_per_pod:
            raise InconsistentParameters(
                "max_count_per_pod", found="0 with admission counted", accepted="a number above 0"
            )
        if self.admission == "counted" and self.value_type != "saturation":
            raise InconsistentParameters("value_type", found="budget with admission counted", accepted="saturation")


class EndpointScrapeGate(ReadingGate):
    """Publishes 1 - saturation - baseline, or budget - baseline.

    A saturation of 0, or a budget of 1, allows all slots.
    """

    gate_type = "endpoint-scrape"

    def __init__(self, parameters: EndpointScrapeParameters, sources: GateSources) -> None:
        baseline = parameters.baseline
        is_budget = parameters.value_type == "budget"

        def published(value: float) -> float:
            # A negative result is the fraction by which the pool is overfilled.
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
    """Build the gate that the parameter `admission` selects."""
    if parameters.admission == "counted":
        return CountedScrapeGate(ScrapedValue(parameters, sources), parameters.metric)
    return EndpointScrapeGate(parameters, sources)


class ScrapedValue:
    """One metric of a page, as a fraction of the capacity. Gates share the page's feed."""

    def __init__(self, parameters: EndpointScrapeParameters, sources: GateSources) -> None:
        self.name = f"{without_secrets(parameters.url)} {parameters.metric}"
        self._parameters = parameters
        self._page = page_feed(parameters.url, sources)
        self._pods_page = page_feed(parameters.pods_url, sources) if parameters.pods_url else None
        self.reading: Reading[MetricSample] | None = None
        self.failure = NOT_READ_YET
        self.full = parameters.max_count_per_pod or 1.0
        """The capacity of the last reading, which corresponds to a saturation of 1."""
        self._listeners: list[Callable[[], None]] = []

    async def start(self) -> None:
        for page in self._pages():
            page.listen(self._take)
            await page.start()
        self._take()

    async def aclose(self) -> None:
        for page in self._pages():
            page.forget(self._take)
            await page.aclose()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each fetch, when the value has been updated."""
        self._listeners.append(listener)

    def forget(self, listener: Callable[[], None]) -> None:
        if listener in self._listeners:
            self._listeners.remove(listener)

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
            self.failure = failures[0] if failures else NOT_READ_YET
            return
        wanted = self._parameters
        try:
            full = self._full()
            values = samples_of(page.value, wanted.metric, wanted.labels or {})
        except ValueError as error:
            self.failure = str(error) or "the page is not in the Prometheus text format"
            return
        value = self._combined(values)
        self.failure = ""
        self.full = full
        sample = (
            MetricSample(value / full)
            if value is not None
            else MetricSample(None, self._why_missing(page.value, values))
        )
        self.reading = Reading(sample, page.at)

    def _why_missing(self, page: bytes, values: list[float]) -> str:
        wanted = self._parameters
        labels = ",".join(f"{name}={json.dumps(value)}" for name, value in (wanted.labels or {}).items())
        series = wanted.metric + (f"{{{labels}}}" if labels else "")
        if values:
            return f"{series} is not a number"
        names = [name.decode(errors="replace") for name in _TYPE.findall(page)[:_MOST_NAMES]]
        close = "" if wanted.metric in names else nearest(wanted.metric, names)
        return f"no series {series} on the page" + (f" (did you mean {close}?)" if close else "")

    def _combined(self, values: list[float]) -> float | None:
        """Combine several series: add counts, take the smallest budget or largest saturation."""
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
    """The feed of a page, shared by all gates that read it."""

    async def read() -> bytes:
        return await sources.http.get(address)

    return sources.feeds.feed(("page", address), read, name=without_secrets(address))


_TYPE: Final = re.compile(rb"^# TYPE (\S+) ", re.MULTILINE)
_MOST_NAMES: Final = 2_000
"""Maximum number of names that are compared with a missing one."""

_LINE_BYTES: Final = 16_384
"""Maximum bytes of a sample's line. The parser's time grows with the square of its length."""


def samples_of(page: bytes, metric: str, labels: Mapping[str, str]) -> list[float]:
    """Values of `metric` with these labels. Raises `ValueError` for lines of another format."""
    # Only the metric's own lines are parsed: a router's page has several megabytes.
    start = metric.encode()
    lines = [
        line for line in page.splitlines() if line.startswith(start) and line[len(start) : len(start) + 1] in b"{ \t"
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
"""Delay of a request refused between two readings."""


class CountedScrapeGate(Gate):
    """Admits at most floor(capacity - value) requests per reading.

    A failed reading admits none. `scraped` gives the first sample of the page as a fraction of the capacity. The budget
    is 1 while the reading has a free place, else 0. Source of the rule: the reference's `admission: counted`.
    """

    gate_type = "endpoint-scrape"

    def __init__(self, scraped: ScrapedValue, label: str) -> None:
        self._scraped = scraped
        self._label = label
        self._read_at: float | None = None
        self._free = 0
        self._value: float | None = None

    async def start(self) -> None:
        self._scraped.listen(self._count)
        await self._scraped.start()

    async def aclose(self) -> None:
        self._scraped.forget(self._count)
        await self._scraped.aclose()

    def budget(self) -> float:
        return 1.0 if self._free > 0 else 0.0

    def room(self, labels: Mapping[str, str] = NO_LABELS) -> int | None:  # noqa: ARG002 - a count is for all
        """Free places left of the last reading."""
        return self._free

    async def admit(self, request: Request) -> Verdict:  # noqa: ARG002 - a count is for all alike
        """Take one free place of the reading, or refuse."""
        if self._free <= 0:
            return Refuse(_TURN_SECONDS if self._value is not None else CLOSED_RETRY_SECONDS, self._why())
        self._free -= 1
        return Go()

    def state(self) -> GateState:
        return GateState(
            self.gate_type,
            budget=self.budget(),
            value=self._value,
            threshold=self._scraped.full,
            is_source_available=self._value is not None,
            why_missing="" if self._value is not None else self._why_missing(),
            why_closed="" if self._free > 0 else self._why(),
            label=self._label,
            figures={"free_places": float(self._free)},
        )

    def _why(self) -> str:
        return "no free place in the last reading" if self._value is not None else self._why_missing()

    def _why_missing(self) -> str:
        reading = self._scraped.reading
        return self._scraped.failure or (reading.value.detail if reading else "") or "no usable reading"

    def _count(self) -> None:
        """Set the free places from a new reading. An invalid or failed one has none."""
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
