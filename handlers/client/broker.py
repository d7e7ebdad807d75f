"""What the client asks of a broker; `RedisBroker` and `PubSubBroker` answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from handlers.client.new_request import NewRequest
from handlers.client.submission import Submission
from handlers.contract.result import Result
from handlers.redis_store.admin.whereabouts import Whereabouts
from handlers.redis_store.results.results import AckOutcome, HeldResult
from handlers.redis_store.submit.submissions import RequestState


class ResultSource(Protocol):
    """Results under a lease; what a `ResultStream` reads."""

    @property
    def lease_seconds(self) -> float:
        """How long a result is held after `receive` or `renew`."""

    async def receive(self, limit: int) -> list[HeldResult]:
        """Take at most `limit` results; empty when there are none now."""

    async def renew(self, claim_keys: Sequence[bytes]) -> list[bool]:
        """Hold on to them; returns for each whether it is still held."""

    async def ack(self, claim_keys: Sequence[bytes]) -> list[AckOutcome]:
        """Drop results that are safe with their reader."""

    async def give_back(self, claim_keys: Sequence[bytes]) -> int:
        """Give them back at once; returns how many went."""


class Broker(Protocol):
    """Where requests are queued and results come from."""

    async def submit(self, requests: Sequence[NewRequest]) -> list[Submission]:
        """Queue requests, in order; returns one submission for each."""

    def results(self, name: str = "") -> ResultSource:
        """The results of `name` (a list or a subscription; empty: the options' own)."""

    async def own_result(self, submission: Submission | str, timeout_seconds: float | None) -> Result:
        """The result of a submission that has a result list of its own; left where it is."""

    async def cancel(self, submissions: Sequence[Submission | str]) -> list[bool]:
        """Cancel; returns for each whether it was live."""

    def peek(self, name: str, limit: int | None) -> AsyncIterator[Result]:
        """Results of a list, oldest first, left where they are."""
        ...

    async def where(self, submission: Submission | str) -> Whereabouts:
        """Search a request everywhere it may be; reads only."""
        ...

    async def look_up(self, submission: Submission | str) -> RequestState:
        """Where a submission is now."""

    async def close(self) -> None:
        """Close the connections."""
