"""Compare what shall be with what is: pure, so that a dry run and the run itself cannot differ."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from handlers.pubsub.errors import UnchangeableField
from handlers.pubsub.layout import Layout
from handlers.pubsub.resources import Spec

_RECREATE: Final = (
    "delete it first (`async-processor pubsub teardown`, which loses what it holds) or choose another name"
)


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field: its name, what it is, what it becomes."""

    name: str
    found: object
    wanted: object


@dataclass(frozen=True, slots=True)
class Create:
    """A resource that does not exist."""

    spec: Spec


@dataclass(frozen=True, slots=True)
class Update:
    """A resource that differs in fields that can be changed."""

    spec: Spec
    fields: tuple[FieldChange, ...]

    @property
    def update_mask(self) -> str:
        """The wire's names of the fields, as an update wants them."""
        return ",".join(dict.fromkeys(self.spec.wire_fields[change.name] for change in self.fields))


@dataclass(frozen=True, slots=True)
class Delete:
    """A resource that goes."""

    spec: Spec


@dataclass(frozen=True, slots=True)
class Keep:
    """A topic that stays at a teardown, since others read it."""

    spec: Spec
    readers: tuple[str, ...]


SetUpChange = Create | Update
TearDownChange = Delete | Keep


def plan_set_up(wanted: Layout, found: Mapping[str, Spec]) -> list[SetUpChange]:
    """What to do, in order; empty where all is as wanted. `found`: what exists, by path.

    Raises `UnchangeableField` where a subscription differs in its topic or filter.
    """
    changes: list[SetUpChange] = []
    for spec in wanted.resources:
        existing = found.get(spec.path)
        if existing is None:
            changes.append(Create(spec))
        elif fields := _differences(spec, existing):
            changes.append(Update(spec, fields))
    return changes


def plan_tear_down(
    layout: Layout, found: Collection[str], readers: Mapping[str, Collection[str]]
) -> list[TearDownChange]:
    """What to delete, subscriptions first. `readers`: the subscriptions of each topic, by path.

    A topic with a subscription that is not of this layout stays: others would lose their requests.
    """
    ours = {spec.path for spec in layout.subscriptions}
    changes: list[TearDownChange] = [Delete(spec) for spec in layout.subscriptions if spec.path in found]
    for spec in layout.topics:
        if spec.path not in found:
            continue
        others = tuple(sorted(set(readers.get(spec.path, ())) - ours))
        changes.append(Keep(spec, others) if others else Delete(spec))
    return changes


def _differences(wanted: Spec, found: Spec) -> tuple[FieldChange, ...]:
    changes = [
        FieldChange(name, getattr(found, name), getattr(wanted, name))
        for name in wanted.__struct_fields__
        if getattr(found, name) != getattr(wanted, name)
    ]
    for change in changes:
        if change.name not in wanted.wire_fields:
            raise UnchangeableField(
                wanted.path,
                change.name,
                found=repr(change.found),
                wanted=repr(change.wanted),
                remedy=_RECREATE,
            )
    return tuple(changes)
