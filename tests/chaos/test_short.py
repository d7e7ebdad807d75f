"""The short chaos run: sixty kills over five thousand requests, and all other faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.__main__ import PLANS
from tests.chaos.run import run


@pytest.mark.xdist_group("chaos")
@pytest.mark.timeout(1_200)
def test_i1_i2_each_request_has_one_result_after_any_crash(tmp_path: Path) -> None:
    verdict = run(tmp_path, seed=7, plan=PLANS["short"])
    print(verdict)
    assert verdict.faults["kill poller"] + verdict.faults["kill handler"] == 60
