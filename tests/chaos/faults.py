"""The faults of a run, one after another; each leaves the fleet as large as before."""

from __future__ import annotations

import random
import signal
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from handlers.demo.servers import Child
from tests.chaos.fleet import LEASE_SECONDS, LINKS, Fleet
from tests.chaos.proxy import Proxy
from tests.chaos.scaling import Keda
from tests.waiting import elapse, wait_until

T = TypeVar("T")
STALL_SECONDS = 1.6 * LEASE_SECONDS
"""Seconds of a stall; the stalled owner then finds its requests claimed by another."""
TROUBLE_SECONDS = 0.8
"""Seconds for which a network path fails."""
DELAY_SECONDS = 0.1
"""Seconds by which a slow network delays data."""
STORM_SECONDS = 1.5
"""Seconds for which the gateway fails, long enough that some retries meet no other fault."""
_TROUBLES = ("delay", "cut", "black hole")
_AFTERMATH_SECONDS = 0.3
"""Seconds after a fault for which it may still affect its victims."""
_LASTING = {
    "stall poller": STALL_SECONDS,
    "stall handler": STALL_SECONDS,
    **{f"delay {link}": TROUBLE_SECONDS for link in LINKS},
    **{f"black hole {link}": TROUBLE_SECONDS for link in LINKS},
    "black hole store": STALL_SECONDS,
    "kill valkey": 1.0,
    "scale to zero": 2.0,
    "terminate poller": 2.0,
    "terminate handler": 2.0,
}
"""Seconds that a fault lasts; 0 for those not listed."""
_LONGEST_SECONDS = max(_LASTING.values()) + _AFTERMATH_SECONDS


@dataclass(frozen=True, slots=True)
class Plan:
    """The number of requests and of each fault; the seed orders the faults."""

    requests: int
    kills: int
    terminations: int
    stalls: int
    valkey_kills: int
    network: int
    storms: int
    scalings: int
    workers: int = 16
    """Slots of each poller."""
    answer_seconds: float = 0.2
    """Seconds that the gateway takes."""

    def faults(self, chance: random.Random) -> list[str]:
        """All faults in random order; two of three kills go to a poller, the others to a handler."""
        faults = ["kill poller" if n % 3 else "kill handler" for n in range(self.kills)]
        faults += ["terminate poller" if n % 3 else "terminate handler" for n in range(self.terminations)]
        faults += ["stall poller" if n % 3 else "stall handler" for n in range(self.stalls)]
        faults += ["kill valkey"] * self.valkey_kills + ["scale to zero"] * self.scalings
        faults += [f"{_TROUBLES[n % 3]} {LINKS[n // 3 % 4]}" for n in range(self.network)]
        faults += ["storm"] * self.storms
        chance.shuffle(faults)
        return faults


@dataclass
class Inflicted:
    """The faults that were made, their times (Unix seconds), and the requests in flight then."""

    at: list[tuple[float, str]] = field(default_factory=list)
    in_flight: int = 0
    killed_pollers_at: list[float] = field(default_factory=list)

    def counts(self) -> Counter[str]:
        """Counts by kind."""
        return Counter(kind for _, kind in self.at)

    def met_owner(self, since: float, until: float) -> bool:
        """Whether a fault that may cost an owner its lease falls into that time; a storm does not."""
        return any(
            at <= until + _AFTERMATH_SECONDS and since <= at + _LASTING.get(kind, 0.0) + _AFTERMATH_SECONDS
            for at, kind in self._between(since - _LONGEST_SECONDS, until + _AFTERMATH_SECONDS)
            if kind != "storm"
        )

    def held_up_seconds(self, at: float) -> float:
        """The longest time by which a fault may delay a call to the gateway that was decided on at `at`.

        A handler may be stopped between its check of the deadline and its call.
        """
        held_up = [0.0]
        for began, kind in self._between(at - STALL_SECONDS, at):
            if kind == "stall handler":
                held_up.append(began + STALL_SECONDS - at)
            elif kind == "delay gateway" and at <= began + TROUBLE_SECONDS:
                held_up.append(DELAY_SECONDS)
        return max(held_up)

    def _between(self, since: float, until: float) -> list[tuple[float, str]]:
        return self.at[bisect_left(self.at, (since, "")) : bisect_left(self.at, (until, ""))]


