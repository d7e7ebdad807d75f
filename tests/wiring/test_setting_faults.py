"""Independent faults of one configuration are reported together, whichever step of the start finds them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from handlers.contract.errors import SettingFaults
from handlers.settings.settings import read_settings
from handlers.wiring.checks import find_faults


class Mistake(msgspec.Struct, frozen=True):
    """A mistake of a user: variables, content of the file, and the setting that the error must name.

    `{queues}` in a setting stands for the index of the mistake's own queue, the same for other lists.
    """

    setting: str
    variables: dict[str, str] = {}
    file: dict[str, Any] = {}


def _queue(setting: str, **fields: Any) -> Mistake:
    return Mistake(f"queues[{{queues}}].{setting}", file={"queues": [{"queue_name": "q", **fields}]})


def _pool(setting: str, **fields: Any) -> Mistake:
    return Mistake(f"pools[{{pools}}].{setting}", file={"pools": [{"id": "p", **fields}]})


def _variables(setting: str, **variables: str) -> Mistake:
    return Mistake(setting, variables or {})


TOPIC = {"subscriber_id": "twice"}
MISTAKES = {
    "a value": _variables("WORKERS", WORKERS="many"),
    "a misspelt variable": _variables("RECLAIM_SECOND", RECLAIM_SECOND="3"),
    "bytes in a variable": _variables("REDIS_USERNAME", REDIS_USERNAME="\udcff"),
    "an unknown field": _queue("igw_base", igw_base="http://g"),
    "a type": _pool("workers", workers="64x"),
    "a number for a queue": Mistake("queues[{queues}]", file={"queues": [5]}),
    "a missing name": Mistake("topics[{topics}].subscriber_id", file={"topics": [{"id": "unnamed"}]}),
    "a name twice": Mistake("topics.subscriber_id", file={"topics": [TOPIC, TOPIC]}),
    "an unknown pool": _queue("worker_pool_id", worker_pool_id="nowhere"),
    "a header": Mistake(
        "request_merge_policy.parameters.fairness_header",
        file={"request_merge_policy": {"parameters": {"fairness_header": "a b"}}},
    ),
    "a transform": Mistake("requestTransforms[0].type", file={"requestTransforms": [{"name": "nope"}]}),
    "the gateway's URL": _variables("IGW_BASE_URL", IGW_BASE_URL="http://[::1"),
    "a queue's URL": _queue("igw_base_url", igw_base_url="http://[::1"),
    "the handler's URL": _variables("HANDLER_URL", HANDLER_URL="ftp://handler"),
    "Redis' URL": _variables("REDIS_URL", REDIS_URL="redis://[::1"),
    "Redis' mode": Mistake("mode", file={"mode": "clustr"}),
    "a base with the path's version": _queue(
        "igw_base_url", igw_base_url="http://g/v1", request_path_url="/v1/completions"
    ),
    "equal names of two keys": _variables("RESULT_QUEUE_NAME", RESULT_QUEUE_NAME="r", RETRY_QUEUE_NAME="r"),
    "the heartbeat": _variables("HEARTBEAT_SECONDS", HEARTBEAT_SECONDS="25", LEASE_SECONDS="30"),
    "the byte budget": _variables("MAX_IN_FLIGHT_BYTES", MAX_IN_FLIGHT_BYTES="1"),
    "the path": _variables("REQUEST_PATH_URL", REQUEST_PATH_URL="//x"),
    "a queue's path": _queue("request_path_url", request_path_url="x"),
    "a token's file": _variables("GATEWAY_TOKEN_FILE", GATEWAY_TOKEN_FILE="/nowhere"),
    "a CA": _variables("PROMETHEUS_CA_FILE", PROMETHEUS_CA_FILE="/nowhere"),
    "Redis' password": _variables("REDIS_PASSWORD_FILE", REDIS_PASSWORD_FILE="/nowhere"),
    "traces": _variables("OTEL_EXPORTER_OTLP_ENDPOINT", OTEL_EXPORTER_OTLP_ENDPOINT="http://receiver:99999"),
    "the sink": _variables("K_SINK", K_SINK="ftp://sink"),
    "an event's field": _variables("EVENT_ID_FROM", EVENT_ID_FROM="a b"),
    "a merge policy": _pool("merge_policy", merge_policy="tier_priority"),
    "a lane": _pool("lane_objectives.reserve-batch", lane_objectives={"reserve-batch": "low"}),
    "a gate's type": _queue("gate_type", gate_type="redis-quotta"),
    "a gate's parameter": _pool("gate_params.limit", gate_type="local-max-concurrency", gate_params={"limit": "two"}),
    "a gate's source": Mistake(
        "PROMETHEUS_URL",
        file={"queues": [{"queue_name": "q", "gate_type": "prometheus-saturation", "gate_params": {"pool": "p"}}]},
    ),
}


async def found(mistakes: list[Mistake], folder: Path) -> tuple[list[str], list[str]]:
    """The settings that the errors name, and those that they should name, sorted."""
    content: dict[str, Any] = {}
    variables: dict[str, str] = {}
    expected = []
    for number, mistake in enumerate(mistakes):
        expected.append(mistake.setting.format(**{name: len(content.get(name, [])) for name in LISTS}))
        variables |= mistake.variables
        for name, value in mistake.file.items():
            if isinstance(value, list):
                content.setdefault(name, []).extend(_own(entry, number) for entry in value)
            else:
                content[name] = value
    file = folder / "config.json"
    file.write_bytes(msgspec.json.encode(content))
    faults = SettingFaults()
    await find_faults(read_settings({**variables, "CONFIG_FILE": str(file)}, faults), faults)
    return sorted(fault.setting for fault in faults.found), sorted(expected)


LISTS = ("queues", "topics", "pools")


def _own(entry: Any, number: int) -> Any:
    """The entry with names that no other mistake's entry has."""
    if not isinstance(entry, dict):
        return entry
    names = {name: f"{entry[name]}{number}" for name in ("queue_name", "id") if name in entry}
    return {**entry, **names}


@pytest.mark.parametrize("name", MISTAKES)
async def test_a_mistake_alone_is_the_only_fault(name: str, tmp_path: Path) -> None:
    named, expected = await found([MISTAKES[name]], tmp_path)
    assert named == expected


@pytest.mark.parametrize("first", MISTAKES)
async def test_two_mistakes_of_any_steps_are_reported_together(first: str, tmp_path: Path) -> None:
    for second in MISTAKES.keys() - {first}:
        named, expected = await found([MISTAKES[first], MISTAKES[second]], tmp_path)
        assert named == expected, second


async def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    named, expected = await found(list(MISTAKES.values()), tmp_path)
    assert named == expected


@pytest.mark.parametrize("text", ["queues: [", "a: 1\na: 2", "5"])
async def test_faults_of_variables_are_reported_beside_a_file_that_cannot_be_read(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    variables = {"CONFIG_FILE": f"{file},/nowhere", "WORKERS": "many", "IGW_BASE_URL": "http://[::1"}
    faults = SettingFaults()
    await find_faults(read_settings({**variables, "GATEWAY_CA_FILE": "/nowhere"}, faults), faults)
    counts = Counter(fault.setting.partition(",")[0] for fault in faults.found)
    assert counts == {"CONFIG_FILE": 2, "WORKERS": 1, "IGW_BASE_URL": 1, "GATEWAY_CA_FILE": 1}
