"""The guides' commands: rendering ones run; the others are valid and refer to existing files."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.manifests.rendering import ROOT, kubectls, load, pods, render

GUIDES = ("keda/README.md", "knative/README.md", "docs/coming-from-llm-d-async.md")
BODY = '{"id" : "testmsg", "payload":{ "model":"your-model", "prompt":"Hi, good morning "}, "deadline" :"1999999999" }'
# The llm-d guides' own test commands, letter by letter.
PUBLISHED = {
    "keda/README.md": [f"ZADD request-sortedset 1999999999 '{BODY}'", "RPOP result-list"],
    "knative/README.md": [
        f"gcloud pubsub topics publish $REQUEST_TOPIC_NAME --message='{BODY}'",
        "gcloud pubsub subscriptions pull async-proc-results-sub --auto-ack --limit=1",
    ],
}
SECTIONS = [
    *(
        "Prerequisites",
        "Choose",
        "Configure",
        "Deploy",
        "Test",
        "Scale",
        "Upgrade",
        "Clean up",
        "Troubleshoot",
    ),
]


def blocks(guide: str, language: str) -> list[str]:
    """The code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / guide).read_text(), re.M | re.S)


def commands(guide: str) -> list[str]:
    """The shell commands of a guide, continued lines joined."""
    return [c for block in blocks(guide, "bash") for c in block.replace("\\\n", " ").splitlines() if c]


@pytest.mark.parametrize("guide", ["keda/README.md", "knative/README.md"])
def test_a_guide_has_all_steps(guide: str) -> None:
    assert re.findall(r"^## (.+)$", (ROOT / guide).read_text(), re.M) == SECTIONS


@pytest.mark.parametrize("guide", GUIDES)
def test_shell_blocks_are_sound(guide: str) -> None:
    for block in blocks(guide, "bash"):
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block}\n{done.stderr}"


@pytest.mark.parametrize("guide", GUIDES)
def test_render_commands_run_as_written(guide: str, tmp_path: Path) -> None:
    """Run from the top of a clone; redirected output goes to another folder."""
    path = f"{Path(kubectls()[0]).parent}:/usr/bin:/bin"
    for command in commands(guide):
        if command.startswith("kubectl kustomize"):
            line = re.sub(r"> (\S+)", rf"> {tmp_path}/\1", command)
            done = subprocess.run(
                ["bash", "-euc", line],
                cwd=ROOT,
                env={"PATH": path},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            text = done.stdout or next(tmp_path.iterdir()).read_text()
            assert list(pods(load(text))), command


@pytest.mark.parametrize("guide", GUIDES)
def test_applied_and_deleted_folders_render(guide: str) -> None:
    for command in commands(guide):
        for folder in re.findall(r" -k (\S+)", command):
            assert render(ROOT / folder), command


@pytest.mark.parametrize("guide", ["keda/README.md", "knative/README.md"])
def test_names_that_commands_wait_for_are_deployed(guide: str) -> None:
    kinds = {"ksvc": "Service", "scaledobject": "ScaledObject"}
    deployed = {(o["kind"], o["metadata"]["name"]) for f in ("knative", "keda") for o in render(ROOT / f)}
    named = re.findall(r"\b(ksvc|scaledobject)[/ ](async-processor[\w-]*)", (ROOT / guide).read_text())
    assert named
    assert {(kinds[kind], name) for kind, name in named} <= deployed


@pytest.mark.parametrize("guide", PUBLISHED)
def test_the_published_test_commands_are_unchanged(guide: str) -> None:
    text = (ROOT / guide).read_text()
    for command in PUBLISHED[guide]:
        assert f"\n{command}\n" in text


@pytest.mark.parametrize("guide", GUIDES)
def test_links_and_overlays_lead_somewhere(guide: str) -> None:
    text = (ROOT / guide).read_text()
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", text):
        assert ((ROOT / guide).parent / target).exists(), target
    for overlay in re.findall(r"^\| `(overlays/[\w-]+)` \|", text, re.M):
        assert ((ROOT / guide).parent / overlay / "kustomization.yaml").exists(), overlay


@pytest.mark.parametrize("folder", ["knative", "keda"])
def test_every_overlay_is_in_the_guide(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text()
    for path in (ROOT / folder / "overlays").iterdir():
        assert f"| `overlays/{path.name}` |" in text


@pytest.mark.parametrize("number", ["WORKERS", "maxReplicaCount", "listLength", "pollingInterval"])
def test_numbers_in_the_guide_are_those_of_the_manifest(number: str) -> None:
    """The table of the section Scale has the numbers that are deployed."""
    text = (ROOT / "keda/README.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| `") and f"`{number}`" in line.split("|")[1]]
    objects = render(ROOT / "keda")
    (scaled,) = (o["spec"] for o in objects if o["kind"] == "ScaledObject")
    pending, _, claimed = (t["metadata"]["listLength"] for t in scaled["triggers"])
    value = {
        "WORKERS": claimed,
        "maxReplicaCount": scaled["maxReplicaCount"],
        "listLength": pending,
        "pollingInterval": f"{scaled['pollingInterval']} s",
    }[number]
    assert f"({value})" in row
