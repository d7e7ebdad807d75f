"""Errors of Pub/Sub.

AsyncProcessorError
└── PubSubError
    ├── PubSubFailed            a call was refused, or got no answer
    │   ├── NoAnswerInTime      a call got no answer within its time limit
    │   └── PublishFailed       a publish was refused or not confirmed
    └── ResultTooLarge          a publish exceeds a limit of Pub/Sub; a retry would too
"""

from __future__ import annotations

from typing import Final

from handlers.contract.errors import AsyncProcessorError

RETRYABLE_STATUSES: Final = frozenset({409, 429, 499, 500, 502, 503, 504})
"""HTTP statuses for the gRPC statuses that Google's own publisher retries: ABORTED (409), RESOURCE_EXHAUSTED (429),
CANCELLED (499), INTERNAL and UNKNOWN (500), UNAVAILABLE (503), DEADLINE_EXCEEDED (504)."""

NO_ANSWER: Final = 0
"""Status of a call without an answer."""


class PubSubError(AsyncProcessorError):
    """Base class of Pub/Sub errors."""


class PubSubFailed(PubSubError):
    """A call failed.

    `status` is an HTTP status or `NO_ANSWER`; `resource` is a topic or subscription.
    """

    def __init__(self, resource: str, *, status: int, reason: str) -> None:
        super().__init__(f"{resource}: {reason}")
        self.resource = resource
        self.status = status
        self.reason = reason

    @property
    def is_retryable(self) -> bool:
        """Whether the same call may succeed later without a change of configuration."""
        return self.status == NO_ANSWER or self.status in RETRYABLE_STATUSES


class NoAnswerInTime(PubSubFailed):
    """Pub/Sub did not answer within `seconds`."""

    def __init__(self, resource: str, seconds: float) -> None:
        super().__init__(resource, status=NO_ANSWER, reason=f"no answer in {seconds:g} s")


class PublishFailed(PubSubFailed):
    """A publish was refused or not confirmed.

    In the second case the broker may have the message. `resource` is the topic.
    """


class ResultTooLarge(PubSubError):
    """A result exceeds a limit of Pub/Sub.

    `what` names the limit; `size` and `limit` are in its unit.
    """

    def __init__(self, what: str, *, size: int, limit: int) -> None:
        super().__init__(f"{what}: expected at most {limit}, got {size}")
        self.what = what
        self.size = size
        self.limit = limit
