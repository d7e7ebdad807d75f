"""The status board in Redis: pollers' snapshots, counts per minute, failures, how requests ended.

{async-processor}:status:pollers         hash    poller -> snapshot (JSON); expires a day after the last write
{async-processor}:status:minute:<n>      hash    outcome -> count of all queues, n = Unix minutes; expires after two
                                                 hours
{async-processor}:status:failures        list    the latest 200 failures (JSON), newest first; expires after a day
{async-processor}:status:finished        hash    request id -> record (JSON); the latest submission of an id
{async-processor}:status:finished-idx    zset    request id, score = when it was recorded, Unix seconds
{async-processor}:status:finished-bytes  string  bytes of all ids and records

The records of finished requests are bounded in number, bytes and age; all three keys expire. A record is written after
the ack, so that it cannot delay or fail the ack. Therefore the latest records before a crash may be missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from handlers.contract.lenient_json import MALFORMED
from handlers.redis_store.connection import STORE_REFUSALS, Store, executed
from handlers.redis_store.keys import queue_keys
from handlers.redis_store.scripts import lua_script, read_only

_PREFIX: Final = "{async-processor}:status:"
POLLERS: Final = f"{_PREFIX}pollers"
FAILURES_KEY: Final = f"{_PREFIX}failures"
MOST_FAILURES: Final = 200
MINUTES: Final = 60
SAMPLE: Final = 500
"""Maximum number of members of a key that `sample_members` reads."""
PART_BYTES: Final = 1_000_000
"""Bytes after which one call of `read_part` stops."""
LONGEST_SAMPLED: Final = 256_000
SEARCH_ENTRIES: Final = 500
SEARCH_STEPS: Final = 256
"""Maximum number of calls of one search over all queues, enough for 128,000 small members."""
SEARCH_BYTES: Final = 16_000_000
"""Maximum bytes of possible matches that one search returns."""
_MINUTE_SECONDS: Final = 7_200
_DAY_SECONDS: Final = 86_400


def minute_key(minute: int) -> str:
    """HASH: the counts of one Unix minute, of all pollers together."""
    return f"{_PREFIX}minute:{minute}"


class StatusBoard:
    """Writes one poller's part of the board. Methods raise one of `STORE_FAILURES`."""

    def __init__(self, redis: Store, poller: str) -> None:
        self._redis = redis
        self._poller = poller

    async def post(self, snapshot: bytes, minute: int, counts: Mapping[str, int], failures: Sequence[bytes]) -> None:
        """Write a snapshot, add `counts` to the minute's, prepend the failures."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.hset(POLLERS, self._poller, snapshot)
        pipeline.expire(POLLERS, _DAY_SECONDS)
        for name, count in counts.items():
            pipeline.hincrby(minute_key(minute), name, count)
        if counts:
            pipeline.expire(minute_key(minute), _MINUTE_SECONDS)
        if failures:
            pipeline.lpush(FAILURES_KEY, *failures)
            pipeline.ltrim(FAILURES_KEY, 0, MOST_FAILURES - 1)
            pipeline.expire(FAILURES_KEY, _DAY_SECONDS)
        await executed(self._redis, pipeline)

    async def leave(self, others: Sequence[str] = ()) -> None:
        """Remove the snapshots of this poller and of `others`."""
        await self._redis.hdel(POLLERS, self._poller, *others)


class Board(msgspec.Struct, frozen=True):
    """Snapshots by poller, counts by minute (oldest first), failures (newest first)."""

    pollers: Mapping[str, bytes]
    minutes: Sequence[Mapping[str, int]]
    failures: Sequence[bytes]


class Found(msgspec.Struct, frozen=True):
    """A member that contains the searched id.

    `where` is pending, claimed, retry or dead. `queue` is empty for the retry set, which queues share. `score` is a
    deadline (pending) or a due time (retry) in Unix seconds, else 0. `dead_id` is the id of a dead letter.
    """

    queue: str
    where: str
    member: bytes
    score: float = 0.0
    dead_id: str = ""


class Search(msgspec.Struct, frozen=True):
    """The matches of a search. `is_partial`: a key was not read to its end."""

    found: list[Found] = msgspec.field(default_factory=list)
    is_partial: bool = False


async def read_board(redis: Store, minute: int) -> Board:
    """The board with the hour up to `minute`. It reads about `SEARCH_BYTES` of snapshots at most."""
    pollers = await read_snapshots(redis)
    pipeline = redis.pipeline(transaction=False)
    pipeline.lrange(FAILURES_KEY, 0, MOST_FAILURES - 1)
    for one in range(minute - MINUTES + 1, minute + 1):
        pipeline.hgetall(minute_key(one))
    failures, *minutes = await executed(redis, pipeline)
    return Board(
        {name.decode("utf-8", "replace"): text for name, text in pollers.items()},
        [{name.decode("utf-8", "replace"): int(count) for name, count in counts.items()} for counts in minutes],
        failures,
    )


async def read_snapshots(redis: Store) -> dict[bytes, bytes]:
    """The snapshots by poller, about `SEARCH_BYTES` at most."""
    found: dict[bytes, bytes] = {}
    cursor, left = "0", SEARCH_BYTES
    while left > 0:
        part = await read_part(redis, "HSCAN", POLLERS, cursor, entries=SEARCH_ENTRIES, longest=PART_BYTES * 4)
        found |= {name: text for name, text, _ in part.rows if text}
        cursor, left = part.cursor, left - part.read_bytes
        if cursor == "0":
            break
    return found


class Part(msgspec.Struct, frozen=True):
    """A part of a key. `cursor` is `0` at the end; `rows` are (name, value or score, size in bytes)."""

    cursor: str
    entries: int
    read_bytes: int
    rows: Sequence[tuple[bytes, bytes, int]]


async def read_part(
    redis: Store,
    command: str,
    key: str,
    cursor: str,
    *,
    entries: int,
    longest: int,
    needles: Sequence[str] = (),
) -> Part:
    """Read up to `entries` entries and about `PART_BYTES` bytes of a key.

    `command` is HSCAN, ZRANGE, ZREVRANGE or LRANGE. An entry over `longest` bytes is returned empty, with its size.
    With `needles`, only entries that contain one of them are returned.
    """
    arguments = [command, cursor, str(entries), str(PART_BYTES), str(longest), *needles]
    answer = await read_only(redis, lua_script(redis, "read_part"), [key], arguments)
    rows = answer[3]
    return Part(
        answer[0].decode(),
        int(answer[1]),
        int(answer[2]),
        [(rows[at], rows[at + 1], int(rows[at + 2])) for at in range(0, len(rows), 3)],
    )


async def sample_members(redis: Store, command: str, key: str) -> list[bytes]:
    """Some members of a zset (ZRANGE) or values of a hash (HSCAN).

    At most `SAMPLE` of them and about `PART_BYTES` bytes. One over `LONGEST_SAMPLED` bytes is returned empty.
    """
    part = await read_part(redis, command, key, "0", entries=SAMPLE, longest=LONGEST_SAMPLED)
    return [value if command == "HSCAN" else name for name, value, _ in part.rows]


class SearchBudget(msgspec.Struct):
    """The calls and returned bytes left for one search of all queues."""

    steps: int = SEARCH_STEPS
    left_bytes: int = SEARCH_BYTES


async def search(
    redis: Store,
    queues: Sequence[str],
    retry_queue_name: str,
    request_id: str,
    *,
    cluster: bool,
    budget: SearchBudget | None = None,
) -> Search:
    """Members of any queue, in any state, that contain this id.

    The search is partial if `budget` ran out, or if the ACL refuses a key. Empty keys are skipped.
    """
    budget = budget or SearchBudget()
    found: list[Found] = []
    is_partial = False
    # From the end, since requests leave queues and retry sets at the head: those behind would be skipped.
    places = [("", "retry", "ZREVRANGE", retry_queue_name)]
    for start in range(0, len(queues), SEARCH_ENTRIES):
        places += await _filled_places(redis, queues[start : start + SEARCH_ENTRIES], cluster=cluster)
    for queue, where, command, key in places:
        needles = [request_id] if where == "dead" else json_spellings(request_id)
        cursor = "0"
        while budget.steps > 0 and budget.left_bytes > 0 and len(found) < MOST_FAILURES:
            budget.steps -= 1
            try:
                part = await read_part(
                    redis, command, key, cursor, entries=SEARCH_ENTRIES, longest=SEARCH_BYTES, needles=needles
                )
            except STORE_REFUSALS:
                is_partial = True
                break
            for name, value, size in part.rows:
                budget.left_bytes -= size
                found.append(_found(queue, where, name, value))
            cursor = part.cursor
            if cursor == "0":
                break
        else:
            is_partial = True
    return Search(found, is_partial)


async def _filled_places(redis: Store, queues: Sequence[str], *, cluster: bool) -> list[tuple[str, str, str, str]]:
    """Rows of queue, state, scan command and key, without the empty keys."""
    places = []
    pipeline = redis.pipeline(transaction=False)
    for name in queues:
        keys = queue_keys(name, cluster=cluster)
        pipeline.zcard(keys.pending)
        pipeline.hlen(keys.claimed)
        pipeline.hlen(keys.dead)
        places += [
            (name, "pending", "ZREVRANGE", keys.pending),
            (name, "claimed", "HSCAN", keys.claimed),
            (name, "dead", "HSCAN", keys.dead),
        ]
    counts = await executed(redis, pipeline, raise_on_error=False)
    return [place for place, count in zip(places, counts, strict=True) if count]


def json_spellings(text: str) -> list[str]:
    """The JSON strings of a text by encoder: plain, ASCII only, HTML-escaped."""
    plain = json.dumps(text, ensure_ascii=False)
    html = plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return list(dict.fromkeys([plain, json.dumps(text), html]))


def _found(queue: str, where: str, name: bytes, value: bytes) -> Found:
    if where in ("pending", "retry"):
        return Found(queue, where, name, float(value or 0))  # type: ignore[misc]  # Redis wrote it
    return Found(queue, where, value, dead_id=name.decode("utf-8", "replace") if where == "dead" else "")


FINISHED: Final = "{async-processor}:status:finished"


class FinishedRecord(msgspec.Struct, frozen=True, array_like=True):
    """How a request ended.

    `outcome` is an error code or `HTTP <status>`, `at` in Unix seconds. `results` is the list that took the result,
    empty if there is no result.
    """

    token: str
    outcome: str
    at: float
    queue: str
    results: str = ""
    is_dead: bool = False


class FinishedLimits(msgspec.Struct, frozen=True):
    """Limits of the records: number, total bytes, age. With 0 `records`, none is written."""

    records: int
    bytes: int
    seconds: int


_decoder = msgspec.json.Decoder(FinishedRecord)


class FinishedRecords:
    """Writes records. Raises one of `STORE_FAILURES`."""

    def __init__(self, redis: Store, limits: FinishedLimits) -> None:
        self._script = lua_script(redis, "finished")
        self._limits = limits

    async def write(self, records: Sequence[tuple[str, FinishedRecord]]) -> int:
        """Add records by request id; returns how many are kept."""
        keys = [FINISHED, f"{FINISHED}-idx", f"{FINISHED}-bytes"]
        arguments: list[str | bytes | int] = [self._limits.records, self._limits.bytes, self._limits.seconds]
        for request_id, record in records:
            arguments += (request_id, msgspec.json.encode(record))
        return int(await self._script(keys=keys, args=arguments))


async def read_finished(redis: Store, request_id: str) -> FinishedRecord | None:
    """The record of a request, or None."""
    text = await redis.hget(FINISHED, request_id)
    if text is None:
        return None
    try:
        return _decoder.decode(text)
    except MALFORMED:
        return None
