"""Which trouble a request meets: what its payload asks for, else what the rates draw.

"simulate": {"status": 503, "retry_after": "2", "times": 2, "key": "r1"}    the first two times for r1
"simulate": {"fault": "reset"}                                              always
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Final

import msgspec

FAULTS: Final = (
    *(
        "reset",
        "reset_after_headers",
        "hang",
        "hang_mid_body",
        "truncated",
        "bad_chunk",
        "bad_gzip",
        "gzip_bomb",
    ),
    *("slow_body", "huge_body", "invalid_utf8", "empty", "redirect", "hostile_headers", "garbage"),
)
"""What can be asked for beside status codes."""


class Simulate(msgspec.Struct, frozen=True):
    """What a payload asks for. `times` 0 is always; `bytes` is the size of a huge body."""

    key: str = ""
    status: int = 0
    fault: str = ""
    retry_after: str = ""
    times: int = 0
    bytes: int = 50_000_000
    seconds: float | None = None


class Payload(msgspec.Struct):
    """What the gateway reads of a payload."""

    model: str = ""
    prompt: object = ""
    input: object = ""
    max_tokens: int | None = None
    user: str = ""
    simulate: Simulate | None = None


class UnknownFault(ValueError):
    """A fault that does not exist; the message lists the known ones."""


class Faults:
    """Chooses faults. `rates` maps a fault or a status (as text) to its share of all requests."""

    def __init__(self, rates: Mapping[str, float], seed: int) -> None:
        self._draw = random.Random(seed)  # a simulation
        self._seen: dict[str, int] = {}
        self.set_rates(rates)

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """Replace all rates. Raises `UnknownFault`."""
        for name in rates:
            if name not in FAULTS and not name.isdigit():
                raise UnknownFault(f"{name!r}; known are status codes and {', '.join(FAULTS)}")
        self.rates = dict(rates)

    def choose(self, payload: Payload) -> Simulate | None:
        """The fault of one request, or None."""
        asked = payload.simulate
        if asked is not None and (asked.status or asked.fault):
            return asked if self._is_due(asked) else None
        if not self.rates:
            return None
        drawn = self._draw.random()
        for name, share in self.rates.items():
            if drawn < share:
                retry_after = "1" if name in ("429", "503") else ""
                return (
                    Simulate(status=int(name), retry_after=retry_after)
                    if name.isdigit()
                    else Simulate(fault=name)
                )
            drawn -= share
        return None

    def _is_due(self, asked: Simulate) -> bool:
        if not asked.times:
            return True
        seen = self._seen.get(asked.key, 0)
        self._seen[asked.key] = seen + 1
        return seen < asked.times
