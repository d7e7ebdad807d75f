"""The table and the chart of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.bench.slack.figures import GRID_SECONDS, Figures, use_of
from tests.bench.slack.run import Record

NONE = "-"
COLUMNS = (
    "gate",
    "idle slots used",
    "by finished requests",
    "real-time p50 s",
    "real-time p99 s",
    "p99 against no queue",
    "429s to real-time",
    "429s to queued",
    "evicted",
    "gives way s",
    "refills s",
    "past deadline",
)


def rows_of(found: Sequence[tuple[Record, Figures]]) -> list[list[str]]:
    """A row for each run; its p99 is compared with the run without a queue."""
    baseline = next((figures.p99 for record, figures in found if not record.setup.has_queue), 0.0)
    return [_row(record, figures, baseline) for record, figures in found]


def _row(record: Record, figures: Figures, baseline: float) -> list[str]:
    has_queue = record.setup.has_queue
    against = f"{figures.p99 / baseline - 1:+.1%}" if baseline and has_queue else NONE
    return [
        title_of(record),
        _part(figures.used),
        _part(figures.finished),
        f"{figures.p50:.2f}",
        f"{figures.p99:.2f}",
        against,
        str(figures.real_time_failures),
        str(figures.refused) if has_queue else NONE,
        str(figures.evicted) if has_queue else NONE,
        _seconds(figures.gives_way) if has_queue else NONE,
        _seconds(figures.refills) if has_queue else NONE,
        str(figures.past_deadline) if has_queue else NONE,
    ]


def title_of(record: Record) -> str:
    """The run's name, and whether the gateway had priorities."""
    return record.setup.name + (", gateway with priorities" if record.setup.has_priorities else "")


def _part(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}"


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f}"


def markdown(found: Sequence[tuple[Record, Figures]]) -> str:
    """The table for `docs/gates.md`."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows_of(found)]
    return "\n".join(lines) + "\n"


def draw(records: Sequence[Record], path: Path) -> None:
    """Draw pool use over time, real-time and queued requests stacked, one panel per run."""
    import matplotlib  # noqa: PLC0415 - takes seconds, and only the picture needs it

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415 - after the choice of its backend

    columns = 2 if len(records) > 3 else 1
    rows = -(-len(records) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(6 * columns, 1.9 * rows), sharex=True, sharey=True, squeeze=False
    )
    for number, record in enumerate(records):
        use = use_of(record)
        panel = axes[number // columns][number % columns]
        times = [step * GRID_SECONDS for step in range(len(use.capacity))][::2]
        layers = (use.real_time[::2], use.queued[::2])
        panel.stackplot(times, *layers, labels=("real-time", "queued"), colors=("#3b6ea5", "#f2b134"))
        panel.plot(times, use.capacity[::2], color="black", linewidth=0.8, label="capacity")
        panel.set_title(title_of(record), fontsize=9, loc="left")
        panel.set_ylim(0, record.profile.slots * 1.15)
        panel.set_xlim(0, record.profile.seconds - 2)
        panel.tick_params(labelsize=7)
    for panel in axes[-1]:
        panel.set_xlabel("seconds", fontsize=8)
    axes[0][0].legend(loc="upper left", fontsize=7, ncols=3)
    figure.tight_layout()
    figure.savefig(path, dpi=75)
    pyplot.close(figure)
