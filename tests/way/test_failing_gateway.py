"""A failing gateway gets few calls, nothing is lost, and the backlog flows when it is back."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.servers.forked import LONG_REDIS_TIMEOUT
from tests.waiting import elapse, wait_until
from tests.way.breakable import WORKERS, Breakable

SETTINGS = {**LONG_REDIS_TIMEOUT, "LEASE_SECONDS": "300"}
"""For the poller: only the gateway fails here, however slow the machine is."""


@pytest.fixture(scope="module")
def rig() -> Iterator[Breakable]:
    with Breakable(SETTINGS) as running:
        yield running


def openings(rig: Breakable) -> int:
    """The number of times that a circuit has opened."""
    return rig.poller.output().count('"state":"open"')


def has_reloaded(rig: Breakable, times: int) -> bool:
    return rig.poller.output().count("configuration reloaded") == times


def calls(rig: Breakable) -> int:
    """The number of requests that the gateway has ended."""
    return sum(rig.gateway_state()["statuses"].values())


def unclaimed(rig: Breakable) -> int:
    """The number of pending requests."""
    return int(rig.store.zcard("request-sortedset"))


PROBES = {"hang": 2, "reset": 3, "garbage": 3, "status_503": 3}
"""How many to watch; one of a gateway that hangs lasts as long as a request may."""


@pytest.mark.parametrize("fault", PROBES)
def test_a_failing_gateway_gets_only_probes_and_all_requests_when_it_is_back(rig: Breakable, fault: str) -> None:
    """F41, F43, F44, F46, F51, I10, L3."""
    opened = openings(rig)
    rig.set_faults(**{fault: 1.0})
    ids = rig.queue(150)
    wait_until(lambda: openings(rig) > opened, "an open circuit")
    wait_until(lambda: rig.in_flight() <= 2, "only probes in flight")

    before, unclaimed_before = calls(rig), unclaimed(rig)
    wait_until(lambda: calls(rig) >= before + PROBES[fault], "probes")
    claimed, probes = unclaimed_before - unclaimed(rig), calls(rig) - before
    left = unclaimed(rig)
    rig.set_faults()

    rig.wait_for_results(ids)
    assert claimed <= probes + 2, "one claim for each probe, and those in flight"
    assert left >= 150 - 50 - 2 * WORKERS, "what cannot go is left in the queue"
    # The cap holds also when everything comes back at once.
    assert rig.gateway_state()["peak"] <= WORKERS  # a maximum, which does not change any more


def test_an_unstable_gateway_gets_all_requests_in_the_end(rig: Breakable) -> None:
    """F41, I10: flapping."""
    ids, ready = rig.queue(200), []
    for turn in range(6):
        rig.set_faults(**({"reset": 0.9} if turn % 2 == 0 else {}))
        elapse(0.4, "it stays like this for a moment")
        ready.append(rig.ready()[0])
    rig.set_faults()

    rig.wait_for_results(ids)
    assert ready == [200] * 6, "the gateway's trouble is not the poller's"
    assert rig.gateway_state()["peak"] <= WORKERS  # a maximum, which does not change any more


def test_a_failing_gateway_gets_only_probes_although_the_configuration_changes(tmp_path: Path) -> None:
    """The circuit survives the change: a new one would need ten failures to open."""
    config = tmp_path / "config.yaml"
    config.write_text("queues: [{queue_name: request-sortedset}]")
    with Breakable({**SETTINGS, "CONFIG_FILE": str(config), "CONFIG_RELOAD_SECONDS": "0.2"}) as rig:
        rig.set_faults(reset=1.0)
        ids = rig.queue(100)
        wait_until(lambda: openings(rig), "an open circuit")
        wait_until(lambda: rig.in_flight() <= 2, "only probes in flight")

        opened, calls_before, unclaimed_before = openings(rig), calls(rig), unclaimed(rig)
        for number in range(3):
            changed = tmp_path / "changed.yaml"
            changed.write_text(f"queues: [{{queue_name: request-sortedset, labels: {{n: '{number}'}}}}]")
            changed.replace(config)  # never half written
            wait_until(partial(has_reloaded, rig, number + 1), "the change to be taken")
        after_reloads = calls(rig)
        wait_until(lambda: calls(rig) >= after_reloads + 3, "probes after the last change")
        claimed, probes = unclaimed_before - unclaimed(rig), calls(rig) - calls_before
        opened_again = openings(rig) - opened
        rig.set_faults()

        rig.wait_for_results(ids)
        assert claimed <= probes + 2, "one claim for each probe, and those in flight"
        assert opened_again == 0, "the circuit stayed open through the changes"
