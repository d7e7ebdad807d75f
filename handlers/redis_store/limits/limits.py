"""Limits that processes share through one Redis: quotas, leased rates, budgets, the slots of a pool.

Quota keys, with K = <prefix><attribute>:<value>:

K            zset    rate: one entry per unit, score = Unix nanoseconds; shared with the reference; expires
                     two windows after the last unit
K            string  concurrency: slots in use; shared with the reference; deleted at 0, expires if unused
{K}:paid     zset    ours: submission, score = when it is forgotten, Unix seconds; expires with the last of them
{K}:held     zset    ours: submission, score = lease end, Unix seconds; expires if unused
{K}:held-by  hash    ours: submission -> owner token; expires if unused

Leased rates and budgets:

<control>             hash    the lease: api_version, pool_id, max_admission_rps, valid_until_unix_ms,
                              decision_id; written by an external controller
<control>:state       hash    token bucket: tokens, last_ms; the reference's format; expires with the lease
dispatch-gate-budget  string  a number from 0 to 1; written by an external controller

The scripts of a pool's members, `share_pool.lua` and `leave_pool.lua`, list their own keys.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
from redis.asyncio.cluster import RedisCluster
from redis.crc import key_slot

from handlers.contract.errors import InvalidSetting
from handlers.redis_store.connection import STORE_FAILURES, Store
from handlers.redis_store.keys import beside
from handlers.redis_store.scripts import lua_script

API_VERSION: Final = "llm-d.ai/v1alpha1"
_PAID, _HELD, _HELD_BY = "paid", "held", "held-by"
BESIDE_QUOTA: Final = tuple(f":{kind}" for kind in (_PAID, _HELD, _HELD_BY))
"""Ends of the names of keys beside a quota's key."""


class HeldSlot(NamedTuple):
    """A held slot of a quota: the quota's key and the claim."""

    key: str
    member: str


class TokenAnswer(NamedTuple):
    """Whether a token was taken, and the current lease.

    `per_second` is 0 if the lease is invalid; `wait_seconds` is the time until a token is available.
    """

    is_taken: bool
    is_valid: bool
    per_second: float
    wait_seconds: float


