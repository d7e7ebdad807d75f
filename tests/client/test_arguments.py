"""A wrong argument of any public function of the client is refused by name, before Redis is called."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, get_type_hints

import pytest

from async_processor import (
    AsyncClient,
    BrokerUnreachable,
    Client,
    ClientOptions,
    InvalidRequest,
    InvalidSetting,
    NewRequest,
    RedisAccess,
)
from handlers.client.new_request import RequestFields
from handlers.client.options import PubSubFields

NOWHERE = "redis://127.0.0.1:1"
ODD = object()

WRONG: dict[str, list[object]] = {
    "payload": [5, ODD, "hello", '{"a": 1,}'],
    "deadline": ["10m", "60", None, True, ODD],
    "within": ["10m", "60", True, ODD, float("nan"), -1, timedelta(seconds=-1)],
    "idle": ["10m", True, ODD, -1],
    "limit": ["3", -1, True, 2.5],
    "batch": ["3", 0, None],
    "name": [5, None],
    "submission": [5, None, b"id"],
    "submissions": ["abc", 5, [5]],
    "requests": ["abc", 5, [5], [{"payload": {}}]],
    "url": [5, None],
    "options": ["queue", {}],
    "access": ["password", {}],
    "project_id": [5, None],
    **{key: [5, ODD] for key in RequestFields.__annotations__},
    "tier": [5, ODD, "fast"],
    **{key: [5, ODD] for key in PubSubFields.__annotations__},
    **{name: [{"a": 1}, {1: "a"}, "a=b", None] for name in ("headers", "metadata", "labels")},
    "has_own_results": ["yes", 1],
}
"""Wrong values of each parameter."""
UNITS = {"deadline": "seconds", "within": "seconds", "idle": "seconds"}
RIGHT: dict[str, Any] = {
    "payload": {"prompt": "Hi"},
    "deadline": timedelta(minutes=1),
    "requests": [],
    "submission": "id",
    "submissions": ["id"],
    "url": NOWHERE,
    "project_id": "p",
}
"""Values of the parameters without a default."""
FIELDS: dict[str, type] = {"fields": RequestFields, "options": PubSubFields}


def parameters(kind: type, name: str) -> list[inspect.Parameter]:
    found = inspect.signature(getattr(kind, name)).parameters.values()
    return [one for one in found if one.name != "self"]


def functions() -> Iterator[tuple[type, str]]:
    for kind in (AsyncClient, Client):
        for name in vars(kind):
            if not name.startswith("_") and name not in ("close", "run"):
                yield kind, name


def cases() -> Iterator[Any]:
    for kind, name in functions():
        for parameter in parameters(kind, name):
            is_group = parameter.kind is inspect.Parameter.VAR_KEYWORD
            names = get_type_hints(FIELDS[parameter.name]) if is_group else [parameter.name]
            for one in names:
                if one == "has_own_results" and name == "ask":
                    continue  # `ask` sets it
                for value in WRONG[one]:
                    yield pytest.param(kind, name, one, value, id=f"{kind.__name__}.{name}({one}={value!r:.12})")


async def called(kind: type, name: str, arguments: dict[str, Any]) -> object:
    """Call a function of a client whose Redis cannot be reached."""
    if name.startswith("for_"):
        return getattr(kind, name)(**arguments)
    client = kind.for_redis(NOWHERE)  # type: ignore[attr-defined]  # both kinds have it
    try:
        if kind is Client:
            return await asyncio.to_thread(getattr(client, name), **arguments)
        found = getattr(client, name)(**arguments)
        return await found if inspect.isawaitable(found) else found
    finally:
        await (asyncio.to_thread(client.close) if kind is Client else client.close())


@pytest.mark.parametrize(("kind", "name", "parameter", "value"), list(cases()))
async def test_a_wrong_argument_is_named_with_its_unit(kind: type, name: str, parameter: str, value: object) -> None:
    required = {
        one.name: RIGHT[one.name]
        for one in parameters(kind, name)
        if one.default is one.empty and one.kind is not one.VAR_KEYWORD
    }
    with pytest.raises((InvalidRequest, InvalidSetting)) as refused:
        await called(kind, name, {**required, parameter: value})
    error = refused.value
    assert isinstance(error, InvalidRequest | InvalidSetting)
    named = error.field if isinstance(error, InvalidRequest) else error.setting
    assert named.partition("[")[0] == parameter
    assert UNITS.get(parameter, "") in error.accepted
    assert error.found not in ("", "nothing")


def test_a_duration_as_text_is_refused_with_the_timedelta_to_write() -> None:
    with Client.for_redis(NOWHERE) as client:
        with pytest.raises(InvalidRequest, match=r"^within: .* got '10m' \(.*timedelta\(seconds=600\)\)"):
            client.ask({}, deadline=60, within="10m")  # type: ignore[arg-type]  # as untyped callers do
        with pytest.raises(InvalidRequest, match=r"^deadline: .* got '10m' \(.*timedelta\(seconds=600\)\)"):
            client.submit({}, deadline="10m")  # type: ignore[arg-type]  # the same
        with pytest.raises(BrokerUnreachable):
            client.submit({}, deadline=timedelta(minutes=10))


@pytest.mark.parametrize("name", ClientOptions.__struct_fields__)
@pytest.mark.parametrize("value", [ODD, timedelta(seconds=1), b"x"])
def test_a_wrong_option_is_named_with_its_unit(name: str, value: object) -> None:
    with pytest.raises(InvalidSetting) as refused:
        ClientOptions(**{name: value})  # type: ignore[arg-type]  # as untyped callers do
    unit = name.rpartition("_")[2]
    assert refused.value.setting == name
    assert unit not in ("seconds", "bytes") or f" of {unit}" in refused.value.accepted


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("queue", "", "non-empty text"),
        ("lease_seconds", 0, "a number of seconds above 0"),
        ("tombstone_seconds", -1, "an integer of seconds above 0"),
        ("wait_replicas", -1, "an integer of at least 0"),
        ("patience_seconds", 101, "a number of seconds from 0 to 100"),
        ("patience_seconds", float("nan"), "a number of seconds from 0 to 100"),
    ],
)
def test_an_option_out_of_bounds_is_refused_with_its_bounds(name: str, value: Any, accepted: str) -> None:
    with pytest.raises(InvalidSetting) as refused:
        ClientOptions(**{name: value})
    assert (refused.value.setting, refused.value.accepted) == (name, accepted)


@pytest.mark.parametrize("name", list(RedisAccess.__dataclass_fields__))
def test_a_wrong_field_of_the_access_is_named_and_not_shown(name: str) -> None:
    access = RedisAccess(**{name: ODD})  # type: ignore[arg-type]  # as untyped callers do
    expected = "a number.* of seconds" if name.endswith("_seconds") else "text"
    with pytest.raises(InvalidSetting, match=rf"^access\.{name}: expected {expected}, got object$"):
        Client.for_redis(NOWHERE, access=access)


def test_each_field_of_the_access_may_have_its_default() -> None:
    with Client.for_redis(NOWHERE, access=RedisAccess()) as client:
        assert isinstance(client, Client)


def test_each_field_of_a_request_is_checked() -> None:
    assert WRONG.keys() > set(NewRequest.__struct_fields__)
