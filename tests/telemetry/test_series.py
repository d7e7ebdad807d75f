"""The cheap counters and histograms show what prometheus-client's own would show."""

from __future__ import annotations

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest

from handlers.telemetry.series import Counter, Histogram

BUCKETS = (0, 1, 2.5, 1_000, 86_400_000)


@given(
    amounts=st.lists(st.one_of(st.sampled_from([0.0, *map(float, BUCKETS)]), st.floats(0, 1e9))),
    queues=st.lists(st.sampled_from(["a", "b", 'q"\n']), min_size=1),
)
def test_the_page_is_that_of_prometheus_client(amounts: list[float], queues: list[str]) -> None:
    disable_created_metrics()  # type: ignore[no-untyped-call]  # untyped
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counter = Counter("events_total", "Events.", ("queue",), ours)
    histogram = Histogram("seconds", "Durations.", ("queue",), ours, buckets=BUCKETS)
    their_counter = prometheus_client.Counter("events_total", "Events.", ("queue",), registry=theirs)
    their_histogram = prometheus_client.Histogram(
        "seconds", "Durations.", ("queue",), registry=theirs, buckets=BUCKETS
    )
    for queue in queues:
        counter.labels(queue).inc()
        their_counter.labels(queue).inc()
        for amount in amounts:
            histogram.labels(queue).observe(amount)
            their_histogram.labels(queue).observe(amount)
    assert generate_latest(ours) == generate_latest(theirs)


def test_two_families_of_one_name_are_refused() -> None:
    registry = CollectorRegistry()
    Counter("events_total", "Events.", (), registry)
    with pytest.raises(ValueError, match="events"):
        Counter("events_total", "Events.", (), registry)


def test_a_series_needs_a_value_for_each_label() -> None:
    counter = Counter("events_total", "Events.", ("queue", "pool"), CollectorRegistry())
    with pytest.raises(ValueError, match="expected values of"):
        counter.labels("queue")
