"""The log of finished requests beside the acks: what it takes, keeps and drops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from handlers.poller.ack_batcher import Release, Settlement
from handlers.poller.finished_log import FinishedLog
from handlers.redis_store.admin.finished import FinishedRecord, FinishedRecords
from handlers.redis_store.queue.queue import Ack, Claim, Nack

CLAIM = Claim("requests", b"{}", 1.0, b"key", b"owner")


class Store:
    """Takes records; fails while `is_down`."""

    def __init__(self) -> None:
        self.written: list[tuple[str, FinishedRecord]] = []
        self.is_down = False

    async def write(self, records: Sequence[tuple[str, FinishedRecord]]) -> int:
        if self.is_down:
            raise RedisConnectionError("down")
        self.written += records
        return len(self.written)


def ack(
    request_id: str = "r", outcome: str = "HTTP 200", result: bytes = b"{}", dead: bytes | None = None
) -> Ack:
    return Ack(CLAIM, result, "results", None, request_id, "token", dead=dead, outcome=outcome)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def log(store: Store) -> FinishedLog:
    return FinishedLog(cast(FinishedRecords, store), lambda: 5.0)


async def test_a_final_result_is_recorded_with_where_it_went(log: FinishedLog, store: Store) -> None:
    log.note(ack())
    log.note(ack("d", "UNDELIVERABLE", dead=b"{}"))
    await log.tick()
    assert store.written == [
        ("r", FinishedRecord("token", "HTTP 200", 5.0, "requests", "results", False)),
        ("d", FinishedRecord("token", "UNDELIVERABLE", 5.0, "requests", "results", True)),
    ]


@pytest.mark.parametrize(
    "settlement",
    [Release(CLAIM), Nack(CLAIM, b"{}", 1.0), ack(""), ack(outcome="DUPLICATE"), ack(result=b"")],
    ids=["release", "nack", "no id", "duplicate", "no result"],
)
async def test_what_does_not_end_a_request_is_not_recorded(
    log: FinishedLog, store: Store, settlement: Settlement
) -> None:
    log.note(settlement)
    await log.tick()
    assert store.written == []


async def test_records_wait_while_redis_is_down_and_the_oldest_are_dropped(
    log: FinishedLog, store: Store
) -> None:
    store.is_down = True
    for number in range(10_100):
        log.note(ack(f"r{number}"))
    with pytest.raises(RedisConnectionError):
        await log.tick()
    log.note(ack("last"))
    store.is_down = False
    await log.tick()
    ids = [request_id for request_id, _ in store.written]
    assert (ids[0], ids[-1], len(ids)) == ("r101", "last", 10_000)
