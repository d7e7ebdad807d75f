"""The slots of a concurrency quota that this process holds, kept alive in the background."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable

from handlers.cancellation import end_if_cancelled
from handlers.gates.quota.stores import HeldSlot, QuotaStore


class HeldSlots:
    """Takes, renews (at a third of the lease) and frees.

    `tell_missing` hears why the store cannot be asked, and "" once it can.
    """

    def __init__(
        self,
        store: QuotaStore,
        *,
        limit: int,
        lease_seconds: float,
        counter_seconds: float,
        tell_missing: Callable[[str], None],
    ) -> None:
        self._store = store
        self._limit = limit
        self._lease_seconds = lease_seconds
        self._counter_seconds = counter_seconds
        self._tell_missing = tell_missing
        self._owner = secrets.token_hex(8)
        self._held: set[HeldSlot] = set()
        self._loop: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._held)

    async def start(self) -> None:
        """Probe the store and renew from now on."""
        if self._loop is None:
            await self.tick()
            self._loop = asyncio.create_task(self._run(), name="renew quota slots")

    async def aclose(self) -> None:
        """Stop renewing."""
        if self._loop is not None:
            loop, self._loop = self._loop, None
            loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await loop

    async def take(self, slot: HeldSlot) -> bool:
        """Take a slot, if there is one."""
        is_held = await self._store.hold_slot(
            slot,
            self._owner,
            limit=self._limit,
            lease_seconds=self._lease_seconds,
            counter_seconds=self._counter_seconds,
        )
        if is_held:
            self._held.add(slot)
        return is_held

    async def free(self, slot: HeldSlot) -> None:
        """Give a slot back; when Redis cannot be asked, its lease does."""
        self._held.discard(slot)
        try:
            await self._store.free_slot(slot, self._owner, counter_seconds=self._counter_seconds)
        except self._store.failures as error:
            self._tell_missing(type(error).__name__)

    async def tick(self) -> None:
        """Renew once. What was freed while that was on its way may be counted again: free it again."""
        renewed = sorted(self._held)
        try:
            await self._store.renew_slots(
                renewed,
                self._owner,
                lease_seconds=self._lease_seconds,
                counter_seconds=self._counter_seconds,
            )
        except self._store.failures as error:
            self._tell_missing(type(error).__name__)
            return
        self._tell_missing("")
        for slot in renewed:
            if slot not in self._held:
                await self.free(slot)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            try:
                await self.tick()
            except Exception as error:  # noqa: BLE001 - without renewal slots are lost: go on, and say so
                self._tell_missing(type(error).__name__)
            end_if_cancelled()
