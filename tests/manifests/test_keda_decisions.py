"""The decisions of the ScaledObject by the rules of KEDA and the HPA, without processes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from tests.manifests.keda_rehearsal import Autoscaler, Scaling, evaluate
from tests.manifests.rendering import COMBINATIONS, ROOT, of_kind, render

IDLE = {"pending": 0.0, "retry": 0.0, "claimed": 0.0}


def read(folder: Path = ROOT / "keda") -> Scaling:
    """The scaling of a rendered folder."""
    (manifest,) = of_kind(render(folder), "ScaledObject")
    return Scaling.read(manifest)


@pytest.mark.parametrize("place", ["pending", "retry", "claimed"])
def test_one_pending_retried_or_claimed_request_starts_one_poller(place: str) -> None:
    assert Autoscaler(read()).decide(IDLE | {place: 1}, now=0) == 1


def test_without_requests_no_poller_runs() -> None:
    assert Autoscaler(read()).decide(IDLE, now=0) == 0


def test_a_backlog_raises_the_number_step_by_step_to_the_limit() -> None:
    scaler = Autoscaler(read())
    counts = [scaler.decide(IDLE | {"pending": 100_000}, now=5.0 * i) for i in range(20)]
    assert counts[0] == 1
    assert counts[-1] == scaler.scaling.maximum
    assert counts == sorted(counts)
    assert counts[1] <= 5, "at most four more in 15 s"


def test_full_pollers_stay_although_nothing_waits() -> None:
    scaler = Autoscaler(read(), replicas=4)
    counts = {scaler.decide(IDLE | {"claimed": 4 * 64}, now=5.0 * i) for i in range(100)}
    assert counts == {4}


def test_waiting_retries_keep_one_poller_and_not_many() -> None:
    scaler = Autoscaler(read(), replicas=1)
    assert {scaler.decide(IDLE | {"retry": 900}, now=5.0 * i) for i in range(100)} == {1}


def test_pollers_leave_one_by_one_and_the_last_after_the_cooldown() -> None:
    scaler = Autoscaler(read(), replicas=5)
    scaler.decide(IDLE | {"pending": 5 * 256}, now=0)
    counts = [scaler.decide(IDLE | {"claimed": 1}, now=5.0 * i) for i in range(1, 60)]
    assert counts[0] == 5, "the stabilisation window holds them"
    assert all(before - after in (0, 1) for before, after in pairwise(counts))
    assert counts[-1] == 1
    end = [scaler.decide(IDLE, now=300 + 5.0 * i) for i in range(14)]
    assert end[-1] == 0
    assert end.index(0) * 5 >= scaler.scaling.cooldown_seconds - 5


@pytest.mark.parametrize(
    ("saturation", "pending", "claimed", "replicas"),
    [
        (0.1, 1, 0, 1),  # idle pool: one request starts a poller
        (0.95, 5_000, 0, 0),  # full pool: no poller starts
        (0.95, 5_000, 3, 1),  # the claims of a crashed poller still start one
    ],
)
def test_slack_aware_starts_a_poller_only_for_idle_capacity(
    saturation: float, pending: float, claimed: float, replicas: int
) -> None:
    scaler = Autoscaler(read(COMBINATIONS / "keda-slack-aware"))
    values = {"pending": pending, "retry": 0.0, "claimed": claimed, "saturation": saturation}
    assert scaler.decide(values, now=0) == replicas


def test_slack_aware_adds_no_poller_while_the_pool_is_full_and_keeps_busy_ones() -> None:
    scaler = Autoscaler(read(COMBINATIONS / "keda-slack-aware"), replicas=3)
    busy = {"pending": 5_000.0, "retry": 10.0, "claimed": 3 * 64.0}
    assert {scaler.decide(busy | {"saturation": 0.9}, now=5.0 * i) for i in range(60)} == {3}
    assert scaler.decide(busy | {"saturation": 0.5}, now=300) > 3


def test_formulas_are_read_as_keda_reads_them() -> None:
    values = {"a": 3.0, "b": 4.0, "c": 0.5}
    assert evaluate("c < 0.8 ? a + (a + b) / 4 : a", values) == pytest.approx(4.75)
    assert evaluate("a * b", values) == 12
    with pytest.raises(ValueError, match="does not know"):
        evaluate("max(a, b)", values)
