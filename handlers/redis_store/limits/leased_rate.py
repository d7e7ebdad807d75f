"""A rate that an outside controller leases, the bucket of tokens behind it, and a budget it may write.

<control>             hash    the lease: api_version, pool_id, max_admission_rps, valid_until_unix_ms,
                              decision_id; written by the controller
<control>:state       hash    tokens, last_ms; the reference's own format; expires with the lease
dispatch-gate-budget  string  a number from 0 to 1; written by somebody else
"""

from __future__ import annotations

from typing import Final, NamedTuple

from redis.asyncio.cluster import RedisCluster
from redis.crc import key_slot

from handlers.contract.errors import InvalidSetting
from handlers.redis_store.connection import STORE_FAILURES, Store
from handlers.redis_store.scripts import lua_script

API_VERSION: Final = "llm-d.ai/v1alpha1"


class TokenAnswer(NamedTuple):
    """What became of a token, and the lease as it stands; `per_second` is 0 without a valid one."""

    is_taken: bool
    is_valid: bool
    per_second: float
    wait_seconds: float


class RedisLeasedRate:
    """Every method raises one of `failures` while Redis does not answer."""

    failures: tuple[type[Exception], ...] = STORE_FAILURES

    def __init__(self, redis: Store) -> None:
        self._redis = redis
        self._take = lua_script(redis, "take_token")
        self._return = lua_script(redis, "return_token")

    def check_lease_keys(self, control_key: str, state_key: str) -> None:
        """Raises `InvalidSetting` where a cluster keeps the two keys in different slots."""
        if isinstance(self._redis, RedisCluster) and key_slot(control_key.encode()) != key_slot(
            state_key.encode()
        ):
            accepted = "in Redis Cluster a hash tag in both, as in {rates}:control and {rates}:state"
            raise InvalidSetting(
                "control_key and state_key", found=f"{control_key}, {state_key}", accepted=accepted
            )

    async def take_token(
        self, control_key: str, state_key: str, pool: str, *, burst_seconds: float
    ) -> TokenAnswer:
        """Take one token, if the lease is valid and there is one."""
        return await self._ask(control_key, state_key, pool, burst_seconds, is_taking=True)

    async def look_at_lease(self, control_key: str, state_key: str, pool: str) -> TokenAnswer:
        """The lease as it stands; takes nothing, and `wait_seconds` says nothing."""
        return await self._ask(control_key, state_key, pool, 1.0, is_taking=False)

    async def return_token(self, state_key: str) -> None:
        """Put a token back that was not used."""
        await self._return([state_key])

    async def read_budget(self, key: str) -> str | None:
        """The text under `key`, None when there is none."""
        found: bytes | str | None = await self._redis.get(key)
        return found.decode(errors="replace") if isinstance(found, bytes) else found

    async def _ask(
        self, control_key: str, state_key: str, pool: str, burst_seconds: float, *, is_taking: bool
    ) -> TokenAnswer:
        arguments: list[str | float] = [API_VERSION, pool, burst_seconds, 1 if is_taking else 0]
        is_taken, is_valid, per_second, wait_seconds = await self._take([control_key, state_key], arguments)
        return TokenAnswer(bool(is_taken), bool(is_valid), float(per_second), float(wait_seconds))
