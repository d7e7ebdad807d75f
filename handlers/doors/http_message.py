"""What a door gets and gives, without a web framework: headers and bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Delivery:
    """One HTTP delivery: header names in lower case, as ASGI gives them, and the body as received."""

    headers: Sequence[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: bytes) -> str:
        """The first header of that name, or an empty string."""
        return next((value.decode("latin-1") for key, value in self.headers if key == name), "")


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back: 204 and 200 settle a delivery, 429 and 503 have it brought again."""

    status_code: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def plain(status_code: int, text: str, headers: Mapping[str, str] | None = None) -> Answer:
    """A short text for a person; one line."""
    return Answer(
        status_code, (text + "\n").encode(), {"content-type": "text/plain; charset=utf-8", **(headers or {})}
    )


def retry_after(seconds: float) -> dict[str, str]:
    """`Retry-After` in whole seconds, rounded up, at least 1."""
    return {"retry-after": str(max(1, -int(-seconds // 1)))}
