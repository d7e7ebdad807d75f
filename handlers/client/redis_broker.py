"""The client on Redis: queues in a sorted set, reads result lists."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Final, TypeVar

import msgspec

from handlers.backoff import Backoff
from handlers.cancellation import end_if_cancelled
from handlers.client.broker import Submission
from handlers.client.errors import (
    BrokerUnreachable,
    ClientError,
    IdempotencyConflict,
    NoOwnResults,
    NoResultYet,
    UnknownRequest,
)
from handlers.client.new_request import CheckedRequest, NewRequest, content_digest, encode_body
from handlers.client.options import ClientOptions
from handlers.client.results import OwnResults
from handlers.clock import FollowedClock
from handlers.contract.errors import InvalidRequest
from handlers.contract.lenient_json import Malformed, is_unicode
from handlers.contract.result import Result, decode_result
from handlers.redis_store.admin.status_board import FinishedRecord, read_finished
from handlers.redis_store.admin.whereabouts import (
    Searched,
    Whereabouts,
    finished_state,
    live_state,
    locate,
    may_be_queued,
)
from handlers.redis_store.connection import STORE_FAILURES, Store, server_time
from handlers.redis_store.faults import explained
from handlers.redis_store.idempotency.idempotency import (
    KeyAcknowledgements,
    KeyRecord,
    keyed_token,
    keyed_token_of,
)
from handlers.redis_store.keys import payload_key, result_of_key
from handlers.redis_store.opening import open_submissions
from handlers.redis_store.results.payloads import delete_payloads, whole_result, whole_results
from handlers.redis_store.results.results import AckOutcome, HeldResult, Results, oldest_results, peek_results
from handlers.redis_store.scripts import BATCH_BYTES
from handlers.redis_store.submit.submissions import (
    TRANSIENT_ERRORS,
    MemberParts,
    Queued,
    RedisAccess,
    RequestState,
    client_options,
    open_redis,
)

FIRST_SECONDS: Final = 2.0
"""Time limit until Redis has answered once: a wrong address is more likely than a failover."""
_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 1.0
T = TypeVar("T")


class StoreRetry:
    """Retry policy of one client.

    `seconds` is the time limit once Redis has answered this client. `clock` is monotonic.
    """

    def __init__(
        self,
        seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter
        self._is_known = False

    async def run(self, call: Callable[[bool], Awaitable[T]]) -> T:
        """Run `call` until it succeeds, with exponential backoff and jitter.

        The argument of `call` is true for a retry. Raises `BrokerUnreachable` at the time limit, or at once for an
        error that a retry cannot change.
        """
        until = self._clock() + (self._seconds if self._is_known else min(FIRST_SECONDS, self._seconds))
        backoff = Backoff(_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, self._jitter)
        is_repeated = False
        while True:
            try:
                answer = await call(is_repeated)
            except TRANSIENT_ERRORS as error:
                end_if_cancelled()  # the library may turn a cancellation into a connection error
                last: Exception = error
            except STORE_FAILURES as error:
                raise BrokerUnreachable(f"Redis: {explained(error)}") from error
            else:
                self._is_known = True
                return answer
            is_repeated = True
            if self._clock() < until:
                await self._sleep(backoff.next_seconds())
            # Check after the pause too: a suspended process must not retry when Redis has no record of its first call.
            if self._clock() >= until:
                raise BrokerUnreachable(f"Redis: {explained(last)}") from last


BATCH_REQUESTS = 500
"""Maximum number of requests in one call: a few milliseconds of server time, so that other clients are not delayed."""

_PEEKED = 100

_ASK_SECONDS: Final = 600.0
"""Seconds for which an observation of Redis' clock is used."""
_ANSWER_SECONDS: Final = 1.0

CHECKED_STEPS = 20
"""Maximum number of calls of one search for an id, enough for a queue of 10,000 small requests."""
_FIRST_CHECK_SECONDS: Final = 0.25
CHECK_SECONDS = 30.0
"""Maximum seconds between checks whether the result of a waiting call went to another list."""

UNREAD_RESULT_SECONDS = 7 * 86_400
"""Seconds after the deadline for which an idempotency key is kept while its result in a shared list is unread."""

