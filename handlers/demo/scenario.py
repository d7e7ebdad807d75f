"""What the demo queues: mostly plain requests, and every kind of trouble a gateway can make. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

_TROUBLES: Final[dict[int, dict[str, Any]]] = {
    1: {"status": 429, "retry_after": "1", "times": 1},
    3: {"status": 503, "times": 2},
    5: {"fault": "reset", "times": 1},
    7: {"fault": "hang", "times": 1},
    9: {"status": 400},
    13: {"fault": "truncated", "times": 1},
}
"""Place among twenty requests -> what the gateway does; the others are answered at once."""

SHORT_DEADLINE_PLACE: Final = 11
"""Among twenty, the one whose gateway is down until its deadline."""
_ROUND: Final = 20


@dataclass(frozen=True, slots=True)
class Planned:
    """One request of the demo; `deadline_seconds` from now."""

    request_id: str
    payload: dict[str, Any]
    deadline_seconds: float


def planned(count: int, prefix: str) -> Iterator[Planned]:
    """`count` requests; the same every time."""
    for number in range(count):
        place = number % _ROUND
        request_id = f"{prefix}-{number:05d}"
        payload: dict[str, Any] = {
            "model": "demo-model",
            "prompt": f"Say hello, number {number}",
            "max_tokens": 16,
        }
        trouble = _TROUBLES.get(place)
        if place == SHORT_DEADLINE_PLACE:
            trouble = {"status": 503}
        # The key lets the gateway know a request again, and its witness log name it.
        payload["simulate"] = {"key": request_id, **(trouble or {})}
        yield Planned(request_id, payload, 6.0 if place == SHORT_DEADLINE_PLACE else 120.0)


def healthy(count: int, prefix: str) -> Iterator[Planned]:
    """`count` requests that the gateway answers at once."""
    for number in range(count):
        request_id = f"{prefix}-healthy-{number:03d}"
        payload = {"model": "demo-model", "prompt": "Say hello", "max_tokens": 16}
        yield Planned(request_id, {**payload, "simulate": {"key": request_id}}, 120.0)


BROKEN: Final = (
    b'{"id":"broken-deadline","payload":{"prompt":"Hi"},"deadline":"tomorrow"}',
    b'{"id":"broken-payload","payload":"Hi","deadline":1999999999}',
    b"not JSON at all",
)
"""Members that no client of ours would queue; each must end in a result, or among the dead letters."""
BROKEN_IDS: Final = ("broken-deadline", "broken-payload")
"""Those of `BROKEN` whose id can be read: each has a result."""
