"""The model must be able to fail: scripts with one seeded mistake each, every one of them found."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import ResponseError

from handlers.redis_store.queue import queue
from handlers.redis_store.scripts import script_text
from tests.redis_store.queue.queue_model import STEPS, Walk
from tests.redis_store.queue.queueing import Bench

WALKS = 6
STEPS_OF_A_WALK = 300


@dataclass(frozen=True)
class Mutant:
    """One mistake: `found` in the script becomes `instead`."""

    script: str
    found: str
    instead: str


_ENDED = "KEYS[4], '-inf', string.format('%.6f', now)"
_RETURN = "move_back(key, member, member and score_of(owner, member))"
_LATE = "'%.6f', now + tonumber(ARGV[2])"
_INDEX = "  run('ZADD', KEYS[4], lease_end, key)"
_DONE = "string.sub(done_before, n, n) == '1' then\n    "
MUTANTS = {
    "destructive pop": Mutant("claim", "run('HSET', KEYS[2], key, member)", ""),
    "claim without an owner": Mutant("claim", "redis.pcall('HSET', KEYS[3], key, owner)", "1"),
    "claim without a lease": Mutant("claim", "run('ZADD', KEYS[4], lease_end, key)", ""),
    "claim overwrites a live claim": Mutant(
        "claim",
        "if run('HEXISTS', KEYS[2], key) == 1 then",
        "if false then",
    ),
    "claim with one token for all": Mutant("claim", "ARGV[3] .. ':' .. at .. ':s='", "'same:1:s='"),
    "claim takes the latest": Mutant("claim", "KEYS[1], 0, 0, 'WITHSCORES'", "KEYS[1], -1, -1, 'WITHSCORES'"),
    "lease by a fast clock": Mutant("claim", _LATE, _LATE + " + 90"),
    "renew without owner check": Mutant("renew", "run('HGET', KEYS[1], ARGV[at]) == ARGV[at + 1]", "true"),
    "renew that does not renew": Mutant("renew", "run('ZADD', KEYS[2], lease_end, ARGV[at])", ""),
    "ack without owner check": Mutant("ack", "run('HGET', KEYS[2], key) ~= owner", "false"),
    "ack without a result": Mutant("ack", "run('LPUSH', list, result)", ""),
    "ack keeps the claim": Mutant("ack", "run('HDEL', KEYS[1], key)", ""),
    "ack keeps the owner": Mutant("ack", "run('HDEL', KEYS[2], key)", ""),
    "ack does not record its outcome": Mutant("ack", "table.concat(marks), 'EX', 60", "table.concat(marks), 'PX', 1"),
    "ack ignores a recorded outcome": Mutant(
        "ack",
        "string.sub(done_before, n, n) == '1' then\n    return 1",
        "string.sub(done_before, n, n) == '1' then\n    write() return 1",
    ),
    "ack keeps the delivery count": Mutant("ack", "try('HDEL', deaths,", "try('HGET', deaths,"),
    "nack without owner check": Mutant("nack", "run('HGET', KEYS[2], key) ~= owner", "false"),
    "a retry is due at once": Mutant("nack", "now + tonumber(delay)", "now"),
    "nack does not record its outcome": Mutant("nack", "table.concat(marks), 'EX', 60", "table.concat(marks), 'PX', 1"),
    "nack keeps the claim": Mutant("nack", "run('ZREM', KEYS[3], key)", ""),
    "release without owner check": Mutant(
        "release",
        "run('HGET', KEYS[3], key) == ARGV[at + 1]",
        "run('HEXISTS', KEYS[2], key) == 1",
    ),
    "release drops the request": Mutant("release", "run('ZADD', KEYS[1], score, member)", ""),
    "reclaim keeps the owner": Mutant("reclaim", "run('HDEL', KEYS[3], key)", ""),
    "reclaim ignores the lease's end": Mutant("reclaim", _ENDED, "KEYS[4], '-inf', '+inf'"),
    "reclaim loses the score": Mutant("reclaim", _RETURN, "move_back(key, member, now)"),
    "reclaim loses the request": Mutant("reclaim", _RETURN, ""),
    "crashed owners are not counted": Mutant("reclaim", "try('HINCRBY', KEYS[5], counted_as(key), 1)", "1"),
    "poison keeps its crashed owner": Mutant("reclaim", "try('HSET', KEYS[3], key, token)", "1"),
    "a lost index entry stays lost": Mutant("reclaim", "(try('HLEN', KEYS[2]) or 0) >", "0 >"),
    "promote forgets to remove": Mutant("promote", "    remove_at(rank)\n", "    run('ZADD', KEYS[1], 9e9, member)\n"),
    "promote forgets to queue": Mutant("promote", "pcall(run, 'ZADD', queue, score, member)", "true"),
    "promote ignores the due time": Mutant("promote", "tonumber(due) > now", "false"),
    "claim does not look for a cancellation": Mutant("claim", "ARGV[5] == '1' and", "false and"),
    "claim follows another submission's cancellation": Mutant(
        "claim",
        "select(2, pcall(holds, 'request-cancel:' .. id, token)) == true",
        "select(2, pcall(text_of, 'request-cancel:' .. id)) ~= false",
    ),
    "recall leaves the request in the queue": Mutant(
        "recall",
        "  run('ZADD', KEYS[4], lease_end, key)\n  remove_at(rank)",
        "  run('ZADD', KEYS[4], lease_end, key)",
    ),
    "recall loses the request": Mutant("recall", "run('HSET', KEYS[2], key, member)", ""),
    "recall loses the score": Mutant("recall", "':s=' .. score", "':s=1'"),
    "recall takes requests that were not cancelled": Mutant(
        "recall", "if is_named(member, wanted, tokens) then", "if true then"
    ),
    "recall searches other scores": Mutant(
        "recall", "run('ZCOUNT', KEYS[1], low, high)", "run('ZCOUNT', KEYS[1], 1, 2)"
    ),
    "recall from the retries leaves a copy": Mutant(
        "recall_retries", "    remove_at(rank)\n", "    is_added = false\n"
    ),
    "claim removes the rank that the request had before": Mutant("claim", "rank_now(rank, at)", "rank"),
    "claim removes another rank": Mutant("claim", "rank_now(rank, at)", "rank_now(rank, at) + 1"),
    "recall removes another rank": Mutant("recall", "hold(member, place,", "hold(member, place + 1,"),
    "promote removes another rank": Mutant("promote", "requeue(member, 0,", "requeue(member, -1,"),
    "recall from the retries removes another rank": Mutant("recall_retries", "move(member, rank)", "move(member, 0)"),
    "recall from the retries takes all": Mutant(
        "recall_retries", "if is_named(member, wanted, tokens) then", "if true then"
    ),
    "promote loses the original score": Mutant("promote", "tonumber(internal['original_score']) or ", ""),
}


async def _walk(redis: Redis, seed: int) -> None:
    """One seeded walk over all steps; raises `AssertionError` if server and model differ."""
    await redis.flushall()
    walk = Walk(Bench(redis, "mutant"))
    chance = random.Random(seed)
    names = [*STEPS, "submit", "submit", "claim", "claim", "cancel", "recall"]
    for _ in range(STEPS_OF_A_WALK):
        await STEPS[chance.choice(names)](walk, chance.randrange(24))
        await walk.check()
    await walk.drain()


@pytest.mark.parametrize("name", sorted(MUTANTS))
async def test_a_mistake_in_a_script_is_found(name: str, store: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = MUTANTS[name]

    def mutated(redis: Redis, script: str) -> AsyncScript:
        text = script_text(script)
        if script == mutant.script:
            assert text.count(mutant.found) == 1, "the script has changed: so must the mutant"
            text = text.replace(mutant.found, mutant.instead)
        return AsyncScript(redis, text)

    monkeypatch.setattr(queue, "lua_script", mutated)
    with pytest.raises((AssertionError, ResponseError)):
        for seed in range(WALKS):
            await _walk(store, seed)


@pytest.mark.parametrize("seed", range(WALKS))
async def test_the_unchanged_scripts_pass_the_same_walks(seed: int, store: Redis) -> None:
    await _walk(store, seed)
