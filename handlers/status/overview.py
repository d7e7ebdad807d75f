"""Combine pollers' reports and queue depths for the first page."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from handlers.contract.lenient_json import MALFORMED
from handlers.redis_store.admin.depths import QueueDepths
from handlers.status.report import LATENCY_SECONDS, Failure, PollerReport, QueueReport
from handlers.telemetry.dependencies import GateState

FRESH_SECONDS: Final = 20.0
"""A poller whose last report is older is not shown; pollers post every five seconds."""
_TENANTS_SHOWN: Final = 20


class TenantLine(msgspec.Struct, frozen=True):
    """One tenant's requests among the sampled ones."""

    name: str
    pending: int
    in_flight: int
    retrying: int


class LaneLine(msgspec.Struct, frozen=True):
    """The sum of the queues of one lane."""

    name: str
    pending: int
    in_flight: int
    waiting: int
    dead: int


class Tenants(msgspec.Struct, frozen=True):
    """Numbers of sampled requests by tenant, for each state."""

    pending: Counter[str] = msgspec.field(default_factory=Counter)
    in_flight: Counter[str] = msgspec.field(default_factory=Counter)
    retrying: Counter[str] = msgspec.field(default_factory=Counter)

    def lines(self) -> list[TenantLine]:
        """One line per tenant, the largest first."""
        whole = self.pending + self.in_flight + self.retrying
        return [
            TenantLine(name, self.pending[name], self.in_flight[name], self.retrying[name])
            for name, _ in whole.most_common(_TENANTS_SHOWN)
        ]


class QueueLine(msgspec.Struct, frozen=True):
    """One queue, over all pollers.

    Its claimed requests are `waiting` at a gate or `in_flight`.
    """

    name: str
    depths: QueueDepths
    in_flight: int
    waiting: int
    pool: str
    lane: str
    circuit: str
    tenants: Sequence[TenantLine] = ()
    sampled: int = 0


class PoolLine(msgspec.Struct, frozen=True):
    """One pool, over all pollers."""

    name: str
    pollers: int
    slots: int
    in_flight: int
    budget: float


class GateLine(msgspec.Struct, frozen=True):
    """One gate of a queue or pool.

    If it is closed in one poller and open in another, the closed one is shown.
    """

    owner: str
    gate: GateState


class Minute(msgspec.Struct, frozen=True):
    """One minute of all queues. Latencies are in seconds; None without results."""

    answered: int
    failed: int
    retried: int
    p50: float | None
    p95: float | None
    p99: float | None = None
    cancelled: int = 0


class Overview(msgspec.Struct, frozen=True):
    """All data of the first page. `at` is in Unix seconds."""

    at: float
    queues: Sequence[QueueLine] = ()
    lanes: Sequence[LaneLine] = ()
    pools: Sequence[PoolLine] = ()
    gates: Sequence[GateLine] = ()
    minutes: Sequence[Minute] = ()
    failures: Sequence[Failure] = ()
    pollers: Sequence[PollerReport] = ()
    retrying: int = 0

    def total(self, name: str) -> int:
        """The sum of one depth over all queues."""
        return sum(int(getattr(line.depths, name)) for line in self.queues)

    def seconds_to_deadline(self, depths: QueueDepths) -> float | None:
        """The time to the earliest deadline of a queue; None if it is empty."""
        return None if depths.first_score is None else depths.first_score - self.at


_poller_decoder = msgspec.json.Decoder(PollerReport)
_failure_decoder = msgspec.json.Decoder(Failure)


def fresh_pollers(snapshots: Mapping[str, bytes], now: float) -> list[PollerReport]:
    """The reports of pollers that posted recently; malformed ones are skipped."""
    found = []
    for text in snapshots.values():
        try:
            poller = _poller_decoder.decode(text)
        except MALFORMED:
            continue
        if now - poller.at <= FRESH_SECONDS:
            found.append(poller)
    return sorted(found, key=lambda poller: poller.host)


def read_failures(texts: Sequence[bytes]) -> list[Failure]:
    """The failures, latest first."""
    found = []
    for text in texts:
        try:
            found.append(_failure_decoder.decode(text))
        except MALFORMED:
            continue
    return sorted(found, key=lambda failure: -failure.at)


