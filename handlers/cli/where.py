"""`async-processor where`: show where requests are and how they ended."""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from handlers.cli.flags import RETRY_QUEUE_FLAG, QueueFlags, redis_flags
from handlers.cli.shell import ExitCode, exits, for_output

if TYPE_CHECKING:
    from handlers.client.async_client import AsyncClient
    from handlers.redis_store.admin.whereabouts import Place, Whereabouts

_PLACES: Final = {
    "pending": "queued",
    "claimed": "claimed by a poller: in flight, or waiting at a gate",
    "retry": "waiting for its next attempt",
    "dead": "dead-lettered",
}


@click.command(
    "where",
    epilog="""\b
Examples:
  async-processor where r1
  async-processor where r1 r2 --json
  async-processor where --queue team-a-requests r1

Changes nothing. Pollers keep a record of finished requests for a day (FINISHED_RECORDS and
FINISHED_RECORDS_SECONDS of the poller); the result list is searched as well, up to 2,000 results from each end.

Exit codes: 0 all were found; 1 some id is unknown; 2 wrong flags; 4 Redis does not answer.""",
)
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@RETRY_QUEUE_FLAG
@click.option("--json", "is_json", is_flag=True, help="One JSON object for each id.")
@redis_flags
@exits
def where(*, ids: tuple[str, ...], queue: QueueFlags, retry_queue: str, is_json: bool) -> ExitCode:
    """Print where each request is: queued, in flight, waiting for a retry, finished, cancelled or dead-lettered."""
    return asyncio.run(_where(queue.client(retry_queue=retry_queue), ids, is_json))


async def _where(opened: AsyncClient, ids: tuple[str, ...], is_json: bool) -> ExitCode:
    is_known = True
    async with opened as client:
        for request_id in ids:
            found = await client.where(request_id)
            is_known = is_known and found.state != "unknown"
            text = as_json(found) if is_json else whereabouts_text(found, time.time())
            print(for_output(text, sys.stdout))
    return ExitCode.DONE if is_known else ExitCode.FAILED_REQUESTS


def as_json(found: Whereabouts) -> str:
    """The answer as one JSON object."""
    import msgspec

    fields: dict[str, Any] = {
        "id": found.request_id,
        "state": str(found.state),
        "places": [msgspec.to_builtins(place) for place in found.places],
        "is_partial": found.is_partial,
    }
    if found.finished:
        fields["finished"] = msgspec.structs.asdict(found.finished)
    if found.result:
        fields["result"] = msgspec.to_builtins(found.result)
    return msgspec.json.encode(fields).decode()


def whereabouts_text(found: Whereabouts, now: float) -> str:
    """The answer in words, one line per place."""
    lines = [_place_text(place, now) for place in found.places]
    if found.state == "cancelling":
        lines.append("cancelled; its result is on the way")
    elif found.state in ("queued", "pending", "claimed", "retrying") and not found.places:
        lines.append("live, but moved during the search: try again")
    if found.finished:
        record = found.finished
        lines.append(f"finished at {_clock(record.at)}: {record.outcome}, from queue {record.queue}")
    if found.state in ("finished", "cancelled", "dead-lettered"):
        lines.append(_result_text(found))
    if not lines:
        lines.append(
            "unknown: never queued here, or finished so long ago that its record and its result are gone"
        )
    if found.is_partial:
        lines.append("(a list or queue was too long to read all of it)")
    return "\n".join(f"{found.request_id}  {line}" for line in lines)


def reason_not_live(found: Whereabouts) -> str:
    """Why a request cannot be cancelled."""
    if any(place.where != "dead" for place in found.places):
        return "it is queued without a live marker, as redis-cli does it; only a client's submission can be cancelled"
    if found.finished:
        return f"finished at {_clock(found.finished.at)} ({found.finished.outcome})"
    if found.state == "unknown":
        return "unknown in this queue; is the id right, and --queue?"
    return str(found.state)


def _place_text(place: Place, now: float) -> str:
    text = f"{_PLACES[place.where]}, queue {place.queue}"
    if place.where == "dead":
        return f"{text}, `async-processor dead show {place.dead_id}`"
    attempts = "no attempt yet" if not place.attempts else f"{place.attempts} attempts so far"
    word = "due" if place.where == "retry" else "deadline"
    if not place.due_at:
        return f"{text}, {attempts}"
    seconds = place.due_at - now
    when = f"in {seconds:.0f} s" if seconds >= 0 else f"{-seconds:.0f} s ago"
    return f"{text}, {attempts}, {word} {when}"


def _result_text(found: Whereabouts) -> str:
    if found.result:
        state = "held by a reader" if found.result.is_held else "waiting to be read"
        return f"its result ({found.result.outcome}) is in {found.result.results}, {state}"
    if found.finished and found.finished.results:
        looked = "the part of it that was searched" if found.is_partial else "it"
        return f"its result went to {found.finished.results} and is not in {looked} now"
    return "its result is in none of the lists that were searched"


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
