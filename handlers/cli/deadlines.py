"""Deadlines and durations as people write them: `90s`, `1h30m`, `2d`, an instant, Unix seconds."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any

import click

_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


class DurationType(click.ParamType[timedelta]):
    """A length of time, as a `timedelta`; a bare number is seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """`1h30m` becomes a `timedelta`; fails with what is accepted."""
        if isinstance(value, timedelta):
            return value
        duration = parse_duration(str(value))
        if duration is None:
            self.fail(f"found {value!r}; accepted is a length of time like 90s, 15m, 1h30m or 2d", param, ctx)
        return duration


class DeadlineType(click.ParamType[timedelta | datetime | float]):
    """A deadline: from now, or at an instant (ISO 8601, or Unix seconds from the year 2001 on)."""

    name = "deadline"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta | datetime | float:
        """What the client takes as a deadline; fails with what is accepted."""
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]  # a default of ours, or converted before
        number = _number(value)
        if number is not None and number >= 1e9:
            return number
        duration = parse_duration(value)
        if duration is not None:
            return duration
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            accepted = "1h30m, 2026-12-31T18:00:00Z or Unix seconds"
            self.fail(f"found {value!r}; accepted is a time like {accepted}", param, ctx)


def parse_duration(text: str) -> timedelta | None:
    """`1h30m` as a `timedelta`, a bare number as seconds; None for anything else, and for nothing."""
    number = _number(text)
    if number is not None:
        return timedelta(seconds=number)
    compact = text.strip().lower().replace(" ", "")
    parts = _PART.findall(compact)
    if not parts or "".join(count + unit for count, unit in parts) != compact:
        return None
    return timedelta(seconds=sum(float(count) * _SECONDS[unit] for count, unit in parts))


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d{1,15}(\.\d{1,9})?", text.strip()) else None


def duration_text(seconds: float) -> str:
    """A length of time for a person: `42s`, `3m10s`, `2h05m`, `4d03h`."""
    whole = max(0, round(seconds))
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d{hour:02}h"
    if hours:
        return f"{hour}h{minute:02}m"
    return f"{minute}m{second:02}s" if minutes else f"{second}s"
