"""What gates need of a shared store; `handlers.redis_store` fulfils it, one typed function a script.

Instants and windows are by the store's own clock. A `member` names one submission (id and token); an `owner`
is the random token of this process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class HeldSlot(NamedTuple):
    """One slot of a concurrency quota: the quota's key and the submission that holds it."""

    key: str
    member: str


class BudgetStore(Protocol):
    """Reads a number that somebody else writes."""

    async def read_budget(self, key: str) -> str | None:
        """The text under `key`, None when there is none."""
        ...


class QuotaStore(Protocol):
    """Counts what tenants use, over all processes.

    `counter_seconds` is how long the counter that the reference shares lives without being touched.
    """

    failures: tuple[type[Exception], ...]

    async def pay_rate(
        self, key: str, member: str, *, limit: int, window_seconds: float, remember_seconds: float
    ) -> tuple[bool, bool, float]:
        """Take one unit of `limit` per window: (may go, paid just now, seconds until a unit is free).

        A member that has paid goes without paying for as long as that is remembered.
        """
        ...

    async def refund_rate(self, key: str, member: str) -> None:
        """Give back the unit that `member` paid; nothing happens when there is none."""
        ...

    async def hold_slot(
        self, slot: HeldSlot, owner: str, *, limit: int, lease_seconds: float, counter_seconds: float
    ) -> bool:
        """Take one of `limit` slots under a lease; one who has one keeps it, for `owner` now."""
        ...

    async def free_slot(self, slot: HeldSlot, owner: str, *, counter_seconds: float) -> bool:
        """Give the slot back, if it is still this owner's; returns whether it was."""
        ...

    async def renew_slots(
        self, slots: Sequence[HeldSlot], owner: str, *, lease_seconds: float, counter_seconds: float
    ) -> None:
        """Move the leases' ends. A lost slot is counted again, unless another owner has it.

        Without slots this only asks whether the store is there.
        """
        ...


class LeasedRate(Protocol):
    """The controller's decision: whether it is valid now, its rate per second, and what became of a token."""

    @property
    def is_taken(self) -> bool:
        """Whether a token was taken."""
        ...

    @property
    def is_valid(self) -> bool:
        """Whether there is a lease, for this pool, that has not expired."""
        ...

    @property
    def per_second(self) -> float:
        """The leased rate; 0 without a valid lease."""
        ...

    @property
    def wait_seconds(self) -> float:
        """How long until there is a token."""
        ...


class LeasedRateStore(Protocol):
    """A token bucket whose rate an outside controller leases to us."""

    failures: tuple[type[Exception], ...]

    async def take_token(
        self, control_key: str, state_key: str, pool: str, *, burst_seconds: float
    ) -> LeasedRate:
        """Take one token, if the lease is valid and there is one."""
        ...

    def check_lease_keys(self, control_key: str, state_key: str) -> None:
        """Raises `InvalidSetting` for two keys that this store cannot look at in one step."""
        ...

    async def look_at_lease(self, control_key: str, state_key: str, pool: str) -> LeasedRate:
        """The lease as it stands; takes nothing."""
        ...

    async def return_token(self, state_key: str) -> None:
        """Put one token back; the bucket's own limit holds at the next taking."""
        ...


class GateStore(BudgetStore, QuotaStore, LeasedRateStore, Protocol):
    """All that the gates need of one address."""

    failures: tuple[type[Exception], ...]
    """What any of the calls raises when the store cannot be asked."""
