"""The package in docs/adding-a-gate.md installs and works, its other example is a gate, its names exist."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from redis.asyncio import Redis

import async_processor.gates
from handlers.contract.errors import InvalidSetting
from handlers.gates import registry
from handlers.gates.gate import Gate, Go, Refuse
from handlers.gates.parameters import parse_parameters
from handlers.gates.registry import GATE_KINDS, build_gate
from handlers.gates.sources import GateSources
from tests.gates.building import request, sources

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding-a-gate.md").read_text(encoding="utf-8")
COMMAND = Path(sys.executable).with_name("async-processor")
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with the page's package installed from its wheel, and its configuration."""
    source = tmp_path_factory.mktemp("source")
    for name, text in re.findall(r"^`([\w.]+)` [^\n]*:\n\n```\w+\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        (source / name).write_text(text, encoding="utf-8")
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BUILD, str(folder)],
        cwd=source,
        check=True,
        capture_output=True,
    )
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (folder / "test_night_gate.py").write_bytes((source / "test_night_gate.py").read_bytes())
    [config] = re.findall(r"```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (folder / "config.yaml").write_text(config)
    return folder


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{installed}:{ROOT}",
        "CONFIG_FILE": str(installed / "config.yaml"),
    }
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=installed,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_package_passes_its_own_tests(installed: Path) -> None:
    done = run(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_night_gate.py")
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_a_configuration_uses_the_gate_of_the_package(installed: Path) -> None:
    done = run(installed, str(COMMAND), "check", "--only", "gates", "--json")
    [finding] = json.loads(done.stdout)["findings"]
    assert done.returncode == 0, done.stdout + done.stderr
    assert "open-at-night" in str(finding)
    assert "unknown" not in str(finding)


def test_a_wrong_parameter_of_the_package_stops_the_start(installed: Path) -> None:
    config = installed / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("opens: 22", "open: 22"))
    try:
        done = run(installed, str(COMMAND), "check", "--only", "gates")
    finally:
        config.write_text(text)
    assert done.returncode != 0
    assert "an unknown parameter of open-at-night (did you mean opens?)" in " ".join(
        (done.stdout + done.stderr).split()
    )


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("def __init__(self, parameters: NightParameters, sources: GateSources) -> None:", 2),
        ("def budget(self) -> float:", 1),
    ],
)
def test_check_names_the_gate_and_the_error_of_a_gate_that_raises(installed: Path, place: str, code: int) -> None:
    module = installed / "night_gate.py"
    text = module.read_text()
    module.write_text(text.replace(place, f"{place}\n        raise LookupError('no timetable')"))
    try:
        done = run(installed, str(COMMAND), "check", "--only", "gates")
    finally:
        module.write_text(text)
    shown = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == code
    assert "Traceback" not in shown
    assert "pools[0]" in shown
    assert "NightGate" in shown
    assert "LookupError: no timetable" in shown


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path of imports; a test adds packages there with `register`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.installed_gates.cache_clear()
    yield tmp_path
    registry.installed_gates.cache_clear()


def register(packages: Path, package: str, **gates: str) -> None:
    """Metadata of an installed package with these entry points (`_` in a name is written `-`)."""
    folder = packages / f"{package}-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name.replace('_', '-')} = {value}" for name, value in gates.items()]
    (folder / "entry_points.txt").write_text("[async_processor.gates]\n" + "\n".join(lines))


@pytest.mark.parametrize("gate_type", sorted(GATE_KINDS))
def test_a_package_cannot_take_the_name_of_a_built_in_gate(packages: Path, gate_type: str) -> None:
    register(packages, "intruder", **{gate_type: "nothing:KIND"})
    with pytest.raises(InvalidSetting, match="a built-in gate and intruder") as caught:
        build_gate(gate_type, {}, sources(), "pools[0]")
    assert caught.value.setting == "pools[0].gate_type"


