"""Parse numbers in text that other processes wrote.

`int` and `float` accept more than our formats (`1_000`, `nan`, digits of other scripts), and raise for other text and
for thousands of digits. So `make types` refuses them for text (`tests/number_rules.py`).
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