MOST_RECEIVED = 1_000
"""Maximum number of results that one call takes under a lease."""


async def observe_time(redis: Store, clock: FollowedClock) -> bool:
    """Set `clock` to the time of Redis. False if Redis does not answer."""
    started_at, has_answered = clock.started(), False
    with contextlib.suppress(*STORE_FAILURES):
        async with asyncio.timeout(_ANSWER_SECONDS):
            clock.observe(await server_time(redis), started_at)
        has_answered = True
    end_if_cancelled()
    return has_answered


class RedisBroker:
    """The client of one Redis, whose clock counts for durations from now."""

    def __init__(
        self,
        url: str,
        options: ClientOptions,
        access: RedisAccess | None = None,
        *,
        clock: FollowedClock | None = None,
    ) -> None:
        self._clock = clock or FollowedClock()
        self._asked_at = -math.inf
        self._options = options
        self._redis = open_redis(url, access)
        self._is_cluster = client_options(url, access).is_cluster
        self._submissions = open_submissions(self._redis, options.wait_replicas)
        self._retry = StoreRetry(options.patience_seconds)
        self._own_results = OwnResults(self._peek)

    async def submit(self, requests: Sequence[NewRequest]) -> list[Submission]:
        """Queue requests in order. All are checked before the first is queued.

        After an `IdempotencyConflict`, nothing has been queued, unless another producer used the key at the same time.
        """
        now = await self._now()
        parts = [self._parts(request, now) for request in requests]
        await self._check_keys(requests, parts)
        queued: list[Queued] = []
        for batch in batches(parts):
            queued += await self._submit_batch(batch)
        return [
            self._submission(request, part, done) for request, part, done in zip(requests, parts, queued, strict=True)
        ]

    async def _now(self) -> float:
        """Unix seconds of Redis; those of the local clock if Redis does not report its time."""
        started_at = self._clock.started()
        is_due = started_at - self._asked_at >= _ASK_SECONDS
        if is_due and await observe_time(self._redis, self._clock):
            self._asked_at = started_at
        return self._clock.now()

    async def _check_keys(self, requests: Sequence[NewRequest], parts: Sequence[MemberParts]) -> None:
        """Raise `IdempotencyConflict` for a key that was used for other content.

        The other content is of an earlier call, or of another request in this call.
        """
        if not any(part.record for part in parts):
            return
        records = await self._retry.run(lambda _: self._submissions.recorded(parts))
        for request, part in zip(requests, parts, strict=True):
            if part.record:
                _check_content(request, part, records.setdefault(part.submitted_key, part.record))

    def _submission(self, request: NewRequest, part: MemberParts, done: Queued) -> Submission:
        """The request's submission, or the earlier one under its idempotency key."""
        recorded = done.record
        if recorded:
            _check_content(request, part, recorded)
        return Submission(
            id=recorded.id if recorded else part.id,
            token=done.token,
            deadline=recorded.deadline if recorded else part.deadline,
            queue=self._options.queue,
            results=recorded.results if recorded else self._result_list(request, part.id),
            has_own_results=request.has_own_results,
            is_new=done.is_new,
        )

    def results(self, name: str = "") -> RedisResults:
        """Results of the list `name` (empty: the default one), under leases."""
        return RedisResults(
            self._redis,
            Results(
                self._redis,
                name or self._options.results,
                owner=secrets.token_hex(16),
                lease_ms=max(1, int(self._options.lease_seconds * 1000)),
                tombstone_ms=self._options.tombstone_seconds * 1000,
            ),
            self._options.lease_seconds,
        )

    async def own_result(self, submission: Submission | str, timeout_seconds: float | None) -> Result:
        """Wait for a result in its own list. It stays there until the list expires."""
        request_id, token = _names(submission)
        list_name = result_of_key(self._options.results, request_id)
        # Each request may have its own list (`RESULT_PER_REQUEST`); the client does not know that setting.
        is_certain = isinstance(submission, Submission) and submission.has_own_results
        try:
            async with asyncio.timeout(timeout_seconds):
                if is_certain:
                    return await self._own_results.wait(list_name, token)
                return await self._possible_result(request_id, list_name, token)
        except TimeoutError:
            if not is_certain:
                await self._check_known(request_id, list_name)
            raise NoResultYet(request_id, timeout_seconds or 0.0) from None

    async def _possible_result(self, request_id: str, list_name: str, token: str) -> Result:
        """Wait for a result that may go to another list.

        It checks whether the result can still arrive here, at first often, then every `CHECK_SECONDS`.
        """
        pauses = Backoff(_FIRST_CHECK_SECONDS, CHECK_SECONDS)
        while True:
            await self._check_known(request_id, list_name)
            end_if_cancelled()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pauses.next_seconds()):
                    return await self._own_results.wait(list_name, token)

    async def _check_known(self, request_id: str, list_name: str) -> None:
        """Raise `NoOwnResults` or `UnknownRequest` if no result can arrive in `list_name`.

        No result can arrive if the request is not live and not queued, and the list does not exist. Other producers do
        not write the keys that mark a request as live, so the queue is searched too.
        """
        state = await self.look_up(request_id)
        if state not in (RequestState.UNKNOWN, RequestState.FINISHED, RequestState.CANCELLED):
            return
        options = self._options
        keys = Searched([options.queue], options.retry_queue, options.results, self._is_cluster)
        with store_errors():
            if await may_be_queued(self._redis, request_id, keys, steps=CHECKED_STEPS):
                return
            if await self._redis.exists(list_name):  # last: the request may have been answered in the meantime
                return
        record = await self._finished(request_id)
        if record and record.results and record.results != list_name:
            raise NoOwnResults(request_id, record.results)
        if state is RequestState.UNKNOWN:
            raise UnknownRequest(request_id)

    async def cancel(self, submissions: Sequence[Submission | str]) -> list[bool]:
        """Cancel submissions, or the live submissions of ids."""
        names = [_names(submission) for submission in submissions]
        done: list[bool] = []
        for start in range(0, len(names), BATCH_REQUESTS):
            with store_errors():
                done += await self._submissions.cancel(names[start : start + BATCH_REQUESTS])
        return done

    async def look_up(self, submission: Submission | str) -> RequestState:
        """The state of a submission, read from a few keys; that of a dead letter with a bounded search."""
        request_id, token = _names(submission)
        queue = submission.queue if isinstance(submission, Submission) else self._options.queue
        with store_errors():
            state, _ = await self._submissions.look_up(queue, request_id, token)
        if state in (RequestState.FINISHED, RequestState.UNKNOWN):
            record = await self._finished(request_id)
            if record and token in ("", record.token):
                return await self._requeued(queue, request_id) if record.is_dead else finished_state(record)
        return state

    async def _requeued(self, queue: str, request_id: str) -> RequestState:
        """The state of a dead-lettered request, which may have been requeued."""
        keys = Searched([queue], self._options.retry_queue, self._options.results, self._is_cluster)
        with contextlib.suppress(*STORE_FAILURES):  # the ACL may forbid reading the queue
            return await live_state(self._redis, request_id, keys, steps=CHECKED_STEPS) or RequestState.DEAD_LETTERED
        return RequestState.DEAD_LETTERED

    async def _finished(self, request_id: str) -> FinishedRecord | None:
        with contextlib.suppress(*STORE_FAILURES):  # the ACL may forbid reading records
            return await read_finished(self._redis, request_id)
        return None

    async def peek(self, name: str, limit: int | None) -> AsyncIterator[Result]:
        """Read a list's results, oldest first, without removing them. Undecodable ones are skipped."""
        key, seen = name or self._options.results, 0
        while limit is None or seen < limit:
            count = _PEEKED if limit is None else min(_PEEKED, limit - seen)
            with store_errors():
                texts = await oldest_results(self._redis, key, count, skipped=seen)
            for text in texts:
                with store_errors():
                    whole = await whole_result(self._redis, text)
                with contextlib.suppress(Malformed):
                    yield decode_result(whole.text)
            if not texts:  # large results come in smaller batches
                return
            seen += len(texts)

    async def where(self, submission: Submission | str) -> Whereabouts:
        """Find a request: in queue, retries, dead letters, records or results."""
        request_id, _ = _names(submission)
        options = self._options
        queue = submission.queue if isinstance(submission, Submission) else options.queue
        queues = list(dict.fromkeys([queue, *options.other_queues]))
        keys = Searched(queues, options.retry_queue, options.results, self._is_cluster)
        with store_errors():
            return await locate(self._redis, request_id, keys)

    async def close(self) -> None:
        """Close the connections. Leased results are delivered again when their leases expire."""
        await self._own_results.close()
        await self._redis.aclose()

    def _parts(self, request: NewRequest, now: float) -> MemberParts:
        options = self._options
        body = encode_body(request, now=now, tenant_attribute=options.tenant_attribute)
        key = request.idempotency_key
        token = keyed_token(options.queue, key) if key else secrets.token_hex(16)
        offload_bytes = options.payload_apart_bytes
        is_offloaded = offload_bytes is not None and len(body.payload) >= offload_bytes
        labels = {**request.labels, "tier": request.tier} if request.tier else request.labels
        parts = member_parts(
            body,
            token=token,
            queue=options.queue,
            results=self._result_list(request, body.id),
            labels=labels,
            own_result_seconds=options.own_result_seconds if request.has_own_results else None,
            payload_ref=payload_key(body.id, token) if is_offloaded else "",
        )
        return self._keyed(parts, request) if key else parts

    def _keyed(self, parts: MemberParts, request: NewRequest) -> MemberParts:
        """`parts` with the record of the request's idempotency key."""
        options = self._options
        is_own = request.has_own_results
        return msgspec.structs.replace(
            parts,
            record=KeyRecord(
                content_digest(request),
                parts.id,
                parts.deadline,
                self._result_list(request, parts.id),
            ),
            window_seconds=options.idempotency_window_seconds,
            unread_seconds=options.own_result_seconds if is_own else UNREAD_RESULT_SECONDS,
        )

    def _result_list(self, request: NewRequest, request_id: str) -> str:
        results = self._options.results
        return result_of_key(results, request_id) if request.has_own_results else results

    async def _submit_batch(self, batch: Sequence[MemberParts]) -> list[Queued]:
        """Queue one batch. Retries until Redis answers, without queueing twice."""

        async def submit(is_repeated: bool) -> list[Queued]:
            return await self._submissions.submit(
                self._options.queue,
                batch,
                window_seconds=self._options.idempotent_window_seconds,
                is_repeated=is_repeated,
            )

        return await self._retry.run(submit)

    async def _peek(self, lists: Sequence[str]) -> AsyncIterator[tuple[str, bytes | ClientError]]:
        with store_errors():
            async for name, found in peek_results(self._redis, lists):
                if isinstance(found, bytes):
                    yield name, (await whole_result(self._redis, found)).text
                else:
                    yield name, BrokerUnreachable(f"Redis: {name}: {explained(found)}")


