"""Which submission of an id stands for it: while that is live, or finished lately, no other one runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError

from handlers.redis_store.connection import Store, executed
from handlers.redis_store.keys import stands_key
from handlers.redis_store.scripts import lua_script


class Standing(StrEnum):
    """Whether a submission may run, or what the other one is that stands for its id."""

    RUNS = "runs"
    REPEATED = "repeated"
    """It is finished itself, and was queued, or reclaimed, once more."""
    LIVE = "live"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Mark:
    """A submission that stands for its id in its queue, for `seconds` after it is finished.

    `known_by` tells it from others. One that `is_dead` is finished too, but runs if it is queued again.
    """

    request_id: str
    known_by: str
    seconds: int
    is_dead: bool = False
    queue: str = ""


async def stand_for_id(redis: Store, mark: Mark, deadline: float) -> Standing:
    """Whether the submission may run; `deadline` is in Unix seconds. Raises one of `STORE_FAILURES`."""
    until_ms = int((deadline + mark.seconds) * 1_000)
    script = lua_script(redis, "stand_for_id")
    answer = await script(keys=[stands_key(mark.request_id, mark.queue)], args=[mark.known_by, until_ms])
    return Standing(answer.decode())


async def finish_for_id(redis: Store, marks: Sequence[Mark]) -> None:
    """These are finished: what is queued again under their ids does not run for a while."""
    script = lua_script(redis, "finish_for_id")
    # One call each, since in a cluster each key is in a slot of its own; but on one connection.
    rows = [
        (stands_key(one.request_id, one.queue), one.known_by, one.seconds, int(one.is_dead)) for one in marks
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
