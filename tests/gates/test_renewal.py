"""A gate that a reload renews: requests in flight count against its limits, and nothing learnt is forgotten."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from handlers.gates.aimd import AimdGate
from handlers.gates.gate import Feedback, Gate, Go, Refuse
from tests.gates.building import gate, request

LIMIT = {"limit": 2, "gating_mode": "classifying"}
LOCAL = {"gate_type": "local-max-concurrency", "gate_params": LIMIT}


async def let_go(one: Gate, name: str) -> Go:
    verdict = await one.admit(request(name))
    assert isinstance(verdict, Go)
    return verdict


def local(limit: int) -> dict[str, Any]:
    return {"gate_type": "local-max-concurrency", "gate_params": {**LIMIT, "limit": limit}}


@pytest.mark.parametrize(
    ("gate_type", "params", "changed"),
    [
        ("local-max-concurrency", LIMIT, {**LIMIT, "limit": 3}),
        (
            "composite",
            {"gates": [{"gate_type": "constant"}, local(2)]},
            {"gates": [local(9), local(3)]},
        ),
        (
            "composite",
            {"gates": [local(2), {"gate_type": "constant"}]},
            {"gates": [local(3)]},
        ),
        (
            "tier-priority-admission",
            {"saturation_gate": LOCAL["gate_type"], "saturation_gate_params": LIMIT},
            {"saturation_gate": LOCAL["gate_type"], "saturation_gate_params": {**LIMIT, "limit": 3}},
        ),
    ],
)
async def test_requests_in_flight_count_against_the_changed_limit(
    gate_type: str, params: dict[str, Any], changed: dict[str, Any]
) -> None:
    discarded: list[Gate] = []
    before = gate(gate_type, params)
    first, second = await let_go(before, "1"), await let_go(before, "2")
    renewed = await before.renewed(gate(gate_type, changed), discarded)
    third = await let_go(renewed, "3")
    assert renewed.room() == 0
    assert isinstance(await renewed.admit(request("4")), Refuse)
    await first.reservation.release()
    assert renewed.room() == 1
    for one in (second, third):
        await one.reservation.release()
    assert renewed.room() == 3


async def test_a_higher_limit_wakes_a_request_that_waits() -> None:
    blocking = {"limit": 1, "gating_mode": "blocking"}
    one = gate("local-max-concurrency", blocking)
    await let_go(one, "1")
    waiting = asyncio.create_task(one.wait_open(request().deadline))
    await asyncio.sleep(0)
    renewed = await one.renewed(gate("local-max-concurrency", {**blocking, "limit": 2}), [])
    assert renewed is one
    assert await asyncio.wait_for(waiting, 60)


async def test_a_window_that_was_learnt_stays_unless_its_bounds_change() -> None:
    def aimd(most: int) -> AimdGate:
        built = gate("aimd", {"max_window": most})
        assert isinstance(built, AimdGate)
        return built

    before = aimd(64)
    for number in range(5):
        one = request(str(number))
        inside = await let_go(before, str(number))
        before.observe(one, Feedback(200))
        await inside.reservation.release()
    assert before.room() > 1
    discarded: list[Gate] = []
    assert await before.renewed(aimd(64), discarded) is before
    assert discarded == []
    other = await before.renewed(aimd(32), discarded)
    assert (other.room(), discarded) == (1, [before])


async def test_a_gate_of_another_type_starts_fresh() -> None:
    before, following, discarded = gate("constant", {}), gate("local-max-concurrency", LIMIT), list[Gate]()
    assert await before.renewed(following, discarded) is following
    assert (following.room(), discarded) == (2, [before])
