"""The health of a process's dependencies, from its own calls."""

from __future__ import annotations

from handlers.telemetry.dependencies import GATES, GATEWAY, MEMORY, Dependencies, Dependency


def test_three_failures_in_a_row_count_from_the_first_and_one_success_ends_it() -> None:
    now = [10.0]
    dependency = Dependency(clock=lambda: now[0])
    for _ in range(2):
        dependency.report(has_failed=True)
        now[0] += 1.0
        assert dependency.failing_seconds is None
    dependency.report(has_failed=True)
    assert dependency.failing_seconds == 2.0
    dependency.report(has_failed=False)
    assert dependency.failing_seconds is None


def test_failures_with_a_success_between_them_do_not_add_up() -> None:
    dependency = Dependency()
    for has_failed in (True, True, False, True, True):
        dependency.report(has_failed=has_failed)
    assert dependency.failing_seconds is None


def test_a_watched_dependency_fails_from_the_first_failed_check() -> None:
    now, is_there = [5.0], [False]
    dependencies = Dependencies(clock=lambda: now[0])
    dependencies.watch(GATES, lambda: is_there[0])
    assert dependencies.failing() == {GATES: 0.0}
    now[0] += 3
    assert dependencies.failing() == {GATES: 3.0}
    is_there[0] = True
    assert dependencies.failing() == {}
    is_there[0] = False
    assert dependencies.failing() == {GATES: 0.0}
    assert dependencies.names() == [GATES]


def test_working_dependencies_are_not_reported_as_failing() -> None:
    dependencies = Dependencies()
    dependencies.add(MEMORY)
    for _ in range(3):
        dependencies.add(GATEWAY).report(has_failed=True)
    assert list(dependencies.failing()) == [GATEWAY]
    assert dependencies.names() == [MEMORY, GATEWAY]
