"""What is inflicted, one fault after another; each leaves the fleet as large as it was."""

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
"""The stalled owner wakes to find its requests with another."""
TROUBLE_SECONDS = 0.8
"""How long a network is in trouble."""
STORM_SECONDS = 1.5
"""How long the gateway is: retries that no other fault met must be among what it refuses."""
_TROUBLES = ("delay", "cut", "black hole")
_AFTERMATH_SECONDS = 0.3
"""How long after a fault its victims may still feel it."""
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
"""Seconds; what is not named is over at once."""
_LONGEST_SECONDS = max(_LASTING.values()) + _AFTERMATH_SECONDS


@dataclass(frozen=True, slots=True)
class Plan:
    """How many requests, and how many of each fault; the seed orders them."""

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
    """How long the gateway takes."""

    def faults(self, chance: random.Random) -> list[str]:
        """All faults, in an order of chance; two of three kills meet a poller, the others a handler."""
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
    """What was done, when (Unix seconds), and how many requests were in flight then."""

    at: list[tuple[float, str]] = field(default_factory=list)
    in_flight: int = 0
    killed_pollers_at: list[float] = field(default_factory=list)

    def counts(self) -> Counter[str]:
        """By kind."""
        return Counter(kind for _, kind in self.at)

    def met_owner(self, since: float, until: float) -> bool:
        """Whether a fault that may cost an owner its lease fell into that time; a storm does not."""
        return any(
            at <= until + _AFTERMATH_SECONDS and since <= at + _LASTING.get(kind, 0.0) + _AFTERMATH_SECONDS
            for at, kind in self._between(since - _LONGEST_SECONDS, until + _AFTERMATH_SECONDS)
            if kind != "storm"
        )

    def _between(self, since: float, until: float) -> list[tuple[float, str]]:
        return self.at[bisect_left(self.at, (since, "")) : bisect_left(self.at, (until, ""))]


class Chaos:
    """Inflicts faults on a fleet; stalls end by themselves, in a thread each."""

    def __init__(self, fleet: Fleet, keda: Keda, chance: random.Random) -> None:
        self._fleet = fleet
        self._keda = keda
        self._chance = chance
        self._waking: list[threading.Thread] = []
        self.done = Inflicted()

    def inflict(self, kind: str) -> None:
        """One fault."""
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
        """One of those that are ready."""
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
        """To zero, as for a queue that was empty for a moment or on a node that dies; KEDA's rule wakes it."""
        self._fleet.scale_to_zero((signal.SIGTERM, signal.SIGKILL)[pick % 2])
        self._keda.wake_from_zero()
        self._fleet.scale_up()

    def _delay(self, proxy: Proxy) -> None:
        proxy.delay_seconds = 0.1
        elapse(TROUBLE_SECONDS, "a slow network")
        proxy.delay_seconds = 0.0

    def _swallow(self, link: str) -> None:
        """Before the store longer than a lease: whoever holds claims has lost them."""
        proxy = self._fleet.proxies[link]
        proxy.is_black_hole = True
        elapse(_LASTING[f"black hole {link}"], "a network that swallows")
        proxy.is_black_hole = False
        # What was swallowed is gone for good: no client would ever get an answer on these connections.
        proxy.cut()

    def _storm(self) -> None:
        self._fleet.gateway("faults", status_503=0.4, reset=0.1)
        elapse(STORM_SECONDS, "a gateway in trouble")
        self._fleet.gateway("faults")

    def end(self) -> None:
        """Every stall is over, and everybody in place."""
        for thread in self._waking:
            thread.join()
        self._fleet.settle()
