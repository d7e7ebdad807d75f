"""Create, update and delete the resources of a layout, and check grants.

Every step may be repeated. The plan is complete before anything changes, so a dry run shows what a run would do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

import msgspec

from handlers.pubsub.channel import Clients, PubSubChannel, short_name
from handlers.pubsub.errors import PubSubFailed, UnchangeableField

if TYPE_CHECKING:
    from google.pubsub_v1.types import Subscription, Topic

    from handlers.pubsub.layout import Layout

PUBLISHER: Final = "roles/pubsub.publisher"
SUBSCRIBER: Final = "roles/pubsub.subscriber"

_TIMEOUT_SECONDS: Final = 30.0
_HOW: Final[dict[str, Any]] = {"retry": None, "timeout": _TIMEOUT_SECONDS}
_MISSING, _EXISTS = 404, 409
_POLICY_UNREADABLE: Final = frozenset({403, 404, 501})
"""Statuses of an unreadable policy: no right, no such resource, or no policies at all (the emulator)."""

_UPDATED_WITH: Final = {
    "push_endpoint": "push_config",
    "push_service_account": "push_config",
    "push_audience": "push_config",
    "is_unwrapped": "push_config",
    "ack_deadline": "ack_deadline_seconds",
    "retention": "message_retention_duration",
    "expiration": "expiration_policy",
    "minimum_backoff": "retry_policy",
    "maximum_backoff": "retry_policy",
    "dead_letter_topic": "dead_letter_policy",
    "max_delivery_attempts": "dead_letter_policy",
}
"""Our names of fields -> names in the update mask. Other fields can be set only at creation."""

_RECREATE: Final = "delete it first (`async-processor pubsub teardown`; its messages are lost) or choose another name"


class Action(Enum):
    """Kinds of changes; the value is the sign that the command prints."""

    CREATE = "+"
    UPDATE = "~"
    DELETE = "-"
    KEEP = "="


class Change(msgspec.Struct, frozen=True):
    """One step of a plan. `lines` describe its fields or reasons to the operator."""

    action: Action
    resource: Topic | Subscription
    lines: tuple[str, ...] = ()
    update_mask: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The kind and the short name of the resource."""
        kind = "topic" if _is_topic(self.resource) else "subscription"
        return f"{kind} {short_name(self.resource.name)}"


def fields_of(resource: Topic | Subscription) -> dict[str, object]:
    """The fields of a resource by our names, as text (None: unset)."""
    if _is_topic(resource):
        return {"retention": _shown(resource, "message_retention_duration")}
    push, oidc = resource.push_config, resource.push_config.oidc_token
    backoff, dead = resource.retry_policy, resource.dead_letter_policy
    # A subscription without an expiration policy expires after 31 days without use.
    expires = _shown(resource.expiration_policy, "ttl") if "expiration_policy" in resource else "31 days, 0:00:00"
    return {
        "topic": resource.topic,
        "filter": resource.filter or None,
        "push_endpoint": push.push_endpoint or None,
        "push_service_account": oidc.service_account_email or None,
        "push_audience": oidc.audience or None,
        "is_unwrapped": "no_wrapper" in push or None,
        "ack_deadline": f"{resource.ack_deadline_seconds} s",
        "retention": _shown(resource, "message_retention_duration"),
        "expiration": expires,
        "minimum_backoff": _shown(backoff, "minimum_backoff"),
        "maximum_backoff": _shown(backoff, "maximum_backoff"),
        "dead_letter_topic": dead.dead_letter_topic or None,
        "max_delivery_attempts": dead.max_delivery_attempts or None,
    }


def compare(wanted: Topic | Subscription, found: Topic | Subscription | None) -> Change | None:
    """The change from `found` to `wanted`; None if they are equal. Raises `UnchangeableField`."""
    new = fields_of(wanted)
    if found is None:
        lines = tuple(f"{name}: {value}" for name, value in new.items() if value is not None)
        return Change(Action.CREATE, wanted, lines)
    old = fields_of(found)
    differing = [name for name in new if new[name] != old[name]]
    if not differing:
        return None
    for name in differing:
        if name not in _UPDATED_WITH:
            raise UnchangeableField(
                wanted.name, name, found=repr(old[name] or ""), wanted=repr(new[name] or ""), remedy=_RECREATE
            )
    lines = tuple(f"{name}: {old[name]} -> {new[name]}" for name in differing)
    mask = tuple(dict.fromkeys(_UPDATED_WITH[name] for name in differing))
    return Change(Action.UPDATE, wanted, lines, mask)


