"""A redelivery is measured from the right crash."""

from __future__ import annotations

from tests.chaos.leases import Lease, SentAgain, sent_again

LEASE = 15.0
KILLS = [100.0, 110.0, 130.0]


def test_the_time_of_a_redelivery_begins_at_the_kill() -> None:
    leases = [Lease(90.0, 114.0), Lease(116.0, 131.0)]
    assert sent_again(leases, 100.0, 116.2, KILLS, LEASE) == SentAgain(116.2 - 100.0, 1)


def test_the_crash_of_the_next_owner_adds_a_lease() -> None:
    """It renewed at 109 and was killed at 110, and the request was not sent in between."""
    leases = [Lease(80.0, 102.0), Lease(104.0, 124.0), Lease(125.5, 140.0)]
    assert sent_again(leases, 100.0, 125.6, KILLS, LEASE) == SentAgain(125.6 - 110.0, 2)


def test_without_a_kill_the_time_begins_at_the_last_renewal() -> None:
    leases = [Lease(101.0, 116.5)]
    again = sent_again(leases, 100.0, 117.0, [100.0], LEASE)
    assert again == SentAgain(117.0 - 101.5, 2)
