"""The checker rejects histories with one error each."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.chaos.faults import DELAY_SECONDS, STALL_SECONDS, Inflicted
from tests.chaos.history import Execution, History, judge_results, verdict

NOW = 1_000.0
COPIES = [('{"id": "p"}', {"id": "p", "pubsub_message_id": key}) for key in ("1", "2")]


def _reported(**changes: Any) -> History:
    """A correct run of two queued requests and a pushed one that met a kill."""
    reported = History(
        queued={"a": NOW + 500, "b": NOW + 500},
        pushed=["p"],
        results=[{"id": "a", "status_code": 200}, {"id": "b", "status_code": 200}],
        published=[('{"id": "p"}', {"id": "p", "pubsub_message_id": "1"})],
        keys_left=[],
        refused=1,
        faults=Inflicted([(NOW, "kill poller")], in_flight=1, killed_pollers_at=[NOW]),
        began_at=time.time(),
        stall_seconds=0.0,
    )
    return dataclasses.replace(reported, **changes)


def _executions() -> list[Execution]:
    return [
        Execution("a", NOW - 0.1, NOW, 499),
        Execution("p", NOW, NOW + 0.1, 200),
        Execution("a", NOW + 2, NOW + 2.1, 200),
        Execution("b", NOW + 10, NOW + 10, 503),
        Execution("b", NOW + 11.5, NOW + 11.6, 200),
    ]


def test_a_correct_history_is_summarised_in_numbers() -> None:
    reported = verdict(1, _reported(), _executions())
    assert (reported.executions, reported.executed_again, reported.retries_spaced) == (5, 1, 1)
    assert reported.redelivery_worst == 2.0


@pytest.mark.parametrize(
    ("fault", "late_seconds", "is_excused"),
    [
        ("stall handler", STALL_SECONDS - 0.5, True),
        ("stall handler", STALL_SECONDS + 0.5, False),
        ("delay gateway", DELAY_SECONDS, True),
        ("kill handler", DELAY_SECONDS, False),
    ],
)
def test_a_call_may_be_late_by_the_length_of_a_fault(fault: str, late_seconds: float, is_excused: bool) -> None:
    deadline = NOW + 2 - late_seconds
    faults = Inflicted([(deadline - 0.1, fault), (NOW, "kill poller")], 1, [NOW])
    faults.at.sort()
    reported = _reported(queued={"a": deadline, "b": NOW + 500}, faults=faults)
    if is_excused:
        verdict(1, reported, _executions())
    else:
        with pytest.raises(AssertionError, match="after its deadline"):
            verdict(1, reported, _executions())


@pytest.mark.parametrize(("held_seconds", "is_judged"), [(0.001, False), (1.0, True)])
def test_a_late_request_is_excused_only_if_its_client_had_left_before(held_seconds: float, is_judged: bool) -> None:
    late = Execution("b", NOW + 600, NOW + 600 + held_seconds, 499)
    results = [{"id": "b", "status_code": 504}]
    if is_judged:
        with pytest.raises(AssertionError, match="after its deadline"):
            judge_results({"b": NOW + 500}, results, [late])
    else:
        judge_results({"b": NOW + 500}, results, [late])


WRONG: dict[str, dict[str, Any]] = {
    "lost": {"results": [{"id": "a", "status_code": 200}]},
    "duplicated": {"results": [{"id": one, "status_code": 200} for one in ("a", "b", "b")]},
    "of an unknown id": {"results": [{"id": one, "status_code": 200} for one in ("a", "b", "x")]},
    "without a reason": {"results": [{"id": "a", "status_code": 200}, {"id": "b"}]},
    "left keys": {"keys_left": ["request-sortedset:claim-owners"]},
    "no lost lease": {"refused": 0},
    "not published": {"published": []},
    "two dedupe keys": {"published": COPIES},
    "duplicated without a fault": {"faults": Inflicted([(NOW, "kill poller")], in_flight=0)},
    "sent after its deadline": {"queued": {"a": NOW + 1, "b": NOW + 500}},
}


@pytest.mark.parametrize("changes", WRONG.values(), ids=WRONG.keys())
def test_a_history_with_one_error_is_rejected(changes: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        verdict(1, _reported(**changes), _executions())


SEEN_WRONG: dict[str, Callable[[list[Execution]], list[Execution]]] = {
    "a success without a call to the gateway": lambda seen: [one for one in seen if one.key != "a"],
    "a retry without a delay": lambda seen: [*seen[:-1], Execution("b", NOW + 10.2, NOW + 10.3, 200)],
    "more repeated calls than requests in flight": lambda seen: [*seen, Execution("a", NOW + 3, NOW + 3.1, 200)],
    "somebody else's": lambda seen: [*seen, Execution("x", NOW + 3, NOW + 3.1, 200)],
    "no retry checked": lambda seen: [one for one in seen if one.status != 503],
}


@pytest.mark.parametrize("change", SEEN_WRONG.values(), ids=SEEN_WRONG.keys())
def test_an_error_in_the_gateways_record_is_found(change: Callable[[list[Execution]], list[Execution]]) -> None:
    with pytest.raises(AssertionError):
        verdict(1, _reported(), change(_executions()))
