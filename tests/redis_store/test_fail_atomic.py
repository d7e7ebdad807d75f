"""No script that fails halfway loses a request, a result or a dead letter, whatever command or key it fails at."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import pytest
from redis import Redis
from redis.exceptions import RedisError

from handlers.demo.valkey import Valkey
from handlers.redis_store.admin.acl import Role, acl_rules
from handlers.redis_store.scripts import script_files, script_text
from tests.redis_store.queue.queueing import DEADLINE, envelope
from tests.servers.presence import program_path

SCRIPTS = sorted(name for name in script_files() if not name.startswith("_"))
OWNERS = {4: "ab12:1:s=4", 5: "ab12:2:s=5"}
FAR = 4_000_000_000
QUEUE = ["q", "q:claimed", "q:owners", "q:idx", "q:deaths"]
CLAIMS = QUEUE[1:4]
RESULTS = ["results", "results:claimed", "results:owners", "results:idx"]
OUTBOX = ["outbox", "outbox-idx"]
_WRITTEN_BY_CLIENTS = tuple(
    word[1:].rstrip("*") for word in acl_rules(Role.CLIENT).split(" (")[0].split(" ") if word.startswith("~request-")
)
LIVE = ["request-active:x", "request-cancel:x"]
SLOTS = ["quota:x", "{quota:x}:held", "{quota:x}:held-by"]


@dataclass(frozen=True)
class Scene:
    """A call of a script against the populated store; `others` are the keys that it does not declare."""

    keys: list[str]
    args: list[object]
    others: tuple[str, ...] = ()
    drops: frozenset[str] = frozenset()
    """Keys that a successful call may delete."""


def item(number: int, **internal: object) -> bytes:
    """A request that is known by its number wherever it is."""
    return envelope(f"item-{number}-", f"t-{number}", **internal)


def _ack(key: str, number: int, results: str) -> list[object]:
    dead = f"dead item-{number}-" if number == 5 else ""
    return [
        key,
        OWNERS[number],
        f"result item-{number}-",
        results,
        100,
        dead,
        "t",
        *LIVE,
        "request-payload:x",
    ]


_CANCELLED = [f"item-{n}-\0t-{n}" for n in (1, 2, 7)]
SCENES = {
    "ack": Scene(
        [*CLAIMS, "q:deaths", "q:dead", "settled"],
        [*_ack("c4", 4, "results"), *_ack("c5", 5, "results")],
        ("results", *LIVE, "request-payload:x"),
    ),
    "nack": Scene([*CLAIMS, "retry", "settled"], ["c4", OWNERS[4], item(4), 1, "c5", OWNERS[5], item(5), 1]),
    "release": Scene(QUEUE[:4], ["c4", OWNERS[4], 4, "c5", OWNERS[5], 5]),
    "take_back": Scene(QUEUE[:4], [1_000, "ab12"]),
    "claim": Scene(QUEUE, [10, 30, "cd34", 0, 1, 10_000, 10, 0], ("request-cancel:item-1-",)),
    "reclaim": Scene(QUEUE, [10, 2, 30, "cd34", 10_000]),
    "recall": Scene(QUEUE, [30, "cd34", 1, 0, 100, 10_000, 1, "-inf", "+inf", *_CANCELLED]),
    "recall_retries": Scene(["retry"], ["q", "-inf", 0, 100, 10_000, *_CANCELLED], ("q",)),
    "promote": Scene(["retry"], [10, "q", 10_000], ("q",)),
    "renew": Scene(["q:owners", "q:idx"], [30, "c4", OWNERS[4]]),
    "requeue_dead": Scene(["q:dead", "q"], ["d6", item(6), 6]),
    "receive_results": Scene([*RESULTS, "results:tombstones"], ["o", 30_000, 10, 10_000, "ef"]),
    "oldest_results": Scene(["results"], [10, 10_000, 0]),
    "newest_results": Scene(["results"], [10, 1_000_000]),
    "read_part": Scene(["results"], ["LRANGE", 0, 100, 1_000_000, 100_000]),
    "return_results": Scene(RESULTS, ["o", 10_000, "held-11", "held-12"]),
    "renew_results": Scene(["results:owners", "results:idx"], ["o", 30_000, "held-11"]),
    "ack_results": Scene([*RESULTS[1:], "results:tombstones"], ["o", 30_000, "held-11"], drops=frozenset({"item-11-"})),
    "post": Scene(
        [*CLAIMS, "q:deaths", "q:dead", "settled", *OUTBOX],
        [1, "c4", OWNERS[4], "post item-4-", "", "c5", OWNERS[5], "post item-5-", "dead item-5-"],
    ),
    "post_due": Scene(["retry", *OUTBOX], ["cd34", "q", 10, 10_000]),
    "post_cancelled": Scene(["retry", *OUTBOX], ["cd34", "q", "-inf", 0, 100, 10_000, *_CANCELLED]),
    "overdue_posts": Scene(OUTBOX, [5, 10, 10_000]),
    "deliver": Scene(["results", "results:delivered"], ["list", 100, "", "p13", "result item-20-", ""]),
    "submit": Scene(
        [
            "q",
            "request-sent:x",
            "request-seq:q",
            "request-active:y",
            "request-submitted:y",
            "request-payload:y",
        ],
        [
            0,
            DEADLINE,
            "tok",
            '{"internal":{"request_token":"tok-',
            ',"data":{"id":"item-21-"}}',
            "{}",
            60,
            " 60 {}",
        ],
    ),
    "acknowledge_key": Scene(["request-submitted:k"], ["t-1"]),
    "look_up": Scene(["request-active:x", "request-cancel:x", "request-submitted:x", *QUEUE[:2]], ["x", ""]),
    "is_pending": Scene(["q"], [1, "t-1"]),
    "cancel": Scene(["request-cancellations", "request-active:x", "request-cancel:x"], ["x", ""]),
    "note_cancelled": Scene(["request-cancellations"], [1, 1_000, "x\0t"]),
    "new_cancellations": Scene(["request-cancellations"], [0, 0, FAR, 100, 10_000, 100]),
    "mark_submission": Scene(["request-submitted:x"], ["t", FAR * 1_000, ""]),
    "confirm_submission": Scene(["request-submitted:x"], ["t", "t"]),
    "forget": Scene(["request-active:x"], ["t"]),
    "finished": Scene(
        ["status:finished", "status:finished-idx", "status:finished-bytes"],
        [10, 10_000, 60, "x", "record of x"],
    ),
    "check_rights": Scene(["q"], ["ZADD", "1", "x"]),
    "record_for_id": Scene(["request-stands:x"], ["m", FAR * 1_000]),
    "finish_id_record": Scene(["request-stands:x"], ["m", 60, 0]),
    "begin_delivery": Scene(["delivery:x"], ["o", 600_000]),
    "renew_delivery": Scene(["delivery:x"], ["o", 600_000]),
    "abandon_delivery": Scene(["delivery:x"], ["o", "span", 600_000]),
    "finish_delivery": Scene(["delivery:x"], ["o", "1", 600_000]),
    "hold_slot": Scene(SLOTS, ["r", "o", 2, 30, 60]),
    "free_slot": Scene(SLOTS, ["r", "o", 60]),
    "renew_slots": Scene(SLOTS, ["o", 30, 60, "r"]),
    "pay_rate": Scene(["quota:y", "{quota:y}:paid"], ["r", 2, 60, 60]),
    "refund_rate": Scene(["quota:y", "{quota:y}:paid"], ["r"]),
    "take_token": Scene(["control", "control:state"], ["v", "p", 1, 1]),
    "return_token": Scene(["control:state"], []),
    "share_pool": Scene(["pool:pollers", "pool:in-use"], ["p", 1, 600]),
    "leave_pool": Scene(["pool:pollers", "pool:in-use"], ["p"]),
}


def stored_commands() -> list[list[object]]:
    """The commands that fill the store."""
    results = [{"id": f"item-{n}-", "request_token": token} for n, token in ((9, "t"), (10, ""), (10, ""))]
    commands: list[list[object]] = [["ZADD", "q", n, item(n)] for n in (1, 2, 3)]
    for n in (4, 5):
        commands += [["HSET", "q:claimed", f"c{n}", item(n)], ["HSET", "q:owners", f"c{n}", OWNERS[n]]]
        commands += [["ZADD", "q:idx", 1, f"c{n}"]]
    commands += [["HSET", "q:deaths", "c5", 1], ["HSET", "q:dead", "d6", b"record of " + item(6)]]
    commands += [["ZADD", "retry", 1, item(n, retry_count=1, request_queue_name="q")] for n in (7, 8)]
    commands += [["LPUSH", "results", json.dumps(result)] for result in results]
    for n, end in ((11, FAR * 1_000), (12, 1)):
        commands += [["HSET", "results:claimed", f"held-{n}", json.dumps({"id": f"item-{n}-"})]]
        commands += [["HSET", "results:owners", f"held-{n}", "o"], ["ZADD", "results:idx", end, f"held-{n}"]]
    commands += [["ZADD", "results:tombstones", 1, "old"], ["ZADD", "results:delivered", 1, "old"]]
    commands += [
        ["SET", "quota:x", 1],
        ["ZADD", "{quota:x}:held", FAR, "r"],
        ["HSET", "{quota:x}:held-by", "r", "o"],
    ]
    commands += [["HSET", "outbox", "p13", "post item-13-"], ["ZADD", "outbox-idx", 1, "p13"]]
    strings = {"request-active:x": "t", "request-submitted:x": "t", "request-stands:x": "m"}
    strings["request-submitted:k"] = "t-1 60 {}"
    commands += [["SET", key, value, "EX", 1_000] for key, value in strings.items()]
    commands += [["EXPIRE", "results:tombstones", 1_000]]
    return [*commands, ["HSET", "delivery:x", "owner", "o"], ["HSET", "control:state", "tokens", 1]]


class Store:
    """A server that is filled again for each call, and a connection of a user with variable rights.

    Each step is one round trip, because there are thousands of faults.
    """

    def __init__(self, url: str) -> None:
        self.admin = Redis.from_url(url, socket_timeout=60, socket_connect_timeout=60)
        self.user = Redis.from_url(url, username="worker", password="-", socket_timeout=60, socket_connect_timeout=60)
        self._fill = self.admin.register_script(_FILL)
        self._texts = self.admin.register_script(_TEXTS)
        self._commands = json.dumps(
            [[part.decode() if isinstance(part, bytes) else str(part) for part in row] for row in stored_commands()]
        )

    def fill(self) -> None:
        self._fill(args=[self._commands])

    def held(self) -> Counter[str]:
        """How often each item is in the store: in a sorted set, a list, or as a hash's value."""
        texts = cast("list[bytes]", self._texts())
        return Counter(name for text in texts for name in set(re.findall(r"item-\d+-", text.decode())))

    def contents(self) -> dict[str, tuple[object, object]]:
        """Every key with its value, as the server dumps it, and the time of its expiry."""
        keys = cast("list[bytes]", self.admin.keys())
        return {key.decode(): (self.admin.dump(key), self.admin.pexpiretime(key.decode())) for key in keys}

    def close(self) -> None:
        self.admin.execute_command("ACL", "DELUSER", "worker")  # type: ignore[no-untyped-call]  # untyped
        self.admin.flushall()
        self.user.close()
        self.admin.close()


