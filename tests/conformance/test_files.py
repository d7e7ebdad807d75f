"""The reference's configuration files load unchanged, and the migration guide names every flag."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from handlers.contract.request import Request
from handlers.forward.forward import gateway_headers
from handlers.forward.transforms import build_transforms
from handlers.gates.registry import GATE_KINDS as KNOWN_GATES
from handlers.poller.priority import LaneOptions, in_lane
from handlers.settings.config_file import ConfigFile, QueueEntry
from handlers.settings.environment import Environment
from handlers.settings.settings import Settings, load_settings
from handlers.wiring.poller import PollerApp

FILES = Path(__file__).parent / "files"
GUIDE = Path(__file__).resolve().parents[2] / "docs" / "coming-from-llm-d-async.md"
PROMETHEUS = {"PROMETHEUS_URL": "http://prometheus.example:9090"}


def loaded(*names: str, **variables: str) -> Settings:
    paths = ",".join(str(FILES / f"{name}.json") for name in names)
    return load_settings({"CONFIG_FILE": paths, **PROMETHEUS, **variables})


@pytest.mark.parametrize(
    "names",
    [
        ("transport-sortedset", "pools", "merge-tier-priority", "transforms"),
        ("queues", "pools", "merge-random-robin"),
        ("transport-pubsub",),
        ("transport-cluster", "pools"),
        ("transport-sentinel", "transforms"),
        ("merge-tier-priority",),
    ],
    ids="+".join,
)
async def test_a_poller_is_built_from_the_files_as_they_are(names: tuple[str, ...]) -> None:
    app = PollerApp(loaded(*names))  # nothing is connected before it runs
    assert not app.has_begun


GATE_KINDS = json.loads((FILES / "gates.json").read_text())


@pytest.mark.parametrize("where", ["queue", "pool"])
@pytest.mark.parametrize("gate", GATE_KINDS, ids=lambda gate: gate["gate_type"])
async def test_a_gate_is_built_from_text_and_from_json_values(tmp_path: Path, gate: dict[str, Any], where: str) -> None:
    queue = {
        "queue_name": "q",
        "igw_base_url": "http://gateway.example:80",
        **(gate if where == "queue" else {}),
    }
    pool = {"id": "default", "workers": 4, **(gate if where == "pool" else {})}
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"queues": [queue], "pools": [pool]}))
    app = PollerApp(load_settings({"CONFIG_FILE": str(file), **PROMETHEUS}))
    assert not app.has_begun


def test_the_files_have_every_gate_of_the_reference() -> None:
    assert {gate["gate_type"] for gate in GATE_KINDS} == set(KNOWN_GATES)


def test_a_transform_file_names_the_providers_of_forms() -> None:
    (transform,) = build_transforms(loaded("transforms").file.request_transforms, "requestTransforms")
    request = Request(id="a", payload=b'{"gcs_uri":"https://s/x"}', deadline=1, metadata={"provider": "whisper"})

    body = transform.body(request)

    assert body is not None
    assert body.content_type.startswith("multipart/form-data")
    assert transform.body(msgspec.structs.replace(request, metadata={"provider": "another"})) is None


def test_a_merge_policy_applies_to_all_pools_and_its_headers_reach_the_gateway() -> None:
    settings = loaded("transport-sortedset", "pools", "merge-tier-priority")

    assert {pool.id: pool.merge_policy for pool in settings.pools} == dict.fromkeys(
        ("shared", "small", "default"), "tier-priority"
    )
    (shared, *_) = settings.pools
    request = Request(
        id="a",
        payload=b"{}",
        deadline=1,
        queue="chat-requests",
        labels={"class": "interactive", "classification": "reserved"},
        metadata={"team_id": "team-a", "userid": "nobody"},
        headers={"x-team-priority": "forged"},
    )
    options = LaneOptions(shared.lane_objectives, shared.priority_header, settings.tier_label)
    sent = gateway_headers(in_lane(request, options), settings.routes.of("chat-requests"))
    assert sent["x-team-priority"] == "0"
    assert sent["x-gateway-inference-objective"] == "premium-latency"
    assert sent["x-tenant"] == "team-a"


def test_unset_priority_and_fairness_headers_are_not_sent() -> None:
    settings = loaded("queues", "pools", "merge-random-robin")
    request = Request(id="a", payload=b"{}", deadline=1, queue="critical", metadata={"userid": "somebody"})

    (shared, *_) = settings.pools
    sent = gateway_headers(
        in_lane(request, LaneOptions(has_priority_header=shared.priority_header)),
        settings.routes.of("critical"),
    )

    assert "somebody" not in sent.values()
    assert "x-gateway-priority" not in sent


def test_a_pool_keeps_its_own_merge_policy(tmp_path: Path) -> None:
    own = tmp_path / "pools.json"
    own.write_text('[{"id": "fair", "merge_policy": "random-robin"}, {"id": "other"}]')
    settings = load_settings({"CONFIG_FILE": f"{own},{FILES / 'merge-tier-priority.json'}"})
    assert [pool.merge_policy for pool in settings.pools] == [
        "random-robin",
        "tier-priority",
        "tier-priority",
    ]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"type": "fifo"}', "fifo"),
        ('{"type": "tier-priority", "parameters": {"priority_heather": "x"}}', "priority_heather"),
        ('{"type": "tier-priority", "parameters": {"priority_header": "no header"}}', "priority_header"),
        (
            '{"type": "tier-priority", "parameters": {"lane_objectives": {"reserved-all": "x"}}}',
            "reserved-all",
        ),
    ],
)
async def test_an_invalid_merge_policy_stops_the_start_and_is_named(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "merge.json"
    file.write_text(text)
    with pytest.raises(Exception, match=named):
        PollerApp(load_settings({"CONFIG_FILE": str(file)}))


def rows(heading: str = "## Flags\n") -> list[tuple[str, str]]:
    """The rows of a table in the guide: the reference's name and ours."""
    table = GUIDE.read_text().split(heading)[1].split("\n## ")[0]
    found = re.findall(r"^\| (.+?) \| (.+) \|$", table, re.MULTILINE)
    return [(theirs, ours) for theirs, ours in found if theirs.startswith("`")]


