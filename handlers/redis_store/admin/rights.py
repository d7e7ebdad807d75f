"""Check a poller's rights and key types when it starts."""

from __future__ import annotations

import msgspec
from redis.exceptions import NoPermissionError

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

    None if the server cannot tell (before Redis 7). Raises one of `STORE_FAILURES`.
    """
    keys = queue_keys(queue, cluster=cluster)
    needed = [
        (keys.pending, "ZRANGE", "0", "0"),
        (keys.pending, "ZADD", "1", "x"),
        (keys.pending, "ZREM", "x", ""),
        *((key, "HSET", "x", "x") for key in (keys.claimed, keys.owners, keys.dead)),
        *((key, "HDEL", "x", "") for key in (keys.claimed, keys.owners, keys.deaths)),
        (keys.deaths, "HINCRBY", "x", "1"),
        (keys.index, "ZADD", "1", "x"),
        (keys.index, "ZREM", "x", ""),
        (retry_queue_name, "ZADD", "1", "x"),
        (result_queue_name, "LPUSH", "x", ""),
        (result_queue_name, "EXPIRE", "1", ""),
        *(
            (name, "GETRANGE", "0", "0")
            for name in ("request-active:x", "request-cancel:x", f"{PAYLOAD_PREFIX}x")
        ),
        (CANCELLATIONS, "ZRANGEBYSCORE", "0", "1"),
        *((name, "DEL", "", "") for name in ("request-active:x", "request-cancel:x", f"{PAYLOAD_PREFIX}x")),
        *_optional(options or RightsOptions(), queue, result_queue_name),
    ]
    script = lua_script(redis, "check_rights")
    # One by one: in a cluster a script may use one slot only, and a key without rights fails the whole call.
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
