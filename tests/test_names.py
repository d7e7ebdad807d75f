"""One word, one thing: no public class or function of the package shares its name with another."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_COMMANDS = "handlers/cli/"
"""Functions here are named after commands, which share words on purpose (`batch cancel` and `cancel`)."""
_KINDS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def shared_names(sources: Mapping[str, str]) -> dict[str, list[str]]:
    """Public top-level names that more than one file defines, with these files; `sources` maps path to text."""
    places = defaultdict(list)
    for path, text in sources.items():
        for node in ast.parse(text).body:
            kinds = _KINDS[:1] if path.startswith(_COMMANDS) else _KINDS
            if isinstance(node, kinds) and not node.name.startswith("_"):
                places[node.name].append(path)
    return {name: paths for name, paths in places.items() if len(paths) > 1}


def test_every_public_name_means_one_thing() -> None:
    sources = {
        path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted(ROOT.glob("handlers/**/*.py"))
    }
    assert len(sources) > 100
    assert shared_names(sources) == {}


@pytest.mark.parametrize(
    ("sources", "shared"),
    [
        ({"a.py": "class A: ...", "b.py": "class A: ..."}, {"A"}),
        ({"a.py": "class A: ...", "b.py": "def A(): ..."}, {"A"}),
        ({"a.py": "async def f(): ...", "b.py": "def f(): ..."}, {"f"}),
        ({"a.py": "def _f(): ...", "b.py": "def _f(): ..."}, set()),
        ({"a.py": "def f(): ...", "handlers/cli/b.py": "def f(): ..."}, set()),
        ({"a.py": "class A:\n    def f(self): ...", "b.py": "def f(): ..."}, set()),
    ],
)
def test_a_name_with_two_meanings_is_found(sources: dict[str, str], shared: set[str]) -> None:
    assert shared_names(sources).keys() == shared