def test_the_guide_names_every_value_of_the_references_chart() -> None:
    reported = {name for names, _ in rows("## Helm values\n") for name in re.findall(r"`([^`]+)`", names)}
    known = set(json.loads((FILES / "helm.json").read_text()))
    groups = {name.removesuffix("*") for name in reported if name.endswith(".*")}
    assert {name for name in known - reported if not name.startswith(tuple(groups))} == set()
    misspelt = {name for name in reported - known if name.removesuffix("*") not in groups}
    assert misspelt == set(), "the guide names a value that does not exist"
    assert all(any(name.startswith(group) for name in known) for group in groups)


def test_the_guide_names_every_flag_of_the_reference() -> None:
    reported = {flag.lstrip("-") for flags, _ in rows() for flag in re.findall(r"`(-[^`]+)`", flags)}
    known = set(json.loads((FILES / "flags.json").read_text()))
    assert known - reported == set()
    assert reported - known == {"v", "redis.ss.retry-queue-name"}, "the guide names a flag that does not exist"


def test_the_settings_that_the_guide_names_exist() -> None:
    settings = {name.upper() for name in Environment.__struct_fields__}
    fields = {*ConfigFile.__struct_fields__, *QueueEntry.__struct_fields__, "merge_policy"}
    for flags, ours in rows():
        words = re.findall(r"`([A-Z][A-Z0-9_]+)`", ours)
        assert set(words) <= settings, flags
        assert set(re.findall(r"`([a-z]+(?:_[a-z]+)*)`", ours)) - {"keda"} <= fields | {"network-policy"}, flags
        assert words or ours.startswith("none") or "folder" in ours, f"{flags}: no setting of our own, and no reason"
