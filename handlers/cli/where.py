"""`async-processor where` and `cancel`: show the state of requests; cancel them."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from handlers.cli.flags import RETRY_QUEUE_FLAG, QueueFlags, print_note, queue_flags, redis_flags
from handlers.cli.shell import ExitCode, IdType, exits, for_output, run_async
from handlers.contract.errors import InvalidSetting
from handlers.number_text import counted, duration_text

if TYPE_CHECKING:
    from handlers.client.async_client import AsyncClient
    from handlers.redis_store.admin.whereabouts import Place, Whereabouts


_PLACES: Final = {
    "pending": "queued",
    "claimed": "in flight, or waiting at a gate",
    "retry": "waiting for a retry",
    "dead": "dead letter",
}


@click.command(
    "where",
    epilog="""\b
Examples:
  async-processor where r1
  async-processor where r1 r2 --json
  async-processor where --queue team-a-requests r1

Without --queue, all queues of CONFIG_FILE are searched.

With --json, `where` in each entry of `places` is `pending` (queued), `claimed` (in flight or waiting at a gate),
`retry` or `dead`. `attempts` counts finished attempts. `due_at` is the time of the retry, else the deadline, in Unix
seconds. The state of a live request that is in none of the searched queues is `elsewhere`. If the request is live,
`finished` and `result` are those of an earlier run (of a requeued dead letter, or of an id submitted twice).

The command changes nothing. Pollers keep records of finished requests for a day (FINISHED_RECORDS and
FINISHED_RECORDS_SECONDS of the poller). The result list is searched too, up to 2,000 results from each end.

Exit codes: 0 all were found; 1 an id is unknown; 2 invalid flags; 4 Redis does not answer.""",
)
@click.argument("ids", nargs=-1, required=True, metavar="ID...", type=IdType())
@RETRY_QUEUE_FLAG
@click.option("--json", "is_json", is_flag=True, help="Print one JSON object per id.")
@redis_flags
@exits
def where(*, ids: tuple[str, ...], queue: QueueFlags, retry_queue: str, is_json: bool) -> ExitCode:
    """Print the state of each request.

    The state is queued, in flight, waiting for a retry, finished, cancelled, dead letter or unknown.
    """
    path = queue.variables.get("CONFIG_FILE", "")
    is_given = click.get_current_context().get_parameter_source("queue_name") is ParameterSource.COMMANDLINE
    others: Sequence[str] = ()
    if path and not is_given:
        first, others, retry_queue = _of_file(path, retry_queue)
        queue = dataclasses.replace(queue, queue=first or queue.queue)
    return run_async(_where(queue, queue.client(retry_queue=retry_queue, other_queues=others), ids, is_json))


def _of_file(path: str, retry_queue: str) -> tuple[str, Sequence[str], str]:
    """The file's first queue, its other queues and its retry set.

    The first queue is empty if the file has none.
    """
    from handlers.contract.errors import SettingFaults
    from handlers.settings.config_file import partial_config_file

    faults = SettingFaults()
    file = partial_config_file(path, faults)
    faults.raise_all()
    names = [entry.queue_name for entry in file.queues] or [""]
    return names[0], names[1:], file.retry_queue_name or retry_queue


async def _where(queue: QueueFlags, opened: AsyncClient, ids: tuple[str, ...], is_json: bool) -> ExitCode:
    is_known = True
    waiting: dict[str, None] = {}
    async with opened as client:
        for request_id in ids:
            found = await client.where(request_id)
            is_known = is_known and found.state != "unknown"
            text = as_json(found) if is_json else whereabouts_text(found, time.time())
            print(for_output(text, sys.stdout))
            waiting |= dict.fromkeys(place.queue for place in found.places if place.where == "pending")
    for name in waiting:
        await print_note(queue, name)
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
    elif found.state in ("elsewhere", "queued", "pending", "claimed", "retrying") and not found.places:
        lines.append(
            "live, but not found in the searched queues: it is in another queue (use --queue), or it moved during "
            "the search (try again)"
        )
    if found.finished:
        record = found.finished
        state = "cancelled" if found.state == "cancelled" else "finished"
        state = f"an earlier run {state}" if found.is_run_again else state
        outcome = "" if found.state == "cancelled" else f": {record.outcome}"
        lines.append(f"{state} at {_clock(record.at)}{outcome}, from queue {record.queue}")
    if found.is_run_again or found.state in ("finished", "cancelled", "dead-lettered"):
        lines.append(_result_text(found))
    if not lines:
        lines.append("unknown: it was never queued here, or its record and its result have expired")
    if found.is_partial and not (found.finished and found.result):
        lines.append("(a list or queue was too long to be searched completely)")
    return "\n".join(f"{found.request_id}  {line}" for line in lines)


def not_cancelled_text(found: Whereabouts) -> str:
    """Why a request was not cancelled, to be read after its id."""
    live = [place for place in found.places if place.where != "dead"]
    if live and not any(place.token for place in live):
        return "has no token, so it cannot be cancelled"
    if live:
        reason = "not queued by our client or commands; only its producer can cancel it, with its token"
    elif found.finished:
        at = _clock(found.finished.at)
        if found.state == "cancelled":
            return f"already cancelled at {at}"
        reason = f"finished at {at} ({found.finished.outcome})"
    elif found.state == "elsewhere":
        reason = "live in another queue (use --queue)"
    elif found.state == "unknown":
        reason = "unknown in this queue; is the id right, and --queue?"
    else:
        reason = str(found.state)
    return f"not cancelled: {reason}"


def _place_text(place: Place, now: float) -> str:
    name = "mentioned in a dead letter without id" if place.is_mention else _PLACES[place.where]
    text = f"{name}, queue {place.queue}"
    if place.where == "dead":
        return f"{text}, `async-processor dead show {place.dead_id} --queue {shlex.quote(place.queue)}`"
    if place.where == "claimed":
        attempts = f"attempt {place.attempts + 1}"
    else:
        attempts = f"{counted(place.attempts, 'attempt')} so far" if place.attempts else "no attempt yet"
    word = "due" if place.where == "retry" else "deadline"
    if not place.due_at:
        return f"{text}, {attempts}"
    seconds = place.due_at - now
    length = duration_text(abs(seconds))
    when = f"in {length}" if seconds >= 0 else f"{length} ago"
    return f"{text}, {attempts}, {word} {when}"


def _result_text(found: Whereabouts) -> str:
    its = "the earlier run's" if found.is_run_again else "its"
    if found.result:
        return f"{its} result ({found.result.outcome}) is in {found.result.results}, {found.result.state}"
    if found.finished and found.finished.results:
        searched = "the part of it that was searched" if found.is_partial else "it"
        return f"{its} result was written to {found.finished.results} and is no longer in {searched}"
    return f"{its} result was not found in the lists that were searched"


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


_MOST_REASONS: Final = 20
"""Maximum number of ids for which a reason is searched; each search reads the queue."""


@click.command(
    "cancel",
    epilog="""\b
