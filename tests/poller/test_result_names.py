"""F75: a result goes to the list that its request may name, and to no other key."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, get_type_hints

import pytest
from redis.asyncio import Redis

from handlers.contract.errors import InvalidRequest
from handlers.contract.request import MAX_ID_LENGTH, decode_member
from handlers.contract.result import ErrorCode, ResultNames, read_result_names
from handlers.gates.registry import GATE_KINDS
from handlers.poller.settlement import ResultRoute
from handlers.redis_store.idempotency.idempotency import delivery_key
from handlers.redis_store.keys import (
    CANCELLATIONS,
    active_key,
    cancel_key,
    id_record_key,
    is_reserved,
    payload_key,
    queue_keys,
    result_claim_keys,
    result_payload_key,
    sent_key,
    seq_key,
    settled_key,
    submitted_key,
)
from handlers.redis_store.queue.cancellations import SWEPT
from handlers.redis_store.queue.queue import batch_digest
from handlers.settings.settings import load_settings
from handlers.wiring.gates import KEY_SUFFIX, PREFIX, reserved_names
from tests.poller.rig import IN_TIME, QUEUE, RESULTS, RETRIES, Rig, body, running
from tests.redis_keys import leaked_keys
from tests.waiting import wait_until_async

TEAMS = read_result_names("team-a, team-b:*")
GATES: list[dict[str, Any]] = [
    {"prefix": "limits:"},
    {"prefix": "{tagged}:"},
    {"control_key": "lease"},
    {"budget_key": "result-budget"},
    {"gates": '[{"gate_type": "redis-quota", "gate_params": {"prefix": "inner:"}}]'},
    {"saturation_gate_params": {"gate_params": '{"state_key": "inner-state"}'}},
]
TAKEN = reserved_names([QUEUE, RETRIES], GATES)
SOME = ResultRoute("", None, RESULTS, may_name=TEAMS, reserved=TAKEN)
ALL = ResultRoute("", None, RESULTS, reserved=TAKEN)
UNSET = ResultRoute("", None, RESULTS, may_name=load_settings({}).may_name_lists, reserved=TAKEN)
HOSTILE = [
    QUEUE,
    RETRIES,
    *(getattr(queue_keys(QUEUE), name) for name in ("claimed", "owners", "index", "deaths", "dead")),
    queue_keys("another", cluster=True).claimed,
    active_key("victim"),
    cancel_key("victim"),
    payload_key("victim", "t"),
    result_payload_key("victim", b"owner"),
    submitted_key("victim"),
    id_record_key("victim", QUEUE),
    sent_key([("victim", "t")]),
    seq_key(QUEUE, 1),
    CANCELLATIONS,
    SWEPT,
    "{async-processor}:status:failures",
    *result_claim_keys(RESULTS),
    *result_claim_keys(RESULTS, cluster=True),
    delivery_key("a", "t", b"", "s"),
    "quota:userid:victim",
    "{quota:userid:victim}:held",
    "limits:userid:victim",
    "limits:userid:result",
    "{limits:userid:victim}:held",
    "{tagged}:userid:result",
    "lease",
    "lease:state",
    "result-budget",
    "inner:userid:victim",
    "inner-state",
    settled_key(queue_keys("results"), batch_digest("ack", [])),
    "dispatch-gate-budget",
    "nul\0",
    "new\nline",
    "x" * 1_000_000,
]


def request_of(named: str, *, is_resolved: bool = False, request_id: str = "a") -> Any:
    internal = {"result_queue_name": named, "result_routing_resolved": is_resolved}
    data = {"id": request_id, "deadline": 2_000, "payload": {}}
    member = json.dumps({"internal": internal, "request_kind": "redis", "data": data}).encode()
    return decode_member(member, QUEUE, max_bytes=len(member)).request


def taken(route: ResultRoute, named: str, *, is_resolved: bool = False) -> str | None:
    """The list of the result of the running request "a"; None if it may not run."""
    request = request_of(named, is_resolved=is_resolved)
    try:
        route.check(request)
    except InvalidRequest as error:
        assert (error.field, error.request_id) == ("result_queue_name", "a")
        assert named not in str(error), "the error does not repeat text of the request"
        return None
    return route.name(request.result_queue_name, "a", is_resolved=is_resolved)


@pytest.mark.parametrize(
    "named",
    [
        "team-a",
        "team-b:",
        "team-b:one",
        RESULTS,
        f"{RESULTS}:result-of:a",
        f"{RESULTS}:batch:b-1",
    ],
)
@pytest.mark.parametrize("is_resolved", [False, True])
def test_an_allowed_list_takes_the_result(named: str, is_resolved: bool) -> None:
    assert taken(SOME, named, is_resolved=is_resolved) == named


@pytest.mark.parametrize(
    "named",
    ["team-b", "team-a:x", "team-", "*", "team-b*", "{team-a}", f"{RESULTS}:result-of:victim", "../team-a"],
)
@pytest.mark.parametrize("is_resolved", [False, True])
def test_a_forbidden_list_is_an_invalid_request_whose_result_is_in_the_default_list(
    named: str, is_resolved: bool
) -> None:
    assert taken(SOME, named, is_resolved=is_resolved) is None
    assert SOME.name(named, "a", is_resolved=is_resolved) == RESULTS


@pytest.mark.parametrize("named", ["team-results", "results-b", "result", f"{RESULTS}:x", "my-result:1"])
def test_by_default_only_names_with_result_are_allowed(named: str) -> None:
    assert taken(UNSET, named) == named


@pytest.mark.parametrize("named", ["qb", "retry-b", "celery", "x:userid:bob", f"{RESULTS}:result-of:victim"])
def test_by_default_a_request_cannot_name_other_keys(named: str) -> None:
    assert taken(UNSET, named) is None


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("a*b*c", ["abc", "a-b-b-c"], ["ab", "acb", "xabc"]),
        ("*x*", ["x", "axb"], ["ab", ""]),
        ("ab*ba", ["abba"], ["aba"]),
        ("[a]*", ["[a]b"], ["ab"]),
    ],
)
def test_a_star_matches_any_characters(pattern: str, matching: list[str], others: list[str]) -> None:
    names = ResultNames((pattern,))
    assert [names.allow(name) for name in [*matching, *others]] == [True] * len(matching) + [False] * len(others)


def test_every_text_parameter_of_a_redis_gate_is_classified_as_a_key_or_not() -> None:
    """A gate written later with a key under another kind of name must fail here, not in an operator's Redis."""
    no_keys = {"address", "attribute", "mode", "gating_mode", "on_missing", "pool", "pool_id"}
    no_keys |= {"budget_means"}
    classes = {
        each
        for kind in GATE_KINDS.values()
        for each in vars(sys.modules[kind.gate.__module__]).values()
        if isinstance(each, type) and each.__name__.endswith("Parameters")
    }
    on_redis = [fields for each in classes if "address" in (fields := get_type_hints(each))]
    texts = {name for fields in on_redis for name, kind in fields.items() if kind is str}

    assert {"prefix", "control_key", "state_key", "budget_key"} <= texts
    assert {name for name in texts if name != PREFIX and not name.endswith(KEY_SUFFIX)} <= no_keys


