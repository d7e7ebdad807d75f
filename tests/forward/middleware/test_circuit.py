"""The circuit breaker with its own clock: when it opens, how few calls pass, how it recovers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from handlers.forward.middleware.breaker import Circuit, CircuitOptions, CircuitState, Pass

OPTIONS = CircuitOptions()


@dataclass
class Rig:
    """A circuit and its time."""

    now: float = 100.0
    states: list[CircuitState] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.circuit = Circuit(OPTIONS, lambda: self.now, self.states.append)

    def call(self, *, fails: bool | None, request: int | None = None, is_retry: bool = False) -> bool:
        """Make one call, by default of another request each time; returns whether it was sent."""
        entered = self.circuit.enter()
        if entered is not None:
            number = next(self.numbers) if request is None else request
            self.circuit.leave(entered, fails, request=number, is_retry=is_retry)
        return entered is not None

    def open(self) -> None:
        while self.circuit.state is not CircuitState.OPEN:
            assert self.call(fails=True)


def test_a_tenth_of_failures_opens_nothing() -> None:
    rig = Rig()
    for number in range(5_000):
        rig.now += 0.01
        assert rig.call(fails=number % 10 == 0)
    assert rig.states == []


def test_a_few_failures_alone_open_nothing() -> None:
    rig = Rig()
    for _ in range(OPTIONS.least_failures - 1):
        assert rig.call(fails=True)
    rig.now += OPTIONS.window_seconds + 1
    assert rig.call(fails=True)
    assert rig.states == []


def test_an_open_circuit_admits_one_call_per_second() -> None:
    rig = Rig()
    rig.open()
    went = 0
    for _ in range(6_000):  # a minute, a hundred requests a second
        rig.now += 0.01
        went += rig.call(fails=True)
    assert rig.circuit.state is CircuitState.OPEN
    assert went <= 60


def test_the_circuit_opens_after_the_same_failures_however_many_calls_succeeded() -> None:
    rig = Rig()
    for _ in range(5_000):
        assert rig.call(fails=False)
    went = 0
    while rig.call(fails=True):
        went += 1
    assert went == OPTIONS.failures_in_a_row
    assert rig.states == [CircuitState.OPEN]


def test_retries_of_one_request_count_once() -> None:
    rig = Rig()
    for attempt in range(1_000):
        assert rig.call(fails=True, request=1, is_retry=attempt > 0)
    assert rig.states == []


def test_failed_retries_open_the_circuit_later_than_failed_first_attempts() -> None:
    rig = Rig()
    went = 0
    while rig.call(fails=True, is_retry=True):
        went += 1
    assert went == OPTIONS.least_failures / OPTIONS.retry_weight


def test_failures_among_successes_count_against_the_requests() -> None:
    """Four of five first attempts fail, for a minute; the gateway answers the fifth."""
    rig = Rig()
    assert rig.call(fails=False)
    for number in range(6_000):
        rig.now += 0.01
        assert rig.call(fails=number % 5 != 0)
    assert rig.states == []


def test_an_outage_of_an_unreliable_gateway_opens_the_circuit() -> None:
    rig = Rig()
    for number in range(500):
        rig.now += 0.01
        assert rig.call(fails=number % 5 != 4)
    went = 0
    while rig.call(fails=True):
        went += 1
        assert went <= 5 * OPTIONS.failures_in_a_row
    assert rig.circuit.state is CircuitState.OPEN


def test_a_poller_claims_no_second_probe_while_the_first_is_on_its_way() -> None:
    rig = Rig()
    rig.open()
    rig.now += OPTIONS.probe_seconds
    assert rig.circuit.claimable() == 1
    rig.circuit.claimed()
    assert rig.circuit.claimable() == 0
    rig.now += OPTIONS.probe_seconds
    assert rig.circuit.claimable() == 1


def test_the_circuit_knows_which_requests_have_just_failed() -> None:
    rig = Rig()
    assert rig.call(fails=True, request=1)
    assert rig.circuit.has_just_failed(1)
    assert not rig.circuit.has_just_failed(2)
    rig.now += OPTIONS.window_seconds
    assert not rig.circuit.has_just_failed(1)


def test_refusals_for_load_do_not_count_as_failures() -> None:
    rig = Rig()
    for _ in range(1_000):
        assert rig.call(fails=None)
    assert rig.states == []


def test_unanswered_probes_are_bounded() -> None:
    rig = Rig()
    rig.open()
    entered = 0
    for _ in range(3_600):
        rig.now += 1.0
        entered += rig.circuit.enter() is not None
    assert entered == OPTIONS.most_probes


def test_a_probe_that_is_given_up_makes_room_for_the_next() -> None:
    rig = Rig()
    rig.open()
    for _ in range(20):
        rig.now += 1.0
        assert rig.call(fails=None)
    assert rig.circuit.state is CircuitState.OPEN


def test_recovery_doubles_the_calls_in_flight() -> None:
    rig = Rig()
    rig.open()
    rig.now += 1.0
    assert rig.call(fails=False)
    rounds = []
    while rig.circuit.state is CircuitState.RECOVERING:
        rig.now += 0.5
        entered: list[Pass] = []
        while (one := rig.circuit.enter()) is not None and len(entered) < 1_000:
            entered.append(one)
        rounds.append(len(entered))
        for one in entered:
            rig.circuit.leave(one, has_failed=False, request=next(rig.numbers))
    assert rounds[:4] == [4, 8, 16, 32]
    assert rig.states[-1] is CircuitState.CLOSED
    assert len(rounds) <= 8


def test_a_slow_load_recovers_too() -> None:
    rig = Rig()
    rig.open()
    rig.now += 1.0
    assert rig.call(fails=False)
    rig.now += OPTIONS.window_seconds
    assert rig.call(fails=False)
    assert rig.circuit.state is CircuitState.CLOSED


def test_a_failure_during_recovery_opens_the_circuit_after_few_calls() -> None:
    rig = Rig()
    rig.open()
    for number in range(10):
        rig.now += 1.0
        rig.call(fails=False)
        went = sum(rig.call(fails=True) for _ in range(50))
        assert rig.circuit.state is CircuitState.OPEN
        assert went <= OPTIONS.first_limit * min(number + 1, 3)


def test_one_failure_slows_the_recovery_but_does_not_end_it() -> None:
    rig = Rig()
    rig.open()
    rig.now += 1.0
    for _ in range(9):
        assert rig.call(fails=False)
    limit = rig.circuit.room()
    assert rig.call(fails=True)
    assert rig.circuit.state is CircuitState.RECOVERING
    assert 1 <= rig.circuit.room() < limit


@given(
    st.lists(
        st.tuples(st.sampled_from(["enter", "leave"]), st.sampled_from([True, False, None]), st.floats(0, 2)),
        max_size=120,
    )
)
def test_any_order_of_calls_is_counted_and_ends_in_a_closed_circuit(
    steps: list[tuple[str, bool | None, float]],
) -> None:
    rig = Rig()
    held: list[Pass] = []
    for step, fails, seconds in steps:
        rig.now += seconds
        room = rig.circuit.room()
        if step == "enter":
            entered = rig.circuit.enter()
            assert (entered is not None) == (room > 0)
            held += [] if entered is None else [entered]
        elif held:
            rig.circuit.leave(held.pop(), fails, request=next(rig.numbers))
    for one in held:
        rig.circuit.leave(one, None, request=0)
    rig.now += 1_000.0
    for _ in range(20):
        rig.now += OPTIONS.window_seconds
        assert rig.call(fails=False), "a healthy gateway is always reached again"
    assert rig.circuit.state is CircuitState.CLOSED
