"""The short run of chaos."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.run import Plan, run

SHORT = Plan(requests=1_600, kills=4, terminations=1, stalls=2, valkey_kills=1)


def test_i1_i2_whatever_dies_each_request_has_one_result(tmp_path: Path) -> None:
    print(run(tmp_path, seed=7, plan=SHORT))
