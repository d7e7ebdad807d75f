"""Every script is used, and is called with as many keys and arguments as its header names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.commands.core import AsyncScript

import handlers
from handlers.contract.request import encode_retry
from handlers.redis_store.admin.dead_letters import DeadLetters
from handlers.redis_store.keys import CANCELLATIONS
from handlers.redis_store.queue import queue
from handlers.redis_store.queue.queue import Nack
from handlers.redis_store.scripts import lua_script, script_files
from tests.redis_store.queue.queueing import (
    DEADLINE,
    Bench,
    LosingRedis,
    envelope,
    lose_reply,
    recalled,
    recalled_retries,
)

ROOM = Path(handlers.__file__).parent / "redis_store"
SCRIPTS = sorted(name for name in script_files() if not name.startswith("_"))
FIXED_KEYS = {
    "claim": 5,
    "renew": 2,
    "ack": 6,
    "nack": 5,
    "release": 4,
    "reclaim": 5,
    "promote": 1,
    "requeue_dead": 2,
    "recall": 5,
    "recall_retries": 1,
    "take_back": 4,
}
FIXED_ARGUMENTS = {
    "claim": 8,
    "renew": 1,
    "reclaim": 5,
    "promote": 3,
    "requeue_dead": 3,
    "recall": 7,
    "recall_retries": 5,
    "take_back": 1,
}
PER_CLAIM = {
    "renew": (0, 2),
    "ack": (0, 10),
    "nack": (0, 4),
    "release": (0, 3),
    "recall": (0, 3),
    "recall_retries": (0, 1),
    "take_back": (0, 1),
}
"""More keys and arguments for each claim of a batch."""


def _header(name: str) -> str:
    lines = script_files()[name].read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines[: next(n for n, line in enumerate(lines) if line[:2] != "--")])


def _code(name: str) -> str:
    text = script_files()[name].read_text(encoding="utf-8")
    return re.sub(r"--[^\n]*", "", text)


def _numbers(text: str, array: str) -> set[int]:
    return {int(number) for number in re.findall(rf"{array}\[(\d+)\]", text)}


def _names_in_use() -> set[str]:
    """The literal first names that `lua_script` is called with anywhere in the room."""
    names: set[str] = set()
    for path in ROOM.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "lua_script":
                names |= {str(part.value) for part in node.args if isinstance(part, ast.Constant)}
    return names


def test_every_script_is_used_and_every_name_is_a_script() -> None:
    assert _names_in_use() == set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_header_names_the_keys_and_arguments_that_the_script_reads(name: str) -> None:
    header = _header(name)
    assert header.startswith(f"-- {name}: ")
    assert "-- Returns" in header or "-- returns" in header
    assert "twice" in header or "changes nothing" in header, "what happens when it is sent twice?"
    for array in ("KEYS", "ARGV"):
        assert _numbers(_code(name), array) <= _numbers(header, array) | _ranges(header, array)


def _ranges(header: str, array: str) -> set[int]:
    """Numbers behind `ARGV[2..]`."""
    starts = [int(start) for start in re.findall(rf"{array}\[(\d+)\.\.", header)]
    return {number for start in starts for number in range(start, start + 10)}


@pytest.mark.parametrize("name", sorted(FIXED_KEYS))
def test_key_and_argument_numbers_of_the_headers_match_the_calls(name: str) -> None:
    header = _header(name)
    assert max(_numbers(header, "KEYS")) == FIXED_KEYS[name]
    assert max(_numbers(header, "ARGV"), default=0) == FIXED_ARGUMENTS.get(name, 0)


MANY_VALUES = r"[(,] ?'(ZRANGE|LRANGE|ZRANGEBYSCORE|ZREVRANGE|HGETALL|HVALS|MGET|HSCAN|ZSCAN|SMEMBERS)'(?=,)"
SMALL_VALUES = {
    "finished": "ids of records",
    "hold_slot": "names of holders",
    "overdue_posts": "ids of the outbox",
    "reclaim": "claim keys",
    "receive_results": "claim keys",
    "share_pool": "names of pollers",
    "take_back": "owner tokens",
}
"""Scripts that read many entries with one command, and what these are: names that the product cuts or digests."""


def _reads_of_many(code: str) -> list[str]:
    """Calls that may return several entries: with two different ranks, no limit of one, or a page of more than one."""
    found = []
    for call in re.finditer(MANY_VALUES + r"((?:[^()\n]|\([^()\n]*\))*)\)", code):
        arguments = [part.strip() for part in call[2].split(",") if part.strip()][1:]
        is_page = arguments[-3:] == ["'COUNT'", "1", "'NOVALUES'"]
        is_one = (
            is_page
            or arguments[-2:] in (["'COUNT'", "1"], ["0", "1"])
            or ("'LIMIT'" in arguments and arguments[-1] == "1")
        )
        ranks = [part for part in arguments if part != "'WITHSCORES'"]
        if not is_one and not (call[1] in ("ZRANGE", "LRANGE") and len(ranks) == 2 and ranks[0] == ranks[1]):
            found.append(call[0])
    return found


@pytest.mark.parametrize("name", sorted(script_files()))
def test_a_script_removes_members_and_results_without_a_reply_that_repeats_them(name: str) -> None:
    """A reply copies a value three times, while `LTRIM` and `ZREM` remove it and reply with a number.

    `ZPOPMIN` of the finished records returns a request id, which is short.
    """
    popping = re.findall(r"'(?:[LR]POP|ZPOP(?:MIN|MAX)|GETDEL|LMOVE|RPOPLPUSH)'", _code(name))
    assert popping == (["'ZPOPMIN'"] if name == "finished" else [])


@pytest.mark.parametrize("name", sorted(script_files()))
def test_a_script_reads_members_and_results_one_by_one(name: str) -> None:
    """A hundred of them may be a gigabyte, and no other client is served meanwhile."""
    found = _reads_of_many(_code(name))
    assert bool(found) == (name in SMALL_VALUES), found


@pytest.mark.parametrize(
    ("code", "is_found"),
    [
        ("run('ZRANGE', KEYS[1], 0, -1)", True),
        ("run('ZRANGE', KEYS[1], at, at, 'WITHSCORES')", False),
        ("redis.call('ZRANGEBYSCORE', KEYS[1], score, score, 'LIMIT', 0, 100)", True),
        ("redis.call('ZRANGEBYSCORE', KEYS[1], score, score, 'LIMIT', at, 1)", False),
        ("redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.6f', now))", True),
        ("run('ZSCAN', KEYS[1], cursor, 'COUNT', 1)", False),
        ("run('ZSCAN', KEYS[1], cursor, 'COUNT', 500)", True),
        ("run('HGETALL', KEYS[1])", True),
    ],
)
def test_a_read_of_many_is_found(code: str, is_found: bool) -> None:
    assert bool(_reads_of_many(code)) == is_found


class _Counted:
    """Runs the real script and notes how many keys and arguments it got."""

    def __init__(self, script: AsyncScript, calls: list[tuple[int, int]]) -> None:
        self._script = script
        self._calls = calls

    async def __call__(self, keys: list[object], args: list[object]) -> object:
        self._calls.append((len(keys), len(args)))
        return await self._script(keys=keys, args=args)  # type: ignore[arg-type]  # handed through


async def test_each_typed_function_calls_its_script_as_the_header_describes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: dict[str, list[tuple[int, int]]] = {name: [] for name in FIXED_KEYS}

    def counted(redis: Redis, name: str) -> _Counted:
        return _Counted(lua_script(redis, name), calls[name])

    monkeypatch.setattr(queue, "lua_script", counted)
    monkeypatch.setattr("handlers.redis_store.admin.dead_letters.lua_script", counted)
    await _use_every_script(bench)

    batches = {name: {1, 2} if name in PER_CLAIM else {1} for name in FIXED_KEYS}
    for name, seen in calls.items():
        more_keys, more_arguments = PER_CLAIM.get(name, (0, 0))
        expected = {
            (FIXED_KEYS[name] + more_keys * size, FIXED_ARGUMENTS.get(name, 0) + more_arguments * size)
            for size in batches[name]
        }
        assert set(seen) == expected, name


async def _cancel(bench: Bench, size: int) -> None:
    """Others than those that are queued, which the next steps need."""
    await bench.redis.delete(CANCELLATIONS)
    await bench.redis.zadd(CANCELLATIONS, {f"{DEADLINE}\0other-{n}\0t-{n}": n + 1 for n in range(size)})


async def _use_every_script(bench: Bench) -> None:
    """Each operation with one claim and with two."""
    owner = bench.owner()
    for size in (1, 2):
        for n in range(size):
            await bench.put(envelope(f"r-{n}", "t"), n)
        await owner.release(await owner.claim(size))
        claims = await owner.claim(size)
        await owner.renew(claims)
        retries = [Nack(c, encode_retry(c.member, queue=c.queue, attempt=1, score=c.score), 0) for c in claims]
        await owner.nack(retries)
        await bench.make_due()
        assert await bench.promote(10) == size
        await owner.reclaim(10, 5)
        await _cancel(bench, size)
        assert await recalled(bench.redis, bench.owner()) == []
        await recalled_retries(bench.redis, queue.Retries(bench.redis, bench.retries, bench.queue_name))
        await owner.ack([bench.ack_of(claim) for claim in await owner.claim(size)])
        losing = LosingRedis(bench.redis)
        loser = bench.owner(losing)
        for _ in range(size):
            await lose_reply(loser, losing)
        assert await loser.take_back() == 0
    await bench.redis.hset(bench.keys.dead, "d", '{"member": "m", "score": 1}')
    letters = DeadLetters(bench.redis, bench.queue_name)
    letter = await letters.get("d")
    assert letter is not None and await letters.requeue(letter)
