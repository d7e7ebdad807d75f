"""A queue and a retry set: one script call for each batch.

The header of each script (`*.lua` in this folder) describes what it changes in one step, and the effect of sending it
twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final

import msgspec
from redis.exceptions import NoPermissionError, ResponseError

from handlers.clock import FollowedClock
from handlers.contract.result import decode_result, encode_result, filled_result
from handlers.redis_store.connection import STORE_REFUSALS, Store, executed, flat
from handlers.redis_store.idempotency.idempotency import IdRecord, finish_id_record
from handlers.redis_store.keys import (
    QueueKeys,
    active_key,
    cancel_key,
    cancel_key_of,
    is_own_payload,
    queue_keys,
    settled_key,
)
from handlers.redis_store.queue.cancellations import AT_ONCE, Cancellation, CancelSearch, searches
from handlers.redis_store.results.payloads import StoredPayload, delete_payloads, store_payloads
from handlers.redis_store.scripts import SCRIPT_BYTES, Replication, in_batches, lua_script

SCAN_COUNT: Final = 500
_RETRIED = re.compile(rb'"internal"\s*:.*?"retry_count"\s*:\s*[1-9]', re.DOTALL)
"""Must match as `is_retry` in `_choose.lua` does, which decides which requests are claimed."""
_DATA = re.compile(rb'"data"\s*:')
_HEAD_BYTES = 4_096

HELD_BACK_LEASES: Final = 2
"""The claims of a lost reply are searched for this many leases, since the server may run the command late."""


Effect = int | bytes
"""Outcome of an ack or nack of one claim: 1, 0 if the claim was lost, or an error text (the claim is unchanged)."""


class Claim(msgspec.Struct, frozen=True):
    """A request that this poller holds until its lease ends. `member` is the queued bytes.

    `delivery_count` counts earlier deliveries whose owner crashed. `is_cancelled`: the producer has cancelled it.
    """

    queue: str
    member: bytes
    score: float
    claim_key: bytes
    owner_token: bytes
    delivery_count: int = 0
    is_cancelled: bool = False

    @property
    def is_retry(self) -> bool:
        """Whether the envelope's head marks the request as attempted before."""
        retried = _RETRIED.search(self.member, 0, _HEAD_BYTES)
        return retried is not None and _DATA.search(self.member, 0, retried.end()) is None

    @property
    def request_id(self) -> str:
        """The id in the claim key, for logs. A digest for an unreadable member."""
        return self.claim_key.split(b"\0", 1)[0].decode("utf-8", "replace")


class Ack(msgspec.Struct, frozen=True):
    """A final result to record.

    `result` is empty for a dead letter without a result; `dead` is the dead letter's record. `outcome` is an error code
    or `HTTP <status>`, `stored` the result's offloaded payload, `id_record` the idempotency record of the id.
    """

    claim: Claim
    result: bytes
    result_queue_name: str
    result_ttl_seconds: int | None
    request_id: str
    request_token: str
    payload_ref: str = ""
    dead: bytes | None = None
    stored: StoredPayload | None = None
    id_record: IdRecord | None = None
    outcome: str = ""

    @property
    def own_payload_key(self) -> str:
        """The request's own payload key, which the ack deletes; else empty."""
        return self.payload_ref if is_own_payload(self.payload_ref, self.request_id, self.request_token) else ""


class Nack(msgspec.Struct, frozen=True):
    """A retry after a delay, queued as `retry_member`."""

    claim: Claim
    retry_member: bytes
    delay_seconds: float


class Reclaimed(msgspec.Struct, frozen=True):
    """Outcome of `reclaim`. `returned` requests are pending again; `dead` exceeded the limit and are claimed."""

    returned: int
    dead: list[Claim]


class QueueOptions(msgspec.Struct, frozen=True):
    """Lease and key names of a queue. `cluster`: the server is a Redis Cluster.

    With `wait_replicas`, an ack or nack succeeds once that many replicas have it. Until then it raises `NotReplicated`,
    and so does `claim`. Repeat the ack or nack to continue waiting.
    """

    retry_queue_name: str
    default_result_queue_name: str
    lease_seconds: float = 15.0
    cluster: bool = False
    wait_replicas: int = 0
    wait_timeout_ms: int = 1_000


