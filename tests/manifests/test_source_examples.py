"""The examples of docs/sources.md follow Knative's schemas, have retries, and name an existing door."""

from __future__ import annotations

import re

import pytest

from tests.manifests.rendering import ROOT, Manifest, load, render

DOOR = "async-processor-dispatch"
# Of extensions of Knative whose schemas the checker does not have; and what is no manifest.
WITHOUT_SCHEMA = ("RabbitmqSource", "NatsJetStreamChannel")


def examples() -> list[Manifest]:
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs/sources.md").read_text(), re.M | re.S)
    return [one for block in blocks for one in load(block.replace("{...}", "{}")) if "kind" in one]


def named(kind: str) -> Manifest:
    return next(one for one in examples() if one["kind"] == kind)


def test_every_named_source_has_an_example() -> None:
    kinds = {one["kind"] for one in examples()}
    assert kinds >= {"KafkaSource", "RabbitmqSource", "NatsJetStreamChannel", "PingSource", "SinkBinding"}


@pytest.mark.parametrize("kind", ["KafkaSource", "RabbitmqSource", "Subscription", "Trigger"])
def test_failed_deliveries_are_retried_and_kept(kind: str) -> None:
    spec = named(kind)["spec"]
    delivery = spec["delivery"]
    assert delivery["retry"] >= 5
    assert (delivery["backoffPolicy"], delivery["backoffDelay"]) == ("exponential", "PT2S")
    assert delivery["deadLetterSink"]["ref"]["name"] == "dead-letters"
    assert (spec.get("subscriber") or spec["sink"])["ref"]["name"] == DOOR


def test_the_door_of_the_examples_is_the_one_that_is_deployed() -> None:
    services = [one for one in render(ROOT / "knative/base/dispatch") if one["kind"] == "Service"]
    assert DOOR in {one["metadata"]["name"] for one in services}


def test_the_channel_waits_longer_than_a_request_lasts() -> None:
    """600 s at the gateway and 30 s at a gate."""
    wait = named("NatsJetStreamChannel")["spec"]["consumerConfigTemplate"]["ackWait"]
    assert int(wait.removesuffix("m")) * 60 > 630