_FILL = """
redis.call('FLUSHALL')
for _, command in ipairs(cjson.decode(ARGV[1])) do redis.call(unpack(command)) end
"""
_TEXTS = """
local texts = {}
local readers = {list = {'LRANGE', 0, -1}, hash = {'HVALS'}, zset = {'ZRANGE', 0, -1}}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local reader = readers[redis.call('TYPE', key).ok]
  if reader and not key:find('tombstones$') then
    for _, text in ipairs(redis.call(reader[1], key, unpack(reader, 2))) do texts[#texts + 1] = text end
  end
end
return texts
"""


@pytest.fixture
def filled(valkey: Valkey) -> Iterator[Store]:
    with contextlib.closing(Store(valkey.url)) as store:
        yield store


def _commands(text: str) -> list[str]:
    called = r"(?:redis\.p?call|run|try|probe|redis\.pcall|pcall\(run,)\s*\(?\s*'([A-Z]+)'"
    return sorted(set(re.findall(called, text)) - {"TIME"})


def _faults(scene: Scene, text: str) -> Iterator[tuple[str, str, str]]:
    """Each kind of failure with its target: a command or a key."""
    keys = sorted({*scene.keys, *scene.others})
    yield from (("command denied", command, key) for command in _commands(text) for key in ("", *keys))
    yield from (("key denied", key, "") for key in keys)
    yield from (("wrong type", key, kind) for key in keys for kind in ("string", "list", "hash", "zset"))
    yield "memory full", "", ""


