"""F3: a process killed at each of twelve points, on both transports; a new one finishes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.crash_ways import WAYS, run_crash_points


@pytest.mark.xdist_group("chaos")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("transport", sorted(WAYS))
def test_f3_a_crash_at_any_named_point_loses_and_duplicates_nothing(tmp_path: Path, transport: str) -> None:
    assert len(WAYS[transport][1]) == 12
    assert run_crash_points(tmp_path, transport, repeats=1) >= 12