@pytest.mark.parametrize("named", ["team-b", "*", "{tag}x", f"{RESULTS}:result-of:victim", "a b"])
def test_the_operator_may_allow_any_list(named: str) -> None:
    assert taken(ALL, named) == named


@pytest.mark.parametrize("named", HOSTILE, ids=lambda name: repr(name[:30]))
@pytest.mark.parametrize("route", [ALL, SOME, UNSET], ids=["any list", "some lists", "unset"])
def test_no_request_names_a_key_that_holds_something_else(route: ResultRoute, named: str) -> None:
    for is_resolved in (False, True):
        assert taken(route, named, is_resolved=is_resolved) is None
        assert route.name(named, "a", is_resolved=is_resolved) == RESULTS


def test_a_result_list_that_is_ignored_is_not_checked() -> None:
    route = ResultRoute("queues", None, RESULTS, may_name=TEAMS)
    assert taken(route, "another") == "queues"


@pytest.mark.parametrize("name", [RESULTS, "team:results", "dead", "request-results", "delivery:mail"])
def test_lists_as_people_name_them_are_not_reserved(name: str) -> None:
    assert not is_reserved(name)


def test_an_empty_list_allows_no_name() -> None:
    assert not read_result_names("").allow("x")
    assert ResultNames().allow("x")


async def test_hostile_result_names_change_nothing_and_get_an_error(store: Redis) -> None:
    """None of them runs, and valid requests are answered."""
    rig = Rig(store, route=ALL)
    names = [name for name in HOSTILE if len(name) < 1_000]
    members = [
        json.dumps(
            {
                "internal": {"result_queue_name": name},
                "request_kind": "redis",
                "data": json.loads(body(f"h{n}")),
            }
        ).encode()
        for n, name in enumerate(names)
    ]
    claims = await rig.claimed(*members, body("honest"), body("x" * MAX_ID_LENGTH), body("{tag}*\n"))
    async with running(rig.ack_batcher.run()):
        rig.start(claims)
        await wait_until_async(lambda: rig.worker.in_flight == 0, "all outcomes")
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
    results = {result.id: result.error_code for result in await rig.results()}
    hostile = {f"h{n}": ErrorCode.INVALID_REQUEST for n in range(len(names))}
    assert results == {**hostile, "honest": "", "x" * MAX_ID_LENGTH: "", "{tag}*\n": ""}
    assert len(rig.dispatched) == 3
    assert await leaked_keys(store, [QUEUE], [RESULTS]) == []
