"""Topics and subscriptions of the push door: create missing ones, check the others and the grants.

requests ──push──▶ door                  after too many deliveries ──▶ dead letters
dead letters ──push──▶ same door         publishes their final results
dead letters ──pull──▶ operators
results ──pull──▶ clients

An existing resource is never changed or deleted, since it may have other users and unread messages. If it differs,
`repair` is the gcloud command that corrects it.
"""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from handlers.contract.errors import InvalidSetting
from handlers.contract.masked_text import shown_value
from handlers.pubsub.channel import Clients, PubSubChannel, short_name, subscription_path, topic_path
from handlers.pubsub.errors import PubSubFailed

if TYPE_CHECKING:
    from google.pubsub_v1.types import Subscription, Topic

PUBLISHER: Final = "roles/pubsub.publisher"
SUBSCRIBER: Final = "roles/pubsub.subscriber"

_TIMEOUT_SECONDS: Final = 30.0
_HOW: Final[dict[str, Any]] = {"retry": None, "timeout": _TIMEOUT_SECONDS}
_MISSING, _EXISTS = 404, 409
_POLICY_UNREADABLE: Final = frozenset({403, 404, 501})
"""Statuses of an unreadable policy: no right, no such resource, or no policies at all (the emulator)."""

DEAD_LETTER_FILTER: Final = "attributes:CloudPubSubDeadLetterSourceSubscription"
"""Selects messages that Pub/Sub dead-lettered, not messages that a door dead-lettered because they had no id.

The emulator ignores the filter. Without it, a door recognizes its own dead letters by their attributes.
"""

_DAY: Final = 86_400


class LayoutOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a layout. Names may be short or full.

    `push_endpoint` is the door's URL. Pushes have a token of `push_service_account` for `push_audience`; without an
    account, they have no token. `ack_deadline_seconds` is also the longest time of a request. `max_delivery_attempts`
    is high because closed gates and busy gateways use up attempts too: with 10 to 600 s of backoff, 35 attempts take
    about five hours. `filter` selects requests by attribute. If its name is empty, an optional subscription is not
    created (`dead_letter_push_subscription`, `dead_letter_subscription`, `result_subscription`).
    """

    project_id: str
    push_endpoint: str
    push_service_account: str = ""
    push_audience: str = ""
    request_topic: str = "async-proc-requests"
    request_subscription: str = "async-proc-requests-sub"
    result_topic: str = "async-proc-results"
    result_subscription: str = "async-proc-results-sub"
    dead_letter_topic: str = "async-proc-requests-dlq"
    dead_letter_push_subscription: str = "async-proc-requests-dlq-push"
    dead_letter_subscription: str = "sub-async-proc-requests-dlq"
    filter: str = ""
    is_unwrapped: bool = False
    ack_deadline_seconds: int = 600
    minimum_backoff_seconds: int = 10
    maximum_backoff_seconds: int = 600
    max_delivery_attempts: int = 35
    retention_seconds: int = 7 * _DAY
    topic_retention_seconds: int | None = None
    expiration_seconds: int | None = None
    result_ack_deadline_seconds: int = 60

    def __post_init__(self) -> None:
        url = urlsplit(self.push_endpoint)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise InvalidSetting(
                "push_endpoint", found=shown_value(self.push_endpoint), accepted="the https:// URL of the push door"
            )
        if bool(self.push_service_account) != bool(self.push_audience):
            lacks = "push_audience" if self.push_service_account else "push_service_account"
            raise InvalidSetting(lacks, found="nothing", accepted="both account and audience, or neither")
        for name, least, most in _BOUNDS:
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise InvalidSetting(name, found=str(value), accepted=f"{least} to {most}")
        if self.minimum_backoff_seconds > self.maximum_backoff_seconds:
            accepted = f"at most maximum_backoff_seconds, {self.maximum_backoff_seconds}"
            raise InvalidSetting("minimum_backoff_seconds", found=str(self.minimum_backoff_seconds), accepted=accepted)


_BOUNDS: Final = (
    ("ack_deadline_seconds", 10, 600),
    ("result_ack_deadline_seconds", 10, 600),
    ("minimum_backoff_seconds", 0, 600),
    ("maximum_backoff_seconds", 0, 600),
    ("max_delivery_attempts", 5, 100),
    ("retention_seconds", 600, 31 * _DAY),
    ("topic_retention_seconds", 600, 31 * _DAY),
    ("expiration_seconds", _DAY, 365 * _DAY),
)
"""Pub/Sub's own limits."""


class Layout(msgspec.Struct, frozen=True):
    """All resources; `topics` are requests, results and dead letters."""

    topics: tuple[Topic, ...]
    subscriptions: tuple[Subscription, ...]

    @property
    def resources(self) -> tuple[Topic | Subscription, ...]:
        """All resources, in the order in which they must be created."""
        return (*self.topics, *self.subscriptions)


