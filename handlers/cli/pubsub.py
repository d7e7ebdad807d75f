"""`async-processor pubsub`: create and delete the push door's topics and subscriptions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Sequence
from enum import IntEnum
from typing import Any, Final

import click
from msgspec.structs import fields

from handlers.cli.shell import confirm, run_async, warn_about_names
from handlers.contract.errors import AsyncProcessorError
from handlers.number_text import counted, parse_duration
from handlers.pubsub.admin import (
    Action,
    Change,
    Grant,
    GrantState,
    apply,
    grant_states,
    needed_grants,
    notes,
    plan_set_up,
    plan_tear_down,
)
from handlers.pubsub.channel import GOOGLE_ENDPOINT, PubSubChannel, PubSubOptions, short_name
from handlers.pubsub.errors import PubSubFailed
from handlers.pubsub.layout import LayoutOptions, layout

_CODES: Final = (
    "Exit codes: 0 done, or nothing to change; 1 a dry run found changes, or a topic was kept because others use it; "
    "2 wrong settings, or a difference that cannot be changed; 4 Pub/Sub refused or did not answer."
)
_EMULATOR_BACKOFF: Final = (
    "with a retry delay of 1s or more, the emulator may never redeliver a nacked request; "
    "use --min-retry-delay 0s --max-retry-delay 0s"
)
_CHANGE_COLOURS: Final = {
    Action.CREATE: "green",
    Action.UPDATE: "yellow",
    Action.DELETE: "red",
    Action.KEEP: None,
}
_STATE_COLOURS: Final = {GrantState.GRANTED: "green", GrantState.MISSING: "red", GrantState.UNKNOWN: "yellow"}
_Option = Callable[[Callable[..., None]], Callable[..., None]]
_DEFAULTS: Final[dict[str, Any]] = {field.name: field.default for field in fields(LayoutOptions)}


class Exit(IntEnum):
    """Exit codes."""

    AS_WANTED = 0
    NOT_AS_WANTED = 1
    WRONG_SETTINGS = 2
    NO_ANSWER = 4


class DurationOrNever(click.ParamType[int | None]):
    """`600`, `600s`, `10m`, `12h`, `7d` as whole seconds; `never` as None."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Seconds, or None for `never`."""
        if value is None or value == "never":
            return None
        seconds = parse_duration(str(value))
        if seconds is None:
            self.fail(f"expected a duration like 600s, 10m, 12h or 7d, or never, got {value!r}", param, ctx)
        return round(seconds)


def _name(field: str, text: str, envvar: str | None = None) -> _Option:
    flag = "--" + field.replace("_", "-")
    return click.option(
        flag, field, default=_DEFAULTS[field], show_default=True, envvar=envvar, show_envvar=True, help=text
    )


def _duration(flag: str, field: str, text: str) -> _Option:
    default = _DEFAULTS[field]
    shown = "never" if default is None else f"{default}s"
    return click.option(flag, field, type=DurationOrNever(), default=default, show_default=shown, help=text)


_SHARED: Final = (
    click.option("--project", "project_id", envvar="PROJECT_ID", show_envvar=True, required=True, help="Project."),
    _name("request_topic", "Topic of the requests.", "REQUEST_TOPIC_ID"),
    _name("request_subscription", "Subscription that pushes requests to the door."),
    _name("result_topic", "Topic of the results.", "RESULT_TOPIC_ID"),
    _name("result_subscription", "Subscription from which clients pull results; '' for none."),
    _name("dead_letter_topic", "Topic of the dead letters.", "DEAD_LETTER_TOPIC_ID"),
    _name(
        "dead_letter_push_subscription",
        "Subscription that pushes dead letters to the door, which publishes their final results; '' for none.",
    ),
    _name("dead_letter_subscription", "Subscription that keeps dead letters for operators; '' for none."),
    click.option("--dry-run", is_flag=True, help="Show the changes without making them."),
    click.option(
        "--emulator-host",
        envvar="PUBSUB_EMULATOR_HOST",
        show_envvar=True,
        default="",
        help="host:port of an emulator to use instead of Google's service.",
    ),
    click.option(
        "--endpoint",
        envvar="PUBSUB_ENDPOINT",
        show_envvar=True,
        default=GOOGLE_ENDPOINT,
        show_default=True,
        help="Endpoint of Google's service, global or regional.",
    ),
)


def _shared(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_SHARED):
        command = option(command)
    return command


@click.group("pubsub")
def pubsub() -> None:
    """Topics and subscriptions for the push door."""


