"""Build the status page from the settings."""

from __future__ import annotations

import asyncio
import shlex
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Self, TypeVar

import msgspec
from flask import Request as HttpRequest
from flask import Response as HttpResponse

from handlers.client.sync_client import LoopThread
from handlers.contract.errors import InvalidRequest
from handlers.contract.request import decode_member
from handlers.doors.auth.bearer import DispatchToken, DispatchTokenOptions
from handlers.gates.gate import BANDS, band_of
from handlers.number_text import counted
from handlers.redis_store.admin.dead_letters import DeadLetters, read_dead_letter
from handlers.redis_store.admin.depths import QueueDepths, all_depths
from handlers.redis_store.admin.status_board import (
    LONGEST_SAMPLED,
    Board,
    read_board,
    read_part,
    sample_members,
)
from handlers.redis_store.admin.whereabouts import Searched, Whereabouts, locate
from handlers.redis_store.connection import STORE_FAILURES, Store, connect, server_time
from handlers.redis_store.faults import explained
from handlers.redis_store.keys import queue_keys
from handlers.settings.settings import Settings, load_settings
from handlers.status.overview import (
    Overview,
    Tenants,
    fresh_pollers,
    gate_lines,
    lane_lines,
    minutes,
    pool_lines,
    queue_lines,
    read_failures,
)
from handlers.status.page import Busy, DeadLetterRow, Hopeless, OwnHosts, StatusPages, Unreachable, read_hosts
from handlers.status.report import Failure
from handlers.telemetry.logs import get_logger
from handlers.wiring.credentials import redis_options
from handlers.wiring.reload import ConfigWatch

VIEWS_AT_ONCE = 4
"""Maximum number of views read at once: fewer than the server's threads, so that further ones are refused at once."""
VIEW_SECONDS = 20.0
"""Time limit for reading one view."""
_MOST_SAMPLED = 50
"""Number of queues (those with the most requests) whose tenants are counted for one view."""
_MOST_DEAD = 200
_MOST_PARTS = 64
"""Maximum number of calls to Redis, of about 1 MB each, for one view of the dead letters."""
_MOST_READ = 5_000
"""Maximum number of dead letters read from one queue, in arbitrary order; `async-processor dead` shows more."""
T = TypeVar("T")


