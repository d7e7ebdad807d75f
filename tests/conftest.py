"""Shared by all tests: one server of each kind per test process, and hypothesis' settings."""

from __future__ import annotations

import gc
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Generator

import hypothesis
import pytest

from tests.servers.presence import INSTALL, missing_server
from tests.servers.pubsub_emulator import pubsub_emulator
from tests.servers.valkey import store, valkey

# One server of each kind per test process, started when it is first needed.
__all__ = ["pubsub_emulator", "store", "valkey"]

# No deadline for one example: on two cores that others use too, a slow example is no fault. The examples are the same
# each time, so that a test fails only after a change; `--hypothesis-profile=explore` draws many new ones.
same = hypothesis.settings(deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("same", same)
hypothesis.settings.register_profile("explore", same, derandomize=False, max_examples=2_000)
hypothesis.settings.load_profile("same")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A background job of a shell ignores Ctrl-C, and so would every process that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)

_HAS_FAILED = pytest.StashKey[bool]()
_EXPORTERS = ("google", "grpc", "opentelemetry", "urllib3")
"""Libraries with threads of their own, which may outlive the test that started them."""
_LONG = (
    "bench",
    "chaos",
    "cluster",
    "conformance",
    "demo",
    "manifests",
    "monitoring",
    "package",
    "queue",
    "slack",
    "way",
)
"""Folders of the tests that take longest."""
_SHARING = ("monitoring", "status", "way")
"""Folders in which the tests of a module share whole stacks of processes."""


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None, None, None]:
    """Run a module that shares a stack in one test process, and the folders with long tests first.

    Each process would start another stack, and a long test that begins last keeps one core idle.
    """
    for item in items:
        if item.path.parent.name in _SHARING and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    yield
    items.sort(key=lambda item: item.path.parent.name not in _LONG)  # stable: the order inside stays random


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember a test of which a part failed."""
    report = yield
    if report.failed:
        item.stash[_HAS_FAILED] = True
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Clear silently what a failed test left open; otherwise the next test would fail too.

    A failure keeps its frames, and their sockets, until the garbage collection, which may happen in another test. A
    passed test that leaves something open still fails.
    """
    result = yield
    if item.stash.get(_HAS_FAILED, False):
        for name in ("last_exc", "last_type", "last_value", "last_traceback"):
            vars(sys).pop(name, None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
    return result


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Log records of the test, without those that an exporter thread of an earlier test still writes."""
    caplog.handler.addFilter(lambda record: record.name.partition(".")[0] not in _EXPORTERS)
    return caplog


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report in one line which servers are missing, how many tests were skipped for each, and how to install them."""
    missing: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if server := missing_server(reason):
            missing[server] += 1
    if missing:
        each = ", ".join(f"{server} ({tests})" for server, tests in sorted(missing.items()))
        line = f"{missing.total()} tests skipped because servers are missing: {each}. Install them with: {INSTALL}"
        terminalreporter.section("missing servers")
        terminalreporter.line(line)