def _set_rights(admin: Redis, scene: Scene, fault: tuple[str, str, str]) -> None:
    kind, at, where = fault
    keys = {*scene.keys, *scene.others}
    rules = ["+@all"]
    if kind == "command denied":
        denied = {where} if where else keys
        keys -= denied
        named = " ".join(f"~{key}" for key in sorted(denied))
        rules += ["(~* +eval)", f"({named} +@all -{at.lower()})"]
    elif kind == "key denied":
        keys -= {at}
    names = [f"~{key}" for key in sorted(keys)]
    admin.execute_command("ACL", "SETUSER", "worker", "reset", "on", "nopass", *names, *rules)  # type: ignore[no-untyped-call]  # untyped


def _spoil(admin: Redis, key: str, kind: str) -> None:
    admin.delete(key)
    spoil: dict[str, Any] = {
        "string": lambda: admin.set(key, "junk"),
        "list": lambda: admin.rpush(key, "junk"),
        "hash": lambda: admin.hset(key, "junk", "junk"),
        "zset": lambda: admin.zadd(key, {"junk": FAR * 10_000}),
    }
    spoil[kind]()


def _lost(store: Store, scene: Scene, text: str, fault: tuple[str, str, str]) -> str:
    """The wrong effect of the call under one fault, or an empty text."""
    kind, at, wanted = fault
    store.fill()
    if kind == "wrong type":
        if store.admin.type(at) == wanted.encode():
            return ""
        _spoil(store.admin, at, wanted)
    _set_rights(store.admin, scene, fault)
    before = store.held()
    if kind == "memory full":
        store.admin.config_set("maxmemory", 1)
    has_failed = ""
    try:
        answer = store.user.eval(text, len(scene.keys), *scene.keys, *cast("list[Any]", scene.args))
        if isinstance(answer, list):
            has_failed = next((str(part) for part in answer if b"NOPERM" in bytes(str(part), "utf-8")), "")
    except RedisError as error:
        has_failed = str(error)
    finally:
        if kind == "memory full":
            store.admin.config_set("maxmemory", 0)
    after = store.held()
    gone = {name for name in before if name not in after}
    if gone - (frozenset() if has_failed else scene.drops):
        return f"{kind} {at} {wanted}: lost {sorted(gone)} ({has_failed or 'no error'})"
    doubled = {name for name in before if after[name] > before[name]} if has_failed else set()
    return f"{kind} {at} {wanted}: doubled {sorted(doubled)} ({has_failed})" if doubled else ""


