"""Rules of the folders: one object per file; each component is in menu, guide and a combination."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.manifests.rendering import (
    COMBINATIONS,
    ROOT,
    components,
    is_component,
    kustomizations,
    load,
    render,
    render_fresh,
    rendered_text,
)
from tests.manifests.test_manifests import FROM_OUTSIDE
from tests.manifests.test_source_examples import WITHOUT_SCHEMA, examples

VALIDATOR = ROOT.parent / "shared/tools/validate-manifests"
NOT_OBJECTS = re.compile(r"(kustomization|namereference|config|.*-patch|settings-to-.*)\.yaml")

COMPONENTS = [pytest.param(folder, id=str(folder.relative_to(ROOT))) for folder in components()]


def test_a_file_holds_one_object_and_is_named_for_its_kind() -> None:
    for path in sorted([*ROOT.glob("knative/**/*.yaml"), *ROOT.glob("keda/**/*.yaml")]):
        if NOT_OBJECTS.fullmatch(path.name):
            continue
        documents = load(path.read_text())
        assert len(documents) == 1, path
        assert path.stem.replace("-", "").endswith(documents[0]["kind"].lower()), path


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_component_is_on_the_menu_in_the_guide_and_in_a_combination(component: Path) -> None:
    folder = component.parents[1]
    path = f"components/{component.name}"
    assert is_component(component)
    assert f"# - {path} " in (folder / "kustomization.yaml").read_text(), f"not on the menu of {folder.name}/"
    assert f"| `{component.name}` |" in (folder / "README.md").read_text(), f"not in {folder.name}/README.md"
    used = [p for p in COMBINATIONS.glob("*/kustomization.yaml") if f"{folder.name}/{path}\n" in p.read_text()]
    assert used, "no combination renders it"


@pytest.mark.parametrize("folder", ["knative", "keda"])
def test_a_menu_offers_only_what_exists(folder: str) -> None:
    for component in offers(folder):
        assert (ROOT / folder / component / "kustomization.yaml").exists(), component


def offers(folder: str) -> list[str]:
    """The commented components of a menu, in its order."""
    return re.findall(r"^  # - (\S+)", (ROOT / folder / "kustomization.yaml").read_text(), re.M)


# Components of which a Redis has only one.
ALTERNATIVES = ({"components/redis-sentinel", "components/redis-cluster", "components/valkey"},)
URLS = {
    "components/redis-sentinel": "redis+sentinel://a:26379,b:26379/mymaster/2",
    "components/redis-cluster": "redis+cluster://a:6379,b:6379/0",
}
_PARTS = 4
"""Tests that render the menus of a folder, so that several processes can."""

# Components that only extend another one.
NEEDS = {"components/several-queues/slack-aware": ["components/slack-aware", "components/several-queues"]}


def choices(folder: str) -> list[set[str]]:
    """Every line of a menu alone, with each other line that it may be used with, and all for each alternative."""
    lines = set(offers(folder))
    exclusive = set[str]().union(*ALTERNATIVES) & lines
    chosen = [{line} for line in sorted(lines)]
    chosen += [set(pair) for pair in itertools.combinations(sorted(lines), 2) if not set(pair) <= exclusive]
    chosen += [lines - exclusive | {one} for one in sorted(exclusive)] or [lines]
    return [one.union(*(NEEDS.get(line, []) for line in one)) for one in chosen]


@pytest.mark.parametrize("part", range(_PARTS))
@pytest.mark.parametrize("folder", ["knative", "keda"])
def test_every_line_of_a_menu_can_be_uncommented_alone_and_with_each_other_line(
    folder: str, part: int, tmp_path: Path
) -> None:
    by_url: dict[str, list[set[str]]] = {}
    for chosen in choices(folder)[part::_PARTS]:
        url = next((url for name, url in URLS.items() if name in chosen), "")
        by_url.setdefault(url, []).append(chosen)
    for number, (url, menus) in enumerate(by_url.items()):
        tree = tmp_path / str(number)
        copy_trees(tree, url)
        for some in batches(list(enumerate(menus))):
            rendered = rendered_text(menus_together(tree, folder, dict(some)))
            for n, chosen in some:
                assert re.search(rf"^  name: .*-menu-{n}$", rendered, re.M), chosen


_MENUS_AT_ONCE = 20
"""Menus that one process renders: most of its time goes into its start."""


def batches(menus: list[tuple[int, set[str]]]) -> Iterator[list[tuple[int, set[str]]]]:
    """The same, a few at a time."""
    for first in range(0, len(menus), _MENUS_AT_ONCE):
        yield menus[first : first + _MENUS_AT_ONCE]


def copy_trees(tree: Path, redis_url: str) -> None:
    """Copy both trees, with this `REDIS_URL` in their settings unless it is empty."""
    for one in ("knative", "keda"):
        shutil.copytree(ROOT / one, tree / one)
    if redis_url:
        settings = tree / "knative/settings/settings.env"
        changed = re.sub(r"^REDIS_URL=.*", f"REDIS_URL={redis_url}", settings.read_text(), flags=re.M)
        settings.write_text(changed)


def menus_together(tree: Path, folder: str, menus: dict[int, set[str]]) -> Path:
    """A kustomization of several menus; each is written as a user does, and its objects' names get its number."""
    head = (ROOT / folder / "kustomization.yaml").read_text().split("  # - ")[0]
    together = tree / f"menus-from-{min(menus)}"
    together.mkdir()
    for n, chosen in menus.items():
        menu, suffixed = tree / f"menu-{n}", tree / f"suffixed-{n}"
        menu.mkdir()
        for part in ("base", "components"):
            (menu / part).symlink_to(tree / folder / part)
        lines = [f"  - {name}" for name in offers(folder) if name in chosen]
        (menu / "kustomization.yaml").write_text("\n".join([head, *lines, ""]))
        suffixed.mkdir()
        (suffixed / "kustomization.yaml").write_text(f"nameSuffix: -menu-{n}\nresources: [../menu-{n}]\n")
    names = ", ".join(f"../suffixed-{n}" for n in menus)
    (together / "kustomization.yaml").write_text(f"resources: [{names}]\n")
    return together


