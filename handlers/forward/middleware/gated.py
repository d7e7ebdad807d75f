"""Admission: a request is sent once its gates admit it.

Gates learn from the response and get back what they reserved. Verdicts become outcomes here, for the poller and for
the doors.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, assert_never

from handlers.cancellation import end_if_cancelled
from handlers.contract.request import Request
from handlers.contract.result import ErrorCode, error_result
from handlers.forward.forward import AttemptOptions, Forward, expired
from handlers.forward.outcome import Answered, Outcome, Retry
from handlers.gates.chain import admit_all, with_claim
from handlers.gates.gate import Drop, Gate, Go, Hold, Refuse
from handlers.gates.labels import labelled

Send = Callable[[Request], Awaitable[Outcome]]
"""Makes one attempt for an admitted request."""

GATE_CLOSED: Final = "gate_closed"
QUOTA_EXHAUSTED: Final = "quota_exhausted"


def admitted(forward: Forward, gates: Sequence[Gate], clock: Callable[[], float] = time.time) -> Forward:
    """The admission layer of a poller, whose requests wait at a closed gate until their deadline."""

    async def admit(request: Request, options: AttemptOptions) -> Outcome:
        async def send(request: Request) -> Outcome:
            if options.on_sending is not None:
                options.on_sending()
            return await forward(request, options)

        return await (gated(request, gates, send, clock) if gates else send(request))

    return admit


async def gated(
    request: Request, gates: Sequence[Gate], send: Send, clock: Callable[[], float] = time.time
) -> Outcome:
    """Ask the gates, wait until they admit the request or its deadline, and send it.

    `clock` gives Unix seconds, for the deadline; gates wait by the local clock. A refusal is a retry that does not
    count as an attempt. A drop is a final `GATE_DROPPED`.
    """
    request = with_claim(request)
    while True:
        verdict = await admit_all(gates, request)
        if isinstance(verdict, Hold):
            end_if_cancelled()  # otherwise it would wait at the gate of a poller that is stopping
        match verdict:
            case Go():
                return await send_admitted(request, gates, verdict, send)
            case Hold(wait_open=wait_open):
                if not await wait_open(time.time() + request.deadline - clock()):
                    return expired(request, None)
            case Refuse() | Drop():
                return refused(request, verdict, clock)
            case _:
                assert_never(verdict)


async def send_admitted(request: Request, gates: Sequence[Gate], go: Go, send: Send) -> Outcome:
    """Send an admitted request, then release its reservation exactly once."""
    admitted = labelled(request, go.labels)
    was_sent = True
    try:
        outcome = await send(admitted)
        was_sent = outcome.feedback is not None or isinstance(outcome, Answered)
        if outcome.feedback is not None:
            for gate in gates:
                gate.observe(admitted, outcome.feedback)
    finally:
        # A request cancelled during the call counts as sent, because it may have reached the gateway.
        await (go.reservation.release() if was_sent else go.reservation.give_back())
    return outcome


def refused(request: Request, verdict: Refuse | Drop, clock: Callable[[], float] = time.time) -> Outcome:
    """Convert a verdict that ends the wait to an outcome."""
    match verdict:
        case Refuse(delay_seconds=delay, reason=reason):
            left = request.deadline - clock()
            if delay >= left > 0:
                delay = left / 2  # one last attempt before the deadline is better than none
            word = QUOTA_EXHAUSTED if "quota" in reason else GATE_CLOSED
            return Retry(max(0.05, delay), word, counts_attempt=False)
        case Drop(status_code=status, reason=reason):
            message = f"a gate dropped the request ({status}): {reason}"
            return Answered(error_result(request.id, request.request_token, ErrorCode.GATE_DROPPED, message))