def _all_lost(store: Store, scene: Scene, text: str) -> Iterator[str]:
    return filter(None, (_lost(store, scene, text, fault) for fault in _faults(scene, text)))


def test_every_script_is_tried() -> None:
    assert sorted(SCENES) == SCRIPTS, "a new script needs a scene: a call of it against the populated store"


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_that_fails_loses_nothing(name: str, filled: Store) -> None:
    assert list(_all_lost(filled, SCENES[name], script_text(name))) == []


@pytest.mark.timeout(600)  # thousands of calls, each of which may wait for a core
def test_no_script_that_fails_loses_anything_on_redis() -> None:
    with Valkey(program_path("redis-server")) as server, contextlib.closing(Store(server.url)) as store:
        lost = {name: list(_all_lost(store, SCENES[name], script_text(name))) for name in SCRIPTS}
    assert {name: found for name, found in lost.items() if found} == {}


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_reads_the_whole_of_a_string_that_clients_may_write(name: str, filled: Store) -> None:
    """A client could write 500 MB there, and block the server for all."""
    scene, text = SCENES[name], script_text(name)
    writable = [key for key in {*scene.keys, *scene.others} if key.startswith(_WRITTEN_BY_CLIENTS)]
    for key in writable:
        filled.fill()
        _set_rights(filled.admin, scene, ("command denied", "get", key))
        filled.admin.acl_log_reset()
        with contextlib.suppress(RedisError):
            filled.user.eval(text, len(scene.keys), *scene.keys, *cast("list[Any]", scene.args))
        assert key not in [entry["object"] for entry in filled.admin.acl_log()]


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_call_of_each_scene_succeeds_on_a_store_without_faults(name: str, filled: Store) -> None:
    scene = SCENES[name]
    filled.fill()
    before = filled.held()
    assert {f"item-{n}-" for n in range(1, 14)} <= set(before)
    filled.admin.eval(script_text(name), len(scene.keys), *scene.keys, *cast("list[Any]", scene.args))
    assert set(before) - set(filled.held()) == scene.drops


