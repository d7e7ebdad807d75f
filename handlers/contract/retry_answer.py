"""The JSON body of the dispatch door's 429 or 503 response for a retry.

The header `x-async-processor-outcome: retry` distinguishes it from a 503 of the platform, such as for a full queue or a
starting handler. `Retry-After` has whole seconds, the body the exact delay.
"""

from __future__ import annotations

from typing import Final

import msgspec

from handlers.contract.json_limits import MALFORMED

OUTCOME_HEADER: Final = "x-async-processor-outcome"
RETRY: Final = "retry"


class RetryAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A retry, with the gateway's last response and feedback for gates.

    `status_code` and `payload` are that response, if there was one. The fields after them are the feedback; `was_sent`
    is true if the request reached the gateway.
    """

    reason: str
    retry_after_seconds: float
    counts_attempt: bool = True
    status_code: int = 0
    payload: str = ""
    was_sent: bool = False
    dropped_reason: str = ""
    gateway_retry_after_seconds: float | None = None
    queue_duration_ms: float | None = None
    band_headroom: float | None = None


_decoder = msgspec.json.Decoder(RetryAnswer)


def encode_retry_answer(answer: RetryAnswer) -> bytes:
    """Encode the answer as one JSON object."""
    return msgspec.json.encode(answer)


def decode_retry_answer(body: bytes) -> RetryAnswer | None:
    """Decode the answer; None if the body is not a `RetryAnswer`."""
    try:
        return _decoder.decode(body)
    except MALFORMED:
        return None
