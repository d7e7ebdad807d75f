"""Processes of the product that kill themselves at a named point (F3).

The points are set from outside; the product has no switch for them. Processes are forked from one that has imported
everything, so that a start is cheap.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import redis.asyncio.connection as redis_connection

from handlers.cli.main import main
from handlers.doors.pubsub.deduplicated import Once
from handlers.forward.gateway import Gateway
from handlers.pubsub.publisher import Publisher
from handlers.redis_store.idempotency.idempotency import DeliveryRecords
from handlers.redis_store.queue.queue import RedisQueue
from handlers.transport.connection import Connection
from handlers.transport.transport import Transport
from handlers.wiring import handler
from tests.servers.forked import ForkedProcess

LEASE_SECONDS = 2.0
"""Lease of claims, and of deliveries that are being answered."""
Point = tuple[Any, str, Callable[[Callable[..., Any]], Callable[..., Any]]]
"""A function to replace: its owner, its name, and the wrapper that crashes."""
_is_dying: ContextVar[bool] = ContextVar("is_dying", default=False)


def die() -> None:
    """End at once, like a SIGKILL: nothing is closed or flushed."""
    os.kill(os.getpid(), signal.SIGKILL)


def _before(original: Callable[..., Any]) -> Callable[..., Any]:
    async def dying(*_arguments: Any, **_named: Any) -> None:
        die()

    del original
    return dying


def _after(original: Callable[..., Any]) -> Callable[..., Any]:
    """Crash after the function has returned something; an empty claim does not count."""

    async def dying(*arguments: Any, **named: Any) -> Any:
        found = await original(*arguments, **named)
        if found:
            die()
        return found

    return dying


def _during(original: Callable[..., Any]) -> Callable[..., Any]:
    """Crash after the command was sent to Redis, before the reply."""

    async def dying(*arguments: Any, **named: Any) -> Any:
        _is_dying.set(True)
        return await original(*arguments, **named)

    return dying


def _reading(original: Callable[..., Any]) -> Callable[..., Any]:
    async def reading(*arguments: Any, **named: Any) -> Any:
        if _is_dying.get():
            die()
        return await original(*arguments, **named)

    return reading


def _once_done(original: Callable[..., Any]) -> Callable[..., Any]:
    """Like `_after`, for a function that is not awaited."""

    def dying(*arguments: Any, **named: Any) -> None:
        original(*arguments, **named)
        die()

    return dying


REDIS_POINTS: dict[str, Point] = {
    "after claim": (RedisQueue, "claim", _after),
    "before send": (Gateway, "send", _before),
    "headers sent": (Connection, "_write", _once_done),
    "half body read": (Connection, "on_body", _once_done),
    "body read": (Transport, "post", _after),
    "before result write": (RedisQueue, "ack", _before),
    "after result write": (RedisQueue, "ack", _after),
    "during ack": (RedisQueue, "ack", _during),
    "during nack": (RedisQueue, "nack", _during),
    "during hand-back": (RedisQueue, "release", _during),
    "in reclaim": (RedisQueue, "reclaim", _during),
    "in dead-letter move": (RedisQueue, "ack", _during),
}
PUBSUB_POINTS: dict[str, Point] = {
    "after claim": (Once, "begin", _after),
    "before send": (Gateway, "send", _before),
    "headers sent": (Connection, "_write", _once_done),
    "half body read": (Connection, "on_body", _once_done),
    "body read": (Transport, "post", _after),
    "before result write": (Publisher, "publish", _before),
    "after result write": (Publisher, "publish", _after),
    "during ack": (DeliveryRecords, "finish", _during),
    "during nack": (DeliveryRecords, "abandon", _during),
    "during hand-back": (handler.Handler, "aclose", _before),
    "in reclaim": (DeliveryRecords, "begin", _during),
    "in dead-letter move": (Publisher, "publish", _after),
}


def _live(point: Point | None, arguments: Sequence[str], variables: Mapping[str, str], log: Path) -> None:
    """Run the product's own command with one replaced function."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(variables)  # this process is the product's
    if point is not None:
        _replace(*point)
        _replace(redis_connection.AbstractConnection, "read_response", _reading)
    main(list(arguments))


def _replace(owner: Any, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    setattr(owner, name, wrapper(getattr(owner, name)))


class Process:
    """A running process that crashes at `point` (None: never); its output goes to `log`."""

    def __init__(
        self,
        points: str,
        point: str | None,
        arguments: Sequence[str],
        variables: Mapping[str, str],
        log: Path,
    ) -> None:
        log.touch()
        self._log = log
        self._process = ForkedProcess(_run, points, point, arguments, dict(variables), log)

    def found(self, find: Callable[[str], str | None]) -> str | None:
        """The value that `find` finds in its output. Raises `AssertionError` if the process has ended."""
        assert self._process.poll() is None, self._log.read_text()
        return find(self._log.read_text())

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def end(self) -> int:
        """Its exit code, negative for a signal. Raises `TimeoutExpired` if it does not end."""
        return self._process.wait(90)

    def stop(self) -> None:
        """End it in any case."""
        self._process.kill()
        self.end()


def _run(points: str, point: str | None, arguments: Sequence[str], variables: Mapping[str, str], log: Path) -> None:
    """Run by name, because a replaced function cannot be sent to another process."""
    table = REDIS_POINTS if points == "redis" else PUBSUB_POINTS
    _live(table[point] if point else None, arguments, variables, log)
