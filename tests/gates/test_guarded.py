"""A gate of another package that fails is closed, logged once per change, and recovers."""

from __future__ import annotations

import inspect
import math
import time
from typing import Any

import pytest

from handlers.contract.request import Request
from handlers.gates.gate import Feedback, Gate, Go, Refuse
from handlers.gates.guarded import GuardedGate
from tests.gates.building import ReadableLog, request


class Foreign(Gate):
    gate_type = "foreign"
    answer: Any = 1.0

    def budget(self) -> float:
        if isinstance(self.answer, Exception):
            raise self.answer
        found: float = self.answer
        return found


@pytest.mark.parametrize("answer", [LookupError("no timetable"), math.nan, "1", -0.1, 1.1, None, True])
async def test_a_failing_budget_closes_the_gate_until_it_answers_again(answer: object) -> None:
    log = ReadableLog()
    inner = Foreign()
    gate = GuardedGate(inner, log)
    inner.answer = answer
    assert [gate.budget() for _ in range(3)] == [0.0, 0.0, 0.0]
    assert not gate.state().is_source_available
    assert "Foreign.budget" in gate.state().why_missing
    inner.answer = 0.5
    assert gate.budget() == 0.5
    failed = [line for line in log.lines_of("gate failed") if "Foreign.budget" in line["reason"]]
    assert len(failed) == 1


async def test_a_request_is_refused_while_the_gate_raises() -> None:
    inner = Foreign()
    gate = GuardedGate(inner, ReadableLog())
    inner.answer = LookupError("no timetable")
    assert isinstance(await gate.admit(request()), Refuse)
    inner.answer = 1.0
    assert isinstance(await gate.admit(request()), Go)


async def test_an_invalid_verdict_refuses_and_is_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def admit(_self: Gate, _request: Request) -> Any:
        return True

    monkeypatch.setattr(Foreign, "admit", admit)
    log = ReadableLog()
    gate = GuardedGate(Foreign(), log)
    assert [type(await gate.admit(request())) for _ in range(3)] == [Refuse] * 3
    assert len(log.lines_of("gate failed")) == 1
    assert log.lines_of("gate recovered") == []


_NOW = time.time()
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "admit": (request(),),
    "observe": (request(), Feedback(200)),
    "renewed": (GuardedGate(Foreign(), ReadableLog()), []),
    "wait_open": (_NOW,),
}


@pytest.mark.parametrize("name", [name for name in vars(Gate) if not name.startswith("_") and name != "gate_type"])
async def test_every_method_of_a_gate_is_guarded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Any:
        raise LookupError("no timetable")

    monkeypatch.setattr(Foreign, name, fail)
    log = ReadableLog()
    found = getattr(GuardedGate(Foreign(), log), name)(*_ARGUMENTS.get(name, ()))
    if inspect.isawaitable(found):
        await found
    assert f"Foreign.{name} raised LookupError: no timetable" in [
        line["reason"] for line in log.lines_of("gate failed")
    ]
