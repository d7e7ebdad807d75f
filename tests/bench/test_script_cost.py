"""The time for which one call of a script blocks Redis is bounded, for every script and the largest requests."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from redis import Redis

from handlers.demo.valkey import Valkey
from handlers.redis_store.scripts import script_text
from tests.redis_store.test_fail_atomic import SCENES, Scene, stored_commands
from tests.servers.presence import valkey_program

LARGE = 9_900_000
MOST = 6
"""A call costs at most this many times a ZADD of one such member, which takes 5 to 8 ms.

A script that reads a member, stores it elsewhere and removes it by its rank takes two to three times as long.
"""
ROUNDS = 7
_FILL = """
local large = string.rep('x', tonumber(ARGV[2]))
for _, command in ipairs(cjson.decode(ARGV[1])) do
  for at, word in ipairs(command) do command[at] = string.gsub(word, '@', large) end
  redis.call(unpack(command))
end
"""
_BODY = re.compile(r'(?<="payload": )\{"n": 1\}')
_TEXT = re.compile(r"^(?:result|post|record of|dead) .*item-[0-9]+-", re.DOTALL)
_RESULT = re.compile(r'^(\{"id": "item-[0-9]+-")')
_HEAD = re.compile(r'^(,"data":\{"id":"item-[0-9]+-")')


def enlarged(words: Sequence[object]) -> list[str]:
    """The words of a command or call, with an `@` in each request, result, record and dead letter."""
    texts = [word.decode() if isinstance(word, bytes) else str(word) for word in words]
    return [_large(text) for text in texts]


def _large(text: str) -> str:
    for form, instead in ((_BODY, '"@"'), (_RESULT, r'\1, "payload": "@"'), (_HEAD, r'\1,"payload":"@"')):
        if form.search(text):
            return form.sub(instead, text, count=1)
    return f"{text}@" if _TEXT.search(text) else text


def _at_most_one(words: list[str]) -> list[str]:
    """A batch of arguments has at most one large item: callers bound its bytes."""
    first = next((at for at, word in enumerate(words) if "@" in word), 0)
    return [word if at == first else word.replace("@", "") for at, word in enumerate(words)]


@pytest.fixture(scope="module")
def redis() -> Iterator[Redis]:
    with Valkey(valkey_program()) as server, Redis.from_url(server.url) as redis:
        yield redis


def _cheapest(redis: Redis, commands: list[list[str]], call: Callable[[], object]) -> float:
    """The fewest milliseconds of CPU that the server's main thread needs for `call`."""
    pid = redis.info("server")["process_id"]
    used = Path(f"/proc/{pid}/task/{pid}/schedstat")  # the CPU time so far, in nanoseconds
    found = []
    for _ in range(ROUNDS):
        redis.flushall()
        redis.eval(_FILL, 0, json.dumps(commands), str(LARGE))
        before = int(used.read_text().split()[0])
        call()
        found.append(int(used.read_text().split()[0]) - before)
    return min(found) / 1_000_000


_READS = {
    f"read_part {kind}": Scene([key], [kind, 0, 9, 1_000, 9]) for kind, key in (("HSCAN", "h"), ("ZREVRANGE", "q"))
}
_MANY = [["HSET", "h", f"f{n}", "@"] for n in range(9)]
"""More values than a bucket of the hash has."""


@pytest.mark.bench
@pytest.mark.timeout(300)
@pytest.mark.parametrize("call", sorted({**SCENES, **_READS}))
def test_a_call_of_a_script_costs_a_bounded_multiple_of_a_plain_write(redis: Redis, call: str) -> None:
    name, scene, member = call.split(maxsplit=1)[0], {**SCENES, **_READS}[call], b"x" * LARGE
    keys = {*scene.keys, *scene.others}
    commands = [enlarged(words) for words in stored_commands() + _MANY if words[1] in keys]
    given = scene.args[:3] if name == "release" else scene.args  # its caller releases one large claim at a time
    arguments = [word.replace("@", "x" * LARGE) for word in _at_most_one(enlarged(given))]
    sha = redis.script_load(script_text(name))
    plain = _cheapest(redis, [], lambda: redis.zadd("w", {member: 1}))

    cost = _cheapest(redis, commands, lambda: redis.evalsha(sha, len(scene.keys), *scene.keys, *arguments))

    print(f"{call}: {cost:.1f} ms, {cost / plain:.1f} x ZADD ({plain:.1f} ms)")
    assert cost <= MOST * plain


_PAYLOAD = b'"deadline":1999999999,"payload":{}'
_QUEUE = ["q", "q:claimed", "q:owners", "q:idx", "q:deaths"]
_CLAIM: list[int | str] = [64, 30, "ab12", 0, 1, 1_000_000, 0, 0]
_RECALL: list[int | str] = [
    30,
    "ab12",
    1,
    0,
    500,
    1_000_000,
    1,
    "-inf",
    "+inf",
    *(f"other-{n}\0t-{n}" for n in range(500)),
]
MOST_MS = 20.0


def _slow_to_read(number: int, size: int) -> dict[str, bytes]:
    """Legal members of one producer, from which reading the id or the token takes as long as it can."""
    spaces, own = b" " * size, b'"id":"a%d"' % number
    return {
        "spaces": spaces + b"{%b,%b}" % (own, _PAYLOAD),
        "spaces after the same id": b'{"id":"a"' + spaces + b",%b}" % _PAYLOAD + b" " * number,
        "spaces in a count": b'{"internal":{"retry_count"%b:%b1},"data":{%b,%b}}' % (spaces, spaces, own, _PAYLOAD),
        "signs": b'{"a":%b,%b,%b}' % (b'""' * (size // 2), own, _PAYLOAD),
        "a late count": b'{"internal":{"x":"%b","retry_count":1},"data":{%b,%b}}' % (spaces, own, _PAYLOAD),
        "escaped tokens": b'{"internal":{"request_token":"\\n%d"%b},"data":{%b,%b}}' % (number, spaces, own, _PAYLOAD),
    }


@pytest.mark.bench
@pytest.mark.parametrize("size", [900, 2_000, 15_000])
@pytest.mark.parametrize("form", _slow_to_read(0, 0))
def test_members_that_are_slow_to_read_delay_a_claim_and_a_search_by_milliseconds(
    redis: Redis, form: str, size: int
) -> None:
    found, count = {}, min(1_100, 2_000_000 // size)
    for name, given in {"claim": _CLAIM, "recall": _RECALL}.items():
        sha = redis.script_load(script_text(name))
        commands = [["ZADD", "q", str(n), _slow_to_read(n, size)[form].decode()] for n in range(count)]
        found[name] = _cheapest(redis, commands, partial(redis.evalsha, sha, 5, *_QUEUE, *given))

    print(f"{form}, {size} bytes: {found}")
    assert max(found.values()) <= MOST_MS
