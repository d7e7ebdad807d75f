"""How `async-processor pubsub` shows a plan and the grants: a diff, and a list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, assert_never

import click

from handlers.pubsub.grants import Grant, GrantState
from handlers.pubsub.names import short_name
from handlers.pubsub.plan import Create, Delete, Keep, SetUpChange, TearDownChange, Update
from handlers.pubsub.resources import Spec, SubscriptionSpec

_STATE_COLOURS: Final = {GrantState.GRANTED: "green", GrantState.MISSING: "red", GrantState.UNKNOWN: "yellow"}


def show_change(change: SetUpChange | TearDownChange) -> None:
    """Print one change: `+` created, `~` updated with its fields, `-` deleted, `=` kept."""
    for line in change_lines(change):
        click.echo(line)


def change_lines(change: SetUpChange | TearDownChange) -> list[str]:
    """The change as lines, coloured; click strips the colours where no terminal reads them."""
    match change:
        case Create(spec):
            return [click.style(f"+ {_title(spec)}", fg="green"), *_fields(spec)]
        case Update(spec, fields):
            lines = [f"    {field.name}: {_shown(field.found)} -> {_shown(field.wanted)}" for field in fields]
            return [click.style(f"~ {_title(spec)}", fg="yellow"), *lines]
        case Delete(spec):
            return [click.style(f"- {_title(spec)}", fg="red")]
        case Keep(spec, readers):
            names = ", ".join(map(short_name, readers))
            return [f"= {_title(spec)}: kept, others read it: {names}"]
        case _:
            assert_never(change)


def show_grants(states: Sequence[tuple[Grant, GrantState]], notes: Sequence[str]) -> None:
    """Print each grant with its state, the command for those not seen, and what cannot be checked."""
    click.echo("grants:")
    for grant, state in states:
        seen = click.style(f"{state.value:<8}", fg=_STATE_COLOURS[state])
        click.echo(
            f"  {seen} {grant.role} on {short_name(grant.resource)} for {grant.member.partition(':')[2]}"
        )
        if state is not GrantState.GRANTED:
            click.echo(f"           {grant.reason}:\n           {grant.command}")
    for note in notes:
        click.echo(f"note: {note}")


def _title(spec: Spec) -> str:
    kind = "subscription" if isinstance(spec, SubscriptionSpec) else "topic"
    return f"{kind} {short_name(spec.path)}"


def _fields(spec: Spec) -> list[str]:
    """What a new resource gets, but for what is empty anyway."""
    shown = {name: getattr(spec, name) for name in spec.__struct_fields__ if name != "path"}
    return [
        f"    {name}: {_shown(value)}" for name, value in shown.items() if value not in ("", None, False, 0)
    ]


def _shown(value: object) -> str:
    return "none" if value is None or value == "" else str(value)
