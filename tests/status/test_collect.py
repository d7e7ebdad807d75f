"""The board's data about a request is bounded in bytes, whatever the client sends."""

from __future__ import annotations

import msgspec
import pytest

from handlers.contract.request import Request
from handlers.contract.result import ErrorCode, error_result
from handlers.forward.outcome import Answered, Retry
from handlers.status.collect import Tally

LARGE = 2_000_000


@pytest.mark.parametrize("sign", ["x", "é", "團", "\x00", '"'])
@pytest.mark.parametrize("is_final", [True, False])
def test_a_failure_on_the_board_is_small(sign: str, is_final: bool) -> None:
    tally = Tally()
    request = Request(
        id=sign * LARGE, queue=sign * LARGE, deadline=5.0, payload=b"", metadata={"userid": sign * LARGE}
    )
    outcome = (
        Answered(error_result("a", "", ErrorCode.INVALID_REQUEST, "m"))
        if is_final
        else Retry(1.0, sign * LARGE)
    )
    tally.note(request, outcome)
    _, (failure,) = tally.take()
    reported = msgspec.json.decode(failure)
    assert max(len(value.encode()) for value in reported.values() if isinstance(value, str)) <= 256
    assert len(failure) < 8_000, "256 bytes each, escaped at the worst"
