"""The client on Pub/Sub: publishes to a topic, pulls from a subscription."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence

import msgspec

from handlers.cancellation import end_if_cancelled
from handlers.client.broker import Submission, id_of
from handlers.client.errors import BrokerUnreachable, NoResultYet, NotOffered
from handlers.client.new_request import NewRequest, encode_body
from handlers.contract.errors import InvalidSetting
from handlers.contract.lenient_json import Malformed
from handlers.contract.result import Result, decode_result
from handlers.number_text import counted
from handlers.pubsub.channel import PubSubChannel, PubSubOptions
from handlers.pubsub.errors import PubSubFailed
from handlers.pubsub.publisher import Publisher
from handlers.pubsub.puller import MAX_PULL, Puller
from handlers.redis_store.admin.whereabouts import Whereabouts
from handlers.redis_store.connection import STORE_FAILURES
from handlers.redis_store.faults import explained
from handlers.redis_store.idempotency.idempotency import cancel_deliveries
from handlers.redis_store.results.results import AckOutcome, HeldResult
from handlers.redis_store.submit.submissions import RedisAccess, RequestState, open_redis

LEASE_SECONDS = 60
"""Duration of a lease. A subscription's default is 10 s, so `receive` extends it."""

PULL_SECONDS = 2.0
TIER_ATTRIBUTE = "tier"


class PubSubBroker:
    """The client of one project: publishes to `topic`, pulls from `subscription`.

    `emulator_host` (`host:port`) replaces Google's service. `cancel_redis_url` is the Redis from which the push door
    reads cancellations (its `DEDUPE_REDIS_URL`); without it `cancel` raises `NotOffered`, as `look_up` always does.
    """

    def __init__(
        self,
        project_id: str,
        *,
        topic: str = "",
        subscription: str = "",
        emulator_host: str = "",
        cancel_redis_url: str = "",
        cancel_redis_access: RedisAccess | None = None,
        tenant_attribute: str = "userid",
    ) -> None:
        self._topic = topic
        self._subscription = subscription
        self._tenant_attribute = tenant_attribute
        self._channel = PubSubChannel(PubSubOptions(project_id=project_id, emulator_host=emulator_host))
        self._publisher = Publisher(self._channel)
        self._redis = open_redis(cancel_redis_url, cancel_redis_access) if cancel_redis_url else None

    async def submit(self, requests: Sequence[NewRequest]) -> list[Submission]:
        """Publish requests and wait until all are confirmed. Errors name an unconfirmed request."""
        if any(request.idempotency_key for request in requests):
            raise NotOffered(
                "idempotency_key",
                "Pub/Sub",
                "queue on Redis, or set an id: the push door drops duplicates of an id (DEDUPE_REDIS_URL)",
            )
        if not self._topic:
            raise InvalidSetting("REQUEST_TOPIC_ID", found="nothing", accepted="the topic for requests")
        now = time.time()
        bodies = [
            encode_body(_with_labels(request), now=now, tenant_attribute=self._tenant_attribute) for request in requests
        ]
        with pubsub_errors():
            await asyncio.gather(*(self._publisher.publish(self._topic, body.whole) for body in bodies))
        return [
            Submission(id=body.id, token="", deadline=body.deadline, queue=self._topic, results=self._subscription)
            for body in bodies
        ]

    def results(self, name: str = "") -> PubSubResults:
        """The results of the subscription `name` (empty: the default one)."""
        subscription = name or self._subscription
        if not subscription:
            accepted = "a pull subscription to the result topic"
            raise InvalidSetting("RESULT_SUBSCRIPTION_ID", found="nothing", accepted=accepted)
        return PubSubResults(Puller(self._channel, subscription))

    async def own_result(self, submission: Submission | str, timeout_seconds: float | None) -> Result:
        """Read the subscription until the result of an id arrives.

        Other results are released at once. Use it only on a subscription without other readers.
        """
        request_id = id_of(submission)
        source = self.results()
        try:
            async with asyncio.timeout(timeout_seconds):
                while True:
                    result = await _find(source, request_id)
                    end_if_cancelled()
                    if result is not None:
                        return result
        except TimeoutError:
            raise NoResultYet(request_id, timeout_seconds or 0.0) from None

    async def cancel(self, submissions: Sequence[Submission | str]) -> list[bool]:
        """Cancel through the push door's Redis. Returns True for each id.

        Pub/Sub does not report which messages are live. All requests submitted under the id so far get the result
        `CANCELLED`: at once if they wait at a gate or are in flight, otherwise when they are delivered. A new
        submission in the same second is cancelled too.
        """
        if self._redis is None:
            raise NotOffered(
                f"cancelling {counted(len(submissions), 'request')}",
                "Pub/Sub alone",
                "set cancel_redis_url to the push door's DEDUPE_REDIS_URL, or queue on Redis",
            )
        ids = [id_of(each) for each in submissions]
        try:
            await cancel_deliveries(self._redis, ids, time.time())
        except STORE_FAILURES as error:
            raise BrokerUnreachable(f"Redis: {explained(error)}") from error
        return [True] * len(ids)

    def peek(self, name: str, limit: int | None) -> AsyncIterator[Result]:  # noqa: ARG002  # the protocol's
        """Raises `NotOffered`: a subscription cannot be read without a lease."""
        raise NotOffered("peek", "Pub/Sub", "use results(): results that are not acknowledged are delivered again")

    async def where(self, submission: Submission | str) -> Whereabouts:
        """Raises `NotOffered`: Pub/Sub does not report where a request is."""
        raise NotOffered(f"searching for {id_of(submission)}", "Pub/Sub", "wait for its result, or queue on Redis")

    async def look_up(self, submission: Submission | str) -> RequestState:
        """Raises `NotOffered`: Pub/Sub does not report where a request is."""
        raise NotOffered(f"looking up {id_of(submission)}", "Pub/Sub", "wait for its result, or queue on Redis")

    async def close(self) -> None:
        """Wait for open publishes, then close the connections."""
        await self._publisher.close()
        await self._channel.close()
        if self._redis is not None:
            await self._redis.aclose()