async def plan_set_up(channel: PubSubChannel, layout: Layout) -> list[Change]:
    """The changes to make, in order. Raises `PubSubFailed` or `UnchangeableField`."""
    changes = [compare(wanted, await look_up(channel, wanted)) for wanted in layout.resources]
    return [change for change in changes if change is not None]


async def plan_tear_down(channel: PubSubChannel, layout: Layout) -> list[Change]:
    """The deletions, subscriptions first. A topic with other subscriptions is kept."""
    changes = [Change(Action.DELETE, each) for each in layout.subscriptions if await look_up(channel, each)]
    ours = {each.name for each in layout.subscriptions}
    for topic in layout.topics:
        if await look_up(channel, topic) is None:
            continue
        others = sorted(short_name(name) for name in set(await _readers(channel, topic.name)) - ours)
        kept = (f"kept: used by {', '.join(others)}",)
        changes.append(Change(Action.KEEP, topic, kept) if others else Change(Action.DELETE, topic))
    return changes


async def apply(channel: PubSubChannel, change: Change) -> None:
    """Make one change. Raises `PubSubFailed`.

    Creating an existing resource and deleting a missing one are not errors.
    """
    resource, is_topic = change.resource, _is_topic(change.resource)
    match change.action:
        case Action.CREATE:
            try:
                await _call(channel, resource.name, lambda clients: _create(clients, resource))
            except PubSubFailed as error:
                if error.status != _EXISTS:
                    raise
        case Action.UPDATE:
            await _call(channel, resource.name, lambda clients: _update(clients, change))
        case Action.DELETE:
            name = resource.name
            await _or_none(
                _call(
                    channel,
                    name,
                    lambda clients: (
                        clients.publisher.delete_topic(topic=name, **_HOW)
                        if is_topic
                        else clients.subscriber.delete_subscription(subscription=name, **_HOW)
                    ),
                )
            )
        case Action.KEEP:
            pass


async def look_up(channel: PubSubChannel, resource: Topic | Subscription) -> Any:
    """The resource of that name; None if it does not exist. Raises `PubSubFailed`."""
    name, is_topic = resource.name, _is_topic(resource)
    return await _or_none(
        _call(
            channel,
            name,
            lambda clients: (
                clients.publisher.get_topic(topic=name, **_HOW)
                if is_topic
                else clients.subscriber.get_subscription(subscription=name, **_HOW)
            ),
        )
    )


class Grant(msgspec.Struct, frozen=True):
    """A role that `member` needs on `resource` (a full name).

    `reason` says what fails without it.
    """

    resource: str
    role: str
    member: str
    reason: str

    @property
    def command(self) -> str:
        _, project, kind, name = self.resource.split("/")
        return (
            f"gcloud pubsub {kind} add-iam-policy-binding {name} --project={project} "
            f"--role={self.role} --member='{self.member}'"
        )


class GrantState(Enum):
    """Whether the resource's own policy contains a grant."""

    GRANTED = "granted"
    MISSING = "missing"
    """It is not in the resource's policy. Grants on the whole project are not checked; they are too broad anyway."""
    UNKNOWN = "unknown"
    """The policy cannot be read: we lack the right, or the server is the emulator."""


def needed_grants(layout: Layout, *, project_number: str, handler_account: str, client_account: str) -> list[Grant]:
    """The grants that a layout needs, except for empty accounts.

    `handler_account` publishes results; `client_account` publishes requests and reads results. An empty
    `project_number` becomes a placeholder.
    """
    requests, results, dead = (topic.name for topic in layout.topics)
    agent = f"service-{project_number or 'PROJECT_NUMBER'}@gcp-sa-pubsub.iam.gserviceaccount.com"
    needed = [(agent, dead, PUBLISHER, "Pub/Sub cannot dead-letter requests")]
    for each in layout.subscriptions:
        if "dead_letter_policy" in each:
            needed.append((agent, each.name, SUBSCRIBER, "Pub/Sub cannot remove dead-lettered requests from it"))
        if each.topic == results:
            needed.append((client_account, each.name, SUBSCRIBER, "the client cannot read results"))
    needed += [
        (handler_account, results, PUBLISHER, "no result can be published"),
        (handler_account, dead, PUBLISHER, "deliveries without a readable id cannot be dead-lettered"),
        (client_account, requests, PUBLISHER, "the client cannot submit requests"),
    ]
    return [
        Grant(resource, role, f"serviceAccount:{account}", reason)
        for account, resource, role, reason in needed
        if account
    ]