class RedisResults:
    """A result list under leases.

    Offloaded payloads are fetched with their results and deleted by `ack`.
    """

    def __init__(self, redis: Store, results: Results, lease_seconds: float) -> None:
        self.lease_seconds = lease_seconds
        self._redis = redis
        self._results = results
        self._keys = KeyAcknowledgements(redis)
        self._payload_keys: dict[bytes, str] = {}
        self._keyed_tokens: dict[bytes, str] = {}
        self._most = MOST_RECEIVED

    async def receive(self, limit: int) -> list[HeldResult]:
        """Take at most `limit` of the oldest results, about `BATCH_BYTES` with payloads."""
        with store_errors():
            asked = min(limit, self._most)
            taken = await self._results.receive(asked)
            whole = await whole_results(self._redis, [held.result for held in taken])
            rest = [held.claim_key for held in taken[len(whole) :]]
            await self._results.give_back(rest)
        # Results whose payloads did not fit were released; the next call takes fewer.
        self._most = 2 * (len(whole) if rest else asked)
        held_results = list(zip(taken, whole, strict=False))
        self._payload_keys |= {held.claim_key: one.payload_key for held, one in held_results if one.payload_key}
        tokens = {held.claim_key: keyed_token_of(held.result) for held, _ in held_results}
        self._keyed_tokens |= {key: token for key, token in tokens.items() if token}
        return [HeldResult(held.claim_key, one.text) for held, one in held_results]

    async def renew(self, claim_keys: Sequence[bytes]) -> list[bool]:
        """Extend the leases. Returns for each whether it is still held."""
        with store_errors():
            return await self._results.renew(claim_keys)

    async def ack(self, claim_keys: Sequence[bytes]) -> list[AckOutcome]:
        """Remove results and their offloaded payloads, and let their idempotency keys expire."""
        with store_errors():
            outcomes = await self._results.ack(claim_keys)
            done = [key for key, outcome in zip(claim_keys, outcomes, strict=True) if outcome is not AckOutcome.LOST]
            await delete_payloads(self._redis, _found(self._payload_keys, done))
        with contextlib.suppress(*STORE_FAILURES):  # if this fails, the key is only valid for longer
            await self._keys.acknowledge(_found(self._keyed_tokens, done))
        for held in (self._payload_keys, self._keyed_tokens):
            _forget(held, claim_keys)
        return outcomes

    async def give_back(self, claim_keys: Sequence[bytes]) -> int:
        """Release results to the list. Returns how many."""
        for held in (self._payload_keys, self._keyed_tokens):
            _forget(held, claim_keys)
        with store_errors():
            return await self._results.give_back(claim_keys)


