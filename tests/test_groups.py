"""What belongs to one test process runs in one: groups of tests are in force."""

from __future__ import annotations

import pytest


@pytest.mark.xdist_group("a-group")
def test_a_test_of_a_group_is_known_by_it(request: pytest.FixtureRequest) -> None:
    """Versions of pytest and its distribution that do not fit each other drop groups without a word."""
    is_one_of_several = hasattr(request.config, "workerinput")
    assert request.node.nodeid.endswith("@a-group") or not is_one_of_several
