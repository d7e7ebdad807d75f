"""What names one submission to a gate: reservations and feedback belong to it, not to the id alone."""

from __future__ import annotations

from handlers.contract.request import Request


def submission_of(request: Request) -> str:
    """The id and its token; where there is no token, the deadline tells a later submission apart."""
    if request.request_token:
        return f"{request.id}\0{request.request_token}"
    return f"{request.id}\0\0{request.deadline:.6f}"
