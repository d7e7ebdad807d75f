"""The least rights of each role, as rules for `ACL SETUSER`; a check of a poller's rights.

To run a script, a user needs the right to read and write the keys with which it is called. The server also checks each
command in the script: one selector (a part of the rules) must allow both the command and its key. Add the commands of
new scripts here. `docs/redis.md` shows the rules for the default names; `tests/redis_store/admin/test_acl.py` runs
every role with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec
from redis.exceptions import NoPermissionError

from handlers.redis_store.admin.depths import WAKE_CHANNEL
from handlers.redis_store.connection import Store
from handlers.redis_store.keys import (
    CANCELLATIONS,
    PAYLOAD_PREFIX,
    RESULT_PAYLOAD_PREFIX,
    id_record_key,
    queue_keys,
    result_of_key,
)
from handlers.redis_store.scripts import lua_script


class Role(StrEnum):
    """The program that connects."""

    POLLER = "poller"
    CLIENT = "client"
    STATUS = "status"
    KEDA = "keda"


# Without CLIENT SETINFO, which some servers do not accept in a rule. The library sends it first and ignores the
# refusal.
_CONNECTION = "+ping +hello +auth +client|setname"
_CLUSTER = "+cluster|slots +cluster|shards +cluster|keyslot +command +readonly"
_CHANNEL = f"&{WAKE_CHANNEL}"
"""On this channel producers publish the names of queues with new requests; idle pollers subscribe to it."""
_SCRIPTS = "+evalsha +eval +script|load +time"

_POLLER_COMMANDS = (
    "+get +getrange +set +del +unlink +exists +expire +expireat +pexpire +pttl +ttl +type +hget +hmget +hset +hsetnx "
    "+hdel +hlen +hkeys +hincrby +hexists +hgetall +zadd +zrem +zcard +zcount +zscore +zrange +zrevrange "
    "+zrangebyscore +zremrangebyscore +zremrangebyrank +zpopmin +scan +lpush +llen +ltrim +wait +info "
    "+config|get +subscribe"
)
_STATUS_COMMANDS = (
    "+zcard +hlen +llen +zrange +zcount +zrevrange +hget +hkeys +hscan +hstrlen +hgetall +lrange +get +type +time "
    "+eval_ro +evalsha_ro"
)
_PRODUCER_COMMANDS = (
    "+getrange +set +del +exists +incr +incrby +expireat +expire +pttl +pexpiretime +zadd +zcard +zscore "
    "+zrangebyscore +zremrangebyscore +type +wait +publish"
)
_READER_COMMANDS = (
    "+get +getrange +unlink +hget +hset +hsetnx +hdel +hexists +zadd +zrem +zscore +zrangebyscore +zremrangebyscore "
    "+zcard +rpop +rpush +llen +lrange +ltrim +pexpire +pttl"
)


def acl_rules(
    role: Role,
    *,
    queues: Sequence[str] = ("request-sortedset",),
    retry_queue_name: str = "retry-sortedset",
    result_queue_name: str = "result-list",
) -> str:
    """The rules of a role for these queues. Raises `ValueError` for names that are patterns."""
    known = [*queues, retry_queue_name, result_queue_name]
    if any(sign in name for name in known for sign in "*?[ ()"):
        raise ValueError(
            "expected queue names without *, ?, [, spaces and parentheses, which would grant other keys too"
        )
    match role:
        case Role.POLLER:
            return _poller([*queues, retry_queue_name], result_queue_name)
        case Role.CLIENT:
            return _client(queues, result_queue_name)
        case Role.STATUS:
            keys = _keys("%R", [*known, *_beside([*queues, retry_queue_name]), "{async-processor}:status:*"])
            return f"{keys} {_CONNECTION} {_CLUSTER} {_STATUS_COMMANDS}"
        case Role.KEDA:
            # KEDA's scaler uses EVAL, which requires write access to its keys; no writing command is granted.
            keys = _keys("", [*known, *_beside([*queues, retry_queue_name])])
            return f"{keys} {_CONNECTION} {_CLUSTER} +eval +evalsha +type +zcard +hlen +llen +select +info"


def _poller(homes: Sequence[str], results: str) -> str:
    requests = ["request-active:*", "request-cancel:*", "request-cancellations", "request-stands:*"]
    gates = ["quota:*", "{quota:*", "dispatch-gate-budget", "{async-processor*"]
    payloads = ["request-payload:*", "result-payload:*"]
    lists = [results, *_beside([results]), f"{{{results}:*"]
    keys = _keys("", [*homes, *_beside(homes), *lists, *requests, *payloads, *gates])
    return f"{keys} {_CHANNEL} {_CONNECTION} {_CLUSTER} {_SCRIPTS} {_POLLER_COMMANDS}"


def _client(queues: Sequence[str], results: str) -> str:
    """Three selectors: submit, read results (and idempotency keys), look up requests."""
    own = ["request-active:*", "request-cancel:*", "request-submitted:*", "request-payload:*"]
    shared = [
        "request-cancellations",
        "request-seq:*",
        "request-sent:*",
        *(f"{{{queue}}}:delivered" for queue in queues),
    ]
    keys = _keys("", [*queues, *own, *shared])
    submits = f"{keys} {_CHANNEL} {_CONNECTION} {_CLUSTER} {_SCRIPTS} {_PRODUCER_COMMANDS}"
    lists = _keys("", [results, *_beside([results]), f"{{{results}:*", "result-payload:*", "request-submitted:*"])
    claimed = [name for queue in queues for name in (f"{queue}:claimed", f"{{{queue}}}:claimed")]
    reads = _keys("%R", [*queues, *claimed, *own, "{async-processor}:status:finished"])
    return (
        f"{submits} ({lists} {_SCRIPTS} {_READER_COMMANDS})"
        f" ({reads} +evalsha_ro +eval_ro +getrange +hget +pttl +hexists +hscan +zrange +zrangebyscore +time)"
    )


def _beside(homes: Sequence[str]) -> list[str]:
    """Patterns of the keys beside each of `homes`, also in a cluster."""
    return [pattern for home in homes for pattern in (f"{home}:*", f"{{{home}}}:*")]


def _keys(kind: str, patterns: Sequence[str]) -> str:
    return " ".join(f"{kind}~{pattern}" for pattern in patterns)


class RightsOptions(msgspec.Struct, frozen=True):
    """Enabled features that need more rights.

    `is_per_request`: per-request reply lists; `offloads_results`: offloaded result payloads; `is_idempotent`:
    de-duplication.
    """

    is_per_request: bool = False
    offloads_results: bool = False
    is_idempotent: bool = False


async def refused_commands(
    redis: Store,
    queue: str,
    retry_queue_name: str,
    result_queue_name: str,
    *,
    cluster: bool = False,
    options: RightsOptions | None = None,
) -> list[str] | None:
    """Commands and keys (`HSET queue:claimed`) that the server would refuse.

    None if the server cannot check rights (before Redis 7). Raises one of `STORE_FAILURES`.
    """
    keys = queue_keys(queue, cluster=cluster)
    needed = [
        (keys.pending, "ZRANGE", "0", "0"),
        (keys.pending, "ZADD", "1", "x"),
        (keys.pending, "ZREMRANGEBYRANK", "0", "0"),
        *((key, "HSET", "x", "x") for key in (keys.claimed, keys.owners, keys.dead)),
        *((key, "HDEL", "x", "") for key in (keys.claimed, keys.owners, keys.deaths)),
        (keys.deaths, "HINCRBY", "x", "1"),
        (keys.index, "ZADD", "1", "x"),
        (keys.index, "ZREM", "x", ""),
        (retry_queue_name, "ZADD", "1", "x"),
        (retry_queue_name, "ZREMRANGEBYRANK", "0", "0"),
        (result_queue_name, "LPUSH", "x", ""),
        (result_queue_name, "EXPIRE", "1", ""),
        *((name, "GETRANGE", "0", "0") for name in ("request-active:x", "request-cancel:x", f"{PAYLOAD_PREFIX}x")),
        (CANCELLATIONS, "ZRANGEBYSCORE", "0", "1"),
        *((name, "DEL", "", "") for name in ("request-active:x", "request-cancel:x", f"{PAYLOAD_PREFIX}x")),
        *_optional(options or RightsOptions(), queue, result_queue_name),
    ]
    script = lua_script(redis, "check_rights")
    # One key per call: in a cluster a script may use one slot only, and a key without rights fails the whole call.
    refused: list[str] = []
    for key, command, second, third in needed:
        try:
            answer = await script(keys=[key], args=[command, second, third])
        except NoPermissionError:
            answer = [f"{command} {key}".encode()]
        if answer is None:
            return None
        refused += [each.decode() for each in answer]
    return refused


def _optional(options: RightsOptions, queue: str, result_queue_name: str) -> list[tuple[str, str, str, str]]:
    own_list, id_record, payload = (
        result_of_key(result_queue_name, "x"),
        id_record_key("x", queue),
        f"{RESULT_PAYLOAD_PREFIX}x",
    )
    rows = {
        (own_list, "LPUSH", "x", ""): options.is_per_request,
        (own_list, "EXPIRE", "1", ""): options.is_per_request,
        (payload, "SET", "x", ""): options.offloads_results,
        (payload, "UNLINK", "", ""): options.offloads_results,
        (id_record, "GET", "", ""): options.is_idempotent,
        (id_record, "SET", "x", ""): options.is_idempotent,
    }
    return [row for row, is_needed in rows.items() if is_needed]


async def wrong_types(
    redis: Store, queue: str, retry_queue_name: str, result_queue_name: str, *, cluster: bool = False
) -> list[tuple[str, str, str]]:
    """Keys of a wrong type: (key, found type, expected type). Raises one of `STORE_FAILURES`."""
    keys = queue_keys(queue, cluster=cluster)
    wanted = {
        keys.pending: "zset",
        keys.claimed: "hash",
        keys.owners: "hash",
        keys.index: "zset",
        keys.deaths: "hash",
        keys.dead: "hash",
        retry_queue_name: "zset",
        result_queue_name: "list",
    }
    found = {key: (await redis.type(key)) for key in wanted}
    types = {key: kind.decode() if isinstance(kind, bytes) else str(kind) for key, kind in found.items()}
    return [(key, types[key], kind) for key, kind in wanted.items() if types[key] not in (kind, "none")]
