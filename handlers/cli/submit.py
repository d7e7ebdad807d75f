"""`async-processor submit`: queue one request."""

from __future__ import annotations

import asyncio
import sys
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from handlers.cli.connection import PAYLOAD_APART_FLAG, WAIT_REPLICAS_FLAG, QueueFlags, queue_flags
from handlers.cli.deadlines import DeadlineType, DurationType
from handlers.cli.exit_codes import EXIT_CODES_HELP, ExitCode, exits
from handlers.cli.request_input import key_value_pairs, new_request, prompt_payload, read_text
from handlers.cli.text import for_output, printable

if TYPE_CHECKING:
    from handlers.client.new_request import NewRequest
    from handlers.contract.result import Result

DEFAULT_DEADLINE = timedelta(hours=1)
_FINISHED_WAIT = timedelta(seconds=2)


@click.command(
    "submit",
    epilog=f"""\b
Examples:
  async-processor submit --model m --prompt 'Good morning' --deadline 10m --wait
  async-processor submit request.json --tier batch --tenant alice
  echo '{{"model":"m","prompt":"Hi"}}' | async-processor submit - --id r1 --once 1h
  async-processor submit request.json --to pubsub --project p --topic requests

{EXIT_CODES_HELP}""",
)
@click.argument("source", required=False, metavar="[FILE|-]", type=click.Path(allow_dash=True))
@click.option("--prompt", help="Text to complete, in place of a file.")
@click.option("--model", default="", help="Model; with --prompt it is put into the payload.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="With --prompt: longest answer.")
@click.option(
    "--deadline",
    type=DeadlineType(),
    help="By when: 10m, 1h30m, an ISO 8601 time, Unix seconds.  [default: 1h]",
)
@click.option("--id", "request_id", default="", help="Id of the request.  [default: random]")
@click.option("--tier", type=click.Choice(["interactive", "async", "batch"]), help="Lane of the request.")
@click.option("--tenant", default="", help="Who asks, for fairness and quotas.")
@click.option("--endpoint", default="", help="Path at the gateway, in place of the queue's own.")
@click.option(
    "--header", "headers", multiple=True, callback=key_value_pairs, help="KEY=VALUE; may be repeated."
)
@click.option("--metadata", multiple=True, callback=key_value_pairs, help="KEY=VALUE; may be repeated.")
@click.option(
    "--once",
    type=DurationType(),
    help="Do nothing if the id is live, or its deadline was less than this ago (Redis); needs an id.",
)
@click.option("--wait", "is_waiting", is_flag=True, help="Wait for the result and print its payload.")
@click.option(
    "--timeout", type=DurationType(), help="With --wait: for how long.  [default: until the deadline]"
)
@WAIT_REPLICAS_FLAG
@PAYLOAD_APART_FLAG
@queue_flags
@exits
def submit(
    *,
    source: str | None,
    prompt: str | None,
    model: str,
    max_tokens: int | None,
    deadline: timedelta | datetime | float | None,
    request_id: str,
    tier: str | None,
    tenant: str,
    endpoint: str,
    headers: dict[str, str],
    metadata: dict[str, str],
    once: timedelta | None,
    is_waiting: bool,
    timeout: timedelta | None,
    wait_replicas: int,
    payload_apart_bytes: int | None,
    queue: QueueFlags,
) -> ExitCode:
    """Queue one request; prints its id.

    FILE holds a full request body (an object with a `payload`), or just the payload; `-` is stdin.
    With --wait, the payload of the result goes to stdout, and the id to stderr.
    """
    if (source is None) == (prompt is None):
        raise click.UsageError("give either a FILE (- for stdin) or --prompt")
    text = read_text(source) if source is not None else prompt_payload(prompt or "", model, max_tokens)
    request = new_request(
        text,
        deadline=deadline,
        default_deadline=DEFAULT_DEADLINE,
        id=request_id,
        model=model,
        tier=tier or "",
        tenant=tenant,
        endpoint=endpoint,
        headers=headers,
        metadata=metadata,
        has_own_results=is_waiting and queue.to == "redis",
    )
    options: dict[str, Any] = {"wait_replicas": wait_replicas, "payload_apart_bytes": payload_apart_bytes}
    if once is not None:
        _check_once(queue, request)
        options["idempotent_window_seconds"] = max(1, int(once.total_seconds()))
    return asyncio.run(_submit(queue, request, options, is_waiting=is_waiting, timeout=timeout))


def _check_once(queue: QueueFlags, request: NewRequest) -> None:
    """What could not be told from another one must not be taken for done once."""
    if queue.to != "redis":
        raise click.UsageError("--once is offered for Redis alone: Pub/Sub cannot be asked what it has")
    if not request.id:
        raise click.UsageError("--once needs the id that is to run once: --id, or one in FILE")


async def _submit(
    queue: QueueFlags,
    request: NewRequest,
    options: dict[str, Any],
    *,
    is_waiting: bool,
    timeout: timedelta | None,  # noqa: ASYNC109 - the name of the flag
) -> ExitCode:
    from handlers.redis_store.submit.submissions import RequestState

    async with queue.client(**options) as client:
        [submission] = await client.submit_many([request])
        print(submission.id, file=sys.stderr if is_waiting else sys.stdout, flush=True)
        if not submission.is_new:
            state = await client.look_up(submission)
            print(f"{submission.id} was submitted before; it is {state}", file=sys.stderr)
            if state is RequestState.FINISHED:
                # Its result is in its own list by now, or it never had one.
                timeout = min(timeout or _FINISHED_WAIT, _FINISHED_WAIT)
        if not is_waiting:
            return ExitCode.DONE
        left = timeout or timedelta(seconds=max(1.0, submission.deadline + 5 - datetime.now().timestamp()))
        return _show(await client.wait(submission, within=left))


def _show(result: Result) -> ExitCode:
    print(for_output(result.payload, sys.stdout))
    if result.error_code:
        print(printable(f"error: {result.error_code}: {result.error_message}"), file=sys.stderr)
    return ExitCode.DONE if 200 <= result.status_code < 300 else ExitCode.FAILED_REQUESTS
