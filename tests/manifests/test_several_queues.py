"""The triggers of further queues equal those of the first, for every form of Redis."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from handlers.redis_store.keys import beside, queue_keys
from tests.manifests.keda_rehearsal import evaluate
from tests.manifests.rendering import COMBINATIONS, ROOT, of_kind, render_fresh

FORMS = {
    "single": ([], ""),
    "other-settings": ([], "redis://redis.example:6380/7"),
    "sentinel": (
        ["redis-sentinel", "redis-tls", "slack-aware"],
        "redis+sentinel://a:26379,b:26379/mymaster/2",
    ),
    "cluster": (["redis-cluster", "keda-user", "slack-aware"], "redis+cluster://a:6379,b:6379/0"),
}
QUEUES = ["second", "third:of-a-tenant"]


@pytest.fixture(params=FORMS)
def scaled_object(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The rendered ScaledObject of one form of Redis with three queues; `form` is its name."""
    components, url = FORMS[request.param]
    for tree in ("knative", "keda"):
        shutil.copytree(ROOT / tree, tmp_path / tree)
    settings = tmp_path / "knative/settings/settings.env"
    text = settings.read_text().replace("WORKERS=64", "WORKERS=32")
    lines = [f"REDIS_URL={url}" if url and line.startswith("REDIS_URL=") else line for line in text.splitlines()]
    settings.write_text("\n".join(lines) + "\n")
    room = tmp_path / "keda/components/several-queues"
    is_cluster = request.param == "cluster"
    subprocess.run([room / "write-triggers", *(["--cluster"] if is_cluster else []), *QUEUES], check=True)
    chosen = [
        *components,
        "several-queues",
        *(["several-queues/slack-aware"] if "slack-aware" in components else []),
    ]
    menu = tmp_path / "keda/kustomization.yaml"
    menu.write_text(menu.read_text() + "".join(f"  - components/{name}\n" for name in chosen))
    (found,) = of_kind(render_fresh(tmp_path / "keda"), "ScaledObject")
    return {"form": request.param, **found["spec"]}


def test_every_field_but_the_names_equals_that_of_the_first_queue(scaled_object: dict[str, Any]) -> None:
    triggers = {trigger["name"]: trigger for trigger in scaled_object["triggers"]}
    kinds = ["pending", "claimed", *(["outbox"] if scaled_object["form"] == "cluster" else [])]
    for number, queue in enumerate(QUEUES, start=2):
        keys = queue_keys(queue, cluster=scaled_object["form"] == "cluster")
        names = {"pending": keys.pending, "claimed": keys.claimed, "outbox": beside(queue, "outbox-idx")}
        for kind in kinds:
            first, other = triggers[kind], triggers[f"{kind}_{number}"]
            assert other["metadata"]["listName"] == names[kind]
            expected = {
                **first,
                "name": other["name"],
                "metadata": {**first["metadata"], "listName": names[kind]},
            }
            assert other == expected
    assert triggers["claimed_2"]["metadata"]["listLength"] == "32", "WORKERS of settings.env"


def test_the_formula_counts_every_queue(scaled_object: dict[str, Any]) -> None:
    modifiers = scaled_object["advanced"].get("scalingModifiers")
    if modifiers is None:
        return
    names = [trigger["name"] for trigger in scaled_object["triggers"] if "outbox" not in trigger["name"]]
    zero = dict.fromkeys(names, 0.0)
    for name in names:
        if name != "saturation":
            assert evaluate(modifiers["formula"], {**zero, name: 64.0}) > 0, name
    full = {**zero, "saturation": 1.0, "pending_2": 64.0, "claimed_3": 8.0}
    assert evaluate(modifiers["formula"], full) == 8, "a full pool: claims count, pending requests do not"


def test_the_committed_triggers_are_those_of_the_script(tmp_path: Path) -> None:
    room = ROOT / "keda/components/several-queues"
    shutil.copytree(room, tmp_path / "room")
    subprocess.run([tmp_path / "room/write-triggers", "second-sortedset"], check=True)
    for name in ("triggers-patch.yaml", "slack-aware/formula-patch.yaml"):
        assert (tmp_path / "room" / name).read_text() == (room / name).read_text(), f"run {room}/write-triggers"


def test_a_combination_renders_the_committed_triggers() -> None:
    (found,) = of_kind(render_fresh(COMBINATIONS / "keda-several-queues"), "ScaledObject")
    names = {trigger["name"]: trigger["metadata"]["listName"] for trigger in found["spec"]["triggers"]}
    assert names["claimed_2"] == queue_keys(names["pending_2"]).claimed