class PubSubResults:
    """A pull subscription under leases. Its ack ids are used as claim keys."""

    lease_seconds: float = float(LEASE_SECONDS)

    def __init__(self, puller: Puller) -> None:
        self._puller = puller

    async def receive(self, limit: int) -> list[HeldResult]:
        """Take at most `limit` results. Waits up to `PULL_SECONDS` for the first."""
        with pubsub_errors():
            pulled = await self._puller.receive(min(limit, MAX_PULL), wait_seconds=PULL_SECONDS)
            await self._puller.extend([each.ack_id for each in pulled], LEASE_SECONDS)
        return [HeldResult(each.ack_id.encode(), each.data) for each in pulled]

    async def renew(self, claim_keys: Sequence[bytes]) -> list[bool]:
        """Extend the leases. Returns True for each, since Pub/Sub does not report lost leases."""
        with pubsub_errors():
            await self._puller.extend(_ack_ids(claim_keys), LEASE_SECONDS)
        return [True] * len(claim_keys)

    async def ack(self, claim_keys: Sequence[bytes]) -> list[AckOutcome]:
        """Acknowledge results. Each may still be delivered a second time."""
        with pubsub_errors():
            await self._puller.ack(_ack_ids(claim_keys))
        return [AckOutcome.DONE] * len(claim_keys)

    async def give_back(self, claim_keys: Sequence[bytes]) -> int:
        """Release results, so that they are delivered again at once."""
        with pubsub_errors():
            await self._puller.give_back(_ack_ids(claim_keys))
        return len(claim_keys)


async def _find(source: PubSubResults, request_id: str) -> Result | None:
    """Pull once, acknowledge the result of `request_id`, and release the others."""
    found: Result | None = None
    others: list[bytes] = []
    for held in await source.receive(MAX_PULL):
        result = _result(held.result)
        if found is None and result is not None and result.id == request_id:
            found = result
            await source.ack([held.claim_key])
        else:
            others.append(held.claim_key)
    await source.give_back(others)
    return found


def _result(text: bytes) -> Result | None:
    try:
        return decode_result(text)
    except Malformed:
        return None


def _with_labels(request: NewRequest) -> NewRequest:
    """The request with its labels in the metadata: bodies have no labels."""
    labels = {**request.labels, TIER_ATTRIBUTE: request.tier} if request.tier else request.labels
    return msgspec.structs.replace(request, metadata={**labels, **request.metadata})


def _ack_ids(claim_keys: Sequence[bytes]) -> list[str]:
    return [claim_key.decode() for claim_key in claim_keys]


@contextlib.contextmanager
def pubsub_errors() -> Iterator[None]:
    """Raise `BrokerUnreachable` in place of `PubSubFailed`."""
    try:
        yield
    except PubSubFailed as error:
        raise BrokerUnreachable(f"Pub/Sub: {error}") from error