@pubsub.command(
    "setup",
    epilog=f"""\b
Examples:
  async-processor pubsub setup --project p --push-endpoint https://push.example.com/ \\
      --push-service-account invoker@p.iam.gserviceaccount.com --push-audience async-processor-push --dry-run
  async-processor pubsub setup --project p --push-endpoint http://localhost:8080/ \\
      --emulator-host localhost:8085

You can run it again: it changes only what differs.

{_CODES}""",
)
@_shared
@click.option("--push-endpoint", envvar="PUSH_ENDPOINT", show_envvar=True, required=True, help="URL of the push door.")
@click.option(
    "--push-service-account",
    envvar="PUSH_SERVICE_ACCOUNT",
    show_envvar=True,
    default="",
    help="Account that signs the pushes' tokens.",
)
@click.option(
    "--push-audience",
    envvar="PUSH_AUDIENCE",
    show_envvar=True,
    default="",
    help="Audience of these tokens; set the same PUSH_AUDIENCE for the door.",
)
@click.option("--filter", default="", help="Filter: push only messages that match it; cannot be changed later.")
@click.option("--no-wrapper", "is_unwrapped", is_flag=True, help="Push the bare body, with metadata in headers.")
@_duration(
    "--ack-deadline",
    "ack_deadline_seconds",
    "Time until an unanswered push is redelivered, 10s to 600s.",
)
@_duration("--min-retry-delay", "minimum_backoff_seconds", "Shortest delay of a redelivery.")
@_duration("--max-retry-delay", "maximum_backoff_seconds", "Longest delay of a redelivery.")
@click.option(
    "--max-delivery-attempts",
    default=_DEFAULTS["max_delivery_attempts"],
    show_default=True,
    help="Deliveries until a request is dead-lettered, 5 to 100; refusals by a closed gate count too.",
)
@_duration("--retention", "retention_seconds", "Time for which subscriptions keep unacknowledged messages.")
@_duration(
    "--topic-retention",
    "topic_retention_seconds",
    "Time for which the request topic keeps all messages, for a replay.",
)
@_duration("--expiration", "expiration_seconds", "Time after which an unused subscription is deleted.")
@_duration("--result-ack-deadline", "result_ack_deadline_seconds", "Lease of a pulled result.")
@click.option("--project-number", default="", help="Number of the project, for Pub/Sub's own account.")
@click.option(
    "--handler-account",
    envvar="GOOGLE_SERVICE_ACCOUNT",
    show_envvar=True,
    default="",
    help="Account of the push door, to check its grants.",
)
@click.option("--client-account", default="", help="Account of the clients, to check its grants.")
def setup(**flags: Any) -> None:
    """Create or update the topics and subscriptions."""
    _run(lambda: _setup(flags))


@pubsub.command(
    "teardown",
    epilog=f"""\b
Examples:
  async-processor pubsub teardown --project p --dry-run
  async-processor pubsub teardown --project p --yes

All their messages are lost. A topic that has other subscriptions is kept.

{_CODES}""",
)
@_shared
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def teardown(**flags: Any) -> None:
    """Delete the topics and subscriptions that `setup` created."""
    _run(lambda: _teardown(flags))


async def _setup(flags: dict[str, Any]) -> Exit:
    is_dry, channel = flags.pop("dry_run"), _channel(flags)
    accounts = {name: flags.pop(name) for name in ("project_number", "handler_account", "client_account")}
    async with channel:
        wanted = layout(LayoutOptions(**flags))
        changes = await plan_set_up(channel, wanted)
        for change in changes:
            if not is_dry:
                await apply(channel, change)
            _show(change)
        verb = "would be made" if is_dry else "made"
        unchanged = len(wanted.resources) - len(changes)
        click.echo(f"{counted(len(changes), 'change')} {verb}; {counted(unchanged, 'resource')} as wanted")
        if channel.options.emulator_host:
            click.echo("grants: not checked, the emulator has none")
            if flags["minimum_backoff_seconds"]:
                click.echo(f"note: {_EMULATOR_BACKOFF}")
        else:
            _show_grants(await grant_states(channel, needed_grants(wanted, **accounts)), notes(wanted))
    return Exit.NOT_AS_WANTED if is_dry and changes else Exit.AS_WANTED


async def _teardown(flags: dict[str, Any]) -> Exit:
    is_dry, is_sure, channel = flags.pop("dry_run"), flags.pop("yes"), _channel(flags)
    async with channel:
        # A layout needs an endpoint, but a deletion does not use it.
        changes = await plan_tear_down(channel, layout(LayoutOptions(push_endpoint="https://none.invalid/", **flags)))
        for change in changes:
            _show(change)
        if not changes:
            click.echo("nothing to delete")
        elif not is_dry:
            if not is_sure:
                confirm("Delete these, with all their messages?", aborts=True)
            for change in changes:
                await apply(channel, change)
    is_kept = any(change.action is Action.KEEP for change in changes)
    return Exit.NOT_AS_WANTED if is_kept or (is_dry and changes) else Exit.AS_WANTED


def _show(change: Change) -> None:
    """Print one change: `+` create, `~` update, `-` delete, `=` keep."""
    click.secho(f"{change.action.value} {change.title}", fg=_CHANGE_COLOURS[change.action])
    for line in change.lines:
        click.echo(f"    {line}")


def _show_grants(states: Sequence[tuple[Grant, GrantState]], remarks: Sequence[str]) -> None:
    """Print each grant with its state, commands for missing ones, and notes."""
    click.echo("grants:")
    for grant, state in states:
        seen = click.style(f"{state.value:<8}", fg=_STATE_COLOURS[state])
        account = grant.member.partition(":")[2]
        click.echo(f"  {seen} {grant.role} on {short_name(grant.resource)} for {account}")
        if state is not GrantState.GRANTED:
            click.echo(f"           {grant.reason}:\n           {grant.command}")
    for remark in remarks:
        click.echo(f"note: {remark}")


def _channel(flags: dict[str, Any]) -> PubSubChannel:
    return PubSubChannel(
        PubSubOptions(
            project_id=flags["project_id"],
            emulator_host=flags.pop("emulator_host"),
            endpoint=flags.pop("endpoint"),
        )
    )


def _run(command: Callable[[], Coroutine[Any, Any, Exit]]) -> None:
    """Run a call; an error becomes one line and an exit code."""
    warn_about_names()
    try:
        code = run_async(command())
    except PubSubFailed as error:
        click.echo(f"error: {error}", err=True)
        code = Exit.NO_ANSWER
    except AsyncProcessorError as error:
        click.echo(f"error: {error}", err=True)
        code = Exit.WRONG_SETTINGS
    sys.exit(int(code))
