"""The breaker in front of a queue, simulated: requests that always fail, outages, recoveries, in any mix.

The simulation claims as the poller does (see `handlers/poller/claimer.py`), against a clock of its own.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.backoff import backoff_seconds
from handlers.forward.middleware.breaker import Circuit, CircuitOptions, CircuitState, Pass

TICK_SECONDS = 0.05
SLOTS = 64


@dataclass(order=True)
class One:
    """A request; the earliest deadline is claimed first."""

    deadline: float
    number: int
    is_bad: bool = field(compare=False)
    queued_at: float = field(compare=False)
    attempt: int = field(default=0, compare=False)


class Simulation:
    """A queue, a gateway with `latency` seconds per call, and the circuit between them."""

    def __init__(self, *, latency: float, seed: int) -> None:
        self.now = 0.0
        self.circuit = Circuit(CircuitOptions(), lambda: self.now, self._note_state)
        self.opened = 0.0
        """When the circuit opened last."""
        self.is_down: Callable[[float], bool] = lambda _now: False
        self.waits: dict[int, float] = {}
        self.call_times: list[float] = []
        self._latency = latency
        self._random = random.Random(seed)
        self._numbers = itertools.count()
        self._pending: list[One] = []
        self._retries: list[tuple[float, One]] = []
        self._in_flight: list[tuple[float, int, One, Pass]] = []
        self._positions = itertools.cycle((1.0, 0.5, 1.0, 0.0))

    def _note_state(self, state: CircuitState) -> None:
        if state is CircuitState.OPEN:
            self.opened = self.now

    def queue(self, count: int, deadline: float, *, is_bad: bool, spread: float = 0.0) -> None:
        """Queue requests whose deadlines are at most `spread` seconds after `deadline`."""
        for _ in range(count):
            due = deadline + self._random.random() * spread
            self._pending.append(One(due, next(self._numbers), is_bad, self.now))
        self._pending.sort()

    def run(self, seconds: float, each_tick: Callable[[], None] = lambda: None) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += TICK_SECONDS
            each_tick()
            while self._retries and self._retries[0][0] <= self.now:
                self._pending.append(heapq.heappop(self._retries)[1])
                self._pending.sort()
            while self._in_flight and self._in_flight[0][0] <= self.now:
                self._end(*heapq.heappop(self._in_flight)[2:])
            self._claim()

    def _claim(self) -> None:
        while self._pending and len(self._in_flight) < SLOTS:
            is_closed = self.circuit.state is CircuitState.CLOSED
            if not is_closed and self.circuit.claimable() < 1:
                return
            one = self._chosen(0.0 if is_closed else next(self._positions))
            self._pending.remove(one)
            self.circuit.claimed()
            entered = self.circuit.enter()
            assert entered is not None
            self.call_times.append(self.now)
            heapq.heappush(self._in_flight, (self.now + self._latency, one.number, one, entered))

    def _chosen(self, position: float) -> One:
        if position == 0.5:
            position = self._random.random()
        first = int((len(self._pending) - 1) * position)
        found = [*self._pending[first:], *reversed(self._pending[:first])]
        retries = sum(one.attempt > 0 for _, _, one, _ in self._in_flight)
        takes_retries = self.circuit.state is CircuitState.CLOSED and retries < SLOTS // 2
        return next((one for one in found if one.attempt == 0 or takes_retries), found[0])

    def _end(self, one: One, entered: Pass) -> None:
        has_failed = one.is_bad or self.is_down(self.now)
        self.circuit.leave(entered, has_failed, request=one.number, is_retry=one.attempt > 0)
        if has_failed:
            due = self.now + backoff_seconds(one.attempt, self._random.random())
            one.attempt += 1
            heapq.heappush(self._retries, (due, one))
        elif not one.is_bad:
            self.waits[one.number] = self.now - one.queued_at


@settings(max_examples=10, deadline=None)
@given(
    bad=st.integers(0, 400),
    bad_per_second=st.integers(0, 20),
    are_bad_ones_first=st.booleans(),
    latency=st.floats(0.001, 0.3),
    seed=st.integers(0, 1_000),
)
def test_requests_that_always_fail_do_not_delay_those_that_succeed(
    bad: int, bad_per_second: int, are_bad_ones_first: bool, latency: float, seed: int
) -> None:
    """Bad ones queued at once and more every second; five good ones a second, 95 % answered within 10 s."""
    simulation = Simulation(latency=latency, seed=seed)
    deadline = 3_600.0 if are_bad_ones_first else 10_800.0
    simulation.queue(bad, deadline, is_bad=True)
    good, seconds = 0, itertools.count(1)
    due = next(seconds)

    def arrive() -> None:
        nonlocal good, due
        if good < 5 * simulation.now and good < 150:
            good += 1
            simulation.queue(1, 7_200.0, is_bad=False)
        if simulation.now >= due:
            due = next(seconds)
            simulation.queue(bad_per_second, deadline, is_bad=True)

    simulation.run(42.0, arrive)
    in_time = sum(wait <= 10.0 for wait in simulation.waits.values())
    assert in_time >= 0.95 * good, f"{in_time} of {good} within 10 s"


@settings(max_examples=10, deadline=None)
@given(bad=st.integers(0, 200), latency=st.floats(0.001, 0.1), seed=st.integers(0, 1_000))
def test_requests_that_always_fail_and_are_due_between_others_delay_few(bad: int, latency: float, seed: int) -> None:
    """Bad ones queued at once; five good ones a second, whose deadlines are among those of the bad ones."""
    simulation = Simulation(latency=latency, seed=seed)
    simulation.queue(bad, 7_200.0, is_bad=True, spread=100.0)
    good = 0

    def arrive() -> None:
        nonlocal good
        if good < 5 * simulation.now and good < 150:
            good += 1
            simulation.queue(1, 7_200.0, is_bad=False, spread=100.0)

    simulation.run(42.0, arrive)
    in_time = sum(wait <= 10.0 for wait in simulation.waits.values())
    assert in_time >= 0.9 * good, f"{in_time} of {good} within 10 s"


@settings(max_examples=10, deadline=None)
@given(
    bad=st.integers(0, 100),
    before=st.floats(0.0, 12.0),
    outage=st.floats(5.0, 60.0),
    latency=st.floats(0.001, 0.3),
    seed=st.integers(0, 1_000),
)
def test_an_outage_gets_one_probe_per_second_and_everything_after_it(
    bad: int, before: float, outage: float, latency: float, seed: int
) -> None:
    simulation = Simulation(latency=latency, seed=seed)
    simulation.queue(bad, 3_600.0, is_bad=True)
    begins, ends = before, before + outage
    simulation.is_down = lambda now: begins <= now < ends
    arrived = 0

    def arrive() -> None:
        nonlocal arrived
        if arrived < 50 * simulation.now and simulation.now < ends:
            arrived += 1
            simulation.queue(1, 7_200.0, is_bad=False)

    simulation.run(ends, arrive)
    opened = max(begins, simulation.opened)
    assert opened <= begins + 10.0
    probes = [at for at in simulation.call_times if opened < at < ends]
    assert len(probes) <= ends - opened + 2

    simulation.run(90.0)
    assert len(simulation.waits) == arrived, "nothing waits indefinitely"
    assert max(simulation.waits.values(), default=0.0) <= outage + 75.0
