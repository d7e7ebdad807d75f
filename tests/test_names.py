"""One word, one thing: no public name has two meanings, and no identifier keeps a word of the old dialect."""

from __future__ import annotations

import ast
import io
import keyword
import re
import tokenize
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.test_structure import SOURCES, text_of

_COMMANDS = "handlers/cli/"
"""Functions here are named after commands, which share words on purpose (`batch cancel` and `cancel`)."""
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_EACH_HAS_ONE = {"log": "the logger of a module", "main": "the entry of a program"}
"""Names that mean the same in every module that has one."""

MODULES_OF_ONE_NAME = {
    "batch": "batches of a file: the room, its command",
    "demo": "the demo: the room, its main module, its command",
    "poller": "the poller: the room, its main module, its wiring",
    "pubsub": "Pub/Sub: the room, its doors, its wiring, its command",
    "gates": "gates: the room, its wiring",
    "metrics": "metrics: the module, its wiring",
    "webhook": "the webhook service: the room, its command",
    "submit": "submission: the store's sub-room, its command",
    "results": "results: the store's sub-room and its main module, the client's stream, its command",
    "queue": "queued requests: the store's sub-room and its main module, those of a cluster, those of a batch",
    "submissions": "submission in the store, and in a cluster",
    "gateway": "the inference gateway: its client, the simulated one",
    "forward": "the attempt: the room, its main module",
    "settings": "the settings: the room, its main module",
    "transport": "HTTP: the room, its main module",
    "connection": "a connection: to Redis, of HTTP",
    "errors": "exceptions of a room",
    "limits": "limits in the store: the sub-room, its main module",
    "idempotency": "idempotency in the store: the sub-room, its main module",
    "admin": "administration: of Pub/Sub, of Redis",
    "main": "the entry of a program",
}
"""Modules and rooms that share a name, each with the one thing that it stands for."""


def assigned(node: ast.stmt) -> Iterator[str]:
    """The names that a statement assigns, without type variables."""
    match node:
        case ast.Assign(targets=targets, value=value):
            if not (isinstance(value, ast.Call) and ast.unparse(value.func) in {"TypeVar", "ParamSpec"}):
                yield from (target.id for target in targets if isinstance(target, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name)):
            yield name


def public_names(path: str, text: str) -> Iterator[str]:
    """The public classes, functions, constants and type aliases that a file defines."""
    for node in ast.parse(text).body:
        names = list(assigned(node))
        if isinstance(node, ast.ClassDef) or (isinstance(node, _FUNCTIONS) and not path.startswith(_COMMANDS)):
            names.append(node.name)
        yield from (name for name in names if not name.startswith("_") and name not in _EACH_HAS_ONE)


def shared_names(sources: Mapping[str, str]) -> dict[str, list[str]]:
    """Public top-level names that more than one file defines, with these files; `sources` maps path to text."""
    places: dict[str, set[str]] = defaultdict(set)
    for path, text in sources.items():
        for name in public_names(path, text):
            places[name].add(path)
    return {name: sorted(paths) for name, paths in places.items() if len(paths) > 1}


def shared_modules(paths: Iterable[str]) -> set[str]:
    """Names that more than one module or room has."""
    count: dict[str, int] = defaultdict(int)
    for path in map(Path, paths):
        count[path.parent.name if path.name == "__init__.py" else path.stem] += 1
    return {name for name, number in count.items() if number > 1 and not name.startswith("_")}


def test_every_public_name_means_one_thing() -> None:
    sources = {str(path): text_of(path) for path in SOURCES if path.parts[0] == "handlers"}
    assert len(sources) > 100
    assert shared_names(sources) == {}


def test_modules_share_a_name_only_if_they_are_one_thing() -> None:
    shared = shared_modules(str(path) for path in SOURCES if path.parts[0] == "handlers")
    assert shared == MODULES_OF_ONE_NAME.keys()


@pytest.mark.parametrize(
    ("sources", "shared"),
    [
        ({"a.py": "class A: ...", "b.py": "class A: ..."}, {"A"}),
        ({"a.py": "class A: ...", "b.py": "def A(): ..."}, {"A"}),
        ({"a.py": "class A: ...", "b.py": "A = dict[str, int]"}, {"A"}),
        ({"a.py": "A: TypeAlias = str", "b.py": "A: Final = 5"}, {"A"}),
        ({"a.py": "async def f(): ...", "b.py": "def f(): ..."}, {"f"}),
        ({"a.py": "def _f(): ...", "b.py": "def _f(): ..."}, set()),
        ({"a.py": "T = TypeVar('T')", "b.py": "T = TypeVar('T')"}, set()),
        ({"a.py": "def f(): ...", "handlers/cli/b.py": "def f(): ..."}, set()),
        ({"a.py": "class A:\n    def f(self): ...", "b.py": "def f(): ..."}, set()),
        ({"a.py": "if x:\n    A = 1\nelse:\n    A = 2"}, set()),
    ],
)
def test_a_name_with_two_meanings_is_found(sources: dict[str, str], shared: set[str]) -> None:
    assert shared_names(sources).keys() == shared


