"""Recent cancellations, whose requests pollers search several times.

A cancelled request may move during a search of the queue and the retry set: a nack is recorded, a retry becomes due, or
a crashed poller's claim is returned. A later search finds it in its new place.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final

import msgspec
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import NoPermissionError

from handlers.contract.request import score_of
from handlers.number_text import whole
from handlers.redis_store.connection import Store, executed
from handlers.redis_store.keys import CANCELLATIONS, active_key, cancel_key, cancel_key_of
from handlers.redis_store.scripts import SCRIPT_BYTES, lua_script

AGAIN_SECONDS: Final = (0.4, 1.0, 5.0, 20.0)
"""Each cancellation is searched again after these seconds; a default lease of a crashed poller ends before the last."""

AT_ONCE: Final = 500
"""Maximum number of names in one call, and of members that it reads: a few milliseconds of the server's time."""

PAGE_ENTRIES: Final = 1_000
"""Entries of the list in one reply."""

MOST_NEW_BYTES: Final = 4_000_000
"""Maximum bytes of new entries at once; the others are read next time. Clients write the list."""
MOST_AGAIN_BYTES: Final = 64_000_000
"""Maximum bytes of claim keys that are kept to be searched again, each counted for every search."""
_LONGEST_TOKEN: Final = 4_096
"""Maximum bytes of a token that are read, since clients write tokens."""
_LONGEST_ENTRY: Final = 10_000
"""Longer than any entry with a valid id (1,024 characters) and such a token."""

_CLOCK_SKEW_SECONDS: Final = 2
"""Allowed difference between a producer's clock and the server's, from which a deadline was computed."""
_PLACE_DIGITS: Final = 9
"""Maximum digits of a sequence at the end of a token; a longer number belongs to another client's token."""
_AHEAD_SECONDS: Final = 5.0
"""How far the server's clock may be ahead of the poller's estimate of it."""
_LONG_AGO_SECONDS: Final = 60.0
"""Requests cancelled longer ago are not searched again, because they no longer move."""


class Cancellation(msgspec.Struct, frozen=True):
    """A cancelled submission: claim key (id NUL token), deadline in Unix seconds."""

    key: bytes
    deadline: int

    def score(self) -> float | None:
        """Its score in the queue; None if its token has no sequence."""
        _, dash, digits = self.key.rpartition(b"\0")[2].rpartition(b"-")
        place = whole(digits) if dash and len(digits) <= _PLACE_DIGITS else None
        return None if place is None else score_of(self.deadline, place)


class CancelSearch(msgspec.Struct, frozen=True):
    """One search: claim keys, and the ranges of scores to search."""

    ranges: list[tuple[str, str]]
    names: list[bytes]


def searches(found: Sequence[Cancellation]) -> Iterator[CancelSearch]:
    """Searches for `found`.

    Our client's submissions are searched at their exact scores, others in the seconds around their deadlines.
    """
    exact = [(repr(score), one.key) for one in found if (score := one.score()) is not None]
    for start in range(0, len(exact), AT_ONCE):
        some = exact[start : start + AT_ONCE]
        yield CancelSearch(
            [(score, score) for score in dict.fromkeys(score for score, _ in some)], [key for _, key in some]
        )
    others = sorted((one.deadline, one.key) for one in found if one.score() is None)
    while others:
        first = last = others[0][0]
        names: list[bytes] = []
        for deadline, key in others[:AT_ONCE]:
            if deadline > last + 2 * _CLOCK_SKEW_SECONDS:
                break
            last = deadline
            names.append(key)
        others = others[len(names) :]
        yield CancelSearch([_seconds(first, last)], names)


def _seconds(first: int, last: int) -> tuple[str, str]:
    return str(first - _CLOCK_SKEW_SECONDS), f"({last + 1 + _CLOCK_SKEW_SECONDS}"


