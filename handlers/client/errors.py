"""Exceptions raised by the client.

AsyncProcessorError
├── InvalidRequest      (contract) a field is invalid; nothing was queued
└── ClientError
    ├── NoResultYet     no result within the time limit; the request may still be answered
    ├── NoOwnResults    the request's result is in a shared list, which `results` reads
    ├── UnknownRequest  the id has no live request and no result list of its own
    ├── IdempotencyConflict  a request with other content was submitted under the idempotency key
    ├── LeaseLost       a result was acknowledged after its lease expired; it is delivered again
    ├── NotOffered      the broker does not support the operation
    └── BrokerUnreachable  Redis or Pub/Sub did not answer; whether the call took effect is unknown
"""

from __future__ import annotations

from handlers.contract.errors import AsyncProcessorError


class ClientError(AsyncProcessorError):
    """Base class of client errors, except `InvalidRequest`."""


class NoResultYet(ClientError):
    """No result arrived within the time limit."""

    def __init__(self, request_id: str, waited_seconds: float) -> None:
        super().__init__(f"{request_id}: no result within {waited_seconds:g} s; the request may still be answered")
        self.request_id = request_id
        self.waited_seconds = waited_seconds


class NoOwnResults(ClientError):
    """The request has no result list of its own. Its result goes to the list `results`."""

    def __init__(self, request_id: str, results: str) -> None:
        super().__init__(
            f"{request_id}: expected a request submitted with has_own_results=True, got one whose result goes to the "
            f"list {results!r}; read client.results({results!r})"
        )
        self.request_id = request_id
        self.results = results


class UnknownRequest(ClientError):
    """The id has neither a live request nor its own result list."""

    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"{request_id}: expected the id of a live request or one with a result list of its own "
            "(has_own_results=True), got an unknown id"
        )
        self.request_id = request_id


class IdempotencyConflict(ClientError):
    """A request with other content was submitted under the idempotency key. This one was not queued."""

    def __init__(self, key: str, request_id: str) -> None:
        super().__init__(
            f"idempotency_key: expected the content submitted before under {key!r} (request {request_id}), got content "
            "that differs; use a new key for a new request"
        )
        self.key = key
        self.request_id = request_id


class LeaseLost(ClientError):
    """A result's lease expired before its acknowledgement. The result is delivered again."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"{request_id}: the lease of its result expired; the result is delivered again")
        self.request_id = request_id


class NotOffered(ClientError):
    """The broker does not support the operation."""

    def __init__(self, what: str, broker: str, instead: str) -> None:
        super().__init__(f"{what} is not supported on {broker}; {instead}")


class BrokerUnreachable(ClientError):
    """Redis or Pub/Sub did not answer. Whether the operation took effect is unknown."""
