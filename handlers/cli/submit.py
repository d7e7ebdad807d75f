"""`async-processor submit`: queue one request."""

from __future__ import annotations

import asyncio
import codecs
import shlex
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from handlers.cli.flags import (
    PAYLOAD_APART_FLAG,
    WAIT_REPLICAS_FLAG,
    DeadlineType,
    DurationType,
    QueueFlags,
    key_value_pairs,
    noting,
    queue_flags,
)
from handlers.cli.shell import ExitCode, exit_codes_help, exits, for_output, printable, run_async
from handlers.contract.errors import InvalidRequest
from handlers.contract.lenient_json import MALFORMED, shape_of
from handlers.number_text import decimal

if TYPE_CHECKING:
    from handlers.client.broker import Submission
    from handlers.client.new_request import Deadline, NewRequest
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

{exit_codes_help(ExitCode.CANCELLED)}""",
)
@click.argument("source", required=False, metavar="[FILE|-]", type=click.Path(allow_dash=True))
@click.option("--prompt", help="Text to complete, instead of a file.")
@click.option("--model", default="", help="Model of a request with --prompt.  [default: none; the gateway chooses]")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Maximum number of tokens in the answer, with --prompt.")
@click.option(
    "--deadline",
    type=DeadlineType(),
    help="Time from now (10m, 1h30m, or 90 for seconds), an ISO 8601 time, or Unix seconds.  [default: 1h]",
)
@click.option("--id", "request_id", default="", help="Id of the request.  [default: random]")
@click.option(
    "--tier",
    type=click.Choice(["interactive", "async", "batch"]),
    help="Priority class to ask for; ignored unless the poller's ALLOWED_LABELS lists `tier`.",
)
@click.option("--tenant", default="", help="Tenant, for fairness and quotas.")
@click.option("--endpoint", default="", help="Path at the gateway, instead of the queue's default path.")
@click.option(
    "--header",
    "headers",
    multiple=True,
    callback=key_value_pairs,
    help="Header KEY=VALUE; may be repeated. The poller forwards the headers of a built-in list and of its "
    "ALLOWED_HEADERS, and Authorization only with ALLOW_REQUEST_AUTHORIZATION.",
)
@click.option("--metadata", multiple=True, callback=key_value_pairs, help="Metadata field KEY=VALUE; may be repeated.")
@click.option(
    "--once",
    type=DurationType(),
    help="Queue nothing if a request with this id is unfinished. A request submitted with --once also blocks its "
    "id after it has finished, until DURATION after its deadline (Redis). Needs an id.",
)
@click.option(
    "--idempotency-key",
    default="",
    help="Queue nothing if the same content was submitted under this key before (Redis). The key is valid "
    "until a day after the result is acknowledged; with --wait, until two days after the deadline.",
)
@click.option("--wait", "is_waiting", is_flag=True, help="Wait for the result and print its payload.")
@click.option("--timeout", type=DurationType(), help="Longest time for --wait.  [default: until the deadline]")
@WAIT_REPLICAS_FLAG
@PAYLOAD_APART_FLAG
@queue_flags("--to", meaning="Broker to submit to.")
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
    idempotency_key: str,
    is_waiting: bool,
    timeout: timedelta | None,
    wait_replicas: int,
    payload_apart_bytes: int | None,
    queue: QueueFlags,
) -> ExitCode:
    """Queue one request and print its id.

    FILE holds a full request body (an object with a `payload`) or only the payload; `-` is stdin. With --wait, the
    payload of the result goes to stdout and the id to stderr.
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
        idempotency_key=idempotency_key,
    )
    options: dict[str, Any] = {"wait_replicas": wait_replicas, "payload_apart_bytes": payload_apart_bytes}
    _check_flags(queue, request, once)
    if once is not None:
        options["idempotent_window_seconds"] = max(1, int(once.total_seconds()))
    return run_async(_submit(queue, request, options, is_waiting=is_waiting, timeout=timeout))


def _check_flags(queue: QueueFlags, request: NewRequest, once: timedelta | None) -> None:
    """Raise `UsageError` if --once or --idempotency-key cannot work. Note a header that may be dropped."""
    if any(name.lower() == "authorization" for name in request.headers):
        note = "the poller drops the header Authorization, unless ALLOW_REQUEST_AUTHORIZATION=true is set there"
        print(f"note: {note}", file=sys.stderr)
    if request.idempotency_key and queue.to != "redis":
        raise click.UsageError("--idempotency-key needs Redis: Pub/Sub has no record of earlier requests")
    if request.idempotency_key and once is not None:
        raise click.UsageError("give either --idempotency-key or --once, not both")
    if once is None:
        return
    if queue.to != "redis":
        raise click.UsageError("--once needs Redis: Pub/Sub has no record of earlier requests")
    if not request.id:
        raise click.UsageError("--once needs an id: give --id, or an id in FILE")


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
                # Its result is already in its own list, or goes to a shared list, so a short wait is enough.
                timeout = min(timeout or _FINISHED_WAIT, _FINISHED_WAIT)
        if not is_waiting:
            return ExitCode.DONE
        left = timeout or timedelta(seconds=max(1.0, _seconds_to(request, submission) + 5))
        try:
            async with noting(queue, queue.queue):
                return _show(await client.wait(submission, within=left))
        except asyncio.CancelledError:
            print(_interrupted(queue, submission), file=sys.stderr)
            raise


