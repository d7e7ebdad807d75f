"""Wanted against found: what a plan says, without a server."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from handlers.contract.errors import InvalidSetting
from handlers.pubsub.errors import UnchangeableField
from handlers.pubsub.grants import (
    PUBLISHER,
    SUBSCRIBER,
    Binding,
    Grant,
    GrantState,
    Policy,
    grant_state,
    needed_grants,
    notes,
)
from handlers.pubsub.layout import DEAD_LETTER_FILTER, LayoutOptions, layout
from handlers.pubsub.plan import Create, Delete, Keep, Update, plan_set_up, plan_tear_down
from handlers.pubsub.resources import Spec, SubscriptionSpec, TopicSpec, subscription_from_wire

OPTIONS = LayoutOptions(
    project_id="proj",
    push_endpoint="https://push.example.com/",
    push_service_account="invoker@proj.iam.gserviceaccount.com",
    push_audience="aud",
)
WANTED = layout(OPTIONS)


def as_found(options: LayoutOptions = OPTIONS) -> dict[str, Spec]:
    return {spec.path: spec for spec in layout(options).resources}


def test_nothing_is_to_do_where_all_is_as_wanted() -> None:
    assert plan_set_up(WANTED, as_found()) == []


def test_what_is_missing_is_created_topics_first() -> None:
    changes = plan_set_up(WANTED, {})
    assert all(isinstance(change, Create) for change in changes)
    kinds = [type(change.spec) for change in changes]
    assert kinds == [TopicSpec] * 3 + [SubscriptionSpec] * 4


def test_an_update_names_the_fields_that_differ_and_no_other() -> None:
    changes = plan_set_up(
        layout(replace(OPTIONS, ack_deadline_seconds=300, max_delivery_attempts=9)), as_found()
    )
    (change,) = changes
    assert isinstance(change, Update)
    assert change.update_mask == "ackDeadlineSeconds,deadLetterPolicy"
    assert [(field.name, field.found, field.wanted) for field in change.fields] == [
        ("ack_deadline_seconds", 600, 300),
        ("max_delivery_attempts", 35, 9),
    ]


@pytest.mark.parametrize("change", [{"filter": "attributes:x"}, {"request_topic": "other-topic"}])
def test_what_pubsub_sets_once_is_an_error_that_names_it(change: dict[str, Any]) -> None:
    with pytest.raises(UnchangeableField, match="async-proc-requests-sub") as raised:
        plan_set_up(layout(replace(OPTIONS, **change)), as_found())
    assert raised.value.field in ("filter", "topic")


def test_every_field_is_changeable_or_known_to_be_set_once() -> None:
    """A new field must be given its wire name, or its changes would be refused."""
    once = {"path", "topic", "filter"}
    assert set(SubscriptionSpec.__struct_fields__) - set(SubscriptionSpec.wire_fields) == once
    assert set(TopicSpec.__struct_fields__) - set(TopicSpec.wire_fields) == {"path"}


def test_every_field_reaches_the_wire_and_comes_back() -> None:
    spec = SubscriptionSpec(
        path="projects/p/subscriptions/s",
        topic="projects/p/topics/t",
        filter="attributes:x",
        push_endpoint="https://h/",
        push_service_account="a@b.c",
        push_audience="aud",
        is_unwrapped=True,
        ack_deadline_seconds=20,
        retention_seconds=700,
        expiration_seconds=90_000,
        minimum_backoff_seconds=1,
        maximum_backoff_seconds=2,
        dead_letter_topic="projects/p/topics/d",
        max_delivery_attempts=6,
    )
    defaults = SubscriptionSpec(path="", topic="")
    assert all(getattr(spec, name) != getattr(defaults, name) for name in spec.__struct_fields__)
    assert subscription_from_wire(msgspec.json.encode({"name": spec.path, **spec.to_wire()})) == spec
    bare = SubscriptionSpec(path=spec.path, topic=spec.topic)
    assert subscription_from_wire(msgspec.json.encode({"name": bare.path, **bare.to_wire()})) == bare


def test_dead_letters_are_pushed_to_the_door_and_kept_but_not_what_the_door_put_there() -> None:
    dead = WANTED.topics[2].path
    push, pull = (spec for spec in WANTED.subscriptions if spec.topic == dead)
    assert push.push_endpoint == OPTIONS.push_endpoint
    assert push.filter == DEAD_LETTER_FILTER
    assert push.dead_letter_topic == ""
    assert pull.push_endpoint == ""
    assert pull.filter == ""


@pytest.mark.parametrize(
    ("change", "setting"),
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
def test_a_wrong_option_is_named(change: dict[str, Any], setting: str) -> None:
    with pytest.raises(InvalidSetting) as raised:
        layout(replace(OPTIONS, **change))
    assert raised.value.setting == setting


def test_a_teardown_deletes_subscriptions_first_and_keeps_topics_that_others_read() -> None:
    requests = WANTED.topics[0].path
    ours = {spec.path for spec in WANTED.subscriptions}
    changes = plan_tear_down(WANTED, as_found(), {requests: ["projects/x/subscriptions/other", *ours]})
    assert [type(change) for change in changes] == [Delete] * 4 + [Keep, Delete, Delete]
    kept = changes[4]
    assert isinstance(kept, Keep)
    assert kept.readers == ("projects/x/subscriptions/other",)
    assert plan_tear_down(WANTED, {}, {}) == []


def test_pubsubs_own_account_needs_to_publish_dead_letters_and_to_take_them_off() -> None:
    grants = needed_grants(WANTED, project_number="42", handler_account="h@x", client_account="c@x")
    agent = "serviceAccount:service-42@gcp-sa-pubsub.iam.gserviceaccount.com"
    said = {(grant.resource.rpartition("/")[2], grant.role, grant.member) for grant in grants}
    assert said == {
        ("async-proc-requests-dlq", PUBLISHER, agent),
        ("async-proc-requests-sub", SUBSCRIBER, agent),
        ("async-proc-results", PUBLISHER, "serviceAccount:h@x"),
        ("async-proc-requests-dlq", PUBLISHER, "serviceAccount:h@x"),
        ("async-proc-requests", PUBLISHER, "serviceAccount:c@x"),
        ("async-proc-results-sub", SUBSCRIBER, "serviceAccount:c@x"),
    }


def test_a_grant_is_seen_in_the_policy_missed_or_not_knowable() -> None:
    grant = Grant("projects/p/topics/t", PUBLISHER, "serviceAccount:h@x", "")
    other = Policy([Binding(PUBLISHER, ["serviceAccount:other@x"]), Binding(SUBSCRIBER, [grant.member])])
    assert grant_state(grant, Policy([Binding(PUBLISHER, [grant.member])])) is GrantState.GRANTED
    assert grant_state(grant, other) is GrantState.MISSING
    assert grant_state(grant, None) is GrantState.UNKNOWN
    conditional = Binding(PUBLISHER, [grant.member], condition=msgspec.Raw(b"{}"))
    assert grant_state(grant, Policy([conditional])) is GrantState.MISSING


def test_without_the_projects_number_pubsubs_account_is_known_by_its_domain() -> None:
    grant = needed_grants(WANTED, project_number="", handler_account="", client_account="")[0]
    members = ["serviceAccount:service-7@gcp-sa-pubsub.iam.gserviceaccount.com"]
    assert grant_state(grant, Policy([Binding(PUBLISHER, members)])) is GrantState.GRANTED
    assert grant_state(grant, Policy([Binding(PUBLISHER, ["user:x@y"])])) is GrantState.MISSING


def test_dead_letters_that_nobody_reads_are_warned_of() -> None:
    deaf = replace(OPTIONS, dead_letter_push_subscription="", dead_letter_subscription="")
    assert any("lost" in note for note in notes(layout(deaf), "https://h/"))
    assert not any("lost" in note for note in notes(WANTED, "https://h/"))
