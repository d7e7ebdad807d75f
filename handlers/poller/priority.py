"""Merge policies: the order in which a pool's queues are claimed from.

`random-robin` gives every queue an equal share in random order. `tier-priority` serves six lanes strictly in order;
queues within a lane take turns. A queue's labels decide its lane. A request's labels decide its objective and its
priority header.

A turn is an upper limit: slots that it does not use go to the next turns.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import msgspec

from handlers.contract.errors import InvalidSetting, SettingFaults
from handlers.contract.masked_text import shown_value
from handlers.contract.request import Request
from handlers.forward.forward import AttemptOptions, Forward
from handlers.forward.outcome import Outcome
from handlers.gates.gate import BANDS, TIER, band_of

RANDOM_ROBIN: Final = "random-robin"
TIER_PRIORITY: Final = "tier-priority"


class Candidate(msgspec.Struct, frozen=True):
    """A queue that may be claimed from.

    Its gates would admit `room` requests (None: unlimited).
    """

    queue: str
    lane: int = len(BANDS) - 1
    room: int | None = None


class ClaimTurn(msgspec.Struct, frozen=True):
    """Claim at most `most` from `queue`."""

    queue: str
    most: int


class Merge(Protocol):
    """Policy that shares slots among queues."""

    def turns(self, candidates: Sequence[Candidate], slots: int, now: float) -> list[ClaimTurn]:
        """Turns in order, for `slots` free slots; `now` is in monotonic seconds."""
        ...

    def asked(self, queue: str, now: float) -> None:
        """Note that `queue` was claimed from, with or without success."""
        ...


class RandomRobin:
    """Policy of equal shares in random order. Long queues share the rest."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._random = rng or random.Random()

    def turns(self, candidates: Sequence[Candidate], slots: int, now: float) -> list[ClaimTurn]:  # noqa: ARG002 - the order is random, not timed
        """Turns in random order: an equal share each, then the rest."""
        open_ones = [one for one in candidates if one.room != 0]
        self._random.shuffle(open_ones)
        return _in_parts(open_ones, slots)

    def asked(self, queue: str, now: float) -> None:
        """Do nothing, because this policy has no state."""


class TierPriority:
    """Policy of strict lanes, the lowest number first.

    With `ageing_seconds`, a lane that has had no turn for that time gets the first turn, for one request. So no lane
    starves, and higher lanes lose at most these turns.
    """

    def __init__(self, *, ageing_seconds: float | None = None) -> None:
        if ageing_seconds is not None and not ageing_seconds > 0:
            raise ValueError(f"ageing_seconds: expected a number above 0, got {ageing_seconds}")
        self._ageing_seconds = ageing_seconds
        self._asked_at: dict[int, float] = {}
        self._lane_of: dict[str, int] = {}
        self._last_asked: dict[int, str] = {}

    def turns(self, candidates: Sequence[Candidate], slots: int, now: float) -> list[ClaimTurn]:
        """One request for each aged lane, then all lanes in order."""
        open_ones = [one for one in candidates if one.room != 0]
        lanes: dict[int, list[Candidate]] = {}
        for one in open_ones:
            self._lane_of[one.queue] = one.lane
            lanes.setdefault(one.lane, []).append(one)
        turns: list[ClaimTurn] = []
        for lane in sorted(lanes):
            lanes[lane] = self._rotated(lane, lanes[lane])
            if self._is_aged(lane, now):
                turns.append(ClaimTurn(lanes[lane][0].queue, 1))
        for lane in sorted(lanes):
            turns += _in_parts(lanes[lane], slots)
        return turns

    def asked(self, queue: str, now: float) -> None:
        """Reset the lane's age and move the queue to its end."""
        lane = self._lane_of.get(queue)
        if lane is not None:
            self._asked_at[lane] = now
            self._last_asked[lane] = queue

    def _is_aged(self, lane: int, now: float) -> bool:
        """Whether the lane has had no turn for `ageing_seconds`."""
        waited_seconds = now - self._asked_at.setdefault(lane, now)
        return self._ageing_seconds is not None and waited_seconds >= self._ageing_seconds

    def _rotated(self, lane: int, candidates: list[Candidate]) -> list[Candidate]:
        in_order = sorted(candidates, key=lambda one: one.queue)
        last = self._last_asked.get(lane, "")
        after = [one for one in in_order if one.queue > last]
        return after + [one for one in in_order if one.queue <= last]


def _in_parts(candidates: Sequence[Candidate], slots: int) -> list[ClaimTurn]:
    """One turn each for an equal share, then one for the rest."""
    if not candidates:
        return []
    part = -(-slots // len(candidates))
    first = [ClaimTurn(one.queue, _within(one.room, part)) for one in candidates]
    rest = [
        ClaimTurn(one.queue, left)
        for one, turn in zip(candidates, first, strict=True)
        if (left := _within(one.room, slots) - turn.most) > 0
    ]
    return first + rest


def _within(room: int | None, most: int) -> int:
    return most if room is None else min(room, most)


MERGES: Final[Mapping[str, Callable[[float | None], Merge]]] = {
    RANDOM_ROBIN: lambda ageing_seconds: RandomRobin(),  # noqa: ARG005 - equal shares need no ageing
    TIER_PRIORITY: lambda ageing_seconds: TierPriority(ageing_seconds=ageing_seconds),
}


def build_merge(policy: str, setting: str, *, ageing_seconds: float | None = None) -> Merge:
    """The policy of that name. Raises `InvalidSetting` for an unknown one."""
    if policy not in MERGES:
        raise InvalidSetting(setting, found=shown_value(policy), accepted=" or ".join(MERGES))
    return MERGES[policy](ageing_seconds)


class LaneOptions(msgspec.Struct, frozen=True):
    """Objective and priority header of a request's lane.

    `objectives` is by lane name (`reserved-interactive`, ...). With `has_priority_header`, the lane's number is sent.
    """

    objectives: Mapping[str, str] = msgspec.field(default_factory=dict)
    has_priority_header: bool = False
    tier_label: str = TIER


def check_objectives(objectives: Mapping[str, str], setting: str) -> None:
    """Raise `InvalidSetting` for lanes that do not exist, all of them together."""
    faults = SettingFaults()
    accepted = f"one of {', '.join(BANDS)}"
    for name in (name for name in objectives if name not in BANDS):
        faults.add(
            InvalidSetting(f"{setting}.{name}", found=f"the unknown lane {shown_value(name)}", accepted=accepted)
        )
    faults.raise_all()


def in_lane(request: Request, options: LaneOptions) -> Request:
    """`request` with the objective and priority of its lane, if configured."""
    lane = band_of(request.labels, options.tier_label)
    objective = options.objectives.get(BANDS[lane], "")
    if not objective and not options.has_priority_header:
        return request
    return msgspec.structs.replace(
        request,
        objective=objective or request.objective,
        priority=lane if options.has_priority_header else request.priority,
    )


def laned(forward: Forward, options: LaneOptions) -> Forward:
    """The layer that sets requests' objectives and priorities; `forward` itself if unused."""
    if not options.has_priority_header and not any(options.objectives.values()):
        return forward

    async def in_its_lane(request: Request, attempt: AttemptOptions) -> Outcome:
        return await forward(in_lane(request, options), attempt)

    return in_its_lane
