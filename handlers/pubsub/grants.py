"""Who needs which role on which resource, and which of these grants the resource's own policy shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import msgspec

from handlers.pubsub.layout import Layout
from handlers.pubsub.names import short_name

PUBLISHER = "roles/pubsub.publisher"
SUBSCRIBER = "roles/pubsub.subscriber"


@dataclass(frozen=True, slots=True)
class Grant:
    """`member` needs `role` on `resource` (a full name); `reason` says what fails without it."""

    resource: str
    role: str
    member: str
    reason: str

    @property
    def command(self) -> str:
        """The command that grants it."""
        _, project, kind, name = self.resource.split("/")
        return (
            f"gcloud pubsub {kind} add-iam-policy-binding {name} --project={project} "
            f"--role={self.role} --member='{self.member}'"
        )


class GrantState(Enum):
    """What the policy of the resource itself says."""

    GRANTED = "granted"
    MISSING = "missing"
    """Not on the resource; a grant on the whole project, which is broader than needed, does not show here."""
    UNKNOWN = "unknown"
    """The policy cannot be read: no right to, or the emulator."""


class Policy(msgspec.Struct):
    """A policy as the service answers it."""

    bindings: list[Binding] = msgspec.field(default_factory=list)


class Binding(msgspec.Struct):
    """A role and who has it."""

    role: str
    members: list[str] = msgspec.field(default_factory=list)
    condition: msgspec.Raw | None = None


def needed_grants(
    layout: Layout, *, project_number: str, handler_account: str, client_account: str
) -> list[Grant]:
    """The grants of this layout.

    `project_number` empty: it is left to be filled in. `handler_account` publishes results, `client_account`
    requests (and reads results); empty ones are left out.
    """
    requests, results, dead = (topic.path for topic in layout.topics)
    number = project_number or "PROJECT_NUMBER"
    agent = f"serviceAccount:service-{number}@gcp-sa-pubsub.iam.gserviceaccount.com"
    grants = [Grant(dead, PUBLISHER, agent, "Pub/Sub cannot dead-letter requests without it")]
    grants += [
        Grant(spec.path, SUBSCRIBER, agent, "Pub/Sub cannot take a dead-lettered request off it")
        for spec in layout.subscriptions
        if spec.dead_letter_topic
    ]
    if handler_account:
        member = f"serviceAccount:{handler_account}"
        grants.append(Grant(results, PUBLISHER, member, "no result can be published"))
        grants.append(Grant(dead, PUBLISHER, member, "deliveries without a readable id cannot be put aside"))
    if client_account:
        member = f"serviceAccount:{client_account}"
        grants.append(Grant(requests, PUBLISHER, member, "the client cannot submit"))
        grants += [
            Grant(spec.path, SUBSCRIBER, member, "the client cannot read results")
            for spec in layout.subscriptions
            if spec.topic == results
        ]
    return grants


def grant_state(grant: Grant, policy: Policy | None) -> GrantState:
    """Whether `policy` (None: it could not be read) holds `grant`; conditional bindings do not count."""
    if policy is None:
        return GrantState.UNKNOWN
    members = [
        member
        for binding in policy.bindings
        if binding.role == grant.role and binding.condition is None
        for member in binding.members
    ]
    return GrantState.GRANTED if _holds(grant.member, members) else GrantState.MISSING


def notes(layout: Layout, push_endpoint: str) -> list[str]:
    """What this room cannot check: rights outside Pub/Sub."""
    accounts = sorted({spec.push_service_account for spec in layout.subscriptions} - {""})
    said = [
        f"{account} needs roles/run.invoker where {push_endpoint} is a Cloud Run service"
        for account in accounts
    ]
    said += [
        f"projects from before April 2021: Pub/Sub needs roles/iam.serviceAccountTokenCreator on {account}"
        for account in accounts
    ]
    if not any(spec.topic == layout.topics[2].path for spec in layout.subscriptions):
        said.append(f"{short_name(layout.topics[2].path)} has no subscription here: dead letters are lost")
    return said


def _holds(member: str, members: Iterable[str]) -> bool:
    """Pub/Sub's own account is known by its domain where the project's number is not."""
    if "PROJECT_NUMBER" not in member:
        return member in members
    return any(have.endswith("@gcp-sa-pubsub.iam.gserviceaccount.com") for have in members)