def _new_keys(store: Store, scene: Scene, text: str, fault: tuple[str, str, str]) -> list[bytes]:
    """The keys that a call leaves behind although it fails."""
    store.fill()
    _set_rights(store.admin, scene, fault)
    before = set(store.admin.keys())
    try:
        store.user.eval(text, len(scene.keys), *scene.keys, *cast("list[Any]", scene.args))
    except RedisError:
        return sorted(cast("set[bytes]", set(store.admin.keys()) - before))
    return []


def _left_behind(store: Store, text: str) -> list[list[bytes]]:
    scene = SCENES["submit"]
    faults = [fault for fault in _faults(scene, text) if fault[0] == "command denied"]
    return [keys for fault in faults if (keys := _new_keys(store, scene, text, fault))]


def test_a_submission_that_is_refused_leaves_nothing(filled: Store) -> None:
    """A repeated call would find the request marked as live, and report that it is queued."""
    assert _left_behind(filled, script_text("submit")) == []


def _is_refused_when_full(store: Store, scene: Scene, text: str) -> bool:
    store.fill()
    store.admin.config_set("maxmemory", 1)
    try:
        store.admin.eval(text, len(scene.keys), *scene.keys, *cast("list[Any]", scene.args))
    except RedisError:
        return True
    finally:
        store.admin.config_set("maxmemory", 0)
    return False


LEASING = [
    *("renew", "release", "reclaim", "take_back", "renew_results", "return_results", "renew_delivery"),
    *("hold_slot", "renew_slots", "free_slot", "share_pool", "leave_pool"),
]


@pytest.mark.parametrize("name", LEASING)
def test_a_full_memory_ends_no_lease(name: str, filled: Store) -> None:
    assert not _is_refused_when_full(filled, SCENES[name], script_text(name))


PROBING = [name for name in SCRIPTS if "probe(" in re.sub("--.*", "", script_text(name))]


@pytest.mark.parametrize("name", PROBING)
def test_a_script_that_skips_its_probes_is_found(name: str, filled: Store) -> None:
    scene, text = SCENES[name], script_text(name).replace("local probe = run", "local function probe() end")
    assert (
        _is_refused_when_full(filled, scene, text)
        or next(_all_lost(filled, scene, text), "")
        or (name == "submit" and _left_behind(filled, text))
    ), "nobody noticed"


_REMOVALS = {
    "ZREM",
    "HDEL",
    "LTRIM",
    "DEL",
    "UNLINK",
    "RPOP",
    "ZPOPMIN",
    "ZREMRANGEBYSCORE",
    "ZREMRANGEBYRANK",
}
_WRITES = {"ZADD", "HSET", "LPUSH", "RPUSH", "SET"}
_TRACER = """
local real = redis
local function traced(call, ...)
  local answer = call(...)
  if type(answer) ~= 'table' or not answer.err then real.call('RPUSH', 'trace', cjson.encode({...})) end
  return answer
end
local redis = setmetatable({
  call = function(...) return traced(real.call, ...) end, pcall = function(...) return traced(real.pcall, ...) end,
}, {__index = real})
"""


def _changes(store: Store, scene: Scene, text: str) -> list[list[str]]:
    """The commands of a successful call that change something, in order."""
    store.fill()
    store.admin.eval(_TRACER + text, len(scene.keys), *scene.keys, *cast("list[Any]", scene.args))
    traced = [
        [str(word) for word in json.loads(row)] for row in cast("list[bytes]", store.admin.lrange("trace", 0, -1))
    ]
    return [words for words in traced if words[0] in _REMOVALS | _WRITES and "\0nobody" not in words]