class RedisQueue:
    """The queue `name`. Every method raises one of `STORE_FAILURES` if Redis does not answer."""

    def __init__(self, redis: Store, name: str, options: QueueOptions, clock: FollowedClock | None = None) -> None:
        self.name = name
        self._clock = clock or FollowedClock()
        self._redis = redis
        self._options = options
        self._keys: QueueKeys = queue_keys(name, cluster=options.cluster)
        self._claim = lua_script(redis, "claim")
        self._renew = lua_script(redis, "renew")
        self._ack = lua_script(redis, "ack")
        self._nack = lua_script(redis, "nack")
        self._release = lua_script(redis, "release")
        self._reclaim = lua_script(redis, "reclaim")
        self._recall = lua_script(redis, "recall")
        self._take_back = lua_script(redis, "take_back")
        self._lost: dict[str, float] = {}
        self._has_lost = False
        self._replication = Replication(redis, options.wait_replicas, options.wait_timeout_ms)

    @property
    def has_lost_replies(self) -> bool:
        """Whether a claim's reply was lost recently. If so, run `reclaim`."""
        return bool(self._lost)

    def now(self) -> float:
        """The server's Unix seconds, estimated from its replies to `claim` and `reclaim`."""
        return self._clock.now()

    async def claim(
        self,
        count: int,
        *,
        only_expired: bool = False,
        max_bytes: int = SCRIPT_BYTES,
        most_retries: int | None = None,
        position: float = 0.0,
    ) -> list[Claim]:
        """Take up to `count` pending requests, lowest score first.

        `only_expired`: only requests whose score (deadline) has passed. The members have at most `max_bytes` together
        (or `SCRIPT_BYTES`, if that is less), but at least one is taken. While other requests wait, at most
        `most_retries` are retries (None: no limit). `position` is where to begin: 0 at the queue's head, 1 at its end,
        else by rank.
        """
        if not self._replication.is_complete:
            raise self._replication.missing
        if self._has_lost:
            await self.take_back()
        keys, started_at = self._keys, self._clock.started()
        with self._prefix() as prefix:
            answer = await self._claim(
                keys=[keys.pending, keys.claimed, keys.owners, keys.index, keys.deaths],
                args=[
                    count,
                    self._options.lease_seconds,
                    prefix,
                    int(only_expired),
                    int(not self._options.cluster),
                    min(max_bytes, SCRIPT_BYTES),
                    count if most_retries is None else most_retries,
                    position,
                ],
            )
        self._clock.observe(float(answer[0]), started_at)
        return self._claims(answer[1:])

    @contextlib.contextmanager
    def _prefix(self) -> Iterator[str]:
        """A random part for owner tokens. It is remembered if the reply is lost."""
        prefix = secrets.token_hex(16)
        try:
            yield prefix
        except ResponseError:
            raise  # the script has undone its writes
        except BaseException:
            self._lost[prefix] = time.monotonic()
            self._has_lost = True
            raise

    async def take_back(self) -> int:
        """Return claims of lost replies to pending, without counting a crashed owner."""
        lost, keys = dict(self._lost), self._keys
        self._has_lost = False  # before the first await: a reply lost meanwhile sets it again
        try:
            returned, has_more = 0, bool(lost)
            while has_more:
                some, has_more = await self._take_back(
                    keys=[keys.pending, keys.claimed, keys.owners, keys.index], args=[SCRIPT_BYTES, *lost]
                )
                returned += int(some)
        except BaseException:
            self._has_lost = True
            raise
        ended = time.monotonic() - HELD_BACK_LEASES * self._options.lease_seconds
        for prefix, since in lost.items():
            if since < ended:
                self._lost.pop(prefix, None)  # may be gone: `claim` and `reclaim` may run this at the same time
        return returned

    async def renew(self, claims: Sequence[Claim]) -> list[Claim]:
        """Extend leases; returns the claims that were lost."""
        keys = self._keys
        pairs = [(claim.claim_key, claim.owner_token) for claim in claims]
        effects = await self._renew(keys=[keys.owners, keys.index], args=[self._options.lease_seconds, *flat(pairs)])
        return [claim for claim, effect in zip(claims, effects, strict=True) if not effect]

    async def ack(self, acks: Sequence[Ack]) -> list[bool]:
        """Record final results. False if the lease was lost and nothing changed."""
        # Payloads before the results that name them: a crash in between leaves keys that expire.
        acks = await self._with_offloaded_payloads(acks)
        effects = await self._recorded(acks)
        id_records = [ack.id_record for ack, effect in zip(acks, effects, strict=True) if ack.id_record and effect]
        if id_records:
            with contextlib.suppress(*STORE_REFUSALS):  # without this right, the record was never written
                await finish_id_record(self._redis, id_records)
        unused = [ack.stored.key for ack, effect in zip(acks, effects, strict=True) if ack.stored and not effect]
        if unused:
            with contextlib.suppress(*STORE_REFUSALS):  # unused payloads expire by themselves
                await delete_payloads(self._redis, unused)
        return effects

    async def _with_offloaded_payloads(self, acks: Sequence[Ack]) -> Sequence[Ack]:
        """Store large payloads. If the ACL refuses their keys, put them into the results."""
        stored = [ack.stored for ack in acks if ack.stored]
        if not stored:
            return acks
        try:
            await store_payloads(self._redis, stored)
        except NoPermissionError:
            return [_with_payload_inside(ack) for ack in acks]
        return acks

    async def _recorded(self, acks: Sequence[Ack]) -> list[bool]:
        effects = await self._acked(acks)
        refused = [ack for ack, effect in zip(acks, effects, strict=True) if _is_refused_list(effect)]
        if refused:
            # The request named a key that is not a list, or that the ACL refuses: use the default list.
            default = self._options.default_result_queue_name
            again = iter(
                await self._acked([msgspec.structs.replace(ack, result_queue_name=default) for ack in refused])
            )
            effects = [next(again) if _is_refused_list(effect) else effect for effect in effects]
        return settled_effects(effects)

    async def _acked(self, acks: Sequence[Ack]) -> list[Effect]:
        keys = self._keys
        settled = settled_key(keys, batch_digest("ack", [ack.claim for ack in acks]))
        effects: list[Effect] = await self._replication.run(
            self._ack,
            [keys.claimed, keys.owners, keys.index, keys.deaths, keys.dead, settled],
            flat([_ack_row(ack) for ack in acks]),
        )
        return effects

    async def nack(self, nacks: Sequence[Nack]) -> list[bool]:
        """Put requests into the retry set. False if the lease was lost and nothing changed."""
        keys = self._keys
        rows = [(nack.claim.claim_key, nack.claim.owner_token, nack.retry_member, nack.delay_seconds) for nack in nacks]
        settled = settled_key(keys, batch_digest("nack", [nack.claim for nack in nacks]))
        retries = self._options.retry_queue_name
        effects = await self._replication.run(
            self._nack, [keys.claimed, keys.owners, keys.index, retries, settled], flat(rows)
        )
        return settled_effects(effects)

    async def release(self, claims: Sequence[Claim]) -> list[bool]:
        """Return claims to pending unchanged. False if the lease was lost."""
        keys = self._keys
        effects: list[int] = []
        for some in in_batches(claims, lambda claim: len(claim.member), SCRIPT_BYTES):
            rows = [(claim.claim_key, claim.owner_token, repr(claim.score)) for claim in some]
            effects += await self._release(keys=[keys.pending, keys.claimed, keys.owners, keys.index], args=flat(rows))
        return [effect == 1 for effect in effects]

    async def recall(self, cancelled: Sequence[Cancellation]) -> AsyncIterator[list[Claim]]:
        """Claim cancelled pending requests, wherever they are queued, to answer them unsent."""
        for search in searches(cancelled):
            place = (1, 0)
            while place[0]:
                place, claims = await self._recalled(search, place)
                if claims:
                    yield claims

    async def _recalled(self, search: CancelSearch, place: tuple[int, int]) -> tuple[tuple[int, int], list[Claim]]:
        """One step of a search: the next place and the claims made.

        A place is a range (from 1; 0: done) and the number of its members to skip.
        """
        keys, options = self._keys, self._options
        with self._prefix() as prefix:
            answer = await self._recall(
                keys=[keys.pending, keys.claimed, keys.owners, keys.index, keys.deaths],
                args=[
                    options.lease_seconds,
                    prefix,
                    *place,
                    AT_ONCE,
                    SCRIPT_BYTES,
                    len(search.ranges),
                    *flat(search.ranges),
                    *search.names,
                ],
            )
        return (int(answer[1]), int(answer[2])), self._claims(answer[3:])

    async def cancelled(self, claims: Sequence[Claim]) -> list[Claim]:
        """Which of `claims` their producers have cancelled, in one round trip."""
        known = [claim for claim in claims if b"\0" in claim.claim_key]
        if not known:
            return []
        names = [claim.claim_key.split(b"\0") for claim in known]
        pipeline = self._redis.pipeline(transaction=False)
        for request_id, *tokens in names:  # not more bytes than the token has: a client may write 500 MB
            pipeline.getrange(cancel_key_of(request_id), 0, len(tokens[0]))
        # A key of another type hides one cancellation; it must not fail the others.
        tokens = await executed(self._redis, pipeline, raise_on_error=False)
        return [claim for claim, name, token in zip(known, names, tokens, strict=True) if token == name[1]]

    async def reclaim(self, limit: int, max_deliveries: int) -> Reclaimed:
        """Return claims of crashed owners to pending.

        Those on which `max_deliveries` owners have crashed are claimed by this poller instead.
        """
        if self._lost:
            await self.take_back()
        keys, started_at = self._keys, self._clock.started()
        with self._prefix() as prefix:
            answer = await self._reclaim(
                keys=[keys.pending, keys.claimed, keys.owners, keys.index, keys.deaths],
                args=[limit, max_deliveries, self._options.lease_seconds, prefix, SCRIPT_BYTES],
            )
        self._clock.observe(float(answer[0]), started_at)
        return Reclaimed(returned=int(answer[1]), dead=self._claims(answer[2:]))

    def _claims(self, rows: Sequence[Any]) -> list[Claim]:
        return [
            Claim(
                queue=self.name,
                claim_key=rows[at],
                owner_token=rows[at + 1],
                member=rows[at + 2],
                score=float(rows[at + 3]),
                delivery_count=int(rows[at + 4]),
                is_cancelled=rows[at + 5] == b"1",
            )
            for at in range(0, len(rows), 6)
        ]


