"""A view of the status page is bounded in steps and bytes, and leaves a thread for health checks."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import msgspec
import pytest
from flask import Request
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from werkzeug.test import EnvironBuilder

from handlers.demo.valkey import Valkey
from handlers.redis_store.admin import status_board
from handlers.redis_store.admin.status_board import LONGEST_SAMPLED, SearchBudget, sample_members, search
from handlers.settings.config_file import QueueEntry
from handlers.settings.settings import Settings, load_settings
from handlers.status.page import OwnHosts, StatusPages
from handlers.wiring import status_page
from handlers.wiring.status_page import VIEWS_AT_ONCE, RedisSource

QUEUE, RETRIES = "request-sortedset", "retry-sortedset"


@pytest.fixture(autouse=True)
def long_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """No view reaches its time limit; steps and bytes are the limits under test."""
    monkeypatch.setattr(status_page, "VIEW_SECONDS", 600.0)


def member(name: str, size: int = 0) -> str:
    return json.dumps({"id": name, "deadline": 9_999_999_999, "payload": {"prompt": "x" * size}})


async def test_a_search_that_stops_early_is_partial(store: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_board, "SEARCH_ENTRIES", 10)
    await store.zadd(QUEUE, {member(f"r{number}"): number for number in range(1_000)})
    budget = SearchBudget(steps=5)
    found = await search(store, [QUEUE], RETRIES, "nobody", cluster=False, budget=budget)
    assert (found.found, found.is_partial, budget.steps) == ([], True, 0)
    whole = await search(store, [QUEUE], RETRIES, "r700", cluster=False, budget=SearchBudget(steps=1_000))
    assert [one.score for one in whole.found] == [700.0]
    assert not whole.is_partial


async def test_a_search_returns_only_so_many_bytes_of_possible_matches(store: Redis) -> None:
    await store.zadd(QUEUE, {member("e", 100_000 + number): number for number in range(20)})
    found = await search(store, [QUEUE], RETRIES, "e", cluster=False, budget=SearchBudget(left_bytes=300_000))
    assert found.is_partial
    assert sum(len(one.member) for one in found.found) < 300_000 + status_board.PART_BYTES + 200_000


async def test_an_id_is_found_in_every_spelling_of_json(store: Redis) -> None:
    for name in ('say "hi"', "größe", "a*b[c]", "back\\slash"):
        for ascii_only in (True, False):
            body: dict[str, Any] = {"id": name, "deadline": 9_999_999_999, "payload": {}}
            await store.zadd(QUEUE, {json.dumps(body, ensure_ascii=ascii_only): 1})
        assert (await search(store, [QUEUE], RETRIES, name, cluster=False)).found, name


@pytest.mark.parametrize("is_allowed", [True, False])
async def test_a_sample_of_a_hash_reads_no_value_that_it_does_not_return(
    valkey: Valkey, store: Redis, is_allowed: bool
) -> None:
    """Also without HSCAN, whose form that returns names alone is missing in Redis before 7.4."""
    for number in range(40):
        await store.hset("h", f"large{number}", "x" * (LONGEST_SAMPLED + 1))
    await store.hset("h", "small", "y")
    commands = ["+@all"] if is_allowed else ["+@all", "-hscan"]
    await store.acl_setuser("viewer", enabled=True, nopass=True, keys=["*"], commands=commands)
    viewer = Redis.from_url(valkey.url.replace("://", "://viewer:x@"), socket_timeout=60)
    await store.config_resetstat()

    assert sorted(await sample_members(viewer, "HSCAN", "h")) == [b""] * 40 + [b"y"]

    assert (await store.info("commandstats"))["cmdstat_hget"]["calls"] == 1
    await viewer.aclose()
    await store.acl_deluser("viewer")


async def test_a_sample_is_bounded_by_bytes(store: Redis) -> None:
    await store.zadd(QUEUE, {member(f"m{number}", 100_000): number for number in range(100)})
    await store.zadd(RETRIES, {member(f"large{number}", 3_000_000): number for number in range(5)})
    pending = sum(map(len, await sample_members(store, "ZRANGE", QUEUE)))
    assert 500_000 < pending < status_board.PART_BYTES + LONGEST_SAMPLED
    assert sum(map(len, await sample_members(store, "ZRANGE", RETRIES))) == 0, "members over the limit are not returned"


def _many_queues(count: int, url: str = "") -> Settings:
    settings = load_settings({"REDIS_URL": url, "REDIS_TIMEOUT_SECONDS": "60"} if url else {})
    queues = [QueueEntry(queue_name=f"q-{number}") for number in range(count)]
    return msgspec.structs.replace(settings, file=msgspec.structs.replace(settings.file, queues=queues))


@pytest.fixture
def round_trips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each reply that was read."""
    found: list[int] = []
    read = AbstractConnection.read_response

    async def reading(self: Any, *args: Any, **kwargs: Any) -> Any:
        reply = await read(self, *args, **kwargs)
        found.append(len(str(reply)))
        return reply

    sent = AbstractConnection.send_packed_command

    async def sending(self: Any, command: Any, check_health: bool = True) -> None:
        found.append(0)
        await sent(self, command, check_health)

    monkeypatch.setattr(AbstractConnection, "read_response", reading)
    monkeypatch.setattr(AbstractConnection, "send_packed_command", sending)
    return found


