"""The keys of another tenant that a tenant's users reach on a shared Redis, as in SECURITY.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from handlers.redis_store.admin.acl import Role, acl_rules
from handlers.redis_store.keys import (
    CANCELLATIONS,
    active_key,
    beside,
    cancel_key,
    id_record_key,
    payload_key,
    queue_keys,
    result_claim_keys,
    result_of_key,
    result_payload_key,
    sent_key,
    seq_key,
    submitted_key,
)
from tests.redis_store.admin.test_acl import words
from tests.servers.presence import valkey_program
from tests.servers.redis_topologies import Server

OURS, THEIRS = "team", "team-b"
"""One name begins with the other: a pattern that ends too early would reach it."""


def _names(tenant: str) -> tuple[str, str, str]:
    return f"{tenant}-requests", f"{tenant}-retries", f"{tenant}-results"


def _private_keys() -> list[str]:
    """Keys that have the name of the other tenant's queue, retry set or result list in them."""
    queue, retries, results = (f"{OURS}-requests-b", f"{OURS}-retries-b", f"{OURS}-results-b")
    found = []
    for names in ((queue, retries, results), _names(THEIRS)):
        queue, retries, results = names
        own_list = result_of_key(results, "id")
        found += [*names, own_list]
        for is_cluster in (False, True):
            keys = queue_keys(queue, cluster=is_cluster)
            found += [keys.claimed, keys.owners, keys.index, keys.deaths, keys.dead]
            found += result_claim_keys(results, cluster=is_cluster)
            found += result_claim_keys(own_list, cluster=is_cluster)
        found += [beside(home, kind) for home in names for kind in ("outbox", "outbox-idx", "delivered")]
    return found


WRITERS = frozenset({Role.POLLER, Role.CLIENT})
SHARED = {
    active_key("id"): WRITERS,
    cancel_key("id"): WRITERS,
    payload_key("id", "token"): WRITERS,
    result_payload_key("id", b"owner"): WRITERS,
    CANCELLATIONS: WRITERS,
    submitted_key("id"): frozenset({Role.CLIENT}),
    seq_key(f"{THEIRS}-requests", 1): frozenset({Role.CLIENT}),
    sent_key([("id", "token")]): frozenset({Role.CLIENT}),
    id_record_key("id", f"{THEIRS}-requests"): frozenset({Role.POLLER}),
    "quota:tenant:b": frozenset({Role.POLLER}),
    "{quota:tenant:b}:held": frozenset({Role.POLLER}),
    "dispatch-gate-budget": frozenset({Role.POLLER}),
    "{async-processor:pool:b}:pollers": frozenset({Role.POLLER}),
    "{async-processor}:status:finished": frozenset({Role.POLLER, Role.CLIENT, Role.STATUS}),
    "delivery:1:b:2:id:t": frozenset[Role](),
    "delivery-cancel:id": frozenset[Role](),
}
"""Keys without a tenant in their names, and the roles of any tenant that reach them."""

COMMANDS = (
    ("GET",), ("TYPE",), ("DEL",), ("UNLINK",), ("EXISTS",), ("EXPIRE", "1"), ("SET", "x"), ("HGET", "x"),
    ("HSET", "x", "y"),
    ("HDEL", "x"), ("HLEN",), ("HSCAN", "0"), ("ZADD", "1", "x"), ("ZREM", "x"), ("ZCARD",), ("ZRANGE", "0", "-1"),
    ("ZPOPMIN",), ("LPUSH", "x"), ("RPUSH", "x"), ("RPOP",), ("LRANGE", "0", "-1"), ("LLEN",), ("LTRIM", "0", "1"),
)  # fmt: skip


@pytest.fixture(scope="module")
def admin() -> Iterator[Redis]:
    server = Server(valkey_program())
    queue, retries, results = _names(OURS)
    with server.client() as redis:
        for role in Role:
            rules = acl_rules(role, queues=[queue], retry_queue_name=retries, result_queue_name=results)
            redis.execute_command("ACL", "SETUSER", role, "on", "nopass", *words(rules))
        yield redis
    server.stop()


def _reaches(admin: Redis, role: Role, key: str) -> bool:
    """Whether the role may run any command on the key."""
    answers = [
        admin.execute_command("ACL", "DRYRUN", role, command[0], key, *command[1:])  # type: ignore[no-untyped-call]  # untyped
        for command in COMMANDS
    ]
    return any(answer in (b"OK", "OK", True) for answer in answers)


@pytest.mark.parametrize("role", Role)
def test_no_role_reaches_a_key_with_the_other_tenants_names(admin: Redis, role: Role) -> None:
    assert [key for key in _private_keys() if _reaches(admin, role, key)] == []
    assert _reaches(admin, role, _names(OURS)[0]), "the role must reach the queue of its own tenant"


@pytest.mark.parametrize("key", SHARED)
def test_keys_without_a_tenant_are_reached_by_the_listed_roles(admin: Redis, key: str) -> None:
    assert {role for role in Role if _reaches(admin, role, key)} == SHARED[key]


def test_security_md_lists_the_keys_that_tenants_share() -> None:
    paragraphs = Path("SECURITY.md").read_text(encoding="utf-8").split("\n\n")
    (listed,) = (one for one in paragraphs if "reach these keys of all tenants" in " ".join(one.split()))
    for key, roles in SHARED.items():
        if roles:
            family = key.removeprefix("{").partition(":")[0].rstrip("}")
            assert family in listed, key
