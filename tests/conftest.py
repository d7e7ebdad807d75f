"""What all tests share: the servers, one of each kind for a test process, and how hypothesis searches."""

from __future__ import annotations

from collections import Counter

import hypothesis
import pytest

from tests.servers.presence import skipped_for_want_of
from tests.servers.pubsub_emulator import pubsub_emulator
from tests.servers.valkey import store, valkey

# The servers, one of a kind for a test process, each started when it is first asked for.
__all__ = ["pubsub_emulator", "store", "valkey"]

# No deadline for one example: on two cores that others use too, a slow example is no fault.
hypothesis.settings.register_profile(
    "shared-machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("shared-machine")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the servers that were not found, and how to get them: a skip must not go unseen."""
    missing: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if server := skipped_for_want_of(reason):
            missing[server] += 1
    if missing:
        terminalreporter.section("servers not found")
        for server, tests in sorted(missing.items()):
            terminalreporter.line(f"{tests} tests skipped for want of {server}")
