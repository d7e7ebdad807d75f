"""Resources that a failed test leaves open do not fail the tests after it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAIR = """
import gc, socket

def test_first():
    opened = [socket.socket()]
    opened.append(opened)  # a cycle: only the collector finds it
    assert {claim}

def test_second():
    gc.collect()
"""


def _outcome(folder: Path, claim: str) -> str:
    file = folder / "test_pair.py"
    file.write_text(PAIR.format(claim=claim))
    options = ["-q", "-p", "tests.conftest", "-p", "no:randomly", "-p", "no:cacheprovider"]
    places = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), str(file)]
    command = [sys.executable, "-m", "pytest", *options, *places]
    ended = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    return ended.stdout.splitlines()[-1]


def test_a_socket_that_a_failed_test_left_open_fails_no_other(tmp_path: Path) -> None:
    assert _outcome(tmp_path, "False").startswith("1 failed, 1 passed")


def test_a_socket_left_open_by_a_passing_test_is_reported(tmp_path: Path) -> None:
    assert _outcome(tmp_path, "True").startswith("1 failed, 1 passed")
