"""Least privilege: each role does all of its work with exactly the rules of `acl`, and nothing of another's."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from handlers.client.async_client import AsyncClient
from handlers.client.options import ClientOptions
from handlers.redis_store.admin.acl import RightsOptions, Role, acl_rules, refused_commands, wrong_types
from handlers.redis_store.admin.dead_letters import DeadLetters
from handlers.redis_store.admin.depths import queue_depths
from handlers.redis_store.admin.status_board import StatusBoard, read_board, sample_members, search
from handlers.redis_store.connection import durability_warnings, server_time
from handlers.redis_store.idempotency.idempotency import key_record_name
from handlers.redis_store.keys import beside, queue_keys
from handlers.redis_store.limits.limits import RedisPoolSharing
from handlers.redis_store.queue.cancellations import ForeignCancellations
from handlers.redis_store.queue.queue import Ack, Claim, Nack, QueueOptions, RedisQueue, Retries
from handlers.redis_store.results.payloads import read_payload
from handlers.redis_store.submit.submissions import RequestState
from tests.manifests.keda_rehearsal import COUNT
from tests.redis_store.queue.queueing import DEADLINE, body, recalled, recalled_retries
from tests.servers.presence import program_path, valkey_program
from tests.servers.redis_topologies import Server
from tests.servers.valkey import LONG_LIMIT

QUEUE, RETRIES, RESULTS = "request-sortedset", "retry-sortedset", "result-list"
KEYS = queue_keys(QUEUE)
PASSWORD = "of-the-test"  # a server of its own


@pytest.fixture(scope="module")
def guarded(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A Valkey, or the server that a test asks for."""
    is_redis = getattr(request, "param", "valkey") == "redis"
    server = Server(program_path("redis-server") if is_redis else valkey_program())
    with server.client() as admin:
        for role in Role:
            admin.execute_command("ACL", "SETUSER", role, "on", f">{PASSWORD}", *rules_without_whole_reads(role))
    yield server
    server.stop()


def words(rules: str) -> list[str]:
    """The words of rules; a part in parentheses is one."""
    words: list[str] = []
    for word in rules.split(" "):
        if words and words[-1].startswith("(") and not words[-1].endswith(")"):
            words[-1] += f" {word}"
        else:
            words.append(word)
    return words


def rules_without_whole_reads(role: Role) -> list[str]:
    """The words of a role's rules; GET only for strings that no client may write, which could have 500 MB there."""
    if role not in (Role.CLIENT, Role.POLLER):
        return words(acl_rules(role))
    own = [word for word in words(acl_rules(role)) if word.startswith("~")]
    submits = acl_rules(Role.CLIENT).split(" (")[0].split(" ")
    readable = [word for word in own if word not in submits] + ["~result-payload:*"]
    return [*words(acl_rules(role).replace(" +get ", " ")), f"({' '.join(readable)} +get)"]


@pytest.fixture
async def users(guarded: Server) -> AsyncIterator[dict[Role, Redis]]:
    made = {role: Redis.from_url(_url(guarded, role), socket_timeout=60, socket_connect_timeout=60) for role in Role}
    admin = Redis(port=guarded.port, socket_timeout=60, socket_connect_timeout=60)
    await admin.flushall()
    await admin.acl_log_reset()
    await admin.aclose()
    yield made
    for user in made.values():
        await user.aclose()


def _url(server: Server, role: Role) -> str:
    return f"redis://{role}:{PASSWORD}@127.0.0.1:{server.port}"


def _ack(claim: Claim, request_id: str, token: str, **fields: Any) -> Ack:
    result = {"id": request_id, "status_code": 200, "payload": "{}", "request_token": token}
    return Ack(claim, json.dumps(result).encode(), RESULTS, None, request_id, token, **fields)


@pytest.mark.parametrize("guarded", ["valkey", "redis"], indirect=True)
async def test_the_whole_request_path_works_with_the_least_rights(guarded: Server, users: dict[Role, Redis]) -> None:
    poller = users[Role.POLLER]
    queue = RedisQueue(poller, QUEUE, QueueOptions(RETRIES, RESULTS))
    retries = Retries(poller, RETRIES, QUEUE)
    async with AsyncClient.for_redis(
        _url(guarded, Role.CLIENT), ClientOptions(payload_apart_bytes=100), access=LONG_LIMIT
    ) as client:
        sent = await client.submit({"text": "x" * 200}, deadline=time.time() + 600, idempotency_key="k")
        taken_back = await client.submit({"n": 1}, deadline=time.time() + 700)
        assert await client.look_up(sent) is RequestState.PENDING
        assert await client.cancel(taken_back)
        recalled_ones = await recalled(poller, queue)
        assert (len(recalled_ones), await recalled_retries(poller, retries)) == (1, 0)
        foreign = ForeignCancellations(poller)
        assert (await foreign.sweep(), foreign.is_allowed) == (0, True)
        claims = await queue.claim(10)
        assert await client.look_up(sent) is RequestState.CLAIMED
        (mine,) = claims
        assert await queue.renew(claims) == []
        assert await queue.cancelled([*claims, *recalled_ones]) == recalled_ones
        reference = json.loads(mine.member)["internal"]["payload_ref"]
        assert await read_payload(poller, reference, sent.id, sent.token, 1_000)
        assert await queue.nack([Nack(mine, mine.member, -1.0)]) == [True]
        assert await retries.promote(10) == 1
        (again,) = await queue.claim(10)
        assert await queue.release([again]) == [True]
        (again,) = await queue.claim(10)
        assert await queue.ack([_ack(again, sent.id, sent.token, payload_ref=reference, dead=b"{}")]) == [True]
        await queue.reclaim(10, 5)
        async with client.results(limit=1) as results:
            async for found in results:
                assert found.result.id == sent.id
                await found.ack()
    with guarded.client() as admin:
        left: Any = admin.ttl(key_record_name(sent.token))
        assert [entry for entry in admin.acl_log() if entry["reason"] == "key"] == []
    assert 0 < left <= ClientOptions().idempotency_window_seconds
    board = StatusBoard(poller, "p")
    await board.post(b"{}", 1, {f"{QUEUE} success": 1}, [b"{}"])
    await board.leave()
    sharing = RedisPoolSharing(poller, "default", "p", lease_seconds=5)
    await sharing.share(1)
    await sharing.leave()
    await server_time(poller)
    assert not any("does not tell" in warning for warning in await durability_warnings(poller))
    assert await wrong_types(poller, QUEUE, RETRIES, RESULTS) == []
    every = RightsOptions(is_per_request=True, offloads_results=True, is_idempotent=True)
    assert await refused_commands(poller, QUEUE, RETRIES, RESULTS, options=every) == []


