"""The name under which gates keep what they reserved for one claim of a request."""

from __future__ import annotations

import secrets

import msgspec

from handlers.contract.request import Request


def with_claim(request: Request) -> Request:
    """The request under a claim name that nobody can choose: what a gate reserves covers this claim alone."""
    return request if request.claim else msgspec.structs.replace(request, claim=secrets.token_hex(16))


def claim_name(request: Request) -> str:
    """The name of the request's claim; of a request without one, its id and token, or its deadline without a token."""
    if request.claim:
        return request.claim
    if request.request_token:
        return f"{request.id}\0{request.request_token}"
    return f"{request.id}\0\0{request.deadline:.6f}"
