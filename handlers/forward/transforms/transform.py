"""The interface of transforms, which replace a request's body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from handlers.contract.request import Request


class Body(msgspec.Struct, frozen=True):
    """A body that is sent in place of the payload."""

    content: bytes
    content_type: str


class Transform(Protocol):
    """One transform. Its body depends on the request only, except random form boundaries."""

    def body(self, request: Request) -> Body | None:
        """The new body; None leaves the request unchanged. Raises `InvalidRequest`."""
        ...


def transformed(request: Request, transforms: Sequence[Transform]) -> Body | None:
    """The body of the first transform that applies to the request. Raises `InvalidRequest`."""
    for transform in transforms:
        body = transform.body(request)
        if body is not None:
            return body
    return None
