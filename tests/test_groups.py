"""Tests of one group run in one process."""

from __future__ import annotations

import pytest


@pytest.mark.xdist_group("a-group")
def test_a_test_of_a_group_is_known_by_it(request: pytest.FixtureRequest) -> None:
    """Incompatible versions of pytest and pytest-xdist drop groups silently."""
    command = getattr(request.config, "workerinput", {"mainargv": []})["mainargv"]
    assert request.node.nodeid.endswith("@a-group") or "loadgroup" not in command