DELETABLE = [
    ("gke", "dispatch", "Delete the line of the dispatch door if you do not need it"),
    ("openshift", "dispatch", "Delete the line of the door that you do not need"),
    ("openshift", "push", "Delete the line of the door that you do not need"),
]


@pytest.mark.parametrize(("overlay", "door", "comment"), DELETABLE)
def test_a_line_that_a_comment_lets_one_delete_can_be_deleted(
    overlay: str, door: str, comment: str, tmp_path: Path
) -> None:
    copy_trees(tmp_path, "")
    menu = tmp_path / "knative/overlays" / overlay / "kustomization.yaml"
    text = menu.read_text()
    assert comment in text
    menu.write_text(text.replace(f"  - ../../base/{door}\n", ""))
    names = [one["metadata"]["name"] for one in render_fresh(menu.parent)]
    assert names
    assert not [name for name in names if door in name]


def test_every_line_that_a_comment_lets_one_delete_is_tested() -> None:
    found = {path.parent.name for path in ROOT.glob("k*/**/*.yaml") if "elete the line" in path.read_text()}
    assert found == {overlay for overlay, _, _ in DELETABLE}


def test_every_kustomization_has_a_comment_about_its_purpose() -> None:
    """A comment on top, except where the folder's objects speak for themselves."""
    for folder in [*components(), *(f for f in kustomizations() if "overlays" in f.parts)]:
        assert (folder / "kustomization.yaml").read_text().startswith("# "), folder


def test_manifests_and_examples_pass_the_schemas_of_kubernetes_knative_and_keda(tmp_path: Path) -> None:
    """Strictly, unknown fields included; the checker lies beside the repository where there is one.

    Most outputs have most objects in common: each is checked once. That references find their objects is checked
    for each output in `test_manifests`.
    """
    if not VALIDATOR.exists():
        pytest.skip(f"no schema checker at {VALIDATOR}")
    folders = [folder for folder in kustomizations() if "cloud-run" not in folder.parts]
    rendered = [one for folder in folders for one in render(folder)]
    checked = [one for one in examples() if one["kind"] not in WITHOUT_SCHEMA]
    distinct = {json.dumps(one, sort_keys=True, default=str): one for one in (*rendered, *checked)}
    path = tmp_path / "all.yaml"
    path.write_text(yaml.dump_all(distinct.values(), Dumper=yaml.CSafeDumper))
    outside = [word for name in sorted(FROM_OUTSIDE) for word in ("--external", name)]
    done = subprocess.run(
        [sys.executable, str(VALIDATOR), *outside, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_yaml_files_are_read_the_same_by_a_strict_reader() -> None:
    """No key twice, which kustomize would settle silently."""
    for path in [*ROOT.glob("k*/**/*.yaml"), ROOT / "cloudbuild.yaml"]:
        for node in yaml.compose_all(path.read_text()):
            assert_keys_are_unique(node, path)


def assert_keys_are_unique(node: yaml.Node | None, path: Path) -> None:
    """Walk a YAML tree; fails naming the key that stands twice."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{path}: {keys}"
    for child in node.value if isinstance(node, yaml.CollectionNode) else []:
        for part in child if isinstance(child, tuple) else (child,):
            assert_keys_are_unique(part, path)