def test_two_packages_cannot_have_a_gate_of_the_same_name(packages: Path) -> None:
    register(packages, "first", open_at_night="nothing:KIND")
    register(packages, "second", open_at_night="nothing:KIND")
    with pytest.raises(InvalidSetting, match=r"(first and second)|(second and first)"):
        build_gate("open-at-night", {}, sources(), "pools[0]")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("no_such_module:KIND", "intruder.*ModuleNotFoundError"),
        ("json:dumps", "a GateKind"),
        ("handlers.gates.registry:GATE_KINDS", "a GateKind"),
    ],
)
def test_an_entry_point_that_is_not_a_gate_is_refused(packages: Path, entry: str, reason: str) -> None:
    register(packages, "intruder", open_at_night=entry)
    with pytest.raises(InvalidSetting, match=reason):
        build_gate("open-at-night", {}, sources(), "pools[0]")


def test_an_unknown_type_lists_the_gates_of_packages_too(packages: Path) -> None:
    register(packages, "more-gates", open_at_night="nothing:KIND")
    with pytest.raises(InvalidSetting, match="open-at-night"):
        build_gate("open-at-nite", {}, sources(), "pools[0]")


async def test_the_example_of_a_metric_is_a_gate(redis: Redis, from_redis: GateSources) -> None:
    names: dict[str, Any] = {"__name__": __name__}
    [example] = [text for text in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "ReadingGate" in text]
    exec(compile(example, "docs/adding-a-gate.md", "exec", dont_inherit=True), names)
    parameters = parse_parameters(names["NightShareParameters"], "night-share", {"address": "a"}, "x")
    await redis.set("night-share", "0.5")
    built = names["NightShareGate"](parameters, from_redis)
    await built.start()
    assert built.budget() == 0.5
    await built.aclose()


def example_with(name: str, page: str = PAGE) -> dict[str, Any]:
    """The names that the page's example with `name` defines."""
    names: dict[str, Any] = {"__name__": __name__}
    [text] = [one for one in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if name in one]
    exec(compile(text, "docs/adding-a-gate.md", "exec", dont_inherit=True), names)
    return names


async def test_the_example_of_admission_counts_each_tenant_and_its_test_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    example = example_with("class TenantLimitGate")
    gate = example["KIND"].build({"limit": "1"}, sources(), "gate_params")
    first = await gate.admit(request(user="a"))
    assert isinstance(first, Go)
    assert isinstance(await gate.admit(request("r2", user="a")), Refuse)
    assert isinstance(await gate.admit(request("r3", user="b")), Go)
    await first.reservation.release()
    assert isinstance(await gate.admit(request("r4", user="a")), Go)
    monkeypatch.setitem(sys.modules, "tenant_limit", SimpleNamespace(**example))
    own_test = example_with("asyncio.run(check_reservations")["test_every_reservation_can_be_undone"]
    await asyncio.to_thread(own_test)


async def test_the_examples_test_also_fits_a_gate_that_reads_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = "self._limit = parameters.limit\n"
    page = PAGE.replace(line, line + "        self._clock = sources.clock\n")
    assert page != PAGE
    example = example_with("class TenantLimitGate", page)
    monkeypatch.setitem(sys.modules, "tenant_limit", SimpleNamespace(**example))
    own_test = example_with("asyncio.run(check_reservations")["test_every_reservation_can_be_undone"]
    await asyncio.to_thread(own_test)


async def test_a_reservation_that_is_not_undone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    example = example_with("class TenantLimitGate")

    async def keep(_slot: object) -> None: ...

    monkeypatch.setattr(example["TenantSlot"], "give_back", keep)
    gate = example["KIND"].build({"limit": 3}, sources(), "gate_params")
    with pytest.raises(AssertionError, match="as many admitted requests after give_back as before \\(3\\), got 0"):
        await async_processor.gates.check_reservations(gate)


def test_every_method_and_type_in_the_guide_exists() -> None:
    methods = re.findall(r"^\|[^|]*\| `(\w+)\(", PAGE, re.MULTILINE)
    assert {"budget", "admit", "observe"} <= set(methods)
    assert [name for name in methods if not hasattr(Gate, name)] == []
    [section] = re.findall(r"^## Parameters\n(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)
    types = re.findall(r"`([A-Z]\w+)`", section)
    assert [name for name in types if name not in async_processor.gates.__all__] == []
