"""Small records of how requests ended: finished, cancelled or dead-lettered.

{async-processor}:status:finished        hash    request id -> record (JSON); the latest submission of an id
{async-processor}:status:finished-idx    zset    request id, score = when it was recorded, Unix seconds
{async-processor}:status:finished-bytes  string  bytes of all ids and records

Bounded in number, bytes and age; all three keys expire. A record is written after the ack, which it neither delays nor
fails. So the latest records before a crash may be missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from handlers.contract.json_limits import MALFORMED
from handlers.redis_store.connection import Store
from handlers.redis_store.scripts import lua_script

FINISHED: Final = "{async-processor}:status:finished"


class FinishedRecord(msgspec.Struct, frozen=True, array_like=True):
    """How a request ended.

    `outcome` is an error code or `HTTP <status>`, `at` in Unix seconds. `results` is the list that took the result,
    empty if there is no result.
    """

    token: str
    outcome: str
    at: float
    queue: str
    results: str = ""
    is_dead: bool = False


class FinishedLimits(msgspec.Struct, frozen=True):
    """Limits of the records: number, total bytes, age. With 0 `records`, none is written."""

    records: int
    bytes: int
    seconds: int


_decoder = msgspec.json.Decoder(FinishedRecord)


class FinishedRecords:
    """Writes records. Raises one of `STORE_FAILURES`."""

    def __init__(self, redis: Store, limits: FinishedLimits) -> None:
        self._script = lua_script(redis, "finished")
        self._limits = limits

    async def write(self, records: Sequence[tuple[str, FinishedRecord]]) -> int:
        """Add records by request id; returns how many are kept."""
        keys = [FINISHED, f"{FINISHED}-idx", f"{FINISHED}-bytes"]
        arguments: list[str | bytes | int] = [self._limits.records, self._limits.bytes, self._limits.seconds]
        for request_id, record in records:
            arguments += (request_id, msgspec.json.encode(record))
        return int(await self._script(keys=keys, args=arguments))


async def read_finished(redis: Store, request_id: str) -> FinishedRecord | None:
    """The record of a request, or None."""
    text = await redis.hget(FINISHED, request_id)
    if text is None:
        return None
    try:
        return _decoder.decode(text)
    except MALFORMED:
        return None
