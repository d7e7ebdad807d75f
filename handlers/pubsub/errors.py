"""What can go wrong with Pub/Sub.

AsyncProcessorError
└── PubSubError
    ├── PubSubFailed            a call that Pub/Sub refused, or that got no answer
    │   └── PublishFailed       ... of a publish
    ├── ResultTooLarge          more than one publish can carry; no later attempt will do better
    └── UnchangeableField       a field that Pub/Sub sets once, at creation
"""

from __future__ import annotations

from typing import Final

from handlers.contract.errors import AsyncProcessorError

RETRYABLE_STATUSES: Final = frozenset({408, 409, 429, 499, 500, 502, 503, 504})
"""The service's own list for publish and pull: 409 is ABORTED here, 499 CANCELLED."""

NO_ANSWER: Final = 0
"""The status of a call that got no answer at all."""


class PubSubError(AsyncProcessorError):
    """Any error of this room."""


class PubSubFailed(PubSubError):
    """A call failed. `status` is HTTP's, or `NO_ANSWER`; `resource` a topic or subscription."""

    def __init__(self, resource: str, *, status: int, reason: str) -> None:
        super().__init__(f"{resource}: {reason}")
        self.resource = resource
        self.status = status
        self.reason = reason

    @property
    def is_retryable(self) -> bool:
        """Whether the same call may succeed later without anybody's doing."""
        return self.status == NO_ANSWER or self.status in RETRYABLE_STATUSES


class PublishFailed(PubSubFailed):
    """Not confirmed: the broker may or may not have it. `resource` is the topic."""


class ResultTooLarge(PubSubError):
    """Over a limit of Pub/Sub; `what` names it, `size` and `limit` are in its unit."""

    def __init__(self, what: str, *, size: int, limit: int) -> None:
        super().__init__(f"{what}: {size}, where Pub/Sub takes at most {limit}")
        self.what = what
        self.size = size
        self.limit = limit


class UnchangeableField(PubSubError):
    """A resource differs from the plan in a field that Pub/Sub sets once; `remedy` says what to do."""

    def __init__(self, resource: str, field: str, *, found: str, wanted: str, remedy: str) -> None:
        super().__init__(
            f"{resource}: {field} is {found} and cannot be changed to {wanted} afterwards; {remedy}"
        )
        self.resource = resource
        self.field = field
        self.found = found
        self.wanted = wanted