def batch_digest(operation: str, claims: Sequence[Claim]) -> str:
    """A name for this batch: a digest of its unique owner tokens."""
    tokens = b"\0".join(claim.owner_token for claim in claims)
    return f"{operation}-{hashlib.sha1(tokens, usedforsecurity=False).hexdigest()}"


def _with_payload_inside(ack: Ack) -> Ack:
    if ack.stored is None:
        return ack
    result = filled_result(decode_result(ack.result), ack.stored.payload)
    return msgspec.structs.replace(ack, result=encode_result(result), stored=None)


def settled_effects(effects: Sequence[Effect]) -> list[bool]:
    """Whether each claim was settled. Raises the first error; then repeat the call with the same batch."""
    for effect in effects:
        if isinstance(effect, bytes):
            text = effect.decode("utf-8", "replace")
            raise NoPermissionError(text) if text.startswith("NOPERM") else ResponseError(text)
    return [effect == 1 for effect in effects]


def _is_refused_list(effect: Effect) -> bool:
    return isinstance(effect, bytes) and effect.startswith((b"WRONGTYPE LPUSH", b"NOPERM LPUSH"))


def _ack_row(ack: Ack) -> tuple[Any, ...]:
    return (
        ack.claim.claim_key,
        ack.claim.owner_token,
        ack.result,
        ack.result_queue_name,
        ack.result_ttl_seconds if ack.result_ttl_seconds and ack.result_ttl_seconds > 0 else "",
        ack.dead or "",
        ack.request_token,
        active_key(ack.request_id),
        cancel_key(ack.request_id),
        ack.own_payload_key,
    )


