"""Text that people read is plain English: no banned word or phrase."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_structure import text_of, tracked, tree_of

CLEAN = [
    "README.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "docs",
    "async_processor",
    "handlers",
    "keda",
    "knative",
    "monitoring",
    "tests",
]
"""Pages and folders that are checked."""

BANNED = {
    r"\bwhoever\b": "name the actor: the caller, the poller, the consumer",
    r"(?:^|[.:;] )(?:Who|Whose) (?!can do|does|is it|are you)[a-z]+(?! [^.]*\?)": "name the actor",
    r"\bwho (?:lost|shows|asks|reads|stops|comes|finds|waits|claims|queues)\b": "name the actor",
    r"\bwhat (?:is|was|were|has been) (?:\w+ed|sent|held|said|told|kept|read|taken|given)\b": "name the thing",
    r"\b(?:is|are) none\b": "is not a …",
    r"\bthat (?:is|are) no\b": "is not a …, invalid",
    r"\bfor want of\b": "for lack of",
    r"\bby lot\b": "with jitter, at random",
    r"\bgo(?:es)? on\b": "continue",
    r"\blook(?:s|ed|ing)? at\b": "poll, scan, check",
    r"\b(?:is|are|was|were) told\b": "reported, logged, notified",
    r"\bhears? of\b": "is notified of",
    r"\bfor ever\b": "indefinitely",
    r"\b(?:take|takes|taken|took) back\b": "cancel, return",
    r"\bas it does\b": "say what it does",
    r"\bdoorkeepers?\b": "authenticator",
    r"\bstrangers?\b": "untrusted input, an unauthenticated caller",
    r"\b(?:bury|buries|buried)\b": "dead-letter",
    r"\bsenseless\b": "inconsistent parameters",
    r"\b(?:heir|elders?)\b": "successor, previous",
    r"\bof ours\b|\bof theirs\b": "our, their",
    r"\banew\b": "again",
    r"\b(?:every|some)body\b": "name the actor",
    r"\bcomes? again\b": "is delivered again, is redelivered",
    r"\b(?:bring|give)s? none\b|\bthat names? none\b": "does not name one, is without",
    r"\bunder way\b": "in flight",
    r"\bdead (?:pollers?|owners?|process)\b": "crashed",
    r"\bmend(?:s|ed|ing)?\b": "correct, fix",
    r"\bas (?:it|they) (?:came|went)\b": "unchanged",
    r"\bin trouble\b": "failing",
    r"\bwish(?:es|ed)?\b": "request, hint, Retry-After",
    r"\b(?:comes?|came|goes|go) along\b": "is sent, is included",
    r"\b(?:goes|went) away\b": "disconnected, was removed",
    r"\bunasked\b|\bin no way\b|\bleft alone\b": "say what happens",
    r"\bmakes? no sense\b": "invalid, inconsistent",
    r"\binferred\b": "sent to the gateway, runs",
    r"\b(?:said|says|tells)\b": "reports, names, shows",
    r"\b(?:an)?other \w+(?: \w+)? than\b": "that differs from, other than",
    r"\b(?:is|are|was|were) (?:not )?there\b": "exists, has arrived",
    r"\bspared\b": "refused by the circuit",
    r"\bnobody (?:is|was|would|else|may|[a-z]+s)\b": "name the actor: no poller, no caller",
    r"\ball the same\b": "nevertheless",
    r"\bgot (?:another|something|other)\b": "describe the value that was got",
    r"\b(?:holds?|held|holding) up\b": "delay",
    r"^test (?:[fi]\d+ )*(?:it|its|what|which|of|who|whose|there|that|nothing|another|something) ": "name the subject",
}


def words_of(path: Path) -> Iterator[tuple[int, str]]:
    """Lines and texts of a file that people read: prose, comments, names of tests, texts of several words."""
    text = text_of(path)
    if path.suffix == ".md":
        text = re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), text, flags=re.M | re.S)
        yield from enumerate(re.sub(r"`[^`\n]*`", "`…`", text).splitlines(), 1)
        return
    if path.suffix != ".py":
        sign = "--" if path.suffix == ".lua" else "#"
        yield from ((n, line) for n, line in enumerate(text.splitlines(), 1) if sign in line)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node.lineno, node.name.replace("_", " ")
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.count(" ") > 1:
            yield node.lineno, " ".join(node.value.split())


def faults(path: Path) -> list[str]:
    return [
        f"{path}:{line}: {found[0].strip()!r}: {instead}"
        for line, text in words_of(path)
        for pattern, instead in BANNED.items()
        if (found := re.search(pattern, text))
    ]


@pytest.mark.parametrize("name", CLEAN)
def test_rewritten_text_stays_plain(name: str) -> None:
    files = [
        path
        for path in tracked(name, f"{name}/*")
        if path.suffix in {".md", ".py", ".lua", ".yaml", ".env"} and path != Path("tests/test_language.py")
    ]
    assert files, f"{name} is not there: take it off the list or give its new name"
    assert [fault for path in files for fault in faults(path)] == []


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("Who lost its lease can neither answer nor retry", True),
        ("A result for whoever waits", True),
        ("A deadline that is no time", True),
        ("Half of it drawn by lot", True),
        ("Members that name none come again", True),
        ("What is under way at a dead poller", True),
        ("A body that came along as it went", True),
        ("test of two submissions the live one is kept", True),
        ("test it follows the key it is given", True),
        ("A key that has another type than docs/redis.md lists", True),
        ("The page says that a gate tells nobody", True),
        ("A gateway that is not there holds up nobody else", True),
        ("A worker whose lease expired cannot ack", False),
        ("test the live one of two submissions is kept", False),
        ("Results from sources other than the poller stay for a day", False),
        ("Who can do what", False),
    ],
)
def test_the_old_dialect_is_found(text: str, is_found: bool) -> None:
    assert any(re.search(pattern, text.removeprefix("")) for pattern in BANNED) is is_found


_EMPTY_FOUND = re.compile(r"^(something|another|other|no|not|none of|invalid|wrong)\b|\bof another (type|form|kind)$")
"""A "got" half that says only that it is not the expected half; `nothing` says enough."""


def found_texts(tree: ast.AST) -> list[tuple[int, str]]:
    """The "got" halves of errors that are written as text, with their lines.

    They are `found="…"`, `found = "…"` and the third argument of a function `_invalid`.
    """
    given = [(one.arg or "", one.value) for one in ast.walk(tree) if isinstance(one, ast.keyword)]
    given += [
        (target.id, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    given += [
        ("found", node.args[2])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "_invalid" and len(node.args) > 2
    ]
    parts = [
        part
        for name, value in given
        if name == "found"
        for part in ([value.body, value.orelse] if isinstance(value, ast.IfExp) else [value])
    ]
    texts = [(part.lineno, part.values[0] if isinstance(part, ast.JoinedStr) else part) for part in parts]
    return [(line, str(text.value)) for line, text in texts if isinstance(text, ast.Constant)]


def test_errors_describe_the_value_that_they_got() -> None:
    texts = {
        f"{path}:{line}": text for path in tracked("handlers/**/*.py") for line, text in found_texts(tree_of(path))
    }
    assert len(texts) > 50
    assert {at: text for at, text in texts.items() if _EMPTY_FOUND.search(text)} == {}


MOST_WORDS = 12
"""Words of a docstring's first sentence; code counts as one word, a remark in parentheses as none."""


def first_sentence(docstring: str) -> str:
    """The text up to its first full stop, colon, semicolon or empty line."""
    plain = re.sub(r"``?[^`]*``?", "code", re.sub(r"\s*\([^()]*\)", "", docstring))
    return re.split(r"[.:;](?=\s|$)|\n\n", plain, maxsplit=1)[0]


@pytest.mark.parametrize("path", tracked("handlers/*.py", "async_processor/*.py"), ids=str)
def test_a_docstring_begins_with_a_short_sentence(path: Path) -> None:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(tree_of(path)) if isinstance(node, kinds)]
    first = [first_sentence(text) for text in docstrings]
    assert [sentence for sentence in first if len(sentence.split()) > MOST_WORDS] == []


@pytest.mark.parametrize(
    ("docstring", "count"),
    [
        ("The delay. It grows.", 2),
        ("The `retry set`, a zset (see `a.b` and c).", 4),
        ("One\ntwo\n\nthree", 2),
        ("Bytes of 1.5 MB: a bound", 4),
    ],
)
def test_words_of_a_first_sentence_are_counted(docstring: str, count: int) -> None:
    assert len(first_sentence(docstring).split()) == count
