"""Output of the demo: progress while it runs, tables at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from handlers.contract.result import Result
from handlers.number_text import counted
from handlers.redis_store.admin.depths import QueueDepths


def progress_view(depths: QueueDepths, tally: DemoTally) -> RenderableType:
    """A table of where the Redis requests are now."""
    errors = sum(tally.final_errors.values())
    line = Text.assemble(
        ("queued ", "dim"),
        f"{depths.pending:<5}",
        ("in flight ", "dim"),
        f"{depths.claimed:<5}",
        ("waiting for a retry ", "dim"),
        (f"{depths.retrying:<5}", "yellow"),
        ("answered ", "dim"),
        (f"{tally.answered:<5}", "green"),
        ("final errors ", "dim"),
        (f"{errors:<4}", "red"),
    )
    return Group(line, ProgressBar(total=max(1, len(tally.sent_at)), completed=len(tally.results), width=80))


def progress_line(depths: QueueDepths, tallies: Mapping[str, DemoTally]) -> str:
    """The progress as one line of text, for use without a terminal."""
    parts = []
    for name, tally in tallies.items():
        parts.append(f"{name}: {len(tally.results)} of {counted(len(tally.sent_at), 'result')}")
    parts.append(f"Redis queued {depths.pending}, in flight {depths.claimed}, waiting for a retry {depths.retrying}")
    return " · ".join(parts)


def latency_table(title: str, paths: Mapping[str, Stages]) -> Table:
    """Latencies of each stage: p50, p95 and p99 in milliseconds."""
    table = _table(title, "p50 / p95 / p99", paths)
    for name, values in (
        ("queue → gateway", [stage.queue for stage in paths.values()]),
        ("in the gateway", [stage.gateway for stage in paths.values()]),
        ("gateway → result", [stage.to_result for stage in paths.values()]),
        ("total", [stage.total for stage in paths.values()]),
    ):
        table.add_row(name, *(_percentiles(cell) for cell in values))
    return table


def _table(title: str, first: str, names: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for name in names:
        table.add_column(name, justify="right")
    return table


def closing_table(paths: Mapping[str, tuple[DemoTally, Stages]], timeout_seconds: float) -> Table:
    """Counts of requests by outcome."""
    table = _table("What became of the requests", "", paths)
    rows = [
        ("sent", [str(len(tally.sent_at)) for tally, _ in paths.values()]),
        ("answered (2xx)", [str(tally.answered) for tally, _ in paths.values()]),
        ("  of these, retried before", [str(_retried(*path)) for path in paths.values()]),
        ("final errors", [str(sum(tally.final_errors.values())) for tally, _ in paths.values()]),
        (f"no result within {timeout_seconds:g} s", [_count(len(tally.missing)) for tally, _ in paths.values()]),
        ("second results", [_count(tally.duplicates) for tally, _ in paths.values()]),
    ]
    for name, cells in rows:
        table.add_row(name, *cells)
    return table


def explanation(malformed: int, dead: int) -> str:
    """Why the counts differ from the number of requests."""
    return (
        f"Redis: {malformed} of the requests are malformed on purpose; each has an error result.\n"
        f"Dead letters: {dead}. One more malformed queue entry has no readable id, so it cannot get a result and is "
        "kept as a dead letter.\n"
        "Errors HTTP 429 and 5xx: retried until no retry fitted before the deadline; the result is the last answer."
    )


def missing_lines(paths: Mapping[str, tuple[DemoTally, Stages]], now: float) -> list[str]:
    """One line per request without a result, with its id and attempts."""
    lines = []
    for name, (tally, stage) in paths.items():
        for request_id in tally.missing:
            statuses = stage.statuses.get(request_id, [])
            if statuses:
                answers = ", ".join(str(status or "connection broken") for status in statuses)
                quiet = now - stage.last_ended_at[request_id]
                attempts = counted(len(statuses), "attempt")
                found = f"{attempts} at the gateway ({answers}), the last ended {quiet:.0f} s ago"
            else:
                found = "never reached the gateway"
            lines.append(f"{name} {request_id}: {found}")
    return lines


def failures_table(tallies: Mapping[str, DemoTally]) -> Table:
    """The final errors by kind."""
    table = _table("Final errors by reason", "", tallies)
    kinds = sorted({kind for tally in tallies.values() for kind in tally.final_errors})
    for kind in kinds:
        table.add_row(kind, *(str(tally.final_errors.get(kind, 0)) for tally in tallies.values()))
    return table


def _retried(tally: DemoTally, stage: Stages) -> int:
    answered = {key for key, result in tally.results.items() if 200 <= result.status_code < 300}
    return sum(len(statuses) > 1 for key, statuses in stage.statuses.items() if key in answered)


def _count(number: int) -> str:
    return str(number) if number == 0 else f"[bold red]{number}[/]"


def _percentiles(values: Sequence[float]) -> str:
    shown = " / ".join(f"{percentile(values, share) * 1000:,.0f}" for share in (0.5, 0.95, 0.99))
    return f"{shown} ms"


class WitnessLine(msgspec.Struct):
    """One request in the witness log; times are in Unix seconds.

    `admitted_at` is None if it got no slot.
    """

    key: str = ""
    started_at: float = 0.0
    admitted_at: float | None = None
    ended_at: float = 0.0
    status: int = 0


_decoder = msgspec.json.Decoder(WitnessLine)


class DemoTally(msgspec.Struct):
    """Requests sent and results received, by request id."""

    sent_at: dict[str, float] = msgspec.field(default_factory=dict)
    results: dict[str, Result] = msgspec.field(default_factory=dict)
    result_at: dict[str, float] = msgspec.field(default_factory=dict)
    duplicates: int = 0

    def take(self, result: Result, now: float) -> None:
        if result.id in self.results:
            self.duplicates += 1
            return
        self.results[result.id] = result
        self.result_at[result.id] = now

    @property
    def missing(self) -> list[str]:
        return sorted(self.sent_at.keys() - self.results.keys())

    @property
    def answered(self) -> int:
        """The number of results with a 2xx status."""
        return sum(200 <= result.status_code < 300 for result in self.results.values())

    @property
    def final_errors(self) -> dict[str, int]:
        """Other results, counted by status or error code."""
        errors = (result for result in self.results.values() if not 200 <= result.status_code < 300)
        counts = Counter(result.error_code or f"HTTP {result.status_code}" for result in errors)
        return dict(sorted(counts.items()))


class Stages(msgspec.Struct, frozen=True):
    """Seconds per stage (one value per request), and attempts by request."""

    queue: list[float]
    gateway: list[float]
    to_result: list[float]
    total: list[float]
    statuses: dict[str, list[int]]
    """Request to the HTTP status of each attempt; 0 for a broken connection."""
    last_ended_at: dict[str, float]


def read_witness(lines: Iterable[bytes]) -> list[WitnessLine]:
    """The lines of the witness log, without an incomplete last one."""
    return [_decoder.decode(line) for line in lines if line.endswith(b"}\n")]


def stages(tally: DemoTally, witnessed: Sequence[WitnessLine]) -> Stages:
    """Seconds that requests of `tally` spent in each stage."""
    first: dict[str, WitnessLine] = {}
    last: dict[str, WitnessLine] = {}
    statuses: dict[str, list[int]] = {}
    for line in witnessed:
        if line.key in tally.sent_at:
            first.setdefault(line.key, line)
            last[line.key] = line
            statuses.setdefault(line.key, []).append(line.status)
    done = [key for key in last if key in tally.result_at]
    return Stages(
        queue=[first[key].started_at - tally.sent_at[key] for key in first],
        gateway=[last[key].ended_at - last[key].started_at for key in done],
        to_result=[tally.result_at[key] - last[key].ended_at for key in done],
        total=[at - tally.sent_at[key] for key, at in tally.result_at.items() if key in tally.sent_at],
        statuses=statuses,
        last_ended_at={key: line.ended_at for key, line in last.items()},
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; 0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