def _found(held: dict[bytes, str], claim_keys: Sequence[bytes]) -> list[str]:
    return [held[key] for key in claim_keys if key in held]


def _forget(held: dict[bytes, str], claim_keys: Sequence[bytes]) -> None:
    for key in claim_keys:
        held.pop(key, None)


def _check_content(request: NewRequest, part: MemberParts, recorded: KeyRecord) -> None:
    if part.record and part.record.content != recorded.content:
        raise IdempotencyConflict(request.idempotency_key, recorded.id)


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Raise `BrokerUnreachable` in place of Redis errors."""
    try:
        yield
    except STORE_FAILURES as error:
        raise BrokerUnreachable(f"Redis: {explained(error)}") from error


def batches(parts: Sequence[MemberParts]) -> Iterator[list[MemberParts]]:
    """Split `parts`, in order, into batches bounded by count and bytes."""
    batch: list[MemberParts] = []
    size = 0
    for part in parts:
        part_bytes = len(part.head) + len(part.tail) + len(part.payload)
        if batch and (len(batch) >= BATCH_REQUESTS or size + part_bytes > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(part)
        size += part_bytes
    if batch:
        yield batch


def _names(submission: Submission | str) -> tuple[str, str]:
    """Id and token of a submission. For an id, the token is empty."""
    if isinstance(submission, Submission):
        return submission.id, submission.token
    if not is_unicode(submission):
        raise InvalidRequest("id", found="text with lone surrogates", accepted="valid Unicode")
    return submission, ""


_encoder = msgspec.json.Encoder()


def member_parts(
    body: CheckedRequest,
    *,
    token: str,
    queue: str,
    results: str,
    labels: Mapping[str, str],
    own_result_seconds: int | None = None,
    payload_ref: str = "",
) -> MemberParts:
    """The member for `body`, still without its sequence.

    With `own_result_seconds`, `results` is the request's own list, which is kept for that long, and overrides the
    queue's result list. With `payload_ref`, the payload is offloaded.
    """
    internal: dict[str, object] = {"request_queue_name": queue, "result_queue_name": results}
    if own_result_seconds is not None:
        internal |= {"result_ttl_seconds": own_result_seconds, "result_routing_resolved": True}
    if labels:
        internal["labels"] = dict(labels)
    if payload_ref:
        internal["payload_ref"] = payload_ref
    routing = _encoder.encode(internal)[:-1]
    data = body.without_payload if payload_ref else body.whole
    return MemberParts(
        id=body.id,
        deadline=body.deadline,
        token=token,
        # `submit.lua` inserts the sequence between head and tail, and closes the string there.
        head=b'{"internal":%b,"request_token":"%b-' % (routing, token.encode()),
        tail=b'},"request_kind":"redis","data":%b}' % data,
        payload=body.payload if payload_ref else b"",
    )
