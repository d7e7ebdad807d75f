"""A gate in the place of another: no limit is exceeded by what the one before let go, nothing learnt is forgotten."""

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


@pytest.mark.parametrize(
    ("gate_type", "params"),
    [
        ("local-max-concurrency", LIMIT),
        ("composite", {"gates": [{"gate_type": "constant"}, LOCAL]}),
        ("tier-priority-admission", {"saturation_gate": LOCAL["gate_type"], "saturation_gate_params": LIMIT}),
    ],
)
async def test_requests_of_the_previous_gate_count_against_the_limit(
    gate_type: str, params: dict[str, Any]
) -> None:
    before, following = gate(gate_type, params), gate(gate_type, params)
    first, _second = await let_go(before, "1"), await let_go(before, "2")
    following.take_over(before)
    assert following.room() == 0
    assert isinstance(await following.admit(request("3")), Refuse)
    await first.reservation.release()
    assert following.room() == 1
    await let_go(following, "4")


async def test_a_release_at_the_previous_gate_wakes_a_request_at_its_successor() -> None:
    blocking = {"limit": 1, "gating_mode": "blocking"}
    before, following = gate("local-max-concurrency", blocking), gate("local-max-concurrency", blocking)
    inside = await let_go(before, "1")
    following.take_over(before)
    waiting = asyncio.create_task(following.wait_open(request().deadline))
    await asyncio.sleep(0)
    await inside.reservation.release()
    assert await asyncio.wait_for(waiting, 5)


async def test_a_window_that_was_learnt_stays_unless_its_bounds_change() -> None:
    def aimd(most: int) -> AimdGate:
        built = gate("aimd", {"max_window": most})
        assert isinstance(built, AimdGate)
        return built

    before, same, other = aimd(64), aimd(64), aimd(32)
    for number in range(5):
        one = request(str(number))
        inside = await let_go(before, str(number))
        before.observe(one, Feedback(200))
        await inside.reservation.release()
    assert before.room() > 1
    same.take_over(before)
    other.take_over(before)
    assert same.room() == before.room()
    assert other.room() == 1


async def test_a_gate_of_another_type_starts_anew() -> None:
    before, following = gate("constant", {}), gate("local-max-concurrency", LIMIT)
    following.take_over(before)
    assert following.room() == 2
