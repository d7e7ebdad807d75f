"""Combined gates: lowest budget, all-or-nothing reservations, waiting, and priority by tier."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

import pytest

from handlers.contract.errors import InvalidSetting
from handlers.contract.request import Request
from handlers.gates.chain import admit_all
from handlers.gates.gate import Drop, Gate, Go, Hold, Refuse, Verdict
from handlers.gates.sources import GateSources
from tests.gates.building import gate, request
from tests.gates.exporter import Exporter
from tests.gates.opening import started


def publishes(exporter: Exporter, budget: float) -> dict[str, Any]:
    """Parameters of an `endpoint-scrape` gate whose page has this budget."""
    metric = f"budget_{uuid.uuid4().hex}"
    exporter.set(metric, budget)
    return {"url": exporter.url, "metric": metric, "value_type": "budget"}


class Recorded(Gate):
    """Gives a scripted verdict and records the end of its reservation; may fail or wait."""

    gate_type = "recorded"

    def __init__(self, name: str, verdict: Verdict | BaseException, events: list[str]) -> None:
        self._name = name
        self._verdict = verdict
        self._events = events

    async def admit(self, request: Request) -> Verdict:
        if isinstance(self._verdict, BaseException):
            raise self._verdict
        if isinstance(self._verdict, Go):
            self._events.append(f"{self._name} saw {dict(request.labels)}")
            return Go(Reserved(self._name, self._events), self._verdict.labels)
        return self._verdict


class Reserved:
    def __init__(self, name: str, events: list[str]) -> None:
        self._name = name
        self._events = events

    async def release(self) -> None:
        self._events.append(f"{self._name} released")

    async def give_back(self) -> None:
        self._events.append(f"{self._name} given back")


async def never(until_at: float) -> bool:
    raise AssertionError("no request waits here")


async def test_later_gates_see_labels_of_earlier_ones_and_release_in_reverse() -> None:
    events: list[str] = []
    gates = [Recorded("a", Go(labels={"classification": "reserved"}), events), Recorded("b", Go(), events)]
    verdict = await admit_all(gates, request(labels={"tier": "batch"}))
    assert isinstance(verdict, Go)
    assert verdict.labels == {"classification": "reserved"}
    await verdict.reservation.release()
    assert events == [
        "a saw {'tier': 'batch'}",
        "b saw {'tier': 'batch', 'classification': 'reserved'}",
        "b released",
        "a released",
    ]


@pytest.mark.parametrize("refusal", [Refuse(1.0, "x"), Drop(429, "x"), Hold("x", never)])
async def test_earlier_reservations_are_given_back_when_a_later_gate_refuses(refusal: Verdict) -> None:
    events: list[str] = []
    gates = [
        Recorded("a", Go(), events),
        Recorded("b", Go(), events),
        Recorded("c", refusal, events),
        Recorded("d", Go(), events),
    ]
    assert await admit_all(gates, request()) == refusal
    assert events[2:] == ["b given back", "a given back"]


@pytest.mark.parametrize("failure", [RuntimeError("x"), asyncio.CancelledError()])
async def test_reservations_are_given_back_on_errors_and_cancellation(
    failure: BaseException,
) -> None:
    events: list[str] = []
    gates = [Recorded("a", Go(), events), Recorded("b", failure, events)]
    with pytest.raises(type(failure)):
        await admit_all(gates, request())
    assert events[1:] == ["a given back"]


async def test_a_composite_publishes_the_lowest_budget_and_its_pool_obeys_each(
    from_pages: GateSources, exporter: Exporter
) -> None:
    inner = [
        {"gate_type": "endpoint-scrape", "gate_params": publishes(exporter, 0.6)},
        {"gate_type": "endpoint-scrape", "gate_params": publishes(exporter, 0.2)},
        {"gate_type": "local-max-concurrency", "gate_params": {"limit": "3"}},
    ]
    async with started("composite", {"gates": json.dumps(inner)}, from_pages) as built:
        assert built.budget() == pytest.approx(0.2)
        assert [share.part for share in built.shares()] == pytest.approx([0.6, 0.2, 1.0])
        assert built.room() == 3
        assert [one.gate_type for one in built.state().inner] == [one["gate_type"] for one in inner]


async def test_a_composite_gives_a_quota_back_when_the_budget_is_closed(
    from_pages: GateSources, exporter: Exporter
) -> None:
    inner = [
        {"gate_type": "local-max-concurrency", "gate_params": {"limit": 1}},
        {"gate_type": "endpoint-scrape", "gate_params": publishes(exporter, 0.0)},
    ]
    async with started("composite", {"gates": inner}, from_pages) as built:
        for _ in range(3):
            assert isinstance(await built.admit(request()), Refuse)
        assert built.state().inner[0].value == 0
        assert "endpoint-scrape" in built.state().why_closed
        assert not await built.wait_open(time.time() + 0.01)


async def test_wait_on_refuse_waits_as_long_as_the_refusal_asked_for() -> None:
    built = gate("wait-on-refuse", {"gate": {"gate_type": "local-max-concurrency", "gate_params": {"limit": 1}}})
    first = await built.admit(request())
    assert isinstance(first, Go)
    verdict = await built.admit(request("b"))
    assert isinstance(verdict, Hold)
    waiting = asyncio.ensure_future(verdict.wait_open(time.time() + 600))
    await asyncio.sleep(0)
    await first.reservation.release()
    assert await waiting
    assert isinstance(await built.admit(request("b")), Go)
    assert not await verdict.wait_open(time.time() - 1)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"classification": "reserved", "tier": "interactive"}, Hold),
        ({"classification": "reserved", "tier": "batch"}, Hold),
        ({"classification": "overflow", "tier": "interactive"}, Drop),
        ({"classification": "overflow", "tier": "async"}, Refuse),
        ({"classification": "overflow"}, Refuse),
        ({"tier": "interactive"}, Refuse),
        ({}, Refuse),
    ],
)
async def test_classification_and_tier_decide_while_the_pool_is_saturated(
    from_pages: GateSources, exporter: Exporter, labels: Mapping[str, str], expected: type[Verdict]
) -> None:
    saturated = json.dumps(publishes(exporter, 0.0))
    params = {"saturation_gate": "endpoint-scrape", "saturation_gate_params": saturated}
    async with started("tier-priority-admission", params, from_pages) as built:
        verdict = await built.admit(request(labels=labels))
        assert isinstance(verdict, expected)
        if isinstance(verdict, Drop):
            assert verdict.status_code == 429


@pytest.mark.parametrize("labels", [{}, {"classification": "overflow", "tier": "interactive"}])
async def test_all_requests_are_admitted_while_the_pool_is_not_saturated(
    from_pages: GateSources, exporter: Exporter, labels: Mapping[str, str]
) -> None:
    params = {"saturation_gate": "endpoint-scrape", "saturation_gate_params": publishes(exporter, 1.0)}
    async with started("tier-priority-admission", params, from_pages) as built:
        assert isinstance(await built.admit(request(labels=labels)), Go)


async def test_a_headroom_of_an_inner_gate_applies_and_shares_the_pool(
    from_pages: GateSources, exporter: Exporter
) -> None:
    """Above its threshold it takes slots back, while a plain budget closes and leaves the decision to the tier."""
    headroom = publishes(exporter, -0.1) | {"budget_means": "headroom"}
    params = {"saturation_gate": "endpoint-scrape", "saturation_gate_params": headroom}
    async with started("tier-priority-admission", params, from_pages) as built:
        assert built.shares()[0].headroom == pytest.approx(-0.12)
        assert built.shares_pool()
    assert not gate("constant").shares_pool()


async def test_while_saturated_only_droppable_requests_are_claimed(from_pages: GateSources, exporter: Exporter) -> None:
    params: dict[str, Any] = {
        "saturation_gate": "endpoint-scrape",
        "saturation_gate_params": publishes(exporter, 0.0),
        "tier_label": "sla",
    }
    async with started("tier-priority-admission", params, from_pages) as built:
        assert built.room({"sla": "interactive", "classification": "overflow"}) is None
        assert built.room({"sla": "interactive"}) is None, "a quota gate may classify it"
        assert built.room({"sla": "interactive", "classification": "reserved"}) == 0
        assert built.room({"sla": "batch"}) == 0
        assert built.room() == 0
        assert built.shares()[0].part == 1.0


@pytest.mark.parametrize(
    ("gate_type", "params", "path"),
    [
        ("composite", {"gates": [{"gate_type": "constant"}, {"gate_params": {"limit": 1}}]}, "gates[1]"),
        ("wait-on-refuse", {"gate": {"gate_params": {"limit": 1}}}, "gate"),
    ],
)
def test_an_inner_gate_without_a_type_is_named(gate_type: str, params: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        gate(gate_type, params)
    assert caught.value.setting == f"queues[0].gate_params.{path}.gate_type"
    assert caught.value.found == "nothing"