class RedisSource:
    """Reads the queues of these settings. Raises `Unreachable` while Redis does not answer."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._options = redis_options(settings)
        self._views = threading.BoundedSemaphore(VIEWS_AT_ONCE)
        self._opening = threading.Lock()
        self._loop: LoopThread | None = None
        self._redis: Store | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread. The next view opens them again."""
        with self._opening:
            loop, redis, self._loop, self._redis = self._loop, self._redis, None, None
        if loop is not None:
            if redis is not None:
                loop.run(redis.aclose())
            loop.close()

    def _opened(self) -> LoopThread:
        with self._opening:  # at the first view, not at the start: the server may fork in between
            self._loop = self._loop or LoopThread()
            return self._loop

    def _run(self, work: Callable[[Store], Awaitable[T]]) -> T:
        async def view() -> T:
            is_reused = self._redis is not None
            try:
                return await self._read(work)
            except STORE_FAILURES as error:
                if not is_reused or isinstance(error, TimeoutError):
                    raise
            # The server may have closed idle connections, so try once more with new ones.
            previous, self._redis = self._redis, None
            if previous is not None:
                await previous.aclose()
            return await self._read(work)

        if not self._views.acquire(blocking=False):
            raise Busy  # a waiting view would block a thread that answers /healthz
        try:
            return self._opened().run(view())
        except STORE_FAILURES as error:
            raise Unreachable(f"The connection failed: {explained(error).rstrip('.')}.") from None
        finally:
            self._views.release()

    async def _read(self, work: Callable[[Store], Awaitable[T]]) -> T:
        self._redis = self._redis or connect(self._options)
        async with asyncio.timeout(VIEW_SECONDS):
            return await work(self._redis)

    def overview(self) -> Overview:
        return self._run(self.read_overview)

    async def read_overview(self, redis: Store) -> Overview:
        now = await server_time(redis)
        board = await read_board(redis, int(now // 60))
        pollers = fresh_pollers(board.pollers, now)
        settings, is_cluster = self._settings, self._options.is_cluster
        names = [entry.queue_name for entry in settings.queues]
        depths = await all_depths(redis, names, settings.retry_queue_name, cluster=is_cluster)
        retrying = max((one.retrying for one in depths.values()), default=0)
        tenants = await self._tenants(redis, depths)
        lanes = {
            entry.queue_name: BANDS[band_of(entry.labels, self._settings.tier_label)] for entry in self._settings.queues
        }
        queues = queue_lines(depths, pollers, tenants, lanes)
        return Overview(
            at=now,
            queues=queues,
            lanes=lane_lines(queues),
            pools=pool_lines(pollers),
            gates=gate_lines(pollers),
            minutes=minutes(board.minutes),
            failures=read_failures(board.failures),
            pollers=pollers,
            retrying=retrying,
        )

    async def _tenants(self, redis: Store, depths: Mapping[str, QueueDepths]) -> dict[str, Tenants]:
        """Tenants of the largest queues, from samples of their members."""
        retries = self._settings.retry_queue_name
        retrying = self._counted(await sample_members(redis, "ZRANGE", retries), "")
        by_size = sorted(depths.items(), key=lambda row: -(row[1].pending + row[1].claimed))
        found: dict[str, Tenants] = {}
        for name, one in by_size[:_MOST_SAMPLED]:
            own = retrying.get(name, Counter()) + retrying.get("", Counter())
            if one.pending or one.claimed or own:
                keys = queue_keys(name, cluster=self._options.is_cluster)
                pending = await sample_members(redis, "ZRANGE", keys.pending) if one.pending else []
                claimed = await sample_members(redis, "HSCAN", keys.claimed) if one.claimed else []
                found[name] = Tenants(_sum(self._counted(pending, name)), _sum(self._counted(claimed, name)), own)
        return found

    def _counted(self, members: Sequence[bytes], queue: str) -> dict[str, Counter[str]]:
        """Requests by queue and tenant."""
        field = self._settings.fairness_attribute
        counts: dict[str, Counter[str]] = {}
        for member in members:
            own = counts.setdefault("", Counter())
            if not member:
                own["(too large to read)"] += 1
                continue
            try:
                envelope = decode_member(member, queue)
            except InvalidRequest:
                own["(unreadable)"] += 1
                continue
            named = counts.setdefault(envelope.internal.request_queue_name, Counter())
            named[envelope.request.metadata.get(field, "")] += 1
        return counts

    def find(self, request_id: str) -> tuple[Whereabouts, list[Failure]]:
        """The state of this request and its latest failures."""
        return self._run(lambda redis: self._find(redis, request_id))

    async def _find(self, redis: Store, request_id: str) -> tuple[Whereabouts, list[Failure]]:
        board: Board = await read_board(redis, int(time.time() // 60))
        history = [one for one in read_failures(board.failures) if one.id == request_id]
        keys = Searched(
            [entry.queue_name for entry in self._settings.queues],
            self._settings.retry_queue_name,
            self._settings.result_queue_name,
            self._options.is_cluster,
        )
        return await locate(redis, request_id, keys), history

    def dead(self, queue: str) -> Sequence[DeadLetterRow]:
        return self._run(lambda redis: self._read_dead(redis, queue))

    async def _read_dead(self, redis: Store, queue: str) -> list[DeadLetterRow]:
        key = queue_keys(queue, cluster=self._options.is_cluster).dead
        found: list[DeadLetterRow] = []
        cursor = "0"
        for _ in range(_MOST_PARTS):
            part = await read_part(
                redis, "HSCAN", key, cursor, entries=_MOST_READ - len(found), longest=LONGEST_SAMPLED
            )
            found += [_dead_letter_row(queue, *row) for row in part.rows]
            cursor = part.cursor
            if cursor == "0" or len(found) >= _MOST_READ:
                break
        return sorted(found, key=lambda line: -line.at)[:_MOST_DEAD]

    def requeue(self, queue: str, dead_id: str) -> bool:
        """Requeue a dead letter; False if it no longer exists. Raises `Hopeless`."""

        async def change(redis: Store) -> bool:
            letters = DeadLetters(redis, queue, cluster=self._options.is_cluster)
            letter = await letters.get(dead_id)
            if letter is not None and (reason := letter.hopeless_because(time.time())):
                raise Hopeless(reason)
            return letter is not None and await letters.requeue(letter)

        return self._run(change)

    def drop(self, queue: str, dead_id: str) -> bool:
        """Delete a dead letter; False if it no longer exists."""
        return self._run(lambda redis: DeadLetters(redis, queue, cluster=self._options.is_cluster).drop(dead_id))


def _sum(by_queue: Mapping[str, Counter[str]]) -> Counter[str]:
    return sum(by_queue.values(), Counter())


def _dead_letter_row(queue: str, name: bytes, record: bytes, size: int) -> DeadLetterRow:
    """One row. For a record that is too large to read, only the id is known."""
    dead_id = name.decode("utf-8", "replace")
    if size > LONGEST_SAMPLED:
        command = f"async-processor dead show {dead_id} --queue {shlex.quote(queue)}"
        message = f"{counted(size, 'byte')}; `{command}` prints it"
        return DeadLetterRow(dead_id, queue, "", "too large to show", message, 0.0, 0)
    letter = read_dead_letter(name, record)
    return DeadLetterRow(
        dead_id,
        queue,
        letter.request_id,
        letter.reason,
        letter.message,
        letter.at,
        letter.delivery_count,
        letter.hopeless_because(time.time()),
    )


class _Served(msgspec.Struct):
    """The pages of a process for the current settings.

    `listens_on` and `also_named` are the host names given at the start.
    """

    listens_on: str = "::"
    also_named: Sequence[str] = ()
    settings: Settings | None = None
    pages: StatusPages | None = None
    source: RedisSource | None = None


_served = _Served()


def open_pages(settings: Settings, listens_on: str, also_named: Sequence[str]) -> None:
    """Serve the hosts `listens_on`, `also_named` and those of `STATUS_HOSTS` from now on.

    Raises `InvalidSetting` as `status_pages` does.
    """
    _served.listens_on, _served.also_named, _served.pages = listens_on, also_named, None
    status_pages(settings)


def status_pages(settings: Settings) -> StatusPages:
    """The pages of these settings, built once.

    Raises `InvalidSetting` for an invalid token file or host name.
    """
    if _served.pages is None or _served.settings is not settings:
        if _served.source is not None:
            _served.source.close()
        _served.source = RedisSource(settings)
        _served.settings, _served.pages = settings, _built(settings, _served.source)
    return _served.pages


def _built(settings: Settings, source: RedisSource) -> StatusPages:
    env = settings.env
    tokens: Callable[[], Sequence[str]] = tuple
    if env.status_token_file:
        options = DispatchTokenOptions(path=Path(env.status_token_file), setting="STATUS_TOKEN")
        tokens = DispatchToken(options).tokens
    names = read_hosts(env.status_hosts.split(","), "STATUS_HOSTS")
    names |= read_hosts(_served.also_named, "--allow-host")
    return StatusPages(source, tokens, OwnHosts(_served.listens_on, names))


class CurrentSettings:
    """The current settings, which follow changes of the configuration file."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        # functions-framework sets FUNCTION_TARGET to `status`, which is not a door.
        variables = {**variables, "FUNCTION_TARGET": ""}
        self._settings = load_settings(variables)
        self._watch = ConfigWatch(variables, self._settings, get_logger("status"))

    def get(self) -> Settings:
        self._settings = self._watch.poll() or self._settings
        return self._settings


def respond(request: HttpRequest, settings: Settings) -> HttpResponse:
    """The response to one request for the status page."""
    return status_pages(settings).respond(request)
