"""The path of a delivery through any door: decode, forward, settle; and which steps are skipped."""

from __future__ import annotations

from handlers.contract.request import Request
from handlers.contract.result import answered_result
from handlers.doors.door import Answer, Delivery, handle, retry_after
from handlers.forward.forward import AttemptOptions
from handlers.forward.outcome import Answered, Outcome, Retry

REQUEST = Request(id="a", deadline=5.0, payload=b"{}")
FINAL = Answered(answered_result("a", "", 200, b""))
LIMITS = AttemptOptions(3.0, 10.0)


class Scripted:
    """A door with a scripted decoding, which records the outcomes it settles."""

    def __init__(self, decoded: Request | Answered | Answer) -> None:
        self._decoded = decoded
        self.settled: list[tuple[str, Outcome]] = []

    async def decode(self, delivery: Delivery) -> tuple[Request | Answered, str] | Answer:
        return self._decoded if isinstance(self._decoded, Answer) else (self._decoded, "context")

    def limits(self, context: str) -> AttemptOptions:
        return LIMITS

    async def settle(self, context: str, outcome: Outcome) -> Answer:
        self.settled.append((context, outcome))
        return Answer(204)


async def walked(door: Scripted) -> tuple[Answer, list[tuple[Request, AttemptOptions]]]:
    forwarded: list[tuple[Request, AttemptOptions]] = []

    async def forward(request: Request, limits: AttemptOptions) -> Outcome:
        forwarded.append((request, limits))
        return Retry(1.0, "rejected")

    return await handle(door, Delivery([], b""), forward), forwarded


async def test_a_request_is_forwarded_within_its_limits_and_its_outcome_settled() -> None:
    door = Scripted(REQUEST)
    answer, forwarded = await walked(door)
    assert (answer.status_code, forwarded) == (204, [(REQUEST, LIMITS)])
    assert door.settled == [("context", Retry(1.0, "rejected"))]


async def test_a_final_outcome_is_settled_without_a_call() -> None:
    door = Scripted(FINAL)
    _, forwarded = await walked(door)
    assert (forwarded, door.settled) == ([], [("context", FINAL)])


async def test_an_immediate_answer_skips_the_forward() -> None:
    door = Scripted(Answer(400))
    answer, forwarded = await walked(door)
    assert (answer.status_code, forwarded, door.settled) == (400, [], [])


def test_retry_after_is_whole_seconds_and_never_zero() -> None:
    for seconds, header in ((0.0, "1"), (0.2, "1"), (1.0, "1"), (1.01, "2"), (59.5, "60")):
        assert retry_after(seconds) == {"retry-after": header}


def test_the_first_of_two_headers_counts() -> None:
    delivery = Delivery([(b"x", b"1"), (b"x", b"2")], b"")
    assert (delivery.header(b"x"), delivery.header(b"y")) == ("1", "")
