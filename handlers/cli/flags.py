"""The queue that a command uses: flags and variables that select it, a note about a missing poller or a closed gate.

The note comes from the pollers' reports on the status board. Without the right to read them, there is no note.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from handlers.cli.shell import CREDENTIALS, printable
from handlers.contract.errors import InvalidSetting
from handlers.number_text import decimal, parse_duration

if TYPE_CHECKING:
    from handlers.client.async_client import AsyncClient
    from handlers.redis_store.submit.submissions import RedisAccess
    from handlers.status.report import PollerReport


@dataclass(frozen=True, slots=True)
class QueueFlags:
    """The queue and where its results go."""

    to: Literal["redis", "pubsub"] = "redis"
    redis_url: str = field(default="redis://localhost:6379", repr=False)  # may hold a password
    queue: str = "request-sortedset"
    results: str = "result-list"
    project: str = ""
    topic: str = ""
    subscription: str = ""
    emulator_host: str = ""
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def access(self) -> RedisAccess:
        """Credentials and time limit, from the same variables as the poller's."""
        from handlers.redis_store.submit.submissions import RedisAccess

        given = {name: self.variables.get(f"REDIS_{name.upper()}", "") for name in CREDENTIALS}
        return RedisAccess(**given, timeout_seconds=_timeout_seconds(self.variables))

    def client(self, **options: Any) -> AsyncClient:
        """A client of the queue; `options` are further fields of `ClientOptions` (Redis)."""
        from handlers.client.async_client import AsyncClient
        from handlers.client.options import ClientOptions

        if self.to == "redis":
            return AsyncClient.for_redis(
                self.redis_url, ClientOptions(queue=self.queue, results=self.results, **options), self.access
            )
        if not self.project:
            raise InvalidSetting("PROJECT_ID", found="nothing", accepted="a project, or --project")
        return AsyncClient.for_pubsub(
            self.project, topic=self.topic, subscription=self.subscription, emulator_host=self.emulator_host
        )


def _timeout_seconds(variables: Mapping[str, str]) -> float:
    found = variables.get("REDIS_TIMEOUT_SECONDS") or "2"
    seconds = decimal(found)
    if seconds is None or not 0.1 <= seconds <= 60:
        raise InvalidSetting("REDIS_TIMEOUT_SECONDS", found=found, accepted="a number from 0.1 to 60")
    return seconds


WAIT_REPLICAS_FLAG = click.option(
    "--wait-replicas",
    envvar="WAIT_REPLICAS",
    type=click.IntRange(0, 10),
    default=0,
    show_envvar=True,
    help="Wait until this many Redis replicas have stored each request.",
)
PAYLOAD_APART_FLAG = click.option(
    "--payload-apart-bytes",
    type=click.IntRange(min=0),
    help="Offload payloads of at least this size in bytes to separate keys (Redis).  [default: never]",
)
RETRY_QUEUE_FLAG = click.option(
    "--retry-queue",
    envvar="RETRY_QUEUE_NAME",
    default="retry-sortedset",
    show_default=True,
    show_envvar=True,
    help="Sorted set of requests that wait for a retry.",
)
REDIS_FLAGS = (
    click.option(
        "--redis-url",
        envvar="REDIS_URL",
        default="redis://localhost:6379",
        show_default=True,
        show_envvar=True,
        help="URL of Redis or Valkey, also Sentinel or Cluster. REDIS_USERNAME, REDIS_PASSWORD_FILE, … apply too.",
    ),
    click.option(
        "--queue",
        "queue_name",
        envvar="REQUEST_QUEUE_NAME",
        default="request-sortedset",
        show_default=True,
        show_envvar=True,
        help="Sorted set of pending requests.",
    ),
    click.option(
        "--results",
        envvar="RESULT_QUEUE_NAME",
        default="result-list",
        show_default=True,
        show_envvar=True,
        help="List of results.",
    ),
)
PUBSUB_FLAGS = (
    click.option("--project", envvar="PROJECT_ID", default="", show_envvar=True, help="Google Cloud project."),
    click.option("--topic", envvar="REQUEST_TOPIC_ID", default="", show_envvar=True, help="Topic of the requests."),
    click.option(
        "--subscription",
        envvar="RESULT_SUBSCRIPTION_ID",
        default="",
        show_envvar=True,
        help="Pull subscription to the result topic.",
    ),
    click.option("--emulator-host", envvar="PUBSUB_EMULATOR_HOST", default="", hidden=True),
)


def _chosen(queue: str, flags: dict[str, Any]) -> QueueFlags:
    # No flag for a password, because the list of processes would show it.
    return QueueFlags(queue=queue, variables=os.environ, **flags)  # noqa: TID251  # the process's entry