@pytest.mark.parametrize(
    ("paths", "shared"),
    [
        (["a/faults.py", "b/faults.py"], {"faults"}),
        (["a/queue/__init__.py", "b/queue.py"], {"queue"}),
        (["a/__init__.py", "a/b.py", "a/c.py"], set()),
        (["a/__main__.py", "b/__main__.py"], set()),
    ],
)
def test_a_module_name_with_two_meanings_is_found(paths: list[str], shared: set[str]) -> None:
    assert shared_modules(paths) == shared


BANNED_WORDS = {
    "anew": "again",
    "apart": "offloaded",
    "bury": "dead_letter",
    "buried": "dead_lettered",
    "carrier": "worker",
    "doorkeeper": "authenticator, waiting room",
    "draw": "jitter, random",
    "draws": "jitter, random",
    "drawn": "jitter, random",
    "elder": "previous",
    "elders": "previous",
    "guard": "breaker, authenticator",
    "guards": "breakers",
    "hear": "notified",
    "heard": "notified",
    "heir": "successor",
    "insist": "retry",
    "keeper": "authenticator, waiting room",
    "look": "poll, scan, search, check",
    "looked": "polled, scanned, searched, checked",
    "looking": "polling, scanning, searching, checking",
    "looks": "polls, scans, searches, checks",
    "looper": "periodic task",
    "patience": "retry",
    "patient": "retrying",
    "said": "logged, reported, text",
    "say": "log, report, reply",
    "says": "logs, reports",
    "senseless": "inconsistent",
    "settler": "ack batcher",
    "spared": "open circuit",
    "stands": "idempotency record",
    "stranger": "untrusted, other",
    "told": "logged, reported",
    "who": "name the actor",
    "whoever": "name the actor",
    "wish": "hint, request",
    "wished": "hint, requested",
    "wishes": "hints, requests",
}
"""Words that no identifier contains, each with the field's word."""

ALLOWED = {
    **dict.fromkeys(["payload_apart_bytes", "_payload_apart_bytes", "PAYLOAD_APART_FLAG"], "an option of the client"),
    **dict.fromkeys(["result_apart_bytes", "result_apart_seconds", "RESULT_APART_BYTES"], "a setting"),
    "patience_seconds": "an option of the client",
    **dict.fromkeys(["look_up", "_look_up"], "to look up a request is the field's phrase"),
    "carrier": "OpenTelemetry's word for what carries a context",
}
"""Identifiers that users or libraries know by a banned word, each with its reason."""
ALLOWED_IN_TESTS = {**ALLOWED, **dict.fromkeys(["draw", "DrawFn"], "Hypothesis draws; so does a chart")}

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def old_words(text: str, allowed: Container[str] = ALLOWED) -> list[str]:
    """Identifiers of a source with a banned word, except the names of tests, which are sentences."""
    found = {
        token.string
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.NAME
        and not keyword.iskeyword(token.string)
        and not token.string.startswith("test_")
        and token.string not in allowed
        and any(word.lower() in BANNED_WORDS for word in _WORD.findall(token.string))
    }
    return sorted(found)


def test_identifiers_use_the_words_of_the_field() -> None:
    found = {}
    for path in SOURCES:
        names = old_words(text_of(path), ALLOWED_IN_TESTS if path.parts[0] == "tests" else ALLOWED)
        if names:
            found[str(path)] = names
    assert found == {}, "use the words in BANNED_WORDS"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("self._doorkeeper = authenticator", ["_doorkeeper"]),
        ("class WishList: ...", ["WishList"]),
        ("LOOK_SECONDS = 1", ["LOOK_SECONDS"]),
        ("def f(told): ...", ["told"]),
        ("client.look_up(lookup, shoulder)", []),
        ("text = 'he looked'  # told", []),
    ],
)
def test_an_identifier_with_an_old_word_is_found(source: str, found: list[str]) -> None:
    assert old_words(source) == found
