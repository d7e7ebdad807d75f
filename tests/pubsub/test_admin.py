"""Setup, update, teardown and grants: plans without a server, and on the emulator, read by its REST API alone."""

from __future__ import annotations

from typing import Any

import pytest
from google.iam.v1.policy_pb2 import Binding, Policy
from google.pubsub_v1.types import Subscription
from google.type.expr_pb2 import Expr
from msgspec.structs import replace

from handlers.contract.errors import InvalidSetting
from handlers.pubsub.admin import (
    PUBLISHER,
    SUBSCRIBER,
    Action,
    Change,
    Grant,
    GrantState,
    apply,
    compare,
    fields_of,
    grant_state,
    grant_states,
    needed_grants,
    notes,
    plan_set_up,
    plan_tear_down,
)
from handlers.pubsub.channel import PubSubChannel, PubSubOptions
from handlers.pubsub.errors import PubSubFailed, UnchangeableField
from handlers.pubsub.layout import DEAD_LETTER_FILTER, LayoutOptions, layout
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


async def applied(channel: PubSubChannel, options: LayoutOptions) -> list[Change]:
    changes = await plan_set_up(channel, layout(options))
    for change in changes:
        await apply(channel, change)
    return changes


def test_a_resource_that_is_as_wanted_needs_no_change() -> None:
    assert [compare(each, each) for each in WANTED.resources] == [None] * 7


def test_an_update_names_the_fields_that_differ_and_no_other() -> None:
    changed = layout(replace(OPTIONS, ack_deadline_seconds=300, max_delivery_attempts=9)).subscriptions[0]
    change = compare(changed, REQUEST_PUSH)
    assert change is not None
    assert change.update_mask == ("ack_deadline_seconds", "dead_letter_policy")
    assert change.lines == ("ack_deadline: 600 s -> 300 s", "max_delivery_attempts: 35 -> 9")


@pytest.mark.parametrize("changed", [{"filter": "attributes:x"}, {"request_topic": "other-topic"}])
def test_a_field_that_pubsub_sets_once_is_an_error_that_names_it(changed: dict[str, Any]) -> None:
    with pytest.raises(UnchangeableField, match="async-proc-requests-sub") as raised:
        compare(layout(replace(OPTIONS, **changed)).subscriptions[0], REQUEST_PUSH)
    assert raised.value.field in ("filter", "topic")


def test_every_field_that_a_layout_sets_is_compared() -> None:
    """A field that an option sets and `fields_of` leaves out would never be brought up to date."""
    changes: dict[str, Any] = {
        "push_endpoint": "https://other.example.com/",
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
    for name, value in changes.items():
        changed = layout(replace(OPTIONS, **{name: value})).subscriptions[0]
        assert compare(changed, REQUEST_PUSH) is not None, name
    named = {field for field in Subscription.pb(REQUEST_PUSH).DESCRIPTOR.fields_by_name if field in REQUEST_PUSH}
    assert len(fields_of(REQUEST_PUSH)) >= len(named - {"name"})


def test_a_missing_expiration_policy_differs_from_never_expiring() -> None:
    bare = Subscription(REQUEST_PUSH)
    Subscription.pb(bare).ClearField("expiration_policy")
    change = compare(REQUEST_PUSH, bare)
    assert change is not None
    assert change.update_mask == ("expiration_policy",)


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


def test_pubsubs_own_account_needs_to_publish_dead_letters_and_to_take_them_off() -> None:
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


def test_a_grant_is_granted_missing_or_unknown() -> None:
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
    created = await applied(channel, wanted)
    assert [change.action for change in created] == [Action.CREATE] * 7
    assert [change.title.split()[0] for change in created] == ["topic"] * 3 + ["subscription"] * 4
    assert await applied(channel, wanted) == []
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


async def test_changed_options_are_updated_and_fields_of_others_stay(
    channel: PubSubChannel, resources: Resources, wanted: LayoutOptions
) -> None:
    await resources.topic("async-proc-requests", labels={"team": "a"})
    await applied(channel, wanted)
    changed = replace(
        wanted,
        push_endpoint="http://127.0.0.1:9/other",
        push_audience="aud2",
        ack_deadline_seconds=120,
        minimum_backoff_seconds=20,
        max_delivery_attempts=7,
        retention_seconds=86_400,
        topic_retention_seconds=86_400,
        is_unwrapped=True,
    )
    assert {change.action for change in await applied(channel, changed)} == {Action.UPDATE}
    assert await applied(channel, changed) == []
    push = await resources.call("GET", "subscriptions/async-proc-requests-sub")
    assert push["pushConfig"]["oidcToken"]["audience"] == "aud2"
    assert push["ackDeadlineSeconds"] == 120
    kept = await resources.call("GET", "topics/async-proc-requests")
    assert kept["messageRetentionDuration"] == "86400s"
    assert kept["labels"] == {"team": "a"}


async def test_a_resource_that_was_created_or_deleted_in_the_meantime_is_not_an_error(
    channel: PubSubChannel, wanted: LayoutOptions
) -> None:
    changes = await plan_set_up(channel, layout(wanted))
    for change in (*changes, *changes):
        await apply(channel, change)
    deletions = await plan_tear_down(channel, layout(wanted))
    assert [change.action for change in deletions] == [Action.DELETE] * 7
    for change in (*deletions, *deletions):
        await apply(channel, change)
    assert await plan_tear_down(channel, layout(wanted)) == []


async def test_a_topic_with_a_subscription_of_others_survives_a_teardown(
    channel: PubSubChannel, resources: Resources, wanted: LayoutOptions
) -> None:
    await applied(channel, wanted)
    await resources.subscription("somebody-else", "async-proc-requests")
    changes = await plan_tear_down(channel, layout(wanted))
    assert [change.title for change in changes if change.action is Action.KEEP] == ["topic async-proc-requests"]
    for change in changes:
        await apply(channel, change)
    theirs = await resources.call("GET", "subscriptions/somebody-else")
    assert theirs["topic"] == f"{resources.project}/topics/async-proc-requests"


async def test_grants_are_unknown_where_policies_cannot_be_read(channel: PubSubChannel, wanted: LayoutOptions) -> None:
    await applied(channel, wanted)
    grant = Grant(layout(wanted).topics[0].name, PUBLISHER, "serviceAccount:a@b", "")
    assert await grant_states(channel, [grant]) == [(grant, GrantState.UNKNOWN)]


async def test_a_refusal_names_the_resource() -> None:
    async with (
        running_broker() as broker,
        PubSubChannel(PubSubOptions(project_id=OPTIONS.project_id, emulator_host=broker.host)) as channel,
    ):
        broker.fault = lambda _method, _request: refusal("PERMISSION_DENIED", "User not authorized")
        with pytest.raises(PubSubFailed, match=r"topics/async-proc-requests: 403 User not authorized"):
            await applied(channel, OPTIONS)
