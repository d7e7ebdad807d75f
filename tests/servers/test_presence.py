"""A missing server is reported at the end of a run, or fails it if all servers are required."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.servers.presence import REQUIRE_ALL

ROOT = Path(__file__).parents[2]
WANTING = """
import pytest
from tests.servers.presence import not_found

@pytest.mark.parametrize("number", range(3))
def test_that_needs_a_server(number):
    not_found("the moon server")

def test_that_is_skipped_for_another_reason():
    pytest.skip("not today")
"""


def run_of_a_test_that_wants_a_server(
    folder: Path, require_all: str, processes: int
) -> subprocess.CompletedProcess[str]:
    (folder / "test_wanting.py").write_text(WANTING)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = {**environment, "PYTHONPATH": str(ROOT), REQUIRE_ALL: require_all}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.conftest",
        "-n",
        str(processes),
        "-c",
        os.devnull,
    ]
    return subprocess.run(
        [*command, "--rootdir", str(folder), str(folder)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_missing_server_is_named_once_at_the_end(tmp_path: Path) -> None:
    run = run_of_a_test_that_wants_a_server(tmp_path, "0", processes=2)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (
        "3 tests skipped because servers are missing: the moon server (3). Install them with: make servers"
        in run.stdout
    )
    assert "4 skipped in" in run.stdout
    assert "not today" not in run.stdout


def test_where_all_are_required_a_missing_server_fails(tmp_path: Path) -> None:
    run = run_of_a_test_that_wants_a_server(tmp_path, "1", processes=0)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "3 failed, 1 skipped in" in run.stdout
    assert "the moon server; REQUIRE_ALL_SERVERS is set; install it with: make servers" in run.stdout
