"""The time for which a claim blocks Redis is bounded, whatever the members hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from redis import Redis

from handlers.demo.valkey import Valkey
from handlers.redis_store.scripts import SCRIPT_BYTES, script_text
from tests.servers.presence import valkey_program

CLAIM_KEYS = ["q", "q:claimed", "q:claim-owners", "q:claims-idx", "q:deaths"]
WORKERS = 64
LARGE = 9_900_000
MOST_SMALL = 20
"""A claim costs at most this many times a claim of as many requests of 200 bytes."""
MOST_LARGE = 15
"""A claim of one member of 9.9 MB costs at most this many times a ZADD of it, which copies it once."""


def _member(number: int, payload: bytes, *, is_id_first: bool) -> bytes:
    name = b'"id":"r-%d","deadline":1999999999' % number
    fields = name + b',"payload":' + payload if is_id_first else b'"payload":' + payload + b"," + name
    internal = b'{"internal":{"request_token":"t-%d"},"request_kind":"redis","data":{' % number
    return internal + fields + b"}}"


PAYLOADS = {
    "lists": lambda size: b"[" + b"[]," * (size // 3) + b"1]",
    "escapes": lambda size: b'"' + b'\\"' * (size // 2) + b'"',
    "text": lambda size: b'"' + b"x" * size + b'"',
}


def _fastest(redis: Redis, prepare: Callable[[], object], call: Callable[[], object]) -> int:
    """The fewest microseconds that the server reports for `call`, of five calls."""
    found = []
    for _ in range(5):
        redis.flushall()
        prepare()
        redis.slowlog_reset()
        call()
        found.append(max(int(entry["duration"]) for entry in redis.slowlog_get(10)))
    return max(1, min(found))


@pytest.mark.bench
@pytest.mark.timeout(300)
@pytest.mark.parametrize("is_id_first", [True, False])
@pytest.mark.parametrize("form", PAYLOADS)
@pytest.mark.parametrize(("size", "count"), [(1_000, 64), (4_000, 64), (60_000, 64), (1_000_000, 8), (LARGE, 1)])
def test_a_claim_costs_a_bounded_multiple_of_a_plain_one(size: int, count: int, form: str, is_id_first: bool) -> None:
    members = [_member(n, PAYLOADS[form](size), is_id_first=is_id_first) for n in range(count)]
    with Valkey(valkey_program()) as server, Redis.from_url(server.url) as redis:
        redis.config_set("slowlog-log-slower-than", 0)
        sha = redis.script_load(script_text("claim"))
        arguments = (WORKERS, 30, "ab12", 0, 1, SCRIPT_BYTES, WORKERS, 0)

        def claim(members: list[bytes]) -> int:
            return _fastest(
                redis,
                lambda: [redis.zadd("q", {member: n}) for n, member in enumerate(members)],
                lambda: redis.evalsha(sha, len(CLAIM_KEYS), *CLAIM_KEYS, *arguments),
            )

        if size == LARGE:
            most = MOST_LARGE * _fastest(redis, lambda: None, lambda: redis.zadd("w", {members[0]: 1}))
        else:
            most = MOST_SMALL * claim([_member(n, b"1", is_id_first=True) for n in range(count)])
        assert claim(members) <= most


@pytest.mark.bench
@pytest.mark.parametrize("end", [b" ", b"}", b"\n", b"\0"])
def test_a_request_whose_id_is_claimed_costs_a_bounded_multiple_of_a_plain_write(end: bytes) -> None:
    """Both members without a token are compared, whatever they end with."""
    with Valkey(valkey_program()) as server, Redis.from_url(server.url) as redis:
        redis.config_set("slowlog-log-slower-than", 0)
        sha = redis.script_load(script_text("claim"))
        arguments = (WORKERS, 30, "ab12", 0, 1, SCRIPT_BYTES, WORKERS, 0)

        def put(retry_count: int) -> None:
            head = b'{"internal":{"retry_count":%d},"request_kind":"redis","data":' % retry_count
            data = b'{"id":"r","deadline":1999999999,"payload":{}}}'
            redis.zadd("q", {head + data + end * LARGE: 1})

        def prepare() -> None:
            put(0)
            redis.evalsha(sha, len(CLAIM_KEYS), *CLAIM_KEYS, *arguments)
            redis.hset(CLAIM_KEYS[2], "r", "another's")
            put(1)

        plain = _fastest(redis, lambda: None, lambda: redis.zadd("w", {end * LARGE: 1}))
        cost = _fastest(redis, prepare, lambda: redis.evalsha(sha, len(CLAIM_KEYS), *CLAIM_KEYS, *arguments))
        assert cost <= MOST_LARGE * plain
