"""The least rights of each role, as rules for `ACL SETUSER`.

To run a script, a user needs the right to read and write the keys with which it is called. The server then checks each
command in the script again: the command and its key must be allowed by the same selector, a part of the rules. Add the
commands of new scripts here. `docs/redis.md` shows the rules for the default names;
`tests/redis_store/admin/test_acl.py` runs every role with them.
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
    "+zrangebyscore +zremrangebyscore +zpopmin +zscan +scan +lpush +llen +ltrim +wait +info +config|get +subscribe"
)
_STATUS_COMMANDS = (
    "+zcard +hlen +llen +zrange +zcount +zrevrange +hget +hscan +zscan +hgetall +lrange +get +type +time "
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
        raise ValueError("a queue name with *, ?, [, a space or parentheses would grant other keys too")
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
    lists = _keys(
        "", [results, *_beside([results]), f"{{{results}:*", "result-payload:*", "request-submitted:*"]
    )
    claimed = [name for queue in queues for name in (f"{queue}:claimed", f"{{{queue}}}:claimed")]
    reads = _keys("%R", [*queues, *claimed, *own, "{async-processor}:status:finished"])
    return (
        f"{submits} ({lists} {_SCRIPTS} {_READER_COMMANDS})"
        f" ({reads} +evalsha_ro +eval_ro +getrange +hget +pttl +hexists +hscan +zscan +zrangebyscore +time)"
    )


def _beside(homes: Sequence[str]) -> list[str]:
    """Patterns of the keys beside each of `homes`, also in a cluster."""
    return [pattern for home in homes for pattern in (f"{home}:*", f"{{{home}}}:*")]


def _keys(kind: str, patterns: Sequence[str]) -> str:
    return " ".join(f"{kind}~{pattern}" for pattern in patterns)
