"""What became of one attempt: a final result, or a retry. Matched exhaustively wherever it is settled."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from handlers.contract.result import Result
from handlers.gates.gate import Feedback


class LastResponse(msgspec.Struct, frozen=True):
    """What the gateway said last; becomes the final result if the deadline passes before it says more."""

    status_code: int
    body: bytes


class Answered(msgspec.Struct, frozen=True):
    """Final: the gateway answered, good or bad, or there is a recorded reason why it never will.

    `feedback` is what a gate may learn from the gateway's answer; None where it was not asked. `content_type` is that
    of the gateway's answer, empty if not known.
    """

    result: Result
    feedback: Feedback | None = None
    content_type: str = ""


class Retry(msgspec.Struct, frozen=True):
    """Not yet: try again after `delay_seconds`.

    `reason` is one of a fixed set of words (for logs and metrics). `counts_attempt` is False where the
    request never reached the gateway (a closed gate, a handler that is still starting). `traceparent` is the
    span of this attempt, where traces are kept: the next one links to it. `gateway_seconds` is how long the attempt
    took, where that is asked for.
    """

    delay_seconds: float
    reason: str
    last: LastResponse | None = None
    counts_attempt: bool = True
    feedback: Feedback | None = None
    traceparent: str = ""
    gateway_seconds: float | None = None


Outcome: TypeAlias = Answered | Retry