def layout(options: LayoutOptions) -> Layout:
    """The resources for these options. Raises `InvalidSetting` for an invalid name."""
    from google.pubsub_v1.types import Topic

    requests, results, dead = (
        topic_path(options.project_id, name)
        for name in (options.request_topic, options.result_topic, options.dead_letter_topic)
    )
    topics = (
        Topic(name=requests, message_retention_duration=_span(options.topic_retention_seconds)),
        Topic(name=results),
        Topic(name=dead),
    )
    wanted = [_request_push(options, requests, dead)]
    if options.dead_letter_push_subscription:
        wanted.append(_dead_letter_push(options, dead))
    if options.dead_letter_subscription:
        wanted.append(_pull(options, options.dead_letter_subscription, dead))
    if options.result_subscription:
        wanted.append(_pull(options, options.result_subscription, results))
    return Layout(topics, tuple(wanted))


def _request_push(options: LayoutOptions, requests: str, dead: str) -> Subscription:
    from google.pubsub_v1.types import DeadLetterPolicy

    policy = DeadLetterPolicy(dead_letter_topic=dead, max_delivery_attempts=options.max_delivery_attempts)
    return _subscription(
        options,
        options.request_subscription,
        topic=requests,
        filter=options.filter,
        ack_deadline_seconds=options.ack_deadline_seconds,
        dead_letter_policy=policy,
        **_push(options),
    )


def _dead_letter_push(options: LayoutOptions, dead: str) -> Subscription:
    """The push subscription of dead letters.

    It has no dead-letter policy, which would send its messages to the topic that it reads.
    """
    return _subscription(
        options,
        options.dead_letter_push_subscription,
        topic=dead,
        filter=DEAD_LETTER_FILTER,
        ack_deadline_seconds=60,  # it only publishes a result and needs no inference
        **_push(options),
    )


def _pull(options: LayoutOptions, name: str, topic: str) -> Subscription:
    return _subscription(options, name, topic=topic, ack_deadline_seconds=options.result_ack_deadline_seconds)


def _subscription(options: LayoutOptions, name: str, **fields: Any) -> Subscription:
    from google.pubsub_v1.types import ExpirationPolicy, Subscription

    return Subscription(
        name=subscription_path(options.project_id, name),
        message_retention_duration=_span(options.retention_seconds),
        # Without a ttl, the subscription never expires.
        expiration_policy=ExpirationPolicy(ttl=_span(options.expiration_seconds)),
        **fields,
    )


def _push(options: LayoutOptions) -> dict[str, Any]:
    """The push configuration and retry policy of a push subscription."""
    from google.pubsub_v1.types import PushConfig, RetryPolicy

    config = PushConfig(push_endpoint=options.push_endpoint)
    if options.push_service_account:
        config.oidc_token = PushConfig.OidcToken(
            service_account_email=options.push_service_account, audience=options.push_audience
        )
    if options.is_unwrapped:
        config.no_wrapper = PushConfig.NoWrapper(write_metadata=True)
    backoff = RetryPolicy(
        minimum_backoff=_span(options.minimum_backoff_seconds),
        maximum_backoff=_span(options.maximum_backoff_seconds),
    )
    return {"push_config": config, "retry_policy": backoff}