def queue_flags(*names: str, meaning: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the flags of both brokers, passed as `queue` (a `QueueFlags`). The flag `names` chooses the broker."""
    broker = click.option(
        *names, "to", type=click.Choice(["redis", "pubsub"]), default="redis", show_default=True, help=meaning
    )

    def with_flags(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**flags: Any) -> None:
            fields = ("to", "redis_url", "results", "project", "topic", "subscription", "emulator_host")
            chosen = {each: flags.pop(each) for each in fields if each in flags}
            command(queue=_chosen(flags.pop("queue_name"), chosen), **flags)

        for flag in reversed((broker, *REDIS_FLAGS, *PUBSUB_FLAGS)):
            run = flag(run)
        return run

    return with_flags


def redis_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Add the flags of Redis only, passed as `queue` (a `QueueFlags`)."""

    @functools.wraps(command)
    def run(**flags: Any) -> None:
        chosen = {name: flags.pop(name) for name in ("redis_url", "results")}
        command(queue=_chosen(flags.pop("queue_name"), chosen), **flags)

    for flag in reversed(REDIS_FLAGS):
        run = flag(run)
    return run


_FIRST_INSTANT: Final = 1e9
"""A number from here on (September 2001) is an instant in Unix seconds, a smaller one a duration."""


class DurationType(click.ParamType[timedelta]):
    """A duration as a `timedelta`; a bare number is in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Convert text such as `1h30m` to a `timedelta`."""
        if isinstance(value, timedelta):
            return value
        seconds = parse_duration(str(value))
        if seconds is None:
            self.fail(f"expected a duration like 90s, 15m, 1h30m or 2d, got {value!r}", param, ctx)
        return timedelta(seconds=seconds)


class DeadlineType(click.ParamType[timedelta | datetime | float]):
    """A deadline: a duration from now, or an instant.

    An instant is an ISO 8601 time, or Unix seconds after September 2001.
    """

    name = "deadline"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta | datetime | float:
        """Convert text to a deadline that the client accepts."""
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]  # a default value, or converted before
        seconds = parse_duration(value)
        if seconds is not None:
            is_instant = seconds >= _FIRST_INSTANT and value.strip()[-1:].isdigit()
            return seconds if is_instant else timedelta(seconds=seconds)
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            expected = "a time like 1h30m, 2026-12-31T18:00:00Z or Unix seconds"
            self.fail(f"expected {expected}, got {value!r}", param, ctx)


def key_value_pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Callback of repeatable `KEY=VALUE` flags."""
    pairs = {}
    for value in values:
        key, separator, text = value.partition("=")
        if not separator or not key:
            raise click.BadParameter(f"expected KEY=VALUE, got {value!r}", ctx, param)
        pairs[key] = text
    return pairs


_NOTED_AFTER_SECONDS: Final = 2.0
"""A result that arrives sooner needs no note."""


@contextlib.asynccontextmanager
async def noting(queue: QueueFlags, name: str) -> AsyncIterator[None]:
    """Print the note if the block still waits after two seconds. `name` is the queue; the note goes to stderr."""
    import asyncio

    async def note() -> None:
        await asyncio.sleep(_NOTED_AFTER_SECONDS)
        await print_note(queue, name)

    task = asyncio.create_task(note(), name="serving-note")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def print_note(queue: QueueFlags, name: str) -> None:
    """Print the note about a queue on stderr, if there is one."""
    if queue.to == "redis" and (text := await _note(queue, name)):
        print(printable(f"note: {text}"), file=sys.stderr, flush=True)


async def _note(queue: QueueFlags, name: str) -> str:
    from handlers.redis_store.admin.status_board import read_snapshots
    from handlers.redis_store.connection import STORE_FAILURES
    from handlers.redis_store.submit.submissions import open_redis
    from handlers.status.overview import fresh_pollers

    redis = open_redis(queue.redis_url, queue.access)
    try:
        snapshots = await read_snapshots(redis)
    except STORE_FAILURES:
        return ""
    finally:
        await redis.aclose()
    texts = {host.decode("utf-8", "replace"): text for host, text in snapshots.items()}
    return serving_text(fresh_pollers(texts, time.time()), name)


def serving_text(pollers: Sequence[PollerReport], name: str) -> str:
    """Why no poller claims requests of the queue `name`; empty if one can."""
    from handlers.status.overview import FRESH_SECONDS

    reasons = []
    for poller in pollers:
        for queue in poller.queues:
            if queue.name != name:
                continue
            owned = [(f"queue {name}", gate) for gate in queue.gates]
            owned += [
                (f"pool {pool.pool}", gate) for pool in poller.pools if pool.pool == queue.pool for gate in pool.gates
            ]
            closed = ((owner, gate) for owner, gate in owned if gate.closed_because)
            reasons.append(
                next((f"{gate.gate_type} of {owner} is closed: {gate.closed_because}" for owner, gate in closed), "")
            )
    if not reasons:
        return f"no poller reported queue {name} in the last {FRESH_SECONDS:g} s; its requests wait for one"
    return f"the gate {reasons[0]}" if all(reasons) else ""
