"""Each role as a process with its own user and least rights, on one server and in a cluster."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from handlers.client.async_client import AsyncClient
from handlers.client.new_request import NewRequest
from handlers.client.options import ClientOptions
from handlers.redis_store.admin.acl import Role
from handlers.redis_store.submit.submissions import RequestState
from tests.redis_store.admin.test_acl import rules_without_whole_reads
from tests.servers.forked import LONG_REDIS_TIMEOUT
from tests.servers.presence import redis_program
from tests.servers.redis_topologies import Cluster, Server
from tests.servers.valkey import LONG_LIMIT
from tests.waiting import wait_until_async
from tests.way.poller_fleet import PollerFleet

SECRET = "least-rights-of-this-test"
PLAIN = 30
COMMAND = str(Path(sys.executable).parent / "async-processor")


@dataclass(frozen=True)
class Place:
    """The scheme and hosts of the Redis URL."""

    scheme: str
    hosts: str

    def url(self, role: Role) -> str:
        """The URL with that role's user."""
        return f"{self.scheme}://{role}:{SECRET}@{self.hosts}"


def _grant(servers: list[Server]) -> None:
    for server in servers:
        with server.client() as admin:
            for role in Role:
                admin.execute_command("ACL", "SETUSER", role, "on", f">{SECRET}", *rules_without_whole_reads(role))


@pytest.fixture(params=["standalone", "cluster"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    program = redis_program()
    if request.param == "cluster":
        with Cluster(program) as cluster:
            _grant(cluster.servers)
            hosts = cluster.url.partition("://")[2]
            yield Place("redis+cluster", hosts)
        return
    server = Server(program, "--appendonly", "yes")
    _grant([server])
    yield Place("redis", f"127.0.0.1:{server.port}")
    server.stop()


@pytest.mark.timeout(600)
async def test_pollers_client_and_command_do_all_their_work_with_the_documented_rights(place: Place) -> None:
    deadline = time.time() + 600
    options = ClientOptions(payload_apart_bytes=60, idempotent_window_seconds=60)
    settings = {"REDIS_URL": place.url(Role.POLLER), "RESULT_DETAILS": "true", "RESULT_APART_BYTES": "200"}
    settings |= LONG_REDIS_TIMEOUT
    with PollerFleet(settings, token_seconds=0.002) as fleet:
        async with AsyncClient.for_redis(place.url(Role.CLIENT), options, access=LONG_LIMIT) as client:
            plain = [NewRequest(id=f"p{n}", payload={"n": n}, deadline=deadline) for n in range(PLAIN)]
            refused_once = {"simulate": {"key": "again", "status": 503, "times": 1}}
            await client.submit_many([*plain, NewRequest(id="again", payload=refused_once, deadline=deadline)])
            own = await client.submit({"text": "x" * 100}, deadline=deadline, has_own_results=True)
            endless = await client.submit({"prompt": "all", "max_tokens": 100_000}, deadline=deadline, id="endless")
            assert (await client.wait(own, within=60)).status_code == 200

            async def is_running() -> bool:
                return await client.look_up(endless) is RequestState.CLAIMED

            await wait_until_async(is_running, "the endless one in flight")
            assert await client.cancel(endless)
            found = {}
            async with client.results(limit=PLAIN + 2) as results:
                async for delivery in results:
                    found[delivery.result.id] = delivery.result
                    await delivery.ack()
        assert {found.pop("endless").error_code} == {"CANCELLED"}
        assert {name for name, one in found.items() if one.status_code == 200} == {
            *(one.id for one in plain),
            "again",
        }
        await wait_until_async(lambda: asyncio.to_thread(fleet.are_ready), "all pollers to be ready")
        log = "".join(poller.output() for poller in fleet.pollers)
        refused = fleet.refused_calls()
        reported = await asyncio.to_thread(_top, place.url(Role.STATUS))
    assert refused == []
    assert SECRET not in log
    assert reported.returncode == 0, reported.stderr
    assert "request-sortedset" in reported.stdout
    assert SECRET not in reported.stdout + reported.stderr


def _top(redis_url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, "top"],
        env={**os.environ, "COLUMNS": "", "REDIS_URL": redis_url, **LONG_REDIS_TIMEOUT},
        capture_output=True,
        text=True,
        check=False,
    )