def _span(seconds: int | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


_FLAGS: Final = {
    "topic": "",
    "filter": "",
    "push_config.push_endpoint": "--push-endpoint={}",
    "push_config.oidc_token.service_account_email": "--push-auth-service-account={}",
    "push_config.oidc_token.audience": "--push-auth-token-audience={}",
    "push_config.no_wrapper": "--push-no-wrapper --push-no-wrapper-write-metadata",
    "ack_deadline_seconds": "--ack-deadline={}",
    "message_retention_duration": "--message-retention-duration={}",
    "expiration_policy.ttl": "--expiration-period={}",
    "retry_policy.minimum_backoff": "--min-retry-delay={}",
    "retry_policy.maximum_backoff": "--max-retry-delay={}",
    "dead_letter_policy.dead_letter_topic": "--dead-letter-topic={}",
    "dead_letter_policy.max_delivery_attempts": "--max-delivery-attempts={}",
}
"""The checked fields -> flags of `gcloud pubsub … update`; empty if Pub/Sub sets the field only at creation."""

_CLEARED: Final = {
    "push_config.push_endpoint": "--push-endpoint=",
    "push_config.no_wrapper": "--clear-push-no-wrapper-config",
    "message_retention_duration": "--clear-message-retention-duration",
    "retry_policy.minimum_backoff": "--clear-retry-policy",
    "dead_letter_policy.dead_letter_topic": "--clear-dead-letter-policy",
}
"""Fields -> flags of gcloud that unset them, and with them the other fields of their group."""

_UNUSED_FOR: Final = "2678400s"
"""A subscription without an expiration policy expires after 31 days without use."""


class CheckedResource(msgspec.Struct, frozen=True):
    """A wanted topic or subscription, compared with what exists under its name.

    `lines` are the fields of a missing resource, else the fields that differ. `repair` is the command that corrects
    them.
    """

    resource: Topic | Subscription
    is_missing: bool
    lines: tuple[str, ...]
    repair: str = ""

    @property
    def title(self) -> str:
        """The kind and the short name of the resource."""
        kind = "topic" if _is_topic(self.resource) else "subscription"
        return f"{kind} {short_name(self.resource.name)}"


def compare(wanted: Topic | Subscription, found: Topic | Subscription | None) -> CheckedResource:
    """Compare a resource with the existing one of its name (None if it is missing)."""
    new = fields_of(wanted)
    if found is None:
        return CheckedResource(wanted, True, tuple(f"{path}: {value}" for path, value in new.items()))
    old = fields_of(found)
    differing = [path for path in _FLAGS if new.get(path) != old.get(path)]
    lines = tuple(f"{path}: expected {new.get(path, 'none')}, got {old.get(path, 'none')}" for path in differing)
    return CheckedResource(wanted, False, lines, _repair(wanted, new, differing) if differing else "")


def fields_of(resource: Topic | Subscription) -> dict[str, str]:
    """The checked fields that are set, by path, as text."""
    from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]  # no stubs

    values: dict[str, Any] = MessageToDict(type(resource).pb(resource), preserving_proto_field_name=True)
    if not _is_topic(resource):
        values["expiration_policy"] = {"ttl": "never", **values.get("expiration_policy", {"ttl": _UNUSED_FOR})}
    found: dict[str, str] = {}
    for path in _FLAGS:
        value: Any = values
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            found[path] = str(value)
    return found


def _repair(wanted: Topic | Subscription, new: dict[str, str], differing: list[str]) -> str:
    """The gcloud command that makes the `differing` fields as wanted."""
    command = f"gcloud pubsub {'topics' if _is_topic(wanted) else 'subscriptions'}"
    if any(not _FLAGS[path] for path in differing):
        return f"{command} delete {wanted.name}  # loses its messages; then run setup again"
    # gcloud replaces a group of fields as a whole, so all of its flags are needed.
    groups = {path.partition(".")[0] for path in differing}
    flags = [
        _FLAGS[path].format(shlex.quote(new[path])) if path in new else _CLEARED.get(path, "")
        for path in _FLAGS
        if path.partition(".")[0] in groups
    ]
    return " ".join([command, "update", wanted.name, *(flag for flag in flags if flag)])


async def set_up(channel: PubSubChannel, layout: Layout, *, is_dry: bool = False) -> AsyncIterator[CheckedResource]:
    """Check each resource and create it if missing, unless `is_dry`. Raises `PubSubFailed`."""
    for wanted in layout.resources:
        checked = compare(wanted, await _look_up(channel, wanted))
        if checked.is_missing and not is_dry:
            await _create(channel, wanted)
        yield checked


async def _look_up(channel: PubSubChannel, resource: Topic | Subscription) -> Any:
    """The resource of that name; None if it does not exist."""

    def get(clients: Clients) -> Awaitable[Any]:
        if _is_topic(resource):
            return clients.publisher.get_topic(topic=resource.name, **_HOW)
        return clients.subscriber.get_subscription(subscription=resource.name, **_HOW)

    try:
        return await _call(channel, resource.name, get)
    except PubSubFailed as error:
        if error.status == _MISSING:
            return None
        raise


async def _create(channel: PubSubChannel, resource: Any) -> None:
    """Create a resource. Another process may have created it meanwhile."""

    def create(clients: Clients) -> Awaitable[Any]:
        if _is_topic(resource):
            return clients.publisher.create_topic(request=resource, **_HOW)
        return clients.subscriber.create_subscription(request=resource, **_HOW)

    try:
        await _call(channel, resource.name, create)
    except PubSubFailed as error:
        if error.status != _EXISTS:
            raise


class Grant(msgspec.Struct, frozen=True):
    """A role that `member` needs on `resource` (a full name).

    `reason` names what fails without it.
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


async def _call(channel: PubSubChannel, resource: str, call: Callable[[Clients], Awaitable[Any]]) -> Any:
    return await channel.call(resource, call, _TIMEOUT_SECONDS)


def _is_topic(resource: Any) -> bool:
    return type(resource).__name__ == "Topic"
