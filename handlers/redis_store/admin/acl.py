"""The least rights of each role, as ACL rules of Redis 7 and Valkey: `ACL SETUSER <name> on ><password> <rules>`.

A script needs the right to read and write the keys that it is called with, and every command in it is checked
again: a role may run on a key the commands of the same part (selector) of its rules. Add new commands of scripts
here; `docs/redis.md` shows the rules for the default names and
`tests/redis_store/admin/test_acl.py`
runs every role with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from handlers.redis_store.queue.presence import WAKE_CHANNEL


class Role(StrEnum):
    """The program that connects."""

    POLLER = "poller"
    CLIENT = "client"
    STATUS = "status"
    KEDA = "keda"


# CLIENT SETINFO, which the library sends first, is refused and ignored: not every server knows it as a rule.
_CONNECTION = "+ping +hello +auth +client|setname"
_CLUSTER = "+cluster|slots +cluster|shards +cluster|keyslot +command +readonly"
_CHANNEL = f"&{WAKE_CHANNEL}"
"""Producers publish on it that a queue has new requests, idle pollers subscribe to it."""
_SCRIPTS = "+evalsha +eval +script|load +time"

_POLLER_COMMANDS = (
    "+get +set +del +unlink +exists +expire +expireat +pexpire +pttl +ttl +type +hget +hmget +hset +hsetnx +hdel +hlen "
    "+hkeys +hincrby +hexists +hgetall +zadd +zrem +zcard +zcount +zscore +zrange +zrevrange +zrangebyscore "
    "+zremrangebyscore +zpopmin +zscan +scan +lpush +llen +ltrim +wait +info +config|get +subscribe"
)
_STATUS_COMMANDS = (
    "+zcard +hlen +llen +zrange +zcount +zrevrange +hget +hscan +zscan +hgetall +lrange +get +type +time "
    "+eval_ro +evalsha_ro"
)
_PRODUCER_COMMANDS = (
    "+get +set +del +exists +incr +incrby +expireat +expire +pttl +pexpiretime +zadd +zcard +zscore +zrangebyscore "
    "+zremrangebyscore +type +wait +publish"
)
_READER_COMMANDS = (
    "+get +unlink +hget +hset +hsetnx +hdel +hexists +zadd +zrem +zscore +zrangebyscore +zremrangebyscore +zcard "
    "+rpop +rpush +llen +lrange +ltrim +pexpire +pttl"
)


def acl_rules(
    role: Role,
    *,
    queues: Sequence[str] = ("request-sortedset",),
    retry_queue_name: str = "retry-sortedset",
    result_queue_name: str = "result-list",
) -> str:
    """The rules of a role for these queues. Raises `ValueError` for a name that would be a pattern of other keys."""
    known = [*queues, retry_queue_name, result_queue_name]
    if any(sign in name for name in known for sign in "*?[ ()"):
        raise ValueError("a name with *, ?, [, a space or parentheses cannot be granted alone")
    match role:
        case Role.POLLER:
            return _poller([*queues, retry_queue_name], result_queue_name)
        case Role.CLIENT:
            return _client(queues, result_queue_name)
        case Role.STATUS:
            keys = _keys("%R", [*known, *_beside([*queues, retry_queue_name]), "{async-processor}:status:*"])
            return f"{keys} {_CONNECTION} {_CLUSTER} {_STATUS_COMMANDS}"
        case Role.KEDA:
            # Its scaler uses EVAL, for which a server requires write access to the keys; no writing command is granted.
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
    """Three parts: submitting, reading results (and their idempotency keys), and looking up requests and claims."""
    own = ["request-active:*", "request-cancel:*", "request-submitted:*", "request-payload:*"]
    shared = [
        "request-cancellations",
        "request-seq:*",
        "request-sent:*",
        *(f"{{{queue}}}:delivered" for queue in queues),
    ]
    keys = _keys("", [*queues, *own, *shared])
    submits = f"{keys} {_CHANNEL} {_CONNECTION} {_CLUSTER} {_SCRIPTS} {_PRODUCER_COMMANDS}"
    lists = _keys(
        "", [results, *_beside([results]), f"{{{results}:*", "result-payload:*", "request-submitted:*"]
    )
    claimed = [name for queue in queues for name in (f"{queue}:claimed", f"{{{queue}}}:claimed")]
    looks = _keys("%R", [*queues, *claimed, *own, "{async-processor}:status:finished"])
    return (
        f"{submits} ({lists} {_SCRIPTS} {_READER_COMMANDS})"
        f" ({looks} +evalsha_ro +eval_ro +get +hget +pttl +hexists +hscan +zscan +zrangebyscore +time)"
    )


def _beside(homes: Sequence[str]) -> list[str]:
    """Our keys beside a queue or retry set, on one server and in a cluster."""
    return [pattern for home in homes for pattern in (f"{home}:*", f"{{{home}}}:*")]


def _keys(kind: str, patterns: Sequence[str]) -> str:
    return " ".join(f"{kind}~{pattern}" for pattern in patterns)