async def grant_states(channel: PubSubChannel, grants: list[Grant]) -> list[tuple[Grant, GrantState]]:
    """Each grant with its state in the resource's policy. Raises `PubSubFailed`."""
    policies = {name: await _policy(channel, name) for name in {grant.resource for grant in grants}}
    return [(grant, grant_state(grant, policies[grant.resource])) for grant in grants]


def grant_state(grant: Grant, policy: Any) -> GrantState:
    """Whether `policy` contains `grant`. Conditional bindings do not count.

    `policy` is a `Policy` of google.iam, or None if it could not be read.
    """
    if policy is None:
        return GrantState.UNKNOWN
    members = [
        member
        for binding in policy.bindings
        if binding.role == grant.role and not binding.HasField("condition")
        for member in binding.members
    ]
    # Without the project's number, Pub/Sub's own account is recognized by its domain.
    _, placeholder, domain = grant.member.partition("PROJECT_NUMBER")
    is_held = any(member.endswith(domain) for member in members) if placeholder else grant.member in members
    return GrantState.GRANTED if is_held else GrantState.MISSING


def notes(layout: Layout) -> list[str]:
    """Notes on rights that are not checked, and on lost dead letters."""
    push = layout.subscriptions[0].push_config
    warnings = []
    if account := push.oidc_token.service_account_email:
        warnings = [
            f"{account} needs roles/run.invoker if {push.push_endpoint} is a Cloud Run service",
            f"projects from before April 2021: Pub/Sub needs roles/iam.serviceAccountTokenCreator on {account}",
        ]
    dead = layout.topics[2].name
    if not any(each.topic == dead for each in layout.subscriptions):
        warnings.append(f"{short_name(dead)} has no subscription here: dead letters are lost")
    return warnings


async def _policy(channel: PubSubChannel, resource: str) -> Any:
    request = {"resource": resource}
    try:
        return await _call(channel, resource, lambda clients: clients.publisher.get_iam_policy(request=request, **_HOW))
    except PubSubFailed as error:
        if error.status in _POLICY_UNREADABLE:
            return None
        raise


async def _readers(channel: PubSubChannel, topic: str) -> list[str]:
    """The full names of a topic's subscriptions."""

    async def listed(clients: Clients) -> list[str]:
        pages = await clients.publisher.list_topic_subscriptions(topic=topic, **_HOW)
        return [name async for name in pages]

    return await _call(channel, topic, listed)  # type: ignore[no-any-return]  # `call` of any type


def _create(clients: Clients, resource: Any) -> Awaitable[Any]:
    if _is_topic(resource):
        return clients.publisher.create_topic(request=resource, **_HOW)
    return clients.subscriber.create_subscription(request=resource, **_HOW)


def _update(clients: Clients, change: Change) -> Awaitable[Any]:
    mask = {"paths": list(change.update_mask)}
    if _is_topic(change.resource):
        return clients.publisher.update_topic(request={"topic": change.resource, "update_mask": mask}, **_HOW)
    return clients.subscriber.update_subscription(
        request={"subscription": change.resource, "update_mask": mask}, **_HOW
    )


async def _call(channel: PubSubChannel, resource: str, call: Callable[[Clients], Awaitable[Any]]) -> Any:
    return await channel.call(resource, call, _TIMEOUT_SECONDS)


async def _or_none(call: Awaitable[Any]) -> Any:
    """The result of `call`; None if there is no such resource."""
    try:
        return await call
    except PubSubFailed as error:
        if error.status == _MISSING:
            return None
        raise


def _is_topic(resource: Any) -> bool:
    return type(resource).__name__ == "Topic"


def _shown(message: Any, field: str) -> str | None:
    """A duration as text; None if it is not set."""
    value = getattr(message, field)
    return str(value) if field in message and value is not None else None