class Cancellations:
    """Cancellations to search: `due` returns them, `searched` marks them as searched.

    `clock` returns monotonic seconds, `now` the server's Unix seconds.
    """

    def __init__(
        self,
        redis: Store,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._read_new = lua_script(redis, "new_cancellations")
        self._clock = clock
        self._server_now = now
        self._since = 0.0
        self._passed = 0
        self._again: list[tuple[float, list[Cancellation]]] = []
        self._now = 0.0
        self._next = (0.0, 0)
        self._new: list[Cancellation] = []
        self._moving: list[Cancellation] = []
        self._ahead: set[tuple[bytes, float]] = set()
        self._still_ahead: set[tuple[bytes, float]] = set()

    async def due(self) -> list[Cancellation]:
        """Cancellations to search now; the same until `searched` is called.

        Raises one of `STORE_FAILURES`. The server writes an entry and its time in one step, so no entry appears late.
        """
        server_now = self._server_now()
        rows = await self._rows(server_now)
        self._now = self._clock()
        # A client can write an entry with any time; one in the future must not hide later cancellations.
        last = max([self._since, *(min(score, server_now) for _, score in rows)])
        passed = self._passed if last == self._since else 0
        self._next = last, passed + sum(score == last for _, score in rows)
        self._still_ahead = {row for row in rows if row[1] > last}
        read = [(one, row[1]) for row in rows if row not in self._ahead and (one := _read(row[0]))]
        self._new = [one for one, _ in read]
        self._moving = [one for one, score in read if score > server_now - _LONG_AGO_SECONDS]
        return self._new + [one for at, some in self._again if at <= self._now for one in some]

    async def _rows(self, server_now: float) -> list[tuple[bytes, float]]:
        """New entries and their times."""
        rows: list[tuple[bytes, float]] = []
        low, passed, size = self._since, self._passed, 0
        while size < MOST_NEW_BYTES:
            high = server_now + _AHEAD_SECONDS
            args: list[str | int] = [str(low), passed, str(high), PAGE_ENTRIES, SCRIPT_BYTES, _LONGEST_ENTRY]
            answer = await self._read_new(keys=[CANCELLATIONS], args=args)
            page = [(entry, float(score)) for entry, score in zip(answer[::2], answer[1::2], strict=True)]
            if not page:
                break
            rows += page
            size += sum(len(entry) for entry, _ in page)
            last = page[-1][1]  # entries of one call have the same time, so a page may end among them
            passed = (passed if last == low else 0) + sum(score == last for _, score in page)
            low = last
        return rows

    def searched(self) -> None:
        self._again = [(at, some) for at, some in self._again if at > self._now]
        kept = sum(len(one.key) for _, some in self._again for one in some)
        if self._moving and kept < MOST_AGAIN_BYTES:
            self._again += [(self._now + seconds, self._moving) for seconds in AGAIN_SECONDS]
        (self._since, self._passed), self._new, self._moving = self._next, [], []
        self._ahead = self._still_ahead


def _read(entry: bytes) -> Cancellation | None:
    digits, _, key = entry.partition(b"\0")
    deadline = whole(digits)
    return None if deadline is None or b"\0" not in key else Cancellation(key, deadline)


SWEPT: Final = "{async-processor}:cancellations-swept"
"""STRING: exists while no poller needs to sweep again."""

_LEAST_PAUSE_SECONDS: Final = 0.4
_HELD_SECONDS: Final = 5.0
"""For this long after each page no other poller sweeps, so that it can take over if this one has crashed."""
_PAUSE_FACTOR: Final = 20
"""The pause after a page is this many times as long as the shorter of the last two pages. Other work of the poller may
have delayed one of them. So a sweep takes at most a twentieth of the server's time, however many keys there are."""
KEYS_AT_ONCE: Final = 1_000


class ForeignCancellations:
    """Finds unlisted cancellations, such as those of the reference's producers.

    `is_allowed` is false if the ACL refuses SCAN.
    """

    def __init__(self, redis: Store, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        self._redis = redis
        self._sleep = sleep
        self._note = lua_script(redis, "note_cancelled")
        self._took_seconds = 0.0
        self.is_allowed = True

    async def sweep(self) -> int:
        """Add missing cancellations to the list and return how many. Raises one of `STORE_FAILURES`."""
        if not self.is_allowed:
            return 0
        try:
            return await self._swept()
        except NoPermissionError:
            self.is_allowed = False
            return 0

    async def _swept(self) -> int:
        if not await self._redis.set(SWEPT, "1", nx=True, px=round(1_000 * _HELD_SECONDS)):
            return 0
        noted = 0
        nodes: list[Any] = [None]
        if isinstance(self._redis, RedisCluster):
            await self._redis.initialize()
            nodes = self._redis.get_primaries()
        for node in nodes:
            cursor: int | None = None
            while cursor != 0:
                began_at = time.monotonic()
                cursor, keys = await self._page(node, cursor or 0)
                noted += await self._note_live(keys) if keys else 0
                await self._pause(time.monotonic() - began_at)
        await self._redis.set(SWEPT, "1", px=round(1_000 * _LEAST_PAUSE_SECONDS))
        return noted

    async def _page(self, node: Any, cursor: int) -> tuple[int, list[bytes]]:
        """The next cursor (0: the end) and the ids found."""
        given = {"target_nodes": node} if node else {}
        answer: Any = await self._redis.scan(cursor, match=cancel_key("*"), count=KEYS_AT_ONCE, **given)
        after, keys = answer
        prefix = cancel_key("").encode()
        return after[node.name] if node else after, [key.removeprefix(prefix) for key in keys]

    async def _pause(self, took_seconds: float) -> None:
        before, self._took_seconds = self._took_seconds, took_seconds
        seconds = _PAUSE_FACTOR * min(before, took_seconds)
        await self._redis.set(SWEPT, "1", px=round(1_000 * (seconds + _HELD_SECONDS)))
        await self._sleep(seconds)

    async def _note_live(self, ids: list[bytes]) -> int:
        """Add the ids whose live submission is cancelled to the list."""
        pipeline: Any = self._redis.pipeline(transaction=False)
        for request_id in ids:
            pipeline.getrange(cancel_key_of(request_id), 0, _LONGEST_TOKEN)
            pipeline.getrange(active_key("").encode() + request_id, 0, _LONGEST_TOKEN)
            pipeline.pttl(active_key("").encode() + request_id)
        answers = await executed(self._redis, pipeline, raise_on_error=False)
        rows: list[bytes | int] = []
        for request_id, cancelled, live, life_ms in zip(ids, answers[::3], answers[1::3], answers[2::3], strict=True):
            if live and cancelled == live and life_ms > 0 and len(live) <= _LONGEST_TOKEN:
                rows += [life_ms, request_id + b"\0" + live]
        return int(await self._note(keys=[CANCELLATIONS], args=[1, *rows])) if rows else 0
