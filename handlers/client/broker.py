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
    the list or subscription that gets the result. `is_new` is False if an earlier submission was found instead:
    `token` is then the earlier one's, and with an idempotency key all other fields too.
    """

    id: str
    token: str
    deadline: int
    queue: str
    results: str
    has_own_results: bool = False
    is_new: bool = True


class ResultSource(Protocol):
    """A source of leased results for `ResultStream`."""

    @property
    def lease_seconds(self) -> float:
        """Duration of a lease in seconds."""

    async def receive(self, limit: int) -> list[HeldResult]:
        """Take at most `limit` results; returns an empty list without results."""

    async def renew(self, claim_keys: Sequence[bytes]) -> list[bool]:
        """Extend the leases; returns for each whether it is still held."""

    async def ack(self, claim_keys: Sequence[bytes]) -> list[AckOutcome]:
        """Remove results."""

    async def give_back(self, claim_keys: Sequence[bytes]) -> int:
        """Return results to the source; returns how many."""


class Broker(Protocol):
    """Queues requests and returns results."""

    async def submit(self, requests: Sequence[NewRequest]) -> list[Submission]:
        """Queue requests, in order; returns one submission for each."""

    def results(self, name: str = "") -> ResultSource:
        """The results of `name`, a list or subscription (empty: the default one)."""

    async def own_result(self, submission: Submission | str, timeout_seconds: float | None) -> Result:
        """Wait for the result in a submission's own list; left in place."""

    async def cancel(self, submissions: Sequence[Submission | str]) -> list[bool]:
        """Cancel; returns for each whether it was live."""

    def peek(self, name: str, limit: int | None) -> AsyncIterator[Result]:
        """Results of a list, oldest first, left in place."""
        ...

    async def where(self, submission: Submission | str) -> Whereabouts:
        """Search a request in every place; read-only."""
        ...

    async def look_up(self, submission: Submission | str) -> RequestState:
        """State of a submission."""

    async def close(self) -> None:
        """Close the connections."""
