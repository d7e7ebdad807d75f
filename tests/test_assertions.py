"""Every test can fail: it asserts something, or a function that it calls does."""

from __future__ import annotations

import ast
import re
from collections.abc import Container, Iterable
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
_RAISES = {"raises", "warns", "fail"}
_LIBRARY = {"run_state_machine_as_test"}  # its rules assert
_DEF = re.compile(r"^\s*(?:async )?def (\w+)", re.M)
_Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(sources: Iterable[str]) -> dict[str, list[_Function]]:
    """The functions of the sources by name; several may share one."""
    found: dict[str, list[_Function]] = {}
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, _Function):
                found.setdefault(node.name, []).append(node)
    return found


def asserts_itself(function: _Function) -> bool:
    """Whether it has an assertion, a `raise`, or a block that expects an exception."""
    return any(
        isinstance(node, ast.Assert | ast.Raise) or (isinstance(node, ast.Attribute) and node.attr in _RAISES)
        for node in ast.walk(function)
    )


def names_called(function: _Function, methods_of_product: Container[str]) -> set[str]:
    """The functions and methods it calls, without methods of the product: `x.close()` is no helper named `close`."""
    calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
    plain = {call.id for call in calls if isinstance(call, ast.Name)}
    return plain | {
        call.attr for call in calls if isinstance(call, ast.Attribute) and call.attr not in methods_of_product
    }


def without_assertion(sources: Iterable[str], product: Iterable[str] = ()) -> set[str]:
    """The names of tests that assert nothing, not even through the functions they call."""
    every = functions(sources)
    methods = {name for source in product for name in _DEF.findall(source)}
    asserting = _LIBRARY | {name for name, same in every.items() if any(map(asserts_itself, same))}
    called = {name: set[str]().union(*(names_called(one, methods) for one in same)) for name, same in every.items()}
    while True:
        more = {name for name, names in called.items() if names & asserting}
        if more <= asserting:
            return {name for name in every if name.startswith("test_") and name not in asserting}
        asserting |= more


def test_every_test_asserts_something() -> None:
    sources = [path.read_text() for path in sorted(TESTS.rglob("*.py"))]
    product = [path.read_text() for path in sorted((TESTS.parent / "handlers").rglob("*.py"))]
    assert without_assertion(sources, product) == set()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def test_a():\n    f()", {"test_a"}),
        ("def test_a():\n    assert f()", set()),
        ("def test_a():\n    with pytest.raises(OSError):\n        f()", set()),
        ("def test_a():\n    g()\ndef g():\n    h()\ndef h():\n    assert x", set()),
        ("def test_a():\n    x.close()\ndef close():\n    assert x", {"test_a"}),
        ("def test_a():\n    close()\ndef close():\n    assert x", set()),
        ("async def test_a():\n    await x.g()\ndef g():\n    pass", {"test_a"}),
    ],
)
def test_a_test_without_an_assertion_is_found(source: str, found: set[str]) -> None:
    assert without_assertion([source], ["class X:\n    def close(self):\n        raise OSError"]) == found
