"""Interface between the client and its brokers, `RedisBroker` and `PubSubBroker`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec

from handlers.client.new_request import NewRequest
from handlers.contract.result import Result
from handlers.redis_store.admin.whereabouts import Whereabouts
from handlers.redis_store.results.results import AckOutcome, HeldResult
from handlers.redis_store.submit.submissions import RequestState


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """One queued request.

    `token` distinguishes submissions of one id; it is empty on Pub/Sub. `deadline` is in Unix seconds. `results` is
    the list or subscription that gets the result. `is_new` is False if an earlier submission was found and nothing was
    queued. Then `token` is that of the earlier submission; with an idempotency key, all other fields are too.
    """

    id: str
    token: str
    deadline: int
    queue: str
    results: str
    has_own_results: bool = False
    is_new: bool = True


def id_of(submission: Submission | str) -> str:
    """The id of a submission; an id is returned as it is."""
    return submission.id if isinstance(submission, Submission) else submission


class ResultSource(Protocol):
    """A source of leased results for `ResultStream`."""

    @property
    def lease_seconds(self) -> float:
        """Duration of a lease in seconds."""

    async def receive(self, limit: int) -> list[HeldResult]:
        """Take at most `limit` results, or none if there is no result."""

    async def renew(self, claim_keys: Sequence[bytes]) -> list[bool]:
        """Extend the leases. Returns for each whether it is still held."""

    async def ack(self, claim_keys: Sequence[bytes]) -> list[AckOutcome]:
        """Remove results."""

    async def give_back(self, claim_keys: Sequence[bytes]) -> int:
        """Release results to the source. Returns how many."""


class Broker(Protocol):
    """Queues requests and returns results."""

    async def submit(self, requests: Sequence[NewRequest]) -> list[Submission]:
        """Queue requests in order. Returns a submission for each."""

    def results(self, name: str = "") -> ResultSource:
        """The results of the list or subscription `name` (empty: the default one)."""

    async def own_result(self, submission: Submission | str, timeout_seconds: float | None) -> Result:
        """Wait for the result in a submission's own list, where it stays."""

    async def cancel(self, submissions: Sequence[Submission | str]) -> list[bool]:
        """Cancel submissions. Returns for each whether it was live."""

    def peek(self, name: str, limit: int | None) -> AsyncIterator[Result]:
        """Read the results of a list, oldest first, without removing them."""
        ...

    async def where(self, submission: Submission | str) -> Whereabouts:
        """Find a request: in queue, retries, dead letters, records or results."""
        ...

    async def look_up(self, submission: Submission | str) -> RequestState:
        """The state of a submission."""

    async def close(self) -> None:
        """Close the connections."""
