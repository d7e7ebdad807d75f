"""A view of the status page is bounded in steps and bytes, and leaves a thread for health checks."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from redis.asyncio import Redis

from handlers.redis_store.admin import status_board
from handlers.redis_store.admin.status_board import LONGEST_SAMPLED, SearchBudget, sample_members, search
from handlers.settings.settings import load_settings
from handlers.status.page import Unreachable
from handlers.wiring.status_page import VIEWS_AT_ONCE, RedisSource

QUEUE, RETRIES = "request-sortedset", "retry-sortedset"


def member(name: str, size: int = 0) -> str:
    return json.dumps({"id": name, "deadline": 9_999_999_999, "payload": {"prompt": "x" * size}})


async def test_a_search_stops_after_its_steps_and_says_so(
    store: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_board, "SEARCH_ENTRIES", 10)
    await store.zadd(QUEUE, {member(f"r{number}"): number for number in range(1_000)})
    budget = SearchBudget(steps=5)
    found = await search(store, QUEUE, RETRIES, "nobody", cluster=False, budget=budget)
    assert (found.found, found.is_partial, budget.steps) == ([], True, 0)
    whole = await search(store, QUEUE, RETRIES, "r700", cluster=False, budget=SearchBudget(steps=1_000))
    assert [one.score for one in whole.found] == [700.0]
    assert not whole.is_partial


async def test_a_search_returns_only_so_many_bytes_of_possible_matches(store: Redis) -> None:
    await store.zadd(QUEUE, {member("e", 100_000 + number): number for number in range(20)})
    found = await search(store, QUEUE, RETRIES, "e", cluster=False, budget=SearchBudget(left_bytes=300_000))
    assert found.is_partial
    assert sum(len(one.member) for one in found.found) < 300_000 + status_board.PART_BYTES + 200_000


async def test_an_id_is_found_in_every_spelling_of_json(store: Redis) -> None:
    for name in ('say "hi"', "größe", "a*b[c]", "back\\slash"):
        for ascii_only in (True, False):
            body: dict[str, Any] = {"id": name, "deadline": 9_999_999_999, "payload": {}}
            await store.zadd(QUEUE, {json.dumps(body, ensure_ascii=ascii_only): 1})
        assert (await search(store, QUEUE, RETRIES, name, cluster=False)).found, name


async def test_a_sample_is_bounded_by_bytes(store: Redis) -> None:
    await store.zadd(QUEUE, {member(f"m{number}", 100_000): number for number in range(100)})
    await store.zadd(RETRIES, {member(f"large{number}", 3_000_000): number for number in range(5)})
    sample = await sample_members(store, QUEUE, RETRIES, cluster=False)
    pending = sum(map(len, sample.pending))
    assert 500_000 < pending < status_board.PART_BYTES + LONGEST_SAMPLED
    assert sum(map(len, sample.retrying)) == 0, "members over the limit are not returned"


def test_only_some_views_are_read_at_a_time() -> None:
    """The others get an answer at once, so that the server's threads stay free for health checks."""
    source = RedisSource(load_settings({}))
    entered, go = threading.Semaphore(0), threading.Event()

    async def work(_redis: Any) -> None:
        entered.release()
        go.wait(60)

    views = [threading.Thread(target=source._run, args=(work,)) for _ in range(VIEWS_AT_ONCE)]
    for view in views:
        view.start()
    try:
        for _ in views:
            assert entered.acquire(timeout=60)
        with pytest.raises(Unreachable, match="already"):
            source._run(work)
    finally:
        go.set()
        for view in views:
            view.join(60)
    go.set()
    source._run(work)


async def test_the_dead_letters_page_reads_no_record_that_is_too_large(store: Redis) -> None:
    record = {"reason": "malformed", "message": "m", "at": 5.0, "deaths": 1, "queue": QUEUE, "score": 1.0}
    await store.hset(f"{QUEUE}:dead", "small", json.dumps({**record, "member": member("s1")}))
    await store.hset(f"{QUEUE}:dead", "large", json.dumps({**record, "member": member("l1", 2_000_000)}))
    rows = {row.dead_id: row for row in await RedisSource(load_settings({}))._read_dead(store, QUEUE)}
    assert (rows["small"].request_id, rows["small"].reason) == ("s1", "malformed")
    assert "too large" in rows["large"].reason
