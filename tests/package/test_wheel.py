"""The wheel in an environment that has nothing but the default dependencies: the client and the producers' commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from handlers.demo.stack import Stack, StackOptions
from tests.servers.forked import LONG_REDIS_TIMEOUT

ROOT = Path(__file__).parents[2]
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel and its dependencies, without extras."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("handlers", "async_processor"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BUILD, str(folder)],
        cwd=source,
        check=True,
        capture_output=True,
    )
    [wheel] = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    [packages] = (folder / "venv" / "lib").glob("python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    [metadata] = packages.glob("async_processor-*.dist-info")
    for one in closure(Distribution.at(metadata)):
        copy(one, packages)
    return folder / "venv" / "bin" / "python"


def closure(top: Distribution) -> list[Distribution]:
    """The installed distributions that `top` requires without any extra, and so on."""
    found: dict[str, Distribution] = {}
    waiting = [(top, frozenset[str]())]
    while waiting:
        one, extras = waiting.pop()
        for text in one.requires or []:
            wanted = Requirement(text)
            is_asked = wanted.marker is None or any(
                wanted.marker.evaluate({"extra": extra}) for extra in (extras or {""})
            )
            if is_asked and wanted.name not in found:
                found[wanted.name] = distribution(wanted.name)
                waiting.append((found[wanted.name], frozenset(wanted.extras)))
    return list(found.values())


def copy(one: Distribution, packages: Path) -> None:
    for file in one.files or []:
        if ".." not in file.parts and "__pycache__" not in file.parts:
            to = packages / file
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(one.locate_file(file)), to)


def run(python: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-W", "error", *arguments]
    environment = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run(command, env=environment, cwd=python.parent, capture_output=True, text=True, check=False)


def command(python: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return run(python, "-c", "from handlers.cli import main; main()", *arguments, **variables)


def test_the_readmes_python_example_runs_as_written(python: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```python\n(.*?async_processor.*?)```", text, re.S)
    with Stack(StackOptions(has_pubsub=False)) as stack:
        done = run(python, "-c", example, REDIS_URL=stack.redis_url, **LONG_REDIS_TIMEOUT)
        assert done.returncode == 0, done.stderr
        assert "200" in done.stdout
        submitted = command(
            python, "submit", "--prompt", "Hi", "--wait", REDIS_URL=stack.redis_url, **LONG_REDIS_TIMEOUT
        )
        assert submitted.returncode == 0, submitted.stderr


def test_the_import_name_is_typed_and_exports_what_the_client_does(python: Path) -> None:
    done = run(
        python,
        "-c",
        "import async_processor as a, handlers.client as c, pathlib;"
        "assert all(getattr(a, name) is getattr(c, name) for name in c.__all__);"
        "assert pathlib.Path(a.__file__).with_name('py.typed').is_file()",
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["submit", "results", "where", "cancel", "dead", "batch"])
def test_a_producers_command_needs_no_extra(python: Path, name: str) -> None:
    done = command(python, name, "--help")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["serve"], "server"),
        (["poll"], "server"),
        (["check"], "server"),
        (["top", "--once"], "server"),
        (["status"], "server"),
        (["webhook", "https://example.com/", "--secret-file", "/dev/null"], "server"),
        (["demo", "--no-pubsub"], "server"),
        (
            ["submit", "--prompt", "x", "--to", "pubsub", "--project", "demo-project", "--topic", "topic"],
            "pubsub",
        ),
    ],
)
def test_a_command_names_the_missing_extra(python: Path, arguments: list[str], extra: str) -> None:
    done = command(python, *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"pip install 'async-processor[{extra}]'" in done.stderr
