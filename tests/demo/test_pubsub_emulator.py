"""Finding the emulator, and the errors if it is missing or does not start."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from handlers.demo.pubsub_emulator import (
    EmulatorCommand,
    NoEmulator,
    PubSubEmulator,
    find_emulator,
)
from handlers.demo.servers import ChildFailed


def program(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_emulator_is_found_beside_gcloud_also_through_a_link(tmp_path: Path) -> None:
    java = program(tmp_path / "bin", "java")
    gcloud = program(tmp_path / "sdk" / "bin", "gcloud")
    (tmp_path / "bin" / "gcloud").symlink_to(gcloud)
    jar = tmp_path / "sdk" / "platform" / "pubsub-emulator" / "lib" / "cloud-pubsub-emulator-1.2.3-all.jar"
    jar.parent.mkdir(parents=True)
    jar.touch()
    found = find_emulator(search_path=str(tmp_path / "bin"))
    assert isinstance(found, EmulatorCommand)
    assert found.command[0] == str(java)
    assert found.command[-1] == str(jar)


def test_a_launcher_on_the_path_wins_and_a_jar_that_is_named_wins_over_it(tmp_path: Path) -> None:
    program(tmp_path, "java")
    launcher = program(tmp_path, "cloud-pubsub-emulator")
    assert find_emulator(search_path=str(tmp_path)) == EmulatorCommand((str(launcher),))
    jar = tmp_path / "mine.jar"
    jar.touch()
    named = find_emulator(str(jar), search_path=str(tmp_path))
    assert isinstance(named, EmulatorCommand)
    assert named.command[-1] == str(jar)


def test_missing_fields_are_named(tmp_path: Path) -> None:
    without_java = find_emulator(search_path=str(tmp_path))
    assert isinstance(without_java, NoEmulator)
    assert "java" in without_java.reason
    program(tmp_path, "java")
    without_jar = find_emulator("/no/such.jar", search_path=str(tmp_path))
    assert without_jar == NoEmulator("the Pub/Sub emulator's jar: no file at /no/such.jar")


def test_a_failed_start_shows_the_last_output() -> None:
    broken = EmulatorCommand(("/bin/sh", "-c", "echo out of luck; exit 3", "sh"))
    with pytest.raises(ChildFailed, match=r"(?s)code 3.*out of luck"):
        PubSubEmulator(broken)


def test_an_emulator_that_never_answers_is_ended() -> None:
    mute = EmulatorCommand(("/bin/sh", "-c", "echo thinking; exec sleep 600", "sh"))
    with pytest.raises(ChildFailed, match=r"(?s)was not ready in 3 s.*thinking"):
        PubSubEmulator(mute, timeout_seconds=3)
