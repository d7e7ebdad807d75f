"""Tests see the product as its users do: by parameters, results, servers and metrics, not by private names."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.test_structure import SOURCES, tree_of

TESTS = [path for path in SOURCES if path.parts[0] == "tests"]
OTHERS_NAMES = {
    "tests/contract/test_linear.py": "the parser of `re` has no public names",
    "tests/contract/test_lenient_json.py": "texts that are really deep would make the oracle fail, too",
}
"""Files that need a private name, each with its reason."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def private_accesses(tree: ast.AST) -> Iterator[int]:
    """Lines that use a private name of an object other than `self`, or import one."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name("self" | "cls")):
                continue
            case ast.Attribute(attr=name) if is_private(name):
                yield node.lineno
            case ast.ImportFrom(names=names) if any(is_private(each.name) for each in names):
                yield node.lineno
            case ast.Call(func=ast.Attribute(attr="setattr"), args=[*targets, _]) if any(
                is_private(str(one.value).rpartition(".")[2]) for one in targets if isinstance(one, ast.Constant)
            ):
                yield node.lineno


def test_no_test_uses_a_private_name() -> None:
    found = [
        f"{path}:{line}" for path in TESTS if str(path) not in OTHERS_NAMES for line in private_accesses(tree_of(path))
    ]
    assert found == [], "give the product a parameter, or test effects that its users see"


@pytest.mark.parametrize("path", sorted(OTHERS_NAMES))
def test_every_exception_is_needed(path: str) -> None:
    assert [list(private_accesses(tree_of(each))) for each in TESTS if str(each) == path] != [[]]


@pytest.mark.parametrize(
    ("source", "is_found"),
    [
        ("worker._clock = lambda: 0", True),
        ("assert app.poller._claimers == {}", True),
        ("assert self.app._claimers == {}", True),
        ("await make()._start()", True),
        ("from handlers.cli.submit import _show", True),
        ("monkeypatch.setattr(broker, '_check_keys', unchecked)", True),
        ("monkeypatch.setattr('handlers.client.broker._PAGE', 3)", True),
        ("monkeypatch.setattr(broker, 'check_keys', '_')", False),
        ("self._seen = []", False),
        ("from __future__ import annotations", False),
        ("type(worker).__name__", False),
        ("_, found = worker.state()", False),
        ("worker.clock = lambda: 0", False),
    ],
)
def test_a_private_name_is_found(source: str, is_found: bool) -> None:
    assert bool(list(private_accesses(ast.parse(source)))) is is_found