async def test_the_status_page_reads_and_keda_counts(users: dict[Role, Redis]) -> None:
    status, keda = users[Role.STATUS], users[Role.KEDA]
    assert (await queue_depths(status, QUEUE, RETRIES)).pending == 0
    assert (await read_board(status, 1)).pollers == {}
    assert not await sample_members(status, "ZRANGE", QUEUE)
    assert (await search(status, [QUEUE], RETRIES, "a", cluster=False)).found == []
    assert [letter async for letter in DeadLetters(status, QUEUE).all()] == []
    scaler: Any = keda.eval(
        "local kinds = {zset='zcard', hash='hlen', list='llen', none='llen'} "
        "return redis.call(kinds[redis.call('type', KEYS[1]).ok], KEYS[1])",
        1,
        KEYS.claimed,
    )
    assert await scaler == 0


@pytest.mark.parametrize(
    ("role", "command"),
    [
        (Role.CLIENT, f"HSET {KEYS.claimed} a b"),
        (Role.CLIENT, f"HDEL {KEYS.owners} a"),
        (Role.CLIENT, f"ZREM {KEYS.index} a"),
        (Role.CLIENT, f"ZREM {QUEUE} a"),
        (Role.CLIENT, f"ZPOPMIN {QUEUE}"),
        (Role.CLIENT, f"ZADD {RETRIES} 1 a"),
        (Role.CLIENT, f"LPUSH {RESULTS} a"),
        (Role.CLIENT, "KEYS *"),
        (Role.STATUS, f"ZADD {QUEUE} 1 a"),
        (Role.STATUS, f"HDEL {KEYS.dead} a"),
        (Role.STATUS, f"RPOP {RESULTS}"),
        (Role.STATUS, "GET request-payload:a:b"),
        (Role.KEDA, f"ZRANGE {QUEUE} 0 -1"),
        (Role.KEDA, f"DEL {QUEUE}"),
        (Role.KEDA, f"ZADD {QUEUE} 1 a"),
        (Role.POLLER, "GET somebody-elses"),
        (Role.POLLER, f"RPOP {RESULTS}"),
        *((role, word) for role in Role for word in ("FLUSHALL", "CONFIG SET maxmemory 1", "ACL LIST")),
    ],
)
async def test_a_role_is_refused_commands_that_it_does_not_need(
    users: dict[Role, Redis], role: Role, command: str
) -> None:
    with pytest.raises(NoPermissionError):
        await users[role].execute_command(*command.split(" "))  # type: ignore[no-untyped-call]  # untyped


async def test_a_script_gives_no_rights_that_its_user_lacks(users: dict[Role, Redis]) -> None:
    poller = users[Role.POLLER]
    await poller.zadd(QUEUE, {body("a"): DEADLINE})
    await RedisQueue(poller, QUEUE, QueueOptions(RETRIES, RESULTS)).claim(1)
    for role in (Role.CLIENT, Role.STATUS, Role.KEDA):
        with pytest.raises(ResponseError, match=r"can't run this command|ACL|permission"):
            call: Any = users[role].eval("return redis.call('HDEL', KEYS[1], 'a')", 1, KEYS.claimed)
            await call


def test_the_documented_rules_are_these() -> None:
    text = Path("docs/redis.md").read_text(encoding="utf-8")
    for role in Role:
        assert f"ACL SETUSER {role} on >PASSWORD {acl_rules(role)}" in text


def test_a_name_that_is_a_pattern_is_refused() -> None:
    with pytest.raises(ValueError, match="would grant other keys"):
        acl_rules(Role.CLIENT, queues=["requests-*"])


@pytest.mark.parametrize("guarded", ["valkey", "redis"], indirect=True)
@pytest.mark.parametrize("role", [Role.POLLER, Role.KEDA])
@pytest.mark.parametrize("is_filled", [False, True])
async def test_kedas_scaler_reads_every_trigger_as_the_user_it_signs_in_with(
    guarded: Server, users: dict[Role, Redis], role: Role, is_filled: bool
) -> None:
    """By default KEDA uses the poller's user; with the component keda-user its own. The last keys are a Cluster's."""
    tagged = queue_keys(QUEUE, cluster=True).claimed
    outboxes = [beside(name, "outbox-idx") for name in (QUEUE, RETRIES)]
    if is_filled:
        with guarded.client() as admin:
            admin.zadd(QUEUE, {"a": 1, "b": 2})
            for key in (RETRIES, *outboxes):
                admin.zadd(key, {"c": 1})
            for key in (KEYS.claimed, tagged):
                admin.hset(key, "k", "d")
    counts = [await users[role].eval(COUNT, 1, key) for key in (QUEUE, RETRIES, KEYS.claimed, tagged, *outboxes)]
    assert counts == ([2, 1, 1, 1, 1, 1] if is_filled else [0] * 6)
