"""The Dockerfile by instruction; its build of the application runs if pip has an index."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.manifests.rendering import ROOT

DOCKERFILE = ROOT / "Dockerfile"


class Instruction(NamedTuple):
    """One instruction, its lines joined."""

    word: str
    rest: str


class Stage(NamedTuple):
    """A FROM and what follows it."""

    base: str
    name: str
    instructions: list[Instruction]

    def all(self, word: str) -> list[str]:
        """The arguments of every instruction of one kind."""
        return [i.rest for i in self.instructions if i.word == word]


@pytest.fixture(scope="module")
def stages() -> list[Stage]:
    """The stages, from the first to the one that becomes the image."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.M).replace("\\\n", " ")
    found: list[Stage] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found.append(Stage(base, name, []))
        elif found:
            found[-1].instructions.append(Instruction(word, rest))
    return found


def test_every_base_is_a_digest_that_the_builder_names(stages: list[Stage]) -> None:
    names = {stage.name for stage in stages}
    for stage in stages:
        assert stage.base in names or stage.base.endswith("@${PYTHON_DIGEST}"), stage.base
    assert re.search(r"^ARG PYTHON_DIGEST$", DOCKERFILE.read_text(), re.M), "required: no default"


def test_building_and_running_use_the_same_python(stages: list[Stage]) -> None:
    assert stages[0].base == stages[-1].base
    (version,) = re.findall(r"python:(\d+\.\d+)-slim", stages[-1].base)
    assert version == "3.11", "the one that the lock file and the tests are made with"


def test_the_image_runs_without_shell_and_root(stages: list[Stage]) -> None:
    final = stages[-1]
    assert not final.all("RUN"), "nothing is installed into the image itself"
    assert final.all("USER") == ["65532:65532"]
    assert final.all("ENTRYPOINT") == ['["async-processor"]']
    assert final.all("CMD") == ['["serve"]']


def test_the_image_takes_two_layers_from_the_build(stages: list[Stage]) -> None:
    assert stages[-1].all("COPY") == [
        "--from=dependencies /opt/venv /opt/venv",
        "--from=application /opt/app /opt/app",
    ]


def test_every_package_from_the_index_has_a_hash(stages: list[Stage]) -> None:
    for stage in stages:
        for command in re.findall(r"pip [^&|]*\binstall [^&|]*", " && ".join(stage.all("RUN"))):
            assert "--no-index" in command or {"--require-hashes", "--only-binary"} <= set(command.split()), command
    pins = re.findall(r"^(\S+==\S+) \\\n    --hash=sha256:[0-9a-f]{64}$", lock_for_the_build(), re.M)
    assert len(pins) == 1


def test_equal_sources_make_equal_files(stages: list[Stage]) -> None:
    for stage in stages[:-1]:
        last = stage.all("RUN")[-1]
        assert "compileall -q --invalidation-mode unchecked-hash" in last
        assert 'touch -h -d "@${SOURCE_DATE_EPOCH}"' in last


def test_the_ports_are_those_of_the_app(stages: list[Stage]) -> None:
    assert stages[-1].all("EXPOSE") == ["8080 9090"]


def test_the_builder_gets_exactly_the_copied_files(stages: list[Stage]) -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source.rstrip("/")
        for stage in stages
        for arguments in stage.all("COPY")
        if not arguments.startswith("--from")
        for source in arguments.split()[:-1]
    }
    assert copied == sent - {"Dockerfile"}


@pytest.mark.timeout(600)
def test_the_application_stage_makes_a_command_that_runs(stages: list[Stage], tmp_path: Path) -> None:
    """Its own RUN lines with /opt moved, and the dependencies of this interpreter."""
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements-build.txt"):
        if not (ROOT / name).exists():
            pytest.skip(f"{name} does not exist yet")
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("async_processor", "handlers"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    opt = tmp_path / "opt"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(opt / "venv")], check=True)
    env = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "SOURCE_DATE_EPOCH": "315532800",
        "HOME": str(Path.home()),  # where pip finds its index and cache
        "PIP_NO_COMPILE": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    (application,) = (stage for stage in stages if stage.name == "application")
    for number, line in enumerate(application.all("RUN")):
        command = line.replace("/opt/", f"{opt}/")
        done = subprocess.run(
            ["bash", "-euc", command], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        if number == 0 and done.returncode and "No matching distribution" in done.stderr:
            pytest.skip("pip finds no index here")
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    command_file = opt / "app/bin/async-processor"
    assert command_file.read_text().startswith(f"#!{opt}/venv/bin/python")
    packaged = {p.relative_to(opt / "app/handlers") for p in (opt / "app/handlers").rglob("*.lua")}
    assert packaged == {p.relative_to(ROOT / "handlers") for p in (ROOT / "handlers").rglob("*.lua")}
    times = {int(p.stat().st_mtime) for p in (opt / "app").rglob("*")}
    assert times == {315532800}


def lock_for_the_build() -> str:
    """The pins of what builds the wheel."""
    return (ROOT / "requirements-build.txt").read_text()