def _as_script(commands: list[list[str]]) -> str:
    def literal(word: str) -> str:
        return "'" + "".join(f"\\{byte:03d}" for byte in word.encode()) + "'"

    return "".join(f"redis.call('{name}', {', '.join(literal(word) for word in words)})\n" for name, *words in commands)


def _removed(store: Store, commands: list[list[str]]) -> set[str]:
    store.fill()
    before = store.held()
    store.admin.eval(_as_script(commands), 0)
    after = store.held()
    return {name for name in before if name not in after}


def test_every_script_that_would_remove_before_it_writes_is_found(filled: Store) -> None:
    movers, missed = [], []
    for name in SCRIPTS:
        scene = SCENES[name]
        changes = _changes(filled, scene, script_text(name))
        removals = [words for words in changes if words[0] in _REMOVALS]
        if _removed(filled, removals) - scene.drops:
            movers.append(name)
            early = removals + [words for words in changes if words[0] in _WRITES]
            missed += [] if next(_all_lost(filled, scene, _as_script(early)), "") else [name]
    assert missed == []
    assert {"ack", "claim", "nack", "post", "promote", "receive_results", "reclaim", "recall"} <= set(movers)


_FENCED = re.compile(r"nothing was changed|is not changed|stay\)|delivered again")
_TOKENS = {*OWNERS.values(), "o", "t", "t-1", "m"}
"""Owner tokens and request tokens in the scenes."""
FENCED = [name for name in SCRIPTS if _FENCED.search(script_text(name)) and _TOKENS & set(map(str, SCENES[name].args))]


def _is_changed_by_a_foreigner(store: Store, scene: Scene, text: str) -> bool:
    """Whether a call with unknown tokens changes a claim, a result or a record."""
    args = ["ffff:9:s=9" if word in _TOKENS else word for word in scene.args]
    store.fill()
    before = store.contents()
    store.admin.eval(text, len(scene.keys), *scene.keys, *cast("list[Any]", args))
    return before != store.contents()


@pytest.mark.parametrize("name", FENCED)
def test_a_call_with_an_unknown_token_changes_nothing(name: str, filled: Store) -> None:
    assert not _is_changed_by_a_foreigner(filled, SCENES[name], script_text(name))


_COMPARED = re.compile(r"(==|~=)(?= (?:owner|ARGV\[[^\]]+\])(?:[ \n)]|$))|(not )(?=holds\()")


@pytest.mark.parametrize("name", FENCED)
def test_a_script_that_does_not_compare_tokens_is_found(name: str, filled: Store) -> None:
    text, scene = script_text(name), SCENES[name]
    inverted = {"==": "~=", "~=": "==", "not ": ""}
    mutants = [text[: m.start()] + inverted[m[0]] + text[m.end() :] for m in _COMPARED.finditer(text)]
    assert any(_is_changed_by_a_foreigner(filled, scene, mutant) for mutant in mutants), "nobody noticed"


_WRITE = "  run('HSET', KEYS[2], key, member)\n"
_DROP = "run('HDEL', KEYS[2], key)\n"
_ANY_WRITE = "  local is_written, failure = pcall(write)\n  if not is_written then\n    return"
MUTANTS = {
    "claim does not try the index first": ("claim", "  probe('ZADD', KEYS[4], 'XX', 0, NO_NAME)\n", ""),
    "claim leaves an incomplete claim": ("claim", f"      {_DROP}", ""),
    "claim removes before it writes": ("claim", _WRITE, "  run('ZREM', KEYS[1], member)\n" + _WRITE),
    "ack removes before it writes": ("ack", _ANY_WRITE, "  run('HDEL', KEYS[1], key)\n" + _ANY_WRITE),
    "a result is dropped before its ack is recorded": (
        "ack_results",
        "    run('ZADD', KEYS[4]",
        "    run('HDEL', KEYS[1], key)\n    run('ZADD', KEYS[4]",
    ),
}
"""A script, and a text in it with its replacement."""


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_a_script_that_removes_too_early_is_found(name: str, filled: Store) -> None:
    script, found, instead = MUTANTS[name]
    text = script_text(script)
    assert text.count(found) == 1, "the script has changed: so must the mutant"
    assert next(_all_lost(filled, SCENES[script], text.replace(found, instead)), ""), "nobody noticed"
