"""Small charts as SVG, drawn on the server without script or library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

WIDTH: Final = 600
HEIGHT: Final = 120
_BASE: Final = HEIGHT - 16


def bars(title: str, series: Sequence[tuple[str, Sequence[float]]]) -> str:
    """A chart of stacked bars, the oldest on the left.

    `series` are pairs of a name, which is also the CSS class, and values.
    """
    count = max((len(values) for _, values in series), default=0)
    sums = [sum(values[at] for _, values in series) for at in range(count)]
    top = max(sums, default=0.0) or 1.0
    width = WIDTH / max(1, count)
    parts = []
    for at in range(count):
        bottom = float(_BASE)
        for name, values in series:
            height = values[at] / top * (_BASE - 12)
            bottom -= height
            if height > 0:
                parts.append(
                    f'<rect class="{escape(name)}" x="{at * width:.1f}" y="{bottom:.1f}" '
                    f'width="{max(0.5, width - 1):.1f}" height="{height:.1f}"/>'
                )
    peak = f"at most {max(sums, default=0):,.0f} in a minute"
    return _frame(title, peak, "".join(parts), f"{top:,.0f}", count)


def lines(title: str, series: Sequence[tuple[str, Sequence[float | None]]], unit: str) -> str:
    """A chart of lines, with gaps for missing values (None)."""
    known = [value for _, values in series for value in values if value is not None]
    top = max(known, default=0.0) or 1.0
    parts = []
    for name, values in series:
        step = WIDTH / max(1, len(values) - 1)
        for run in _runs(values):
            points = " ".join(
                f"{at * step:.1f},{_BASE - value / top * (_BASE - 12):.1f}" for at, value in run
            )
            shape = f'<polyline class="{escape(name)}" points="{points}"/>'
            if len(run) == 1:
                at, value = run[0]
                y = _BASE - value / top * (_BASE - 12)
                shape = f'<circle class="{escape(name)}" cx="{at * step:.1f}" cy="{y:.1f}" r="2"/>'
            parts.append(shape)
    label = f"at most {top:.3g} {unit}" if known else "nothing yet"
    count = max((len(values) for _, values in series), default=0)
    return _frame(title, label, "".join(parts), f"{top:.3g} {unit}", count)


def _runs(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    runs: list[list[tuple[int, float]]] = [[]]
    for at, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((at, value))
    return [run for run in runs if run]


def _frame(title: str, label: str, inside: str, top: str, minutes: int) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title}: {label}")}" '
        f'preserveAspectRatio="none"><title>{escape(title)}</title>'
        f'<line class="axis" x1="0" y1="{_BASE}" x2="{WIDTH}" y2="{_BASE}"/>{inside}</svg>'
        f'<p class="scale"><span>{minutes} min ago</span><span>peak {escape(top)}</span><span>now</span></p>'
    )
