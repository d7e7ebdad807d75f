"""Each script changes the keys that it should and no others: a table of effects, which every wrong key violates."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any, cast

import pytest
from redis.exceptions import RedisError, ResponseError

from handlers.demo.valkey import Valkey
from handlers.redis_store.scripts import script_text
from tests.redis_store.test_fail_atomic import FAR, SCENES, SCRIPTS, Scene, Store, item

_SUMMARY = """
local rows = {}
local readers = {list = {'LRANGE', 0, -1}, hash = {'HGETALL'}, zset = {'ZRANGE', 0, -1}}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local reader = readers[redis.call('TYPE', key).ok]
  local texts = reader and redis.call(reader[1], key, unpack(reader, 2)) or { redis.call('GET', key) }
  rows[#rows + 1] = { key, texts, redis.sha1hex(redis.call('DUMP', key)), redis.call('PEXPIRETIME', key) }
end
return rows
"""
MORE: dict[str, list[list[Any]]] = {
    "ack": [["SET", "request-payload:x", "{}"]],
    "ack_results": [["PERSIST", "results:tombstones"]],
    "cancel": [["ZADD", "request-cancellations", 1, "old"]],
    "note_cancelled": [["ZADD", "request-cancellations", 1, "old"]],
    "finished": [
        *(["HSET", "status:finished", name, "x" * 6_000] for name in ("a", "b", "old", "x")),
        ["SET", "status:finished-bytes", 24_000],
        *(["ZADD", "status:finished-idx", at, name] for at, name in ((FAR - 1, "a"), (FAR, "b"), (1, "old"))),
    ],
    "free_slot": [["SET", "quota:x", 3]],
    "hold_slot": [["ZADD", "{quota:x}:held", 1, "old"], ["HSET", "{quota:x}:held-by", "old", "o"]],
    "leave_pool": [["ZADD", "pool:pollers", FAR, "p"], ["HSET", "pool:in-use", "p", 1]],
    "overdue_posts": [["ZADD", "outbox-idx", 1, "gone"]],
    "pay_rate": [["ZADD", "quota:y", 1, "old"], ["ZADD", "{quota:y}:paid", 1, "old"]],
    "promote": [["SET", "other", "x"], ["ZADD", "retry", 1, item(14, request_queue_name="other")]],
    "receive_results": [["ZADD", "results:idx", 1, "gone"], ["HSET", "results:owners", "gone", "o"]],
    "reclaim": [["HSET", "q:claimed", "unlisted", "x"]],
    "record_for_id": [["DEL", "request-stands:x"]],
    "refund_rate": [["ZADD", "quota:y", 1, "r"], ["ZADD", "{quota:y}:paid", FAR, "r"]],
    "renew_slots": [["DEL", "{quota:x}:held-by"]],
    "share_pool": [["ZADD", "pool:pollers", 1, "old"], ["HSET", "pool:in-use", "old", 1]],
    "take_token": [
        ["HSET", "control", "api_version", "v", "pool_id", "p", "max_admission_rps", 2],
        ["HSET", "control", "valid_until_unix_ms", FAR * 1_000, "decision_id", "d"],
    ],
}
"""What the store holds besides, so that each of a script's commands has an effect."""
EFFECTS: dict[str, dict[str, str]] = {
    "abandon_delivery": {"delivery:x": "2 expires"},
    "ack": {
        "q:claimed": "deleted",
        "q:dead": "4 items 5 6",
        "q:deaths": "deleted",
        "q:idx": "deleted",
        "q:owners": "deleted",
        "request-active:x": "deleted",
        "request-payload:x": "deleted",
        "results": "5 items 4 5 9 10 expires",
        "settled": "1 expires",
    },
    "ack_results": {
        "results:claimed": "2 items 12",
        "results:idx": "1",
        "results:owners": "2",
        "results:tombstones": "2 expires",
    },
    "acknowledge_key": {"request-submitted:k": "1 expires"},
    "begin_delivery": {"delivery:x": "2 expires"},
    "cancel": {"request-cancel:x": "1 expires", "request-cancellations": "1 expires"},
    "claim": {
        "q": "deleted",
        "q:claimed": "10 items 1 2 3 4 5",
        "q:idx": "5 items 1 2 3",
        "q:owners": "10 items 1 2 3 owned 3",
    },
    "deliver": {"results": "4 items 9 10 20 expires", "results:delivered": "1 expires"},
    "finish_delivery": {"delivery:x": "2 expires"},
    "finish_id_record": {"request-stands:x": "1 expires"},
    "finished": {
        "status:finished": "2 expires",
        "status:finished-bytes": "1 expires",
        "status:finished-idx": "1 expires",
    },
    "forget": {"request-active:x": "deleted"},
    "free_slot": {"quota:x": "1 expires", "{quota:x}:held": "deleted", "{quota:x}:held-by": "deleted"},
    "hold_slot": {"quota:x": "1 expires", "{quota:x}:held": "1 expires", "{quota:x}:held-by": "2 expires"},
    "leave_pool": {"pool:in-use": "deleted", "pool:pollers": "deleted"},
    "nack": {
        "q:claimed": "deleted",
        "q:idx": "deleted",
        "q:owners": "deleted",
        "retry": "4 items 4 5 7 8",
        "settled": "1 expires",
    },
    "note_cancelled": {"request-cancellations": "1 expires"},
    "overdue_posts": {"outbox-idx": "1"},
    "pay_rate": {"quota:y": "1 expires", "{quota:y}:paid": "1 expires"},
    "post": {
        "outbox": "6 items 4 5 13",
        "outbox-idx": "3",
        "q:claimed": "deleted",
        "q:dead": "4 items 5 6",
        "q:deaths": "deleted",
        "q:idx": "deleted",
        "q:owners": "deleted",
        "settled": "1 expires",
    },
    "post_cancelled": {"outbox": "4 items 7 13 owned 1", "outbox-idx": "2 owned 1", "retry": "1 items 8"},
    "post_due": {"outbox": "6 items 7 8 13 owned 2", "outbox-idx": "3 owned 2", "retry": "deleted"},
    "promote": {"q": "6 items 1 2 3 7 8 14", "retry": "deleted"},
    "recall": {
        "q": "1 items 3",
        "q:claimed": "8 items 1 2 4 5",
        "q:idx": "4 items 1 2",
        "q:owners": "8 items 1 2 owned 2",
    },
    "recall_retries": {"q": "4 items 1 2 3 7", "retry": "1 items 8"},
    "receive_results": {
        "results": "deleted",
        "results:claimed": "10 items 9 10 11 12",
        "results:idx": "5 items 9 10",
        "results:owners": "10 items 9 10",
        "results:tombstones": "deleted",
    },
    "reclaim": {
        "q": "4 items 1 2 3 4",
        "q:claimed": "4 items 5",
        "q:deaths": "4 expires",
        "q:idx": "2",
        "q:owners": "2 owned 1",
    },
    "record_for_id": {"request-stands:x": "1 expires"},
    "refund_rate": {"quota:y": "deleted", "{quota:y}:paid": "deleted"},
    "release": {"q": "5 items 1 2 3 4 5", "q:claimed": "deleted", "q:idx": "deleted", "q:owners": "deleted"},
    "renew": {"q:idx": "2"},
    "renew_delivery": {"delivery:x": "2 expires"},
    "renew_results": {"results:idx": "2"},
    "renew_slots": {"quota:x": "1 expires", "{quota:x}:held": "1 expires", "{quota:x}:held-by": "2 expires"},
    "requeue_dead": {"q": "4 items 1 2 3 6", "q:dead": "deleted"},
    "return_results": {
        "results": "5 items 9 10 11 12",
        "results:claimed": "deleted",
        "results:idx": "deleted",
        "results:owners": "deleted",
    },
    "return_token": {"control:state": "2"},
    "share_pool": {"pool:in-use": "2 expires", "pool:pollers": "1 expires"},
    "submit": {
        "q": "4 items 1 2 3 21",
        "request-active:y": "1 expires",
        "request-payload:y": "1 expires",
        "request-sent:x": "1 expires",
        "request-seq:q": "1 expires",
        "request-submitted:y": "1 expires",
    },
    "take_back": {
        "q": "5 items 1 2 3 4 5",
        "q:claimed": "deleted",
        "q:idx": "deleted",
        "q:owners": "deleted",
    },
    "take_token": {"control:state": "4 expires"},
}
"""The keys that a call changes: how many entries they have then, of which items, how many owner tokens of this
call (they begin with `cd34`), and whether they expire."""


def _stored(store: Store) -> dict[str, list[Any]]:
    return {row[0].decode(): row[1:] for row in cast("list[Any]", store.admin.eval(_SUMMARY, 0))}


def _effects(store: Store, name: str, text: str) -> dict[str, str]:
    scene = SCENES[name]
    store.fill()
    for command in MORE.get(name, []):
        store.admin.execute_command(*command)  # type: ignore[no-untyped-call]  # untyped
    before = _stored(store)
    store.admin.eval(text, len(scene.keys), *scene.keys, *cast("list[Any]", scene.args))
    after = _stored(store)
    changed = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
    return {key: _described(after[key]) if key in after else "deleted" for key in changed}


def _described(row: list[Any]) -> str:
    texts, _, expires_at = row
    items = sorted({int(number) for text in texts for number in re.findall(rb"item-(\d+)-", text)})
    named = f" items {' '.join(map(str, items))}" if items else ""
    owned = sum(text.startswith(b"cd34:") for text in texts)
    return f"{len(texts)}{named}{f' owned {owned}' if owned else ''}{' expires' if expires_at > 0 else ''}"


@pytest.fixture
def filled(valkey: Valkey) -> Iterator[Store]:
    with contextlib.closing(Store(valkey.url)) as store:
        yield store


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_changes_only_the_keys_in_its_header(name: str, filled: Store) -> None:
    assert _effects(filled, name, script_text(name)) == EFFECTS.get(name, {})


NO_EFFECT = {
    "receive_results": {"run('HDEL', KEYS[2], key) -> 'elsewhere'", "run('HDEL', KEYS[2], key) -> KEYS[3]"},
    "finished": {"redis.call('ZREM', KEYS[2], id) -> 'elsewhere'"},
}
"""Wrong keys that change nothing: a lease without a result has no field to delete, and ZPOPMIN removes the id too."""
_COMMANDS = "ZADD|[HL]SET|[LR]PUSH|P?SETEX|SET|HDEL|ZREM[A-Z]*|DEL|UNLINK|LTRIM|P?EXPIRE(?:AT)?|INCR|HINCRBY|ZPOPMIN"
_CHANGE = re.compile(
    rf"(?:run|try|redis\.p?call)\('(?:{_COMMANDS})', ([a-z_]+|KEYS\[\d\])(?=[,)])"
    rf"|pcall\(run, '(?:{_COMMANDS})', ([a-z_]+)"
)


def _changes(text: str) -> list[tuple[int, int]]:
    """Where the key of each command that changes something is, without comments."""
    text = re.sub(r"--[^\n]*", lambda found: " " * len(found[0]), text)
    return [found.span(1) if found[1] else found.span(2) for found in _CHANGE.finditer(text)]


def _line(text: str, at: tuple[int, int]) -> str:
    return text[text.rindex("\n", 0, at[0]) : text.index("\n", at[1])].partition(" --")[0].strip()


def _is_reached(store: Store, name: str, text: str, at: tuple[int, int]) -> bool:
    marked = f"{text[: at[0]]}error('reached'){text[at[1] :]}"
    try:
        return _effects(store, name, marked) != EFFECTS.get(name, {})
    except ResponseError:
        return True


def _wrong_keys(scene: Scene, key: str) -> list[str]:
    """Other keys than `key`. A variable is a key of the caller or of a request, so it may be one of KEYS."""
    keys = [f"KEYS[{number}]" for number in range(1, len(scene.keys) + 1)]
    return ["'elsewhere'", *(other for other in keys if key.startswith("KEYS") and other != key)]


def _missed(store: Store, name: str, text: str, at: tuple[int, int]) -> Iterator[str]:
    for other in _wrong_keys(SCENES[name], text[slice(*at)]):
        with contextlib.suppress(RedisError):
            if _effects(store, name, text[: at[0]] + other + text[at[1] :]) == EFFECTS.get(name, {}):
                yield f"{_line(text, at)} -> {other}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_that_uses_a_wrong_key_is_found(name: str, filled: Store) -> None:
    text = script_text(name)
    reached = [at for at in _changes(text) if _is_reached(filled, name, text, at)]
    missed = {wrong for at in reached for wrong in _missed(filled, name, text, at)}
    assert missed == NO_EFFECT.get(name, set())


UNREACHED = {
    "redis.call('SET', KEYS[2], told, 'EX', 120)",
    "run('HSET', KEYS[2], key, held)",
    "run('HSET', KEYS[3], key, owner)",
    "run('ZADD', KEYS[1], ARGV[at + 2], ARGV[at + 1])",
    "run('ZADD', KEYS[1], string.format('%.6f', now + 5), member)",
    "try('HDEL', KEYS[5], dead ~= '' and letter or NO_NAME)",
}
"""Commands that none of the calls reaches: those after a fault, a repeated submission, and requests of `deliver`."""


def test_the_calls_reach_every_command(filled: Store) -> None:
    reached, all_of_them = set(), set()
    for name in SCRIPTS:
        text = script_text(name)
        for at in _changes(text):
            all_of_them.add(_line(text, at))
            if _is_reached(filled, name, text, at):
                reached.add(_line(text, at))
    assert all_of_them - reached == UNREACHED