class Retries:
    """A retry set, which several queues may share."""

    def __init__(self, redis: Store, retry_queue_name: str, default_queue: str) -> None:
        self._promote = lua_script(redis, "promote")
        self._script = lua_script(redis, "recall_retries")
        self._name = retry_queue_name
        self.default_queue = default_queue
        self.work_keys = [retry_queue_name]
        """Keys of which at least one exists if `promote` may have work."""

    async def promote(self, limit: int) -> int:
        """Move up to `limit` due retries to their queues; returns how many."""
        moved, has_more = 0, True
        while has_more and moved < limit:
            some, has_more = await self._promote(
                keys=[self._name], args=[limit - moved, self.default_queue, SCRIPT_BYTES]
            )
            moved += int(some)
        return moved

    async def recall(self, cancelled: Sequence[Cancellation]) -> int:
        """Move cancelled retries to their queues, for `RedisQueue.recall`. Returns how many."""
        return await self._brought([one.key for one in cancelled]) if cancelled else 0

    async def _brought(self, names: Sequence[bytes]) -> int:
        brought, low, passed = 0, b"-inf", 0
        while low:
            low, passed, some = await self._script(
                keys=[self._name], args=[self.default_queue, low, passed, SCAN_COUNT, SCRIPT_BYTES, *names]
            )
            brought += int(some)
        return brought
