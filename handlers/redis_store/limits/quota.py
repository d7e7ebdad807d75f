"""Quotas of tenants: a window of units, or slots under leases. One typed function a script.

K = <prefix><attribute>:<value>

K            zset    rate: one entry per unit, score = Unix nanoseconds; shared with the reference; expires
                     two windows after the last unit
K            string  concurrency: slots in use; shared with the reference; deleted at 0, expires untouched
{K}:paid     zset    ours: submission, score = remembered until, Unix seconds; expires with the longest memory
{K}:held     zset    ours: submission, score = lease end, Unix seconds; expires untouched
{K}:held-by  hash    ours: submission -> owner token; expires untouched
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

from handlers.redis_store.connection import STORE_FAILURES, Store
from handlers.redis_store.keys import beside
from handlers.redis_store.scripts import lua_script


class Slot(Protocol):
    """A slot: the quota's key, and the submission (id and token) that holds it."""

    @property
    def key(self) -> str:
        """The quota's key."""
        ...

    @property
    def member(self) -> str:
        """The submission."""
        ...


class RedisQuota:
    """Every method raises one of `failures` while Redis does not answer."""

    failures: tuple[type[Exception], ...] = STORE_FAILURES

    def __init__(self, redis: Store) -> None:
        self._redis = redis
        self._pay = lua_script(redis, "pay_rate")
        self._refund = lua_script(redis, "refund_rate")
        self._hold = lua_script(redis, "hold_slot")
        self._free = lua_script(redis, "free_slot")
        self._renew = lua_script(redis, "renew_slots")

    async def pay_rate(
        self, key: str, member: str, *, limit: int, window_seconds: float, remember_seconds: float
    ) -> tuple[bool, bool, float]:
        """Take one unit of `limit` per window: (may go, paid just now, seconds until a unit is free)."""
        may_go, has_paid_now, wait_seconds = await self._pay(
            [key, beside(key, "paid")], [member, limit, window_seconds, remember_seconds]
        )
        return bool(may_go), bool(has_paid_now), float(wait_seconds)

    async def refund_rate(self, key: str, member: str) -> None:
        """Give back the unit that `member` paid, if it did."""
        await self._refund([key, beside(key, "paid")], [member])

    async def hold_slot(
        self, slot: Slot, owner: str, *, limit: int, lease_seconds: float, counter_seconds: float
    ) -> bool:
        """Take one of `limit` slots under a lease; returns whether it is held now."""
        arguments: list[str | float] = [slot.member, owner, limit, lease_seconds, counter_seconds]
        return bool(await self._hold(_slot_keys(slot.key), arguments))

    async def free_slot(self, slot: Slot, owner: str, *, counter_seconds: float) -> bool:
        """Give the slot back; returns whether it was still this owner's."""
        return bool(await self._free(_slot_keys(slot.key), [slot.member, owner, counter_seconds]))

    async def renew_slots(
        self, slots: Sequence[Slot], owner: str, *, lease_seconds: float, counter_seconds: float
    ) -> None:
        """Move the leases' ends, one call for each tenant; without slots, ask whether Redis is there."""
        if not slots:
            await self._redis.ping()
        members: defaultdict[str, list[str]] = defaultdict(list)
        for slot in slots:
            members[slot.key].append(slot.member)
        for key, submissions in members.items():
            await self._renew(_slot_keys(key), [owner, lease_seconds, counter_seconds, *submissions])


def _slot_keys(key: str) -> list[str]:
    return [key, beside(key, "held"), beside(key, "held-by")]
