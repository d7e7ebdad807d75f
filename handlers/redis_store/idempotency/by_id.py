"""Idempotency records by request id: only one submission of an id runs.

The record blocks other submissions of the id until this one is finished, and for some seconds more.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec
from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError

from handlers.redis_store.connection import Store, executed
from handlers.redis_store.keys import id_record_key
from handlers.redis_store.scripts import lua_script


class RunState(StrEnum):
    """Whether a submission may run, and if not, why."""

    RUNS = "runs"
    REPEATED = "repeated"
    """This submission is finished already; it was queued or reclaimed again."""
    LIVE = "live"
    FINISHED = "finished"


class IdRecord(msgspec.Struct, frozen=True):
    """The idempotency record of a submission in its queue.

    `known_by` names the submission. The record is kept for `seconds` after it is finished. A dead-lettered submission
    (`is_dead`) runs if it is queued again.
    """

    request_id: str
    known_by: str
    seconds: int
    is_dead: bool = False
    queue: str = ""


async def record_for_id(redis: Store, record: IdRecord, deadline: float) -> RunState:
    """Record a submission and return whether it may run.

    `deadline` is in Unix seconds. Raises one of `STORE_FAILURES`.
    """
    until_ms = int((deadline + record.seconds) * 1_000)
    script = lua_script(redis, "record_for_id")
    answer = await script(
        keys=[id_record_key(record.request_id, record.queue)], args=[record.known_by, until_ms]
    )
    return RunState(answer.decode())


async def finish_id_record(redis: Store, records: Sequence[IdRecord]) -> None:
    """Mark submissions as finished. Their ids do not run again for `seconds`."""
    script = lua_script(redis, "finish_id_record")
    # One call each, since a cluster keeps the keys in different slots; all in one pipeline.
    rows = [
        (id_record_key(one.request_id, one.queue), one.known_by, one.seconds, int(one.is_dead))
        for one in records
    ]
    try:
        await _finished(redis, script, rows)
    except NoScriptError:
        await redis.script_load(script.script)
        await _finished(redis, script, rows)


async def _finished(redis: Store, script: AsyncScript, rows: Sequence[tuple[str, str, int, int]]) -> None:
    pipeline = redis.pipeline(transaction=False)
    for row in rows:
        pipeline.execute_command("EVALSHA", script.sha, 1, *row)
    await executed(redis, pipeline)
