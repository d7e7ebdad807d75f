"""Rules that no other tool checks: sizes, names, docstrings, sleeps, comments' reasons."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LONGEST_FILE = 600
LONGEST_FUNCTION = 50
MOST_PARAMETERS = 8
WORDLESS = {
    "utils",
    "util",
    "helpers",
    "helper",
    "common",
    "base",
    "misc",
    "manager",
    "processor",
    "data",
    "info",
}
# The only place that sleeps, so that every wait has a limit and a name.
MAY_SLEEP = {Path("tests/waiting.py")}


def tracked(*patterns: str) -> list[Path]:
    """Files under version control, relative to the root; in an unpacked archive, all there are."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *patterns], cwd=ROOT, capture_output=True, text=True, check=False
    )
    names = [name for name in listed.stdout.split("\0") if name]
    if not names:
        names = [str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(f"**/{pattern}")]
    return [Path(name) for name in names if (ROOT / name).exists() and ".venv" not in Path(name).parts]


SOURCES = tracked("async_processor/*.py", "handlers/*.py", "tests/*.py")
RUNTIME_EXTRAS = ["pubsub", "server", "demo", "otel"]


def text_of(path: Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def tree_of(path: Path) -> ast.Module:
    try:
        return ast.parse(text_of(path), filename=str(path))
    except (
        SystemError
    ):  # Python 3.11 miscounts its depth if a garbage collection or a thread switch intervenes (gh-106905)
        return ast.parse(text_of(path), filename=str(path))


def test_sources_of_all_folders_are_checked() -> None:
    assert {path.parts[0] for path in SOURCES} == {"async_processor", "handlers", "tests"}


def test_no_file_is_too_long_to_read() -> None:
    files = [*SOURCES, *tracked("handlers/*.lua", "handlers/*.html", "handlers/*.css", "handlers/*.js")]
    lengths = {str(path): (ROOT / path).read_bytes().count(b"\n") for path in files}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_no_line_of_lua_is_longer_than_one_of_python() -> None:
    scripts = tracked("handlers/*.lua")
    assert len(scripts) > 50
    lines = [
        f"{path}:{n}" for path in scripts for n, line in enumerate(text_of(path).splitlines(), 1) if len(line) > 120
    ]
    assert lines == []


def test_every_module_has_a_docstring() -> None:
    assert [str(path) for path in SOURCES if not ast.get_docstring(tree_of(path))] == []


def test_no_module_has_a_meaningless_name() -> None:
    names = {path: {part.removesuffix(".py") for part in path.parts} for path in SOURCES}
    assert {str(path): words & WORDLESS for path, words in names.items() if words & WORDLESS} == {}


def test_no_room_hides_a_module_of_the_standard_library() -> None:
    """`functions-framework --source handlers/main.py` appends that folder to the path."""
    tops = {path.parts[1].removesuffix(".py") for path in SOURCES if path.parts[0] == "handlers"}
    assert tops & sys.stdlib_module_names == set()


def test_functions_fit_on_a_screen() -> None:
    too_long = [
        f"{path}:{node.lineno} {node.name}"
        for path in SOURCES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno >= LONGEST_FUNCTION
    ]
    assert too_long == []


def wiring_faults(tree: ast.AST) -> Iterator[str]:
    """Constructors with too many parameters, and callbacks that are assigned to an object of another class."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name="__init__", args=taken):
                count = len([*taken.posonlyargs, *taken.args, *taken.kwonlyargs]) - 1
                if count > MOST_PARAMETERS:
                    yield f"line {node.lineno}: {count} parameters"
            case ast.Assign(targets=[ast.Attribute(value=owner, attr=name)]) if name.startswith("on_"):
                if ast.unparse(owner) != "self":
                    yield f"line {node.lineno}: {ast.unparse(node)}"


def test_objects_are_complete_when_they_are_constructed() -> None:
    found = {
        str(path): faults
        for path in SOURCES
        if path.parts[0] == "handlers" and (faults := list(wiring_faults(tree_of(path))))
    }
    assert found == {}, "group options in a struct; give callbacks to the constructor"


@pytest.mark.parametrize(
    ("source", "is_found"),
    [
        (f"def __init__(self, {', '.join(f'p{n}' for n in range(8))}): ...", False),
        (f"def __init__(self, *, {', '.join(f'p{n}' for n in range(9))}): ...", True),
        ("connection.on_lost = task.cancel", True),
        ("self.connection.on_lost = None", True),
        ("self.on_lost = on_lost", False),
    ],
)
def test_an_incomplete_object_is_found(source: str, is_found: bool) -> None:
    assert bool(list(wiring_faults(ast.parse(source)))) is is_found


def test_every_json_decoder_catches_all_errors_of_malformed_json() -> None:
    """msgspec raises unrelated classes for syntax, UTF-8 and depth: `MALFORMED` names them all."""
    partial = re.compile(r"(?:except|suppress).*msgspec\.(?:DecodeError|MsgspecError)")
    found = [str(path) for path in SOURCES if path.parts[0] == "handlers" and partial.search(text_of(path))]
    assert found == ["handlers/demo/gateway/service.py"], "use lenient_json.MALFORMED"


def test_no_test_sleeps() -> None:
    tests = [path for path in SOURCES if path.parts[0] == "tests" and path not in MAY_SLEEP]
    found = [f"{path}:{line}" for path in tests for line in sleeps(tree_of(path))]
    assert found == [], "wait for the event: tests/waiting.py"


def sleeps(tree: ast.AST) -> Iterator[int]:
    """Lines that call a sleep, however imported; `asyncio.sleep(0)` only lets others run."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        yields = [ast.unparse(argument) for argument in node.args[:1]] == ["0"]
        if name == "sleep" and not yields:
            yield node.lineno


@pytest.mark.parametrize(
    ("source", "is_found"),
    [
        ("import time; time.sleep(1)", True),
        ("from time import sleep; sleep(n)", True),
        ("await asyncio.sleep(0.01)", True),
        ("await asyncio.sleep(delay=1)", True),
        ("await asyncio.sleep(0)", False),
        ("wait_until(ready, 5, 'the server')", False),
    ],
)
def test_a_sleep_is_found_in_every_form(source: str, is_found: bool) -> None:
    assert bool(list(sleeps(ast.parse(source)))) is is_found


def test_property_tests_draw_from_no_shared_random() -> None:
    """Hypothesis could not repeat such an example; its own warning is off, since threads of a process draw too."""
    tests = [path for path in SOURCES if path.parts[0] == "tests"]
    properties = [path for path in tests if re.search(r"^from hypothesis", text_of(path), re.M)]
    assert len(properties) > 20
    found = [f"{path}:{line}" for path in properties for line in shared_random_uses(tree_of(path))]
    assert found == [], "use random.Random(seed)"


def shared_random_uses(tree: ast.AST) -> Iterator[int]:
    """Lines that use a function of the module `random` itself."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name("random"), attr=name) if name != "Random":
                yield node.lineno
            case ast.ImportFrom(module="random"):
                yield node.lineno


@pytest.mark.parametrize(
    ("source", "is_found"),
    [
        ("random.random()", True),
        ("st.builds(random.choice, x)", True),
        ("from random import choice", True),
        ("random.Random(3).random()", False),
        ("self._random.random()", False),
    ],
)
def test_a_draw_from_the_shared_random_is_found(source: str, is_found: bool) -> None:
    assert bool(list(shared_random_uses(ast.parse(source)))) is is_found


def test_every_exception_to_a_tool_has_its_reason() -> None:
    without = re.compile(r"#\s*(?:noqa|type:\s*ignore)(?:\[[^\]]*\]|:[ A-Z0-9,]+)?[ \t]*$", re.M)
    assert [str(path) for path in SOURCES if without.search(text_of(path))] == [], "give the reason on the line"


def test_no_source_has_a_to_do_comment() -> None:
    later = re.compile(r"\b(?:TO[D]O|FIX[M]E|XX[X])\b")  # split, so as not to find itself
    assert [str(path) for path in SOURCES if later.search(text_of(path))] == []


def test_users_get_our_types() -> None:
    assert (ROOT / "handlers/py.typed").exists()


def test_lock_files_contain_no_address() -> None:
    """The installer chooses the index; each pin has its hashes."""
    for path in tracked("requirements*.txt"):
        text = (ROOT / path).read_text()
        assert not re.search(r"://|--(index|extra-index|find-links|trusted-host)|file:", text), path
        pins = re.findall(r"^[A-Za-z0-9][^\n]*(?:\n    [^\n#]+)*", text, re.M)
        assert pins, path
        assert all("==" in pin and "--hash=sha256:" in pin for pin in pins), path


@pytest.mark.parametrize(
    ("lock", "extras"),
    [("requirements.txt", RUNTIME_EXTRAS), ("requirements-dev.txt", [*RUNTIME_EXTRAS, "dev"])],
)
def test_lock_files_pin_the_packages_dependencies(lock: str, extras: list[str]) -> None:
    """`make lock` after a change to pyproject.toml."""
    pins = dict(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;]+)", text_of(Path(lock)), re.M))
    project = tomllib.loads(text_of(Path("pyproject.toml")))["project"]
    asked = [
        *project["dependencies"],
        *(name for e in extras for name in project["optional-dependencies"][e]),
    ]
    wanted = [Requirement(text) for text in asked if not text.startswith(project["name"])]
    broken = [str(want) for want in wanted if not want.specifier.contains(pins.get(canonicalize_name(want.name), "0"))]
    assert broken == []


def test_make_lists_every_target_it_has() -> None:
    makefile = text_of(Path("Makefile")).replace("\\\n", " ")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.M)
    assert set(phony.split()) == set(re.findall(r"^([a-z-]+):.*?## ", makefile, re.M))