class Chaos:
    """Makes faults in a fleet; stalls end by themselves, each in a thread."""

    def __init__(self, fleet: Fleet, keda: Keda, chance: random.Random) -> None:
        self._fleet = fleet
        self._keda = keda
        self._chance = chance
        self._waking: list[threading.Thread] = []
        self.done = Inflicted()

    def inflict(self, kind: str) -> None:
        """Make one fault."""
        fleet, pick = self._fleet, self._chance.randrange(1_000)
        self.done.in_flight += fleet.in_flight()
        self.done.at.append((time.time(), kind))
        actions: dict[str, Callable[[], None]] = {
            "kill poller": lambda: self._kill_poller(pick),
            "kill handler": lambda: fleet.end_handler(pick, signal.SIGKILL),
            "terminate poller": lambda: fleet.end_poller(pick, signal.SIGTERM),
            "terminate handler": lambda: fleet.end_handler(pick, signal.SIGTERM),
            "stall poller": lambda: self._stall(self._one(lambda: fleet.pollers, pick)),
            "stall handler": lambda: self._stall(self._one(lambda: fleet.dispatchers, pick)[0]),
            "kill valkey": fleet.kill_valkey,
            "scale to zero": lambda: self._scale(pick),
            "storm": self._storm,
            **{f"delay {link}": partial(self._delay, proxy) for link, proxy in fleet.proxies.items()},
            **{f"cut {link}": proxy.cut for link, proxy in fleet.proxies.items()},
            **{f"black hole {link}": partial(self._swallow, link) for link in fleet.proxies},
        }
        actions[kind]()

    def _kill_poller(self, pick: int) -> None:
        self._fleet.end_poller(pick, signal.SIGKILL)
        self.done.killed_pollers_at.append(time.time())

    def _one(self, group: Callable[[], list[T]], pick: int) -> T:
        """One of the ready processes."""
        found = wait_until(lambda: list(group()), "one to stall")
        return found[pick % len(found)]

    def _stall(self, child: Child) -> None:
        child.process.send_signal(signal.SIGSTOP)

        def wake() -> None:
            elapse(STALL_SECONDS, "the stall itself")
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGCONT)

        self._waking.append(threading.Thread(target=wake))
        self._waking[-1].start()

    def _scale(self, pick: int) -> None:
        """Scale to zero, as for an empty queue or a node that fails; KEDA's rules start pollers again."""
        self._fleet.scale_to_zero((signal.SIGTERM, signal.SIGKILL)[pick % 2])
        self._keda.wake_from_zero()
        self._fleet.scale_up()

    def _delay(self, proxy: Proxy) -> None:
        proxy.delay_seconds = DELAY_SECONDS
        elapse(TROUBLE_SECONDS, "a slow network")
        proxy.delay_seconds = 0.0

    def _swallow(self, link: str) -> None:
        """Drop data; before Redis for longer than a lease, so that all claims are lost."""
        proxy = self._fleet.proxies[link]
        proxy.is_black_hole = True
        elapse(_LASTING[f"black hole {link}"], "a network that swallows")
        proxy.is_black_hole = False
        # Dropped data is lost, so no client would ever get an answer on these connections.
        proxy.cut()

    def _storm(self) -> None:
        self._fleet.gateway("faults", status_503=0.4, reset=0.1)
        elapse(STORM_SECONDS, "a failing gateway")
        self._fleet.gateway("faults")

    def end(self) -> None:
        """End all stalls and restore all processes."""
        for thread in self._waking:
            thread.join()
        self._fleet.settle()
