"""What a transform is: a request in, another body out, or None where it does not concern it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from handlers.contract.request import Request


@dataclass(frozen=True, slots=True)
class Body:
    """What is sent in place of the payload."""

    content: bytes
    content_type: str


class Transform(Protocol):
    """One rule. It is pure: the same request gives the same body, but for a boundary drawn by chance."""

    def body(self, request: Request) -> Body | None:
        """The other body; None leaves the request as it is. Raises `InvalidRequest` for one that never can be."""
        ...


def transformed(request: Request, transforms: Sequence[Transform]) -> Body | None:
    """The body of the first transform that concerns the request. Raises `InvalidRequest`."""
    for transform in transforms:
        body = transform.body(request)
        if body is not None:
            return body
    return None