async def test_an_overview_of_10000_queues_takes_few_round_trips_and_samples_the_largest(
    store: Redis, round_trips: list[int]
) -> None:
    for number in range(200):
        await store.zadd(f"q-{number * 50}", {member(f"r-{number}", 2_000): 9_999_999_999})
    await store.zadd("q-77", {member(f"large-{number}", 300_000): 9_999_999_000 + number for number in range(9)})
    await store.zadd(RETRIES, {member("retried"): 9_999_999_999})
    round_trips.clear()
    seen = await RedisSource(_many_queues(10_000)).read_overview(store)
    assert len(seen.queues) == 10_000
    depths = {line.name: line.depths for line in seen.queues}
    assert (depths["q-77"].pending, depths["q-50"].pending, depths["q-51"].pending) == (9, 1, 0)
    assert depths["q-50"].first_score is not None
    assert [line.name for line in seen.queues if line.sampled][:1] == ["q-0"]
    assert 0 < len([line for line in seen.queues if line.tenants]) <= 50
    assert seen.retrying == 1
    sent = sum(size == 0 for size in round_trips)
    assert sent < 500, "one command for each queue would be 10,000"
    assert sum(round_trips) < 3_000_000


async def test_a_request_is_found_in_any_of_10000_queues(store: Redis, valkey: Valkey, round_trips: list[int]) -> None:
    await store.zadd("q-9321", {member("wanted"): 9_999_999_999})
    round_trips.clear()
    with RedisSource(_many_queues(10_000, valkey.url)) as source:
        found, _ = await asyncio.to_thread(source.find, "wanted")
    assert [(place.where, place.queue) for place in found.places] == [("pending", "q-9321")]
    assert not found.is_partial
    assert sum(size == 0 for size in round_trips) < 100


def test_a_view_beyond_the_limit_gets_503(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others get an answer at once, so that the server's threads stay free for health checks."""
    source = RedisSource(load_settings({}))
    entered, go = threading.Semaphore(0), threading.Event()

    async def work(_source: RedisSource, _redis: Any) -> None:
        entered.release()
        await asyncio.to_thread(go.wait, 60)

    monkeypatch.setattr(RedisSource, "read_overview", work)
    views = [threading.Thread(target=source.overview) for _ in range(VIEWS_AT_ONCE)]
    for view in views:
        view.start()
    try:
        for _ in views:
            assert entered.acquire(timeout=60)
        page = StatusPages(source, tuple, OwnHosts("127.0.0.1"))
        response = page.respond(Request(EnvironBuilder("/").get_environ()))
        assert (response.status_code, response.headers["Retry-After"]) == (503, "2")
        text = response.get_data(as_text=True)
        assert "The page is busy" in text
        assert "Redis does not answer" not in text
    finally:
        go.set()
        for view in views:
            view.join(60)
    source.overview()
    source.close()


async def test_the_dead_letters_page_reads_no_record_that_is_too_large(store: Redis, valkey: Valkey) -> None:
    record = {"reason": "malformed", "message": "m", "at": 5.0, "deaths": 1, "queue": QUEUE, "score": 1.0}
    await store.hset(f"{QUEUE}:dead", "small", json.dumps({**record, "member": member("s1")}))
    await store.hset(f"{QUEUE}:dead", "large", json.dumps({**record, "member": member("l1", 2_000_000)}))
    with RedisSource(load_settings({"REDIS_URL": valkey.url, "REDIS_TIMEOUT_SECONDS": "60"})) as source:
        rows = {row.dead_id: row for row in await asyncio.to_thread(source.dead, QUEUE)}
    assert (rows["small"].request_id, rows["small"].reason) == ("s1", "malformed")
    assert "too large" in rows["large"].reason
