"""`async-processor cancel`: take requests back."""

from __future__ import annotations

import asyncio

import click

from handlers.cli.connection import QueueFlags, redis_flags
from handlers.cli.exit_codes import EXIT_CODES_HELP, ExitCode, exits


@click.command(
    "cancel",
    epilog=f"""\b
Examples:
  async-processor cancel r1
  async-processor cancel $(cat ids)

The result of a cancelled request is CANCELLED, within about a second: waiting, at a gate, between two attempts, or in
flight, where its connection to the gateway is closed. What has its result already keeps it.

{EXIT_CODES_HELP} Here 1: some id was not live.""",
)
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@redis_flags
@exits
def cancel(*, ids: tuple[str, ...], queue: QueueFlags) -> ExitCode:
    """Cancel the live submission of each ID; prints what became of it."""
    return asyncio.run(_cancel(queue, ids))


async def _cancel(queue: QueueFlags, ids: tuple[str, ...]) -> ExitCode:
    async with queue.client() as client:
        done = await client.cancel_many(ids)
    for request_id, was_live in zip(ids, done, strict=True):
        print(f"{request_id} {'cancelled' if was_live else 'not live'}")
    return ExitCode.DONE if all(done) else ExitCode.FAILED_REQUESTS