class RedisGateStore:
    """Counts what all processes use, on the server's clock.

    Methods raise one of `failures` while Redis does not answer. `member` names a claim, `owner` is the random token of
    this process. `counter_seconds` is the TTL of the counter, which is shared with the reference.
    """

    failures: tuple[type[Exception], ...] = STORE_FAILURES

    def __init__(self, redis: Store) -> None:
        self._redis = redis
        self._pay = lua_script(redis, "pay_rate")
        self._refund = lua_script(redis, "refund_rate")
        self._hold = lua_script(redis, "hold_slot")
        self._free = lua_script(redis, "free_slot")
        self._renew = lua_script(redis, "renew_slots")
        self._take = lua_script(redis, "take_token")
        self._return = lua_script(redis, "return_token")

    async def pay_rate(
        self, key: str, member: str, *, limit: int, window_seconds: float, remember_seconds: float
    ) -> tuple[bool, bool, float]:
        """Take one of `limit` units per window.

        Returns whether the request may be sent, whether this call took a unit, and the seconds until one is free. A
        member that took one within `remember_seconds` does not need another.
        """
        may_go, has_paid_now, wait_seconds = await self._pay(
            [key, beside(key, _PAID)], [member, limit, window_seconds, remember_seconds]
        )
        return bool(may_go), bool(has_paid_now), float(wait_seconds)

    async def refund_rate(self, key: str, member: str) -> None:
        """Return the unit that `member` took, if it took one."""
        await self._refund([key, beside(key, _PAID)], [member])

    async def hold_slot(
        self, slot: HeldSlot, owner: str, *, limit: int, lease_seconds: float, counter_seconds: float
    ) -> bool:
        """Take one of `limit` slots under a lease. Returns whether `owner` now holds one.

        If `member` holds one, `owner` takes that over.
        """
        arguments: list[str | float] = [slot.member, owner, limit, lease_seconds, counter_seconds]
        return bool(await self._hold(_slot_keys(slot.key), arguments))

    async def free_slot(self, slot: HeldSlot, owner: str, *, counter_seconds: float) -> bool:
        """Free the slot; returns whether `owner` still held it."""
        return bool(await self._free(_slot_keys(slot.key), [slot.member, owner, counter_seconds]))

    async def renew_slots(
        self, slots: Sequence[HeldSlot], owner: str, *, lease_seconds: float, counter_seconds: float
    ) -> None:
        """Extend the slots' leases, one call per quota key. Without slots, ping Redis.

        A lost slot is taken again, unless another owner holds it.
        """
        if not slots:
            await self._redis.ping()
        members: defaultdict[str, list[str]] = defaultdict(list)
        for slot in slots:
            members[slot.key].append(slot.member)
        for key, submissions in members.items():
            await self._renew(_slot_keys(key), [owner, lease_seconds, counter_seconds, *submissions])

    def check_lease_keys(self, control_key: str, state_key: str) -> None:
        """Raise `InvalidSetting` if a Redis Cluster has the keys in different slots."""
        if isinstance(self._redis, RedisCluster) and key_slot(control_key.encode()) != key_slot(state_key.encode()):
            accepted = "the same hash tag in both keys, such as {rates}:control and {rates}:state (Redis Cluster)"
            raise InvalidSetting("control_key and state_key", found=f"{control_key}, {state_key}", accepted=accepted)

    async def take_token(self, control_key: str, state_key: str, pool: str, *, burst_seconds: float) -> TokenAnswer:
        """Take a token, if the lease is valid and one is available."""
        return await self._token(control_key, state_key, pool, burst_seconds, is_taking=True)

    async def read_lease(self, control_key: str, state_key: str, pool: str) -> TokenAnswer:
        """The current lease, without taking a token. `wait_seconds` of the answer has no meaning."""
        return await self._token(control_key, state_key, pool, 1.0, is_taking=False)

    async def return_token(self, state_key: str) -> None:
        """Return one token. The next `take_token` applies the bucket's limit."""
        await self._return([state_key])

    async def read_budget(self, key: str) -> str | None:
        """The text under `key`; None if the key does not exist."""
        found: bytes | str | None = await self._redis.get(key)
        return found.decode(errors="replace") if isinstance(found, bytes) else found

    async def _token(
        self, control_key: str, state_key: str, pool: str, burst_seconds: float, *, is_taking: bool
    ) -> TokenAnswer:
        arguments: list[str | float] = [API_VERSION, pool, burst_seconds, 1 if is_taking else 0]
        is_taken, is_valid, per_second, wait_seconds = await self._take([control_key, state_key], arguments)
        return TokenAnswer(bool(is_taken), bool(is_valid), float(per_second), float(wait_seconds))


def _slot_keys(key: str) -> list[str]:
    return [key, beside(key, _HELD), beside(key, _HELD_BY)]


class PoolIndex(msgspec.Struct, frozen=True):
    """This poller's index `place` (from 0) among `count` pollers. The others use `elsewhere` slots."""

    place: int
    count: int
    elsewhere: int


class RedisPoolSharing:
    """One poller's membership in a pool. Raises one of `STORE_FAILURES` if Redis does not answer."""

    def __init__(self, redis: Store, pool_id: str, poller: str, *, lease_seconds: float) -> None:
        # One hash tag for both keys, so that a cluster keeps them on one node.
        tag = f"{{async-processor:pool:{pool_id}}}"
        self._keys = [f"{tag}:pollers", f"{tag}:in-use"]
        self._poller = poller
        self._lease_seconds = lease_seconds
        self._share = lua_script(redis, "share_pool")
        self._leave = lua_script(redis, "leave_pool")

    async def share(self, in_use: int) -> PoolIndex:
        """Renew the lease, report slots in use, and return this poller's share."""
        place, count, elsewhere = await self._share(self._keys, [self._poller, in_use, self._lease_seconds])
        return PoolIndex(int(place), int(count), int(elsewhere))

    async def leave(self) -> None:
        """Leave the pool. The others may use this poller's share at once."""
        await self._leave(self._keys, [self._poller])
