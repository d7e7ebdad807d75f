"""`async-processor cancel`: cancel requests that have no result yet."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import click

from handlers.cli.flags import QueueFlags, queue_flags
from handlers.cli.shell import ExitCode, exits
from handlers.contract.errors import InvalidSetting

if TYPE_CHECKING:
    from handlers.client.async_client import AsyncClient


_MOST_REASONS: Final = 20
"""Most ids that are searched for a reason; each search reads the queue."""


@click.command(
    "cancel",
    epilog="""\b
Examples:
  async-processor cancel r1
  async-processor cancel $(cat ids)
  async-processor cancel --from pubsub --dedupe-redis-url redis://redis:6379 r1

A cancelled request gets the result CANCELLED within about a second, whether it is queued, held at a gate, waiting for
a retry or in flight. In flight, its connection to the gateway is closed. A request that has its result keeps it.

On Pub/Sub, the cancellation is written to the Redis that the push door's DEDUPE_REDIS_URL names. It takes effect when
the message is delivered, and the command cannot tell whether an id was live.

Exit codes: 0 done; 1 some id was not live; 2 wrong flags; 4 the broker does not answer.""",
)
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option(
    "--dedupe-redis-url",
    envvar="DEDUPE_REDIS_URL",
    default="",
    show_envvar=True,
    help="Redis of the push door (Pub/Sub).",
)
@queue_flags
@exits
def cancel(*, ids: tuple[str, ...], queue: QueueFlags, dedupe_redis_url: str) -> ExitCode:
    """Cancel the live request of each ID and print the outcome."""
    client = queue.client() if queue.to == "redis" else _pubsub_client(queue, dedupe_redis_url)
    word = "cancelled" if queue.to == "redis" else "cancelled, unless it was answered"
    return asyncio.run(_cancel(client, ids, word))


def _pubsub_client(queue: QueueFlags, dedupe_redis_url: str) -> AsyncClient:
    """A client with the push door's Redis only, without project and topic."""
    from handlers.client.async_client import AsyncClient

    if not dedupe_redis_url:
        accepted = "the Redis of the push door, or --dedupe-redis-url"
        raise InvalidSetting("DEDUPE_REDIS_URL", found="nothing", accepted=accepted)
    return AsyncClient.for_pubsub(
        queue.project or "none", cancel_redis_url=dedupe_redis_url, cancel_redis_access=queue.access
    )


async def _reason(client: AsyncClient, request_id: str) -> str:
    """Why the id could not be cancelled, if a search finds it."""
    from handlers.cli.where import reason_not_live
    from handlers.client.errors import ClientError

    try:
        return f": {reason_not_live(await client.where(request_id))}"
    except ClientError:
        return ""


async def _cancel(opened: AsyncClient, ids: tuple[str, ...], word: str) -> ExitCode:
    async with opened as client:
        done = await client.cancel_many(ids)
        not_live = [request_id for request_id, was_live in zip(ids, done, strict=True) if not was_live]
        reasons = {request_id: await _reason(client, request_id) for request_id in not_live[:_MOST_REASONS]}
    for request_id, was_live in zip(ids, done, strict=True):
        print(f"{request_id} {word}" if was_live else f"{request_id} not live{reasons.get(request_id, '')}")
    return ExitCode.DONE if all(done) else ExitCode.FAILED_REQUESTS
