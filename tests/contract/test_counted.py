"""A count of one is followed by a noun in the singular, wherever a count is printed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from handlers.number_text import counted

ROOT = Path(__file__).parents[2] / "handlers"


@pytest.mark.parametrize(
    ("count", "words", "text"),
    [
        (1, ("error",), "1 error"),
        (0, ("error",), "0 errors"),
        (1_200, ("error",), "1,200 errors"),
        (1, ("entry", "entries"), "1 entry"),
        (2, ("entry", "entries"), "2 entries"),
    ],
)
def test_the_noun_agrees_with_the_count(count: int, words: tuple[str, ...], text: str) -> None:
    assert counted(count, *words) == text


def nouns(trees: Iterable[ast.Module]) -> set[str]:
    """The plurals of all nouns that the product counts."""
    calls = [
        node
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "counted"
    ]
    words = [[str(getattr(word, "value", "")) for word in call.args[1:]] for call in calls]
    return {(given[1:] or [f"{given[0]}s"])[0].rpartition(" ")[2] for given in words} | {"times", "others"}


def has_plural_of_any_count(text: ast.JoinedStr, plurals: set[str]) -> bool:
    """Whether a formatted value that may be 1 stands before a plural; constants in upper case are larger."""
    for value, following in zip(text.values, text.values[1:], strict=False):
        if isinstance(value, ast.FormattedValue) and isinstance(following, ast.Constant):
            words = re.match(r" (?:[a-z]+ )?([a-z]+)\b", str(following.value))
            is_constant = isinstance(value.value, ast.Name) and value.value.id.isupper()
            if words and words[1] in plurals and not is_constant:
                return True
    return False


def test_no_text_has_a_plural_after_a_count_that_may_be_one() -> None:
    trees = {path: ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}
    plurals = nouns(trees.values())
    assert {"errors", "entries", "letters"} < plurals
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr) and has_plural_of_any_count(node, plurals)
    ]
    found += [
        f"{path.relative_to(ROOT)}: {words[0]}"
        for path in sorted(ROOT.rglob("*.html"))
        for words in re.finditer(r"\}\}(?:</\w+>)? ([a-z]+)\b", path.read_text())
        if words[1] in plurals
    ]
    assert found == []
