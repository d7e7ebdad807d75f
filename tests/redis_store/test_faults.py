"""A wrong Redis URL of any form is explained in one line, without a secret."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, ResponseError

from handlers.redis_store.connection import STORE_FAILURES, RedisOptions, connect, durability_warnings
from handlers.redis_store.faults import explained, has_fix, refusal
from tests.servers.certificates import self_signed
from tests.servers.presence import redis_program
from tests.servers.redis_topologies import Cluster, Sentinels, Server
from tests.servers.valkey import long_limits
from tests.waiting import wait_until_async

pytestmark = pytest.mark.xdist_group("redis-faults")
SECRET = "canary"


@dataclass(frozen=True)
class Places:
    """Servers that may be configured by mistake; `pem` is key, certificate and CA of those with TLS."""

    locked: Server
    cluster: Cluster
    sentinels: Sentinels
    pem: str
    strangers_pem: str

    def encrypted(self, url: str, ca_file: str = "") -> RedisOptions:
        return replace(long_limits(url), ca_file=ca_file or self.pem, cert_file=self.pem, key_file=self.pem)

    @property
    def node(self) -> str:
        """A node of the cluster that does not have the slot of every key."""
        return f"127.0.0.1:{self.cluster.servers[0].port}"

    @property
    def sentinel(self) -> str:
        return f"127.0.0.1:{self.sentinels.sentinels[0].port}"

    @property
    def locked_address(self) -> str:
        return f"127.0.0.1:{self.locked.port}"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    program = redis_program()
    pem = self_signed(tmp_path_factory.mktemp("tls"))
    other = self_signed(tmp_path_factory.mktemp("other"))
    with ExitStack() as parts:
        locked = Server(program, "--requirepass", SECRET)
        parts.callback(locked.stop)
        cluster = parts.enter_context(Cluster(program))
        sentinels = parts.enter_context(Sentinels(program, tls=pem))
        yield Places(locked, cluster, sentinels, str(pem), str(other))


async def _failure(options: RedisOptions) -> str:
    """The explanation of reading three keys of three slots."""
    async with contextlib.aclosing(connect(options)) as redis:
        with pytest.raises(STORE_FAILURES) as caught:
            for key in ("a", "b", "c"):
                await redis.get(key)
    return explained(caught.value)


CASES: dict[str, tuple[Callable[[Places], RedisOptions], str]] = {
    "no password": (lambda p: long_limits(f"redis://{p.locked_address}"), "requires a password"),
    "a wrong password": (
        lambda p: long_limits(f"redis://:wrong-{SECRET}@{p.locked_address}"),
        "refuses this user or password",
    ),
    "no server": (
        lambda _: long_limits("redis://127.0.0.1:1"),
        "no connection to 127.0.0.1:1: connection refused",
    ),
    "no such socket": (
        lambda _: long_limits("unix:///nowhere/redis.sock"),
        "no connection to /nowhere/redis.sock: no such file or directory",
    ),
    "no such host": (lambda _: long_limits("redis://no-such-host.invalid"), "does not resolve"),
    "a cluster's node by a plain URL": (lambda p: long_limits(f"redis://{p.node}"), "redis+cluster://"),
    "one server by a cluster's URL": (
        lambda p: long_limits(f"redis+cluster://:{SECRET}@{p.locked_address}"),
        "not part of a Redis Cluster",
    ),
    "no node of a cluster": (
        lambda _: long_limits("redis+cluster://127.0.0.1:1"),
        "no node of the cluster was reached",
    ),
    "another name of the master": (
        lambda p: p.encrypted(p.sentinels.url(path="/other")),
        "report no reachable master 'other'",
    ),
    "a Sentinel by a plain URL": (lambda p: p.encrypted(f"rediss://{p.sentinel}"), "redis+sentinel://"),
    "no Sentinel by a Sentinel's URL": (
        lambda p: long_limits(f"redis+sentinel://{p.node}/queues"),
        "is not a Sentinel",
    ),
    "no Sentinel there": (
        lambda _: long_limits("redis+sentinel://127.0.0.1:1,127.0.0.1:2/queues"),
        "no Sentinel in the URL reports a master",
    ),
    "no CA, Sentinel": (
        lambda p: replace(p.encrypted(p.sentinels.url()), ca_file=""),
        "set REDIS_CA_FILE to its CA",
    ),
    "a wrong CA": (
        lambda p: p.encrypted(f"rediss://{p.sentinel}", p.strangers_pem),
        "set REDIS_CA_FILE to its CA",
    ),
    "no such CA file": (
        lambda p: p.encrypted(f"rediss://{p.sentinel}", "/nowhere/ca.pem"),
        "REDIS_CA_FILE, REDIS_CERT_FILE or REDIS_KEY_FILE",
    ),
    "TLS to a server without it": (
        lambda p: replace(p.encrypted(f"rediss://{p.locked_address}"), connect_timeout_seconds=2.0),
        "the server does not speak TLS",
    ),
    "no TLS to a server that requires it": (lambda p: long_limits(f"redis://{p.sentinel}"), "requires TLS"),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_wrong_redis_is_explained_in_one_line(places: Places, case: str) -> None:
    options_of, reported = CASES[case]
    text = await _failure(options_of(places))
    assert reported in text
    assert len(text) < 250
    assert "\n" not in text
    assert SECRET not in text


@pytest.mark.parametrize("text", ["Error while writing to socket: Connection lost", "Connection reset by peer"])
def test_a_lost_connection_is_explained_whether_it_was_read_or_written(text: str) -> None:
    assert explained(RedisConnectionError(text)) == "the server closed the connection"


async def test_an_outage_is_explained_without_a_hint_at_tls() -> None:
    server = Server(redis_program())
    try:
        async with contextlib.aclosing(connect(long_limits(server.url))) as redis:
            waiting = asyncio.create_task(redis.execute_command("BLPOP", "nothing", "0"))
            with server.client() as other:
                await wait_until_async(lambda: other.info("clients")["blocked_clients"] == 1, "the blocked call")
            server.kill()
            for call, reported in ((waiting, "the server closed the connection"), (redis.get("a"), "no connection to")):
                with pytest.raises(STORE_FAILURES) as caught:
                    await call
                assert explained(caught.value).startswith(reported)
                assert "TLS" not in explained(caught.value)
                assert not has_fix(caught.value)
    finally:
        server.stop()


async def test_sentinels_that_are_down_or_no_sentinels_are_skipped(places: Places) -> None:
    master = f"127.0.0.1:{places.sentinels.master.port}"
    url = f"rediss+sentinel://127.0.0.1:1,{master},{places.sentinel}/queues"
    async with contextlib.aclosing(connect(places.encrypted(url))) as redis:
        assert await redis.set("a", "1", ex=60)


async def test_a_cluster_is_found_by_any_one_of_its_nodes(places: Places) -> None:
    for url in (f"redis+cluster://{places.node}", f"redis+cluster://127.0.0.1:1,{places.node}"):
        async with contextlib.aclosing(connect(long_limits(url))) as redis:
            for key in ("a", "b", "c"):
                assert await redis.set(key, "1", ex=60)


async def test_an_unreachable_redis_is_not_reported_as_hiding_its_configuration() -> None:
    async with contextlib.aclosing(connect(long_limits("redis://127.0.0.1:1"))) as redis:
        with pytest.raises(STORE_FAILURES):
            await durability_warnings(redis)


def test_a_missing_right_and_a_wrong_type_name_the_key_and_the_fix() -> None:
    right = refusal(NoPermissionError("NOPERM HSET q:claimed: ACL failure"))
    assert "HSET q:claimed" in right and "docs/redis.md" in right
    kind = refusal(ResponseError("WRONGTYPE ZADD q:claims-idx: Operation against a key"))
    assert "ZADD q:claims-idx" in kind and "rename or delete it" in kind
    assert refusal(ResponseError("LOADING Redis is loading")) == ""


async def test_a_wrong_type_in_a_pipeline_is_a_refusal(store: Redis) -> None:
    await store.set("retries", "text")
    pipeline = store.pipeline(transaction=False)
    pipeline.zcard("queue")
    pipeline.zcard("retries")
    with pytest.raises(ResponseError) as refused:
        await pipeline.execute()
    assert "ZCARD retries" in refusal(refused.value)


async def test_a_server_of_another_protocol_is_named() -> None:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"<html>")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    store = connect(long_limits(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
    with pytest.raises(STORE_FAILURES) as failure:
        await store.ping()
    assert explained(failure.value) == "the server does not speak Redis: check the port of the URL"
    await store.aclose()
    server.close()
