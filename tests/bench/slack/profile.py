"""The real-time load: phases, and seeded open-loop arrivals, the same for every run."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

FIRST_TOKEN_SECONDS: Final = 0.3
TOKEN_SECONDS: Final = 0.01
TOKENS: Final = (70, 170)
MEAN_SECONDS: Final = FIRST_TOKEN_SECONDS + TOKEN_SECONDS * sum(TOKENS) / 2
"""Mean seconds of a request; long enough that a small machine's noise does not matter."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A period with real-time requests on `load` of the full pool; `capacity` is the available part."""

    name: str
    seconds: float
    load: float
    capacity: float = 1.0


@dataclass(frozen=True, slots=True)
class Profile:
    """Phases in order; figures omit the first one, in which the pool fills."""

    phases: tuple[Phase, ...]
    slots: int = 48

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    def starts(self) -> list[float]:
        """When each phase begins, in seconds from the start."""
        return [0.0, *accumulate(phase.seconds for phase in self.phases)][:-1]

    def start_of(self, name: str) -> float:
        """The start of the first phase of that name."""
        return next(at for at, phase in zip(self.starts(), self.phases, strict=True) if phase.name == name)

    def at(self, seconds: float) -> Phase:
        """The phase at that time."""
        found = self.phases[0]
        for begins, phase in zip(self.starts(), self.phases, strict=True):
            if seconds >= begins:
                found = phase
        return found

    def capacity_at(self, seconds: float) -> int:
        """The available slots at that time."""
        return round(self.slots * self.at(seconds).capacity)


PEAKS: Final = (Phase("peak", 2, 0.8), Phase("between", 4, 0.3)) * 3
SWINGING: Final = Profile(
    (
        Phase("fill", 8, 0.2),
        Phase("calm", 10, 0.2),
        Phase("step up", 12, 0.7),
        Phase("step down", 12, 0.25),
        *PEAKS,
        Phase("outage", 10, 0.2, capacity=0.5),
        Phase("after", 10, 0.2),
    )
)
SHORT: Final = Profile((Phase("fill", 1.5, 0.25), Phase("step down", 3.5, 0.25)), slots=16)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A real-time request: its start, and the length of its answer."""

    at: float
    tokens: int


def arrivals(profile: Profile, seed: int) -> list[Arrival]:
    """A Poisson process whose rate follows the phases."""
    draw = random.Random(seed)
    found: list[Arrival] = []
    for begins, phase in zip(profile.starts(), profile.phases, strict=True):
        rate = phase.load * profile.slots / MEAN_SECONDS
        at = begins + draw.expovariate(rate)
        while at < begins + phase.seconds:
            found.append(Arrival(at, draw.randint(*TOKENS)))
            at += draw.expovariate(rate)
    return found
