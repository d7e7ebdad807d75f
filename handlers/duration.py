"""Parse durations of flags and gate parameters; format durations for people."""

from __future__ import annotations

import re
from typing import Final

from handlers.number_text import decimal

_PART: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?|\.[0-9]{1,9})(ms|s|m|h|d)")
_NUMBER: Final = re.compile(r"[0-9]{1,15}(\.[0-9]{1,9})?")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


def parse_duration(text: str) -> float | None:
    """Seconds of a text such as `500ms`, `1h30m` or `90`. None if invalid."""
    compact = text.strip().lower().replace(" ", "")
    if _NUMBER.fullmatch(compact):
        return decimal(compact)
    parts = _PART.findall(compact)
    if not parts or "".join(count + unit for count, unit in parts) != compact:
        return None
    return sum(float(count) * _SECONDS[unit] for count, unit in parts)


def duration_text(seconds: float) -> str:
    """A duration for a person: `42s`, `3m10s`, `2h05m`, `4d03h`."""
    whole = max(0, round(seconds))
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d{hour:02}h"
    if hours:
        return f"{hour}h{minute:02}m"
    return f"{minute}m{second:02}s" if minutes else f"{second}s"