def queue_lines(
    depths: Mapping[str, QueueDepths],
    pollers: Sequence[PollerReport],
    tenants: Mapping[str, Tenants],
    lanes: Mapping[str, str],
) -> list[QueueLine]:
    """All configured queues, with the pollers' reports."""
    lines = []
    by_name: defaultdict[str, list[QueueReport]] = defaultdict(list)
    for poller in pollers:
        for report in poller.queues:
            by_name[report.name].append(report)
    for name, depth in depths.items():
        reports = by_name[name]
        circuits = {report.circuit for report in reports}
        seen = tenants.get(name, Tenants())
        waiting = min(depth.claimed, sum(report.waiting for report in reports))
        lines.append(
            QueueLine(
                name=name,
                depths=depth,
                in_flight=depth.claimed - waiting,
                waiting=waiting,
                pool=reports[0].pool if reports else "",
                lane=lanes.get(name, ""),
                circuit="open" if "open" in circuits else min(circuits, default=""),
                tenants=seen.lines(),
                sampled=seen.pending.total(),
            )
        )
    return lines


def folded(failures: Sequence[Failure], row_of: Callable[[Failure], object]) -> list[tuple[Failure, int]]:
    """Each row once, with its newest failure and the number of failures. The first of `failures` is the newest."""
    counts = Counter(map(row_of, failures))
    newest = {row_of(one): one for one in reversed(failures)}
    return [(newest[row], count) for row, count in counts.items()]


def lane_lines(queues: Sequence[QueueLine]) -> list[LaneLine]:
    """The lanes in use."""
    lines = []
    for name in sorted({queue.lane for queue in queues}):
        own = [queue for queue in queues if queue.lane == name]
        lines.append(
            LaneLine(
                name,
                sum(queue.depths.pending for queue in own),
                sum(queue.in_flight for queue in own),
                sum(queue.waiting for queue in own),
                sum(queue.depths.dead for queue in own),
            )
        )
    return lines


def pool_lines(pollers: Sequence[PollerReport]) -> list[PoolLine]:
    """Pools by name, summed over pollers.

    The budget is the fraction of all slots that the gates allow. Pools that no queue uses are omitted.
    """
    names = sorted({pool.pool for poller in pollers for pool in poller.pools})
    lines = []
    for name in names:
        reports = [pool for poller in pollers for pool in poller.pools if pool.pool == name]
        slots = sum(report.slots for report in reports)
        allowed = sum(report.slots * report.budget for report in reports)
        in_flight = sum(report.in_flight for report in reports)
        lines.append(PoolLine(name, len(reports), slots, in_flight, allowed / slots if slots else 0.0))
    return lines


def gate_lines(pollers: Sequence[PollerReport]) -> list[GateLine]:
    """Each gate once, closed ones first."""
    found: dict[tuple[str, int, str], GateLine] = {}
    for poller in pollers:
        owned = [(f"pool {pool.pool}", pool.gates) for pool in poller.pools]
        owned += [(f"queue {queue.name}", queue.gates) for queue in poller.queues]
        for owner, gates in owned:
            for place, gate in enumerate(gates):
                key = (owner, place, gate.gate_type)
                if key not in found or gate.closed_because:
                    found[key] = GateLine(owner, gate)
    return sorted(found.values(), key=lambda line: (not line.gate.closed_because, line.owner))


def minutes(counts: Sequence[Mapping[str, int]]) -> list[Minute]:
    """The minutes of all queues, oldest first."""
    return [_minute(one) for one in counts]


def lived_minutes(all_minutes: Sequence[Minute]) -> Sequence[Minute]:
    """The minutes from the first with results, at least ten."""
    first = next(
        (at for at, one in enumerate(all_minutes) if one.answered + one.failed + one.retried + one.cancelled),
        len(all_minutes),
    )
    return all_minutes[min(first, max(0, len(all_minutes) - 10)) :]


def _minute(counts: Mapping[str, int]) -> Minute:
    sums: Counter[str] = Counter()
    for name, count in counts.items():
        sums[name.rpartition(" ")[2]] += count  # pollers of earlier versions put the queue's name before a space
    classes = [sums[f"latency{rank}"] for rank in range(len(LATENCY_SECONDS) + 1)]
    failed = sums["failed"] + sums["expired"]
    return Minute(
        sums["answered"],
        failed,
        sums["retried"],
        _quantile(classes, 0.5),
        _quantile(classes, 0.95),
        _quantile(classes, 0.99),
        sums["cancelled"],
    )


def _quantile(classes: Sequence[int], share: float) -> float | None:
    """A quantile of the latency histogram, in seconds; None without results."""
    total = sum(classes)
    if not total:
        return None
    wanted, seen = share * total, 0.0
    for rank, count in enumerate(classes):
        if count and seen + count >= wanted:
            low = LATENCY_SECONDS[rank - 1] if rank else 0.0
            high = LATENCY_SECONDS[min(rank, len(LATENCY_SECONDS) - 1)]
            return low + (high - low) * (wanted - seen) / count
        seen += count
    return LATENCY_SECONDS[-1]
