"""`async-processor pubsub`: create and check the push door's topics and subscriptions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import click
from msgspec.structs import fields

from handlers.cli.shell import ExitCode, exits, run_async
from handlers.number_text import counted, parse_duration
from handlers.pubsub.admin import (
    CheckedResource,
    Grant,
    GrantState,
    LayoutOptions,
    grant_states,
    layout,
    needed_grants,
    notes,
    set_up,
)
from handlers.pubsub.channel import GOOGLE_ENDPOINT, PubSubChannel, PubSubOptions, short_name
from handlers.pubsub.errors import PubSubFailed

_CODES: Final = (
    "Exit codes: 0 all resources are as wanted; 1 one differs, or a dry run found one missing; 2 invalid settings; "
    "4 Pub/Sub refused or did not answer."
)
_EMULATOR_BACKOFF: Final = (
    "with a retry delay of 1s or more, the emulator may never redeliver a nacked request; "
    "use --min-retry-delay 0s --max-retry-delay 0s"
)
_STATE_COLOURS: Final = {GrantState.GRANTED: "green", GrantState.MISSING: "red", GrantState.UNKNOWN: "yellow"}
_Option = Callable[[Callable[..., None]], Callable[..., None]]
_DEFAULTS: Final[dict[str, Any]] = {field.name: field.default for field in fields(LayoutOptions)}


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
    return click.option(flag, field, type=DurationOrNever(), default=default, help=f"{text}  [default: {shown}]")


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

You can run it again: it creates only what is missing. For a resource that differs it prints the gcloud command that
corrects it, and exits with 1.

{_CODES}""",
)
@click.option(
    "--project", "project_id", envvar="PROJECT_ID", show_envvar=True, required=True, help="Google Cloud project."
)
@_name("request_topic", "Topic of the requests.", "REQUEST_TOPIC_ID")
@_name("request_subscription", "Subscription that pushes requests to the door.")
@_name("result_topic", "Topic of the results.", "RESULT_TOPIC_ID")
@_name("result_subscription", "Subscription from which clients pull results; '' for none.")
@_name("dead_letter_topic", "Topic of the dead letters.", "DEAD_LETTER_TOPIC_ID")
@_name(
    "dead_letter_push_subscription",
    "Subscription that pushes dead letters to the door, which publishes their final results; '' for none.",
)
@_name("dead_letter_subscription", "Subscription that keeps dead letters for operators; '' for none.")
@click.option("--dry-run", is_flag=True, help="Show what is missing or differs; create nothing.")
@click.option(
    "--emulator-host",
    envvar="PUBSUB_EMULATOR_HOST",
    show_envvar=True,
    default="",
    help="host:port of an emulator to use instead of Google's service.",
)
@click.option(
    "--endpoint",
    envvar="PUBSUB_ENDPOINT",
    show_envvar=True,
    default=GOOGLE_ENDPOINT,
    show_default=True,
    help="Endpoint of Google's service, global or regional.",
)
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
@_duration("--ack-deadline", "ack_deadline_seconds", "Time until an unanswered push is redelivered, 10s to 600s.")
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
    "--topic-retention", "topic_retention_seconds", "Time for which the request topic keeps all messages, for a replay."
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
@exits
def setup(**flags: Any) -> ExitCode:
    """Create missing topics and subscriptions; check the others."""
    try:
        return run_async(_setup(flags))
    except PubSubFailed as error:
        click.echo(f"error: {error}", err=True)
        return ExitCode.UNREACHABLE


async def _setup(flags: dict[str, Any]) -> ExitCode:
    is_dry = flags.pop("dry_run")
    host, endpoint = flags.pop("emulator_host"), flags.pop("endpoint")
    channel = PubSubChannel(PubSubOptions(project_id=flags["project_id"], emulator_host=host, endpoint=endpoint))
    accounts = {name: flags.pop(name) for name in ("project_number", "handler_account", "client_account")}
    missing = differing = 0
    async with channel:
        wanted = layout(LayoutOptions(**flags))
        async for checked in set_up(channel, wanted, is_dry=is_dry):
            missing += checked.is_missing
            differing += bool(checked.repair)
            _show(checked)
        created = "would be created" if is_dry else "created"
        as_wanted = counted(len(wanted.resources) - missing - differing, "resource")
        click.echo(f"{missing} {created}, {differing} to correct; {as_wanted} as wanted")
        if host:
            click.echo("grants: not checked, the emulator has none")
            if flags["minimum_backoff_seconds"]:
                click.echo(f"note: {_EMULATOR_BACKOFF}")
        else:
            _show_grants(await grant_states(channel, needed_grants(wanted, **accounts)), notes(wanted))
    return ExitCode.FAILED_REQUESTS if differing or (is_dry and missing) else ExitCode.DONE


def _show(checked: CheckedResource) -> None:
    """Print a missing resource (`+`), or a different one (`!`) and its correction."""
    if checked.is_missing:
        click.secho(f"+ {checked.title}", fg="green")
    elif checked.repair:
        click.secho(f"! {checked.title}", fg="red")
    for line in checked.lines:
        click.echo(f"    {line}")
    if checked.repair:
        click.echo(f"    correct it: {checked.repair}")


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
