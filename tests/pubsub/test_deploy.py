"""Set-up and teardown on the emulator: what exists afterwards is read by the REST API alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from handlers.pubsub.api import PubSubApi, PubSubOptions
from handlers.pubsub.deploy import grant_states, look, readers, set_up, tear_down
from handlers.pubsub.errors import PubSubFailed
from handlers.pubsub.grants import PUBLISHER, Grant, GrantState
from handlers.pubsub.layout import LayoutOptions, layout
from handlers.pubsub.plan import Create, plan_set_up, plan_tear_down
from tests.pubsub.broker_proxy import broker_proxy, refusal
from tests.pubsub.resources import Resources


@pytest.fixture
def wanted(options: PubSubOptions) -> LayoutOptions:
    return LayoutOptions(
        project_id=options.project_id,
        push_endpoint="http://127.0.0.1:9/",
        push_service_account="invoker@p.iam.gserviceaccount.com",
        push_audience="aud",
    )


async def apply(api: PubSubApi, options: LayoutOptions) -> int:
    described = layout(options)
    changes = plan_set_up(described, await look(api, described))
    for change in changes:
        await set_up(api, change)
    return len(changes)


async def test_setting_up_makes_everything_and_a_second_time_nothing(
    api: PubSubApi, resources: Resources, wanted: LayoutOptions
) -> None:
    assert await apply(api, wanted) == 7
    assert await apply(api, wanted) == 0
    push = await resources.call("GET", "subscriptions/async-proc-requests-sub")
    assert push["pushConfig"] == {
        "pushEndpoint": "http://127.0.0.1:9/",
        "oidcToken": {"serviceAccountEmail": "invoker@p.iam.gserviceaccount.com", "audience": "aud"},
    }
    assert push["ackDeadlineSeconds"] == 600
    assert push["retryPolicy"] == {"minimumBackoff": "10s", "maximumBackoff": "600s"}
    assert push["deadLetterPolicy"] == {
        "deadLetterTopic": f"{resources.project}/topics/async-proc-requests-dlq",
        "maxDeliveryAttempts": 35,
    }
    assert push["expirationPolicy"] == {}


async def test_changed_settings_are_updated_and_what_is_not_ours_stays(
    api: PubSubApi, resources: Resources, wanted: LayoutOptions
) -> None:
    await resources.topic("async-proc-requests", labels={"team": "a"})
    await apply(api, wanted)
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
    assert await apply(api, changed) > 0
    assert await apply(api, changed) == 0
    push = await resources.call("GET", "subscriptions/async-proc-requests-sub")
    assert push["pushConfig"]["oidcToken"]["audience"] == "aud2"
    assert push["ackDeadlineSeconds"] == 120
    kept = await resources.call("GET", "topics/async-proc-requests")
    assert kept["messageRetentionDuration"] == "86400s"
    assert kept["labels"] == {"team": "a"}


async def test_a_resource_that_another_made_meanwhile_is_no_error(
    api: PubSubApi, wanted: LayoutOptions
) -> None:
    described = layout(wanted)
    for change in plan_set_up(described, {}):
        await set_up(api, change)
    for change in plan_set_up(described, {}):
        assert isinstance(change, Create)
        await set_up(api, change)


async def test_a_teardown_undoes_it_and_twice_is_no_error(
    api: PubSubApi, resources: Resources, wanted: LayoutOptions
) -> None:
    await apply(api, wanted)
    described = layout(wanted)
    changes = plan_tear_down(described, await look(api, described), await readers(api, described))
    assert len(changes) == 7
    for change in (*changes, *changes):
        await tear_down(api, change)
    assert await look(api, described) == {}


async def test_a_topic_that_others_read_survives_a_teardown(
    api: PubSubApi, resources: Resources, wanted: LayoutOptions
) -> None:
    await apply(api, wanted)
    await resources.subscription("somebody-else", "async-proc-requests")
    described = layout(wanted)
    for change in plan_tear_down(described, await look(api, described), await readers(api, described)):
        await tear_down(api, change)
    left = await look(api, described)
    assert list(left) == [f"{resources.project}/topics/async-proc-requests"]
    theirs = await resources.call("GET", "subscriptions/somebody-else")
    assert theirs["topic"] == f"{resources.project}/topics/async-proc-requests"


async def test_grants_cannot_be_known_where_policies_cannot_be_read(
    api: PubSubApi, resources: Resources, wanted: LayoutOptions
) -> None:
    await apply(api, wanted)
    grant = Grant(layout(wanted).topics[0].path, PUBLISHER, "serviceAccount:a@b", "")
    assert await grant_states(api, [grant]) == [(grant, GrantState.UNKNOWN)]


async def test_a_refusal_is_told_with_the_resource(options: PubSubOptions, wanted: LayoutOptions) -> None:
    async with (
        broker_proxy(options.emulator_host) as proxy,
        PubSubApi(replace(options, emulator_host=proxy.host)) as api,
    ):
        proxy.fault = lambda _body: refusal(403, "User not authorized")
        with pytest.raises(PubSubFailed, match=r"topics/async-proc-requests: 403 User not authorized"):
            await apply(api, wanted)
