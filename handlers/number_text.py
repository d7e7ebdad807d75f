"""Numbers as text: parse numbers of other processes, parse and format durations, format counts.

`int` and `float` accept more than our formats (`1_000`, `nan`, digits of other scripts), and raise for other text and
for thousands of digits. So `make types` forbids them for text (`tests/number_rules.py`).
"""

from __future__ import annotations

import math
import re
from typing import Final

_MOST_DIGITS: Final = 18
_WHOLE: Final = re.compile(r"[0-9]{1,18}")
_DECIMAL: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
_LONGEST: Final = 512


def whole(text: str | bytes | None) -> int | None:
    """The integer of 1 to 18 digits. None for any other text."""
    if not text or len(text) > _MOST_DIGITS:
        return None
    digits = text.decode("latin-1") if isinstance(text, bytes) else text
    return int(digits) if _WHOLE.fullmatch(digits) else None  # type: ignore[misc]  # checked


def decimal(text: str | bytes | None) -> float | None:
    """The finite number, as JSON or Prometheus write it. None for any other text."""
    if not text or len(text) > _LONGEST:
        return None
    digits = text.decode("latin-1") if isinstance(text, bytes) else text
    number = float(digits) if _DECIMAL.fullmatch(digits) else math.inf  # type: ignore[misc]  # checked
    return number if math.isfinite(number) else None


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


def counted(count: int, noun: str, plural: str = "") -> str:
    """The count with its noun: `1 error`, `1,200 errors`. `plural` is for nouns with another ending."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"
