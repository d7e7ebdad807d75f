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
_RETURN = "redis.call('ZADD', KEYS[1], score_of(owner, member), member)"
_LATE = "'%.6f', now + tonumber(ARGV[2])"
MUTANTS = {
    "destructive pop": Mutant("claim", "redis.call('HSETNX', KEYS[2], key, member)", "1"),
    "claim without an owner": Mutant("claim", "redis.call('HSET', KEYS[3], key, owner)", ""),
    "claim without a lease": Mutant("claim", "redis.call('ZADD', KEYS[4], lease_end, key)", ""),
    "claim overwrites a live claim": Mutant(
        "claim",
        "redis.call('HSETNX', KEYS[2], key, member) == 0",
        "redis.call('HSET', KEYS[2], key, member) < 0",
    ),
    "claim with one token for all": Mutant("claim", "ARGV[3] .. ':' .. at .. ':s='", "'same:1:s='"),
    "claim takes the latest": Mutant("claim", "'ZPOPMIN'", "'ZPOPMAX'"),
    "lease by a clock that runs ahead": Mutant("claim", _LATE, _LATE + " + 90"),
    "renew without owner check": Mutant(
        "renew", "redis.call('HGET', KEYS[1], ARGV[at]) == ARGV[at + 1]", "true"
    ),
    "renew that does not renew": Mutant("renew", "redis.call('ZADD', KEYS[2], lease_end, ARGV[at])", ""),
    "ack without owner check": Mutant("ack", "redis.call('HGET', KEYS[2], key) == owner", "true"),
    "ack without a result": Mutant("ack", "redis.pcall('LPUSH', list, result)", "1"),
    "ack keeps the claim": Mutant("ack", "redis.call('HDEL', KEYS[1], key)", ""),
    "ack keeps the owner": Mutant("ack", "redis.call('HDEL', KEYS[2], key)", ""),
    "ack forgets what it did": Mutant("ack", "'EX', 60", "'PX', 1"),
    "ack repeats what it did": Mutant("ack", "effect == 1 and not is_settled", "effect == 1 and is_settled"),
    "ack forgets no deaths": Mutant("ack", "redis.call('HDEL', KEYS[4]", "redis.call('HGET', KEYS[4]"),
    "nack without owner check": Mutant("nack", "redis.call('HGET', KEYS[2], key) == ARGV[at + 1]", "true"),
    "a retry re-enters at once": Mutant("nack", "now + tonumber(ARGV[at + 3])", "now"),
    "nack forgets what it did": Mutant("nack", "'EX', 60", "'PX', 1"),
    "nack keeps the claim": Mutant("nack", "redis.call('ZREM', KEYS[3], key)", ""),
    "release without owner check": Mutant(
        "release",
        "redis.call('HGET', KEYS[3], key) == ARGV[at + 1]",
        "redis.call('HEXISTS', KEYS[2], key) == 1",
    ),
    "release drops the request": Mutant(
        "release", "redis.call('ZADD', KEYS[1], ARGV[at + 2], redis.call('HGET', KEYS[2], key))", ""
    ),
    "reclaim keeps the owner": Mutant("reclaim", "redis.call('HDEL', KEYS[3], key)", ""),
    "reclaim ignores the lease's end": Mutant("reclaim", _ENDED, "KEYS[4], '-inf', '+inf'"),
    "reclaim loses the score": Mutant("reclaim", _RETURN, "redis.call('ZADD', KEYS[1], now, member)"),
    "reclaim loses the request": Mutant("reclaim", _RETURN, ""),
    "deaths are not counted": Mutant("reclaim", "redis.call('HINCRBY', KEYS[5], counted_as(key), 1)", "1"),
    "poison keeps its dead owner": Mutant("reclaim", "redis.call('HSET', KEYS[3], key, token)", ""),
    "a lost index entry stays lost": Mutant("reclaim", "redis.call('HLEN', KEYS[2]) >", "0 >"),
    "promote forgets to remove": Mutant("promote", "redis.call('ZREM', KEYS[1], member)", ""),
    "promote forgets to queue": Mutant(
        "promote", "redis.pcall('ZADD', queue, string.format('%.17g', score or now), member)", "1"
    ),
    "promote ignores the due time": Mutant(
        "promote", "string.format('%.6f', now), 'LIMIT'", "'+inf', 'LIMIT'"
    ),
    "claim does not look for a cancellation": Mutant("claim", "ARGV[5] == '1' and", "false and"),
    "claim heeds another submission's cancellation": Mutant(
        "claim",
        "redis.call('GET', 'request-cancel:' .. id) == token",
        "redis.call('GET', 'request-cancel:' .. id)",
    ),
    "recall leaves the request in the queue": Mutant(
        "recall", "redis.call('ZREM', KEYS[1], member) == 1", "redis.call('ZSCORE', KEYS[1], member)"
    ),
    "recall loses the request": Mutant("recall", "redis.call('HSETNX', KEYS[2], key, member)", "1"),
    "recall loses the score": Mutant("recall", "':s=' .. score", "':s=1'"),
    "recall takes what was not cancelled": Mutant("recall", "is_named(page[n], wanted, tokens)", "true"),
    "recall looks elsewhere": Mutant("recall", "low, high, 'WITHSCORES'", "1, 2, 'WITHSCORES'"),
    "recall from the retries leaves a copy": Mutant(
        "recall_retries", "redis.call('ZREM', KEYS[1], member)", ""
    ),
    "recall from the retries takes all": Mutant(
        "recall_retries", "may_be and wanted[claim_key(member)]", "true"
    ),
    "promote loses the original score": Mutant("promote", "tonumber(internal['original_score']) or ", ""),
}


async def _walk(redis: Redis, seed: int) -> None:
    """One seeded walk over all steps; raises `AssertionError` where server and model part."""
    await redis.flushall()
    walk = Walk(Bench(redis, "mutant"))
    chance = random.Random(seed)
    names = [*STEPS, "submit", "submit", "claim", "claim", "cancel", "recall"]
    for _ in range(STEPS_OF_A_WALK):
        await STEPS[chance.choice(names)](walk, chance.randrange(24))
        await walk.check()
    await walk.drain()


@pytest.mark.parametrize("name", sorted(MUTANTS))
async def test_a_mistake_in_a_script_is_found(
    name: str, store: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
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
async def test_the_scripts_as_they_are_pass_the_same_walks(seed: int, store: Redis) -> None:
    await _walk(store, seed)
