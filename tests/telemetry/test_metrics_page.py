"""docs/metrics.md lists the metrics of the page."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.telemetry.metrics_page import OF_THE_REFERENCE, labels_by_name, metrics_page, populated

PAGE = Path(__file__).parents[2] / "docs/metrics.md"


def test_the_page_is_that_of_the_code() -> None:
    assert PAGE.read_text() == metrics_page(), "python -m tests.telemetry.metrics_page > docs/metrics.md"


def test_every_metric_of_the_reference_exists_with_its_labels() -> None:
    found = {name: set(labels) for name, (_, _, labels) in labels_by_name().items()}
    queue = {"queue_id", "queue_name", "pool_name"}
    band = {"pool_name", "band"}
    others = {
        "tokens_total": queue | {"direction"},
        "gate_decisions_total": queue | {"reason"},
        "pool_worker_limit": {"pool_name"},
        "gate_waiting_requests": {"pool_name"},
        "broker_backlog": queue | {"model_name"},
        **{f"gate_metric_{name}": queue | {"inference_pool"} for name in ("value", "threshold", "source_available")},
        **{f"aimd_{name}": band for name in ("window", "ssthresh", "inflight")},
    }
    assert {name: found.get(name) for name in OF_THE_REFERENCE} == {
        name: others.get(name, queue) for name in OF_THE_REFERENCE
    }


def test_every_metric_has_a_sample_which_shows_its_labels() -> None:
    families = text_string_to_metric_families(populated().render().decode())
    assert [family.name for family in families if not family.samples] == []


def test_every_metric_has_a_description() -> None:
    assert [name for name, (_, text, _) in labels_by_name().items() if not text.endswith(".")] == []
