"""Setup and grants: comparisons without a server, and on the emulator, read by its REST API alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.iam.v1.policy_pb2 import Binding, Policy
from google.pubsub_v1.types import Subscription
from google.type.expr_pb2 import Expr
from msgspec.structs import replace

from handlers.contract.errors import InvalidSetting
from handlers.pubsub.admin import (
    DEAD_LETTER_FILTER,
    PUBLISHER,
    SUBSCRIBER,
    CheckedResource,
    Grant,
    GrantState,
    LayoutOptions,
    compare,
    fields_of,
    grant_state,
    grant_states,
    layout,
    needed_grants,
    notes,
    set_up,
)
from handlers.pubsub.channel import PubSubChannel, PubSubOptions
from handlers.pubsub.errors import PubSubFailed
from tests.pubsub.resources import Resources
from tests.servers.pubsub_broker import refusal, running_broker

OPTIONS = LayoutOptions(
    project_id="proj",
    push_endpoint="https://push.example.com/",
    push_service_account="invoker@proj.iam.gserviceaccount.com",
    push_audience="aud",
)
WANTED = layout(OPTIONS)
REQUEST_PUSH = WANTED.subscriptions[0]


@pytest.fixture
def wanted(options: PubSubOptions) -> LayoutOptions:
    return replace(OPTIONS, project_id=options.project_id, push_endpoint="http://127.0.0.1:9/")


async def checked(channel: PubSubChannel, options: LayoutOptions, *, is_dry: bool = False) -> list[CheckedResource]:
    return [each async for each in set_up(channel, layout(options), is_dry=is_dry)]


CHANGES: dict[str, Any] = {
    "push_endpoint": "https://other.example.com/?a=1&b=2",
    "push_service_account": "other@proj.iam.gserviceaccount.com",
    "push_audience": "other",
    "is_unwrapped": True,
    "ack_deadline_seconds": 20,
    "minimum_backoff_seconds": 11,
    "maximum_backoff_seconds": 12,
    "max_delivery_attempts": 6,
    "retention_seconds": 700,
    "expiration_seconds": 90_000,
    "dead_letter_topic": "another",
}
"""Options of a subscription -> other values."""


def test_a_resource_that_is_as_wanted_has_no_difference() -> None:
    assert [compare(each, each) for each in WANTED.resources] == [
        CheckedResource(each, False, ()) for each in WANTED.resources
    ]


def test_the_command_that_corrects_a_subscription_sets_the_groups_that_differ_and_no_other() -> None:
    changed = layout(replace(OPTIONS, ack_deadline_seconds=300, max_delivery_attempts=9)).subscriptions[0]
    difference = compare(changed, REQUEST_PUSH)
    assert difference.lines == (
        "ack_deadline_seconds: expected 300, got 600",
        "dead_letter_policy.max_delivery_attempts: expected 9, got 35",
    )
    assert difference.repair == (
        "gcloud pubsub subscriptions update projects/proj/subscriptions/async-proc-requests-sub --ack-deadline=300 "
        "--dead-letter-topic=projects/proj/topics/async-proc-requests-dlq --max-delivery-attempts=9"
    )


@pytest.mark.parametrize("changed", [{"filter": "attributes:x"}, {"request_topic": "other-topic"}])
def test_a_field_that_pubsub_sets_once_needs_a_deletion(changed: dict[str, Any]) -> None:
    difference = compare(layout(replace(OPTIONS, **changed)).subscriptions[0], REQUEST_PUSH)
    name = "projects/proj/subscriptions/async-proc-requests-sub"
    assert difference.repair.startswith(f"gcloud pubsub subscriptions delete {name}  # loses its messages")


def test_every_field_that_a_layout_sets_is_compared() -> None:
    """A difference in a field that an option sets and `fields_of` leaves out would never be found."""
    for name, value in CHANGES.items():
        changed = layout(replace(OPTIONS, **{name: value})).subscriptions[0]
        assert compare(changed, REQUEST_PUSH).lines, name
    named = {field for field in Subscription.pb(REQUEST_PUSH).DESCRIPTOR.fields_by_name if field in REQUEST_PUSH}
    assert len(fields_of(REQUEST_PUSH)) >= len(named - {"name"})


def test_a_missing_expiration_policy_differs_from_never_expiring() -> None:
    bare = Subscription(REQUEST_PUSH)
    Subscription.pb(bare).ClearField("expiration_policy")
    assert compare(REQUEST_PUSH, bare).lines == ("expiration_policy.ttl: expected never, got 2678400s",)


def test_dead_letters_are_pushed_to_the_door_and_kept_but_not_those_of_the_door() -> None:
    dead = WANTED.topics[2].name
    push, pull = (each for each in WANTED.subscriptions if each.topic == dead)
    assert push.push_config.push_endpoint == OPTIONS.push_endpoint
    assert push.filter == DEAD_LETTER_FILTER
    assert "dead_letter_policy" not in push
    assert "push_config" not in pull
    assert pull.filter == ""


@pytest.mark.parametrize(
    ("changed", "setting"),
    [
        ({"push_endpoint": "ftp://x"}, "push_endpoint"),
        ({"push_endpoint": ""}, "push_endpoint"),
        ({"push_audience": ""}, "push_audience"),
        ({"push_service_account": ""}, "push_service_account"),
        ({"ack_deadline_seconds": 601}, "ack_deadline_seconds"),
        ({"ack_deadline_seconds": 9}, "ack_deadline_seconds"),
        ({"max_delivery_attempts": 4}, "max_delivery_attempts"),
        ({"minimum_backoff_seconds": 20, "maximum_backoff_seconds": 10}, "minimum_backoff_seconds"),
        ({"retention_seconds": 1}, "retention_seconds"),
        ({"expiration_seconds": 5}, "expiration_seconds"),
        ({"request_topic": "a b"}, "topic"),
        ({"project_id": ""}, "project_id"),
        ({"request_subscription": "x"}, "subscription"),
    ],
)
def test_an_invalid_option_is_named(changed: dict[str, Any], setting: str) -> None:
    with pytest.raises(InvalidSetting) as raised:
        layout(replace(OPTIONS, **changed))
    assert raised.value.setting == setting


def test_each_account_needs_the_grants_for_its_topics_and_subscriptions() -> None:
    grants = needed_grants(WANTED, project_number="42", handler_account="h@x", client_account="c@x")
    agent = "serviceAccount:service-42@gcp-sa-pubsub.iam.gserviceaccount.com"
    assert {(grant.resource.rpartition("/")[2], grant.role, grant.member) for grant in grants} == {
        ("async-proc-requests-dlq", PUBLISHER, agent),
        ("async-proc-requests-sub", SUBSCRIBER, agent),
        ("async-proc-results", PUBLISHER, "serviceAccount:h@x"),
        ("async-proc-requests-dlq", PUBLISHER, "serviceAccount:h@x"),
        ("async-proc-requests", PUBLISHER, "serviceAccount:c@x"),
        ("async-proc-results-sub", SUBSCRIBER, "serviceAccount:c@x"),
    }


def test_the_state_of_a_grant_follows_from_the_policy() -> None:
    grant = Grant("projects/p/topics/t", PUBLISHER, "serviceAccount:h@x", "")
    other = Policy(
        bindings=[
            Binding(role=PUBLISHER, members=["serviceAccount:other@x"]),
            Binding(role=SUBSCRIBER, members=[grant.member]),
        ]
    )
    held = Policy(bindings=[Binding(role=PUBLISHER, members=[grant.member])])
    conditional = Policy(bindings=[Binding(role=PUBLISHER, members=[grant.member], condition=Expr(expression="x"))])
    states = [grant_state(grant, policy) for policy in (held, other, None, conditional)]
    assert states == [GrantState.GRANTED, GrantState.MISSING, GrantState.UNKNOWN, GrantState.MISSING]


def test_without_the_projects_number_pubsubs_account_is_known_by_its_domain() -> None:
    grant = needed_grants(WANTED, project_number="", handler_account="", client_account="")[0]
    members = ["serviceAccount:service-7@gcp-sa-pubsub.iam.gserviceaccount.com"]
    assert grant_state(grant, Policy(bindings=[Binding(role=PUBLISHER, members=members)])) is GrantState.GRANTED
    other = Policy(bindings=[Binding(role=PUBLISHER, members=["user:x@y"])])
    assert grant_state(grant, other) is GrantState.MISSING


def test_dead_letters_without_a_reader_are_warned_of() -> None:
    deaf = replace(OPTIONS, dead_letter_push_subscription="", dead_letter_subscription="")
    assert any("lost" in note for note in notes(layout(deaf)))
    assert not any("lost" in note for note in notes(WANTED))


async def test_setup_creates_everything_and_a_second_time_nothing(
    channel: PubSubChannel, resources: Resources, wanted: LayoutOptions
) -> None:
    assert [each.is_missing for each in await checked(channel, wanted, is_dry=True)] == [True] * 7
    created = await checked(channel, wanted)
    assert [each.is_missing for each in created] == [True] * 7
    assert [each.title.split()[0] for each in created] == ["topic"] * 3 + ["subscription"] * 4
    assert [(each.is_missing, each.lines) for each in await checked(channel, wanted)] == [(False, ())] * 7
    push = await resources.call("GET", "subscriptions/async-proc-requests-sub")
    assert push["pushConfig"] == {
        "pushEndpoint": "http://127.0.0.1:9/",
        "oidcToken": {"serviceAccountEmail": "invoker@proj.iam.gserviceaccount.com", "audience": "aud"},
    }
    assert push["ackDeadlineSeconds"] == 600
    assert push["retryPolicy"] == {"minimumBackoff": "10s", "maximumBackoff": "600s"}
    assert push["deadLetterPolicy"] == {
        "deadLetterTopic": f"{resources.project}/topics/async-proc-requests-dlq",
        "maxDeliveryAttempts": 35,
    }
    assert push["expirationPolicy"] == {}


async def test_an_existing_resource_is_reported_and_not_changed(
    channel: PubSubChannel, resources: Resources, wanted: LayoutOptions
) -> None:
    await resources.topic("async-proc-requests", labels={"team": "a"})
    await checked(channel, wanted)
    before = await resources.call("GET", "subscriptions/async-proc-requests-sub")
    different = [each for each in await checked(channel, replace(wanted, ack_deadline_seconds=120)) if each.repair]
    assert [each.title for each in different] == ["subscription async-proc-requests-sub"]
    assert await resources.call("GET", "subscriptions/async-proc-requests-sub") == before
    assert (await resources.call("GET", "topics/async-proc-requests"))["labels"] == {"team": "a"}


async def test_a_resource_that_another_process_created_meanwhile_is_not_an_error(
    channel: PubSubChannel, wanted: LayoutOptions
) -> None:
    await asyncio.gather(*(checked(channel, wanted) for _ in range(4)))
    assert [each.is_missing for each in await checked(channel, wanted)] == [False] * 7


async def test_grants_are_unknown_if_policies_cannot_be_read(channel: PubSubChannel, wanted: LayoutOptions) -> None:
    await checked(channel, wanted)
    grant = Grant(layout(wanted).topics[0].name, PUBLISHER, "serviceAccount:a@b", "")
    assert await grant_states(channel, [grant]) == [(grant, GrantState.UNKNOWN)]


async def test_a_refusal_names_the_resource() -> None:
    async with (
        running_broker() as broker,
        PubSubChannel(PubSubOptions(project_id=OPTIONS.project_id, emulator_host=broker.host)) as channel,
    ):
        broker.fault = lambda _method, _request: refusal("PERMISSION_DENIED", "User not authorized")
        with pytest.raises(PubSubFailed, match=r"topics/async-proc-requests: 403 User not authorized"):
            await checked(channel, OPTIONS)