Examples:
  async-processor cancel r1
  async-processor cancel $(cat ids)
  async-processor cancel --from pubsub --dedupe-redis-url redis://redis:6379 r1

A cancelled request gets the result CANCELLED within about a second, whether it is queued, waiting at a gate, waiting
for a retry or in flight. If it is in flight, its connection to the gateway is closed. A request that already has a
result keeps it.

On Pub/Sub, the cancellation is written to the Redis in the push door's DEDUPE_REDIS_URL. It takes effect when the
message is delivered, and the command does not know whether an id was live.

Exit codes: 0 done; 1 an id was not live; 2 invalid flags; 4 the broker does not answer.""",
)
@click.argument("ids", nargs=-1, required=True, metavar="ID...", type=IdType())
@click.option(
    "--dedupe-redis-url",
    envvar="DEDUPE_REDIS_URL",
    default="",
    show_envvar=True,
    help="Redis of the push door (Pub/Sub).",
)
@queue_flags("--from", "--to", meaning="Broker of the requests.")
@exits
def cancel(*, ids: tuple[str, ...], queue: QueueFlags, dedupe_redis_url: str) -> ExitCode:
    """Cancel the live request with each ID and print the outcome."""
    client = queue.client() if queue.to == "redis" else _pubsub_client(queue, dedupe_redis_url)
    word = "cancelled" if queue.to == "redis" else "cancelled, unless it was answered"
    return run_async(_cancel(client, ids, word))


def _pubsub_client(queue: QueueFlags, dedupe_redis_url: str) -> AsyncClient:
    """A client that can only cancel, through the push door's Redis."""
    from handlers.client.async_client import AsyncClient

    if not dedupe_redis_url:
        accepted = "the Redis of the push door, or --dedupe-redis-url"
        raise InvalidSetting("DEDUPE_REDIS_URL", found="nothing", accepted=accepted)
    return AsyncClient.for_pubsub(
        queue.project or "none", cancel_redis_url=dedupe_redis_url, cancel_redis_access=queue.access
    )


async def _reason(client: AsyncClient, request_id: str) -> str:
    """Why a request was not cancelled, if the search succeeds."""
    from handlers.client.errors import ClientError

    try:
        return not_cancelled_text(await client.where(request_id))
    except ClientError:
        return "not cancelled"


async def _cancel(opened: AsyncClient, ids: tuple[str, ...], word: str) -> ExitCode:
    async with opened as client:
        done = await client.cancel_many(ids)
        not_live = [request_id for request_id, was_live in zip(ids, done, strict=True) if not was_live]
        reasons = {request_id: await _reason(client, request_id) for request_id in not_live[:_MOST_REASONS]}
    for request_id, was_live in zip(ids, done, strict=True):
        print(f"{request_id} {word if was_live else reasons.get(request_id, 'not cancelled')}")
    return ExitCode.DONE if all(done) else ExitCode.FAILED_REQUESTS