def _interrupted(queue: QueueFlags, submission: Submission) -> str:
    """The request outlives the command; how to find it."""
    if queue.to != "redis":
        return f"interrupted: {submission.id} stays queued; its result goes to the subscription {queue.subscription}"
    command = f"async-processor where {shlex.quote(submission.id)} --queue {shlex.quote(submission.queue)}"
    return f"interrupted: {submission.id} stays queued; `{command}` shows its state"


def _seconds_to(request: NewRequest, submission: Submission) -> float:
    """Seconds to the deadline; the local clock is not used for a duration."""
    if isinstance(request.deadline, timedelta):
        return request.deadline.total_seconds()
    return submission.deadline - datetime.now().timestamp()


def _show(result: Result) -> ExitCode:
    if result.stored_elsewhere:
        print(printable(f"{result.id}: {result.stored_elsewhere}"), file=sys.stderr)
    else:
        print(for_output(result.payload, sys.stdout))
    if result.error_code:
        print(printable(f"error: {result.error_code}: {result.error_message}"), file=sys.stderr)
    return ExitCode.DONE if 200 <= result.status_code < 300 else ExitCode.FAILED_REQUESTS


def read_text(source: str) -> bytes:
    """The content of a file, or of stdin for `-`.

    A byte order mark is removed. Raises `InvalidRequest` for a compressed file, or text that is not UTF-8.
    """
    from handlers.batch.start import file_format

    try:
        text = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except FileNotFoundError:
        accepted = "a file, or - for stdin (for a text, use --prompt)"
        raise InvalidRequest("FILE", found=repr(source[:80]), accepted=accepted) from None
    if found := file_format(text[:8]):
        raise InvalidRequest("body", found=found, accepted="JSON in UTF-8")
    return text.removeprefix(codecs.BOM_UTF8)


def prompt_payload(prompt: str, model: str, max_tokens: int | None) -> bytes:
    """The payload of a completion request."""
    fields: dict[str, Any] = {"model": model, "prompt": prompt}
    if max_tokens is not None:
        fields["max_tokens"] = max_tokens
    return msgspec.json.encode({name: value for name, value in fields.items() if value != ""})


def new_request(text: bytes, *, deadline: Deadline | None, default_deadline: Deadline, **flags: Any) -> NewRequest:
    """The request in `text`, a request body or a payload.

    A JSON object with an object under `payload` is a full request body; any other object is a payload. `flags` are
    fields of `NewRequest` and win over those in `text`. The payload stays unchanged. Raises `InvalidRequest`.
    """
    from handlers.client.new_request import NewRequest

    try:
        fields = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except MALFORMED as error:
        raise InvalidRequest("body", found=shape_of(text, error), accepted="one JSON object") from None
    payload = bytes(fields.get("payload", b""))
    if payload[:1] != b"{":
        return NewRequest(payload=text.strip(), deadline=deadline or default_deadline, **flags)
    return NewRequest(
        payload=payload,
        deadline=deadline or _body_deadline(fields) or default_deadline,
        **_body_fields(fields, flags),
    )


def _body_fields(fields: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    merged = dict(flags)
    for name, type_ in (("id", str), ("endpoint", str), ("model", str)):
        if name in fields and not merged.get(name):
            try:
                merged[name] = msgspec.json.decode(fields[name], type=type_)
            except msgspec.ValidationError:
                raise InvalidRequest(name, found=shape_of(bytes(fields[name])), accepted="a string") from None
    for name in ("headers", "metadata"):
        if name in fields:
            try:
                mapping = msgspec.json.decode(fields[name], type=dict[str, str] | None)
            except msgspec.ValidationError as error:
                found = shape_of(bytes(fields[name]), error)
                raise InvalidRequest(name, found=found, accepted="an object of strings") from None
            merged[name] = {**(mapping or {}), **merged.get(name, {})}
    return merged


def _body_deadline(fields: dict[str, Any]) -> float | None:
    if "deadline" not in fields:
        return None
    value = msgspec.json.decode(fields["deadline"])
    if isinstance(value, str):
        value = decimal(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest("deadline", found=shape_of(bytes(fields["deadline"])), accepted="Unix seconds")
    return float(value)
