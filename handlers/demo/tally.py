"""Counts what the demo sees from outside: the gateway's witness log, and the results as they arrive."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from handlers.contract.result import Result


class WitnessLine(msgspec.Struct):
    """One request as the gateway saw it; times are Unix seconds. One without a slot was never admitted."""

    key: str = ""
    started_at: float = 0.0
    admitted_at: float | None = None
    ended_at: float = 0.0
    status: int = 0


_decoder = msgspec.json.Decoder(WitnessLine)


@dataclass(slots=True)
class Tally:
    """What was sent and what came back, by request id."""

    sent_at: dict[str, float] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    result_at: dict[str, float] = field(default_factory=dict)
    doubles: int = 0

    def take(self, result: Result, now: float) -> None:
        """A result arrived."""
        if result.id in self.results:
            self.doubles += 1
            return
        self.results[result.id] = result
        self.result_at[result.id] = now

    @property
    def missing(self) -> list[str]:
        """Ids that were sent and have no result."""
        return sorted(self.sent_at.keys() - self.results.keys())

    @property
    def answered(self) -> int:
        """Results with a 2xx."""
        return sum(200 <= result.status_code < 300 for result in self.results.values())

    @property
    def final_errors(self) -> dict[str, int]:
        """Other results, counted by status or error code."""
        counts: dict[str, int] = {}
        for result in self.results.values():
            if not 200 <= result.status_code < 300:
                name = result.error_code or f"HTTP {result.status_code}"
                counts[name] = counts.get(name, 0) + 1
        return dict(sorted(counts.items()))


@dataclass(frozen=True, slots=True)
class Stages:
    """Seconds per stage, one value a request, and how often each was tried."""

    queue: list[float]
    gateway: list[float]
    way_back: list[float]
    total: list[float]
    attempts: dict[str, int]
    statuses: dict[str, list[int]]
    """Per request, the HTTP status of each attempt; 0 where the connection broke."""
    last_ended_at: dict[str, float]

    @property
    def retried(self) -> int:
        """Requests that reached the gateway more than once."""
        return sum(count > 1 for count in self.attempts.values())


def read_witness(lines: Iterable[bytes]) -> list[WitnessLine]:
    """The witness log; a last line that is still being written is left out."""
    return [_decoder.decode(line) for line in lines if line.endswith(b"}\n")]


def stages(tally: Tally, witnessed: Sequence[WitnessLine]) -> Stages:
    """How long requests of `tally` spent where."""
    first: dict[str, WitnessLine] = {}
    last: dict[str, WitnessLine] = {}
    attempts: dict[str, int] = {}
    statuses: dict[str, list[int]] = {}
    for line in witnessed:
        if line.key in tally.sent_at:
            first.setdefault(line.key, line)
            last[line.key] = line
            attempts[line.key] = attempts.get(line.key, 0) + 1
            statuses.setdefault(line.key, []).append(line.status)
    done = [key for key in last if key in tally.result_at]
    return Stages(
        queue=[first[key].started_at - tally.sent_at[key] for key in first],
        gateway=[last[key].ended_at - last[key].started_at for key in done],
        way_back=[tally.result_at[key] - last[key].ended_at for key in done],
        total=[at - tally.sent_at[key] for key, at in tally.result_at.items() if key in tally.sent_at],
        attempts=attempts,
        statuses=statuses,
        last_ended_at={key: line.ended_at for key, line in last.items()},
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; 0 for nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
