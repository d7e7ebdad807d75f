"""Ask Sentinels who the master is, and say in one line why none of them tells."""

from __future__ import annotations

from typing import Any, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.exceptions import AuthenticationError, RedisError

from handlers.redis_store.faults import explained


class Sentinels(Sentinel):
    """The library's, but for what it tells: it would go on with a page of text, and end at one that is no Sentinel."""

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Host and port of the master. Raises `MasterNotFoundError`, with the last reason of the failed Sentinels."""
        has_answered, failed = False, dict[str, Exception]()
        for number, sentinel in enumerate(self.sentinels):
            try:
                masters = cast("dict[str, Any]", await sentinel.sentinel_masters())
            except (RedisError, OSError) as error:
                failed[type(error).__name__] = error
                continue
            has_answered = True
            state = masters.get(service_name)
            if state and self.check_master_state(state, service_name):
                # The next question goes to this one first.
                self.sentinels[0], self.sentinels[number] = sentinel, self.sentinels[0]
                return state["ip"], state["port"]
        raise MasterNotFoundError(_why(service_name, failed, has_answered=has_answered))


def _why(name: str, failed: dict[str, Exception], *, has_answered: bool) -> str:
    if has_answered:
        return f"the Sentinels know no master {name!r} that is up: compare the URL's path with `sentinel monitor`"
    if any(isinstance(error, AuthenticationError) for error in failed.values()):
        return "the Sentinels refuse us: ?sentinel_username=…&sentinel_password=… in the URL is theirs"
    reasons = "; ".join(dict.fromkeys(explained(error) for error in failed.values()))
    return f"no Sentinel of the URL tells who the master is: {reasons}"


class WaitingSentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    """Connections to the master of a Sentinel; whoever finds them all busy waits."""


class SentinelsMaster(Redis):
    """The master, wherever it is; closes the connections to the Sentinels too, which the library leaves open."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close all connections."""
        await super().aclose(close_connection_pool)
        for sentinel in getattr(self.connection_pool, "sentinel_manager").sentinels:  # noqa: B009  # untyped
            await sentinel.aclose()
