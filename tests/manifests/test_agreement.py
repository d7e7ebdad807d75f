"""Manifests and code agree on names, keys, ports, and the order of time limits."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest

from handlers.redis_store.keys import beside, queue_keys
from tests.manifests.rendering import (
    COMBINATIONS,
    ROOT,
    SETTINGS_FILE,
    Manifest,
    environment,
    knative_services,
    kustomizations,
    of_kind,
    pods,
    read_settings,
    render,
)

# Read by kustomize alone.
NOT_FOR_THE_APP = {"IMAGE", "GOOGLE_SERVICE_ACCOUNT"}
KNATIVE_TIMEOUT_LIMIT = 600  # max-revision-timeout-seconds, unless the operator raises it


@pytest.fixture(scope="module")
def keda() -> list[Manifest]:
    """The output of `kubectl kustomize keda`."""
    return render(ROOT / "keda")


@pytest.fixture(scope="module")
def knative() -> list[Manifest]:
    """The output of `kubectl kustomize knative`."""
    return render(ROOT / "knative")


def triggers(objects: list[Manifest]) -> dict[str, dict[str, Any]]:
    """The triggers of the only ScaledObject, by name."""
    (scaled,) = of_kind(objects, "ScaledObject")
    return {trigger["name"]: trigger for trigger in scaled["spec"]["triggers"]}


def container(objects: list[Manifest]) -> dict[str, Any]:
    """The poller's container."""
    (poller,) = (p for p in pods(objects) if p.labels.get("app.kubernetes.io/component") == "poller")
    found: dict[str, Any] = poller.spec["containers"][0]
    return found


def test_triggers_count_the_keys_that_the_poller_works_on(keda: list[Manifest]) -> None:
    env = environment(container(keda), keda)
    queue = env["REQUEST_QUEUE_NAME"]
    names = {name: trigger["metadata"]["listName"] for name, trigger in triggers(keda).items()}
    keys = queue_keys(queue)
    assert names == {"pending": keys.pending, "retry": env["RETRY_QUEUE_NAME"], "claimed": keys.claimed}


def test_in_a_cluster_the_claimed_key_carries_the_hash_tag() -> None:
    objects = render(COMBINATIONS / "keda-redis-cluster")
    queue = environment(container(objects), objects)["REQUEST_QUEUE_NAME"]
    found = triggers(objects)
    assert found["claimed"]["metadata"]["listName"] == queue_keys(queue, cluster=True).claimed
    assert {t["type"] for t in found.values()} == {"redis-cluster"}
    retries = environment(container(objects), objects)["RETRY_QUEUE_NAME"]
    homes = {"outbox": queue, "retry-outbox": retries}
    assert {name: found[name]["metadata"]["listName"] for name in homes} == {
        name: beside(home, "outbox-idx") for name, home in homes.items()
    }
    assert all("," in t["metadata"]["addresses"] and "address" not in t["metadata"] for t in found.values())


def test_sentinel_triggers_know_master_and_database() -> None:
    objects = render(COMBINATIONS / "keda-redis-sentinel")
    for trigger in triggers(objects).values():
        assert trigger["type"] == "redis-sentinel"
        assert trigger["metadata"]["sentinelMaster"] == "mymaster"
        assert trigger["metadata"]["databaseIndex"] == "2"
        assert trigger["metadata"]["addresses"].count(":26379") == 2


def test_keda_and_the_poller_use_one_address_and_one_sign_in(keda: list[Manifest]) -> None:
    env = environment(container(keda), keda)
    (authentication,) = of_kind(keda, "TriggerAuthentication")
    secrets = {source["secretRef"]["name"] for source in container(keda)["envFrom"] if "secretRef" in source}
    assert {entry["name"] for entry in authentication["spec"]["secretTargetRef"]} == secrets
    for trigger in triggers(keda).values():
        metadata = trigger["metadata"]
        assert env["REDIS_URL"] == f"redis://{metadata['address']}/{metadata['databaseIndex']}"
        assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]


def test_the_first_request_starts_a_poller_from_zero(keda: list[Manifest]) -> None:
    (scaled,) = of_kind(keda, "ScaledObject")
    assert scaled["spec"]["minReplicaCount"] == 0
    assert {t["metadata"]["activationListLength"] for t in triggers(keda).values()} == {"0"}
    (poller,) = of_kind(keda, "Deployment")
    assert "replicas" not in poller["spec"], "an apply would undo KEDA's count"


def test_full_pollers_are_not_scaled_away(keda: list[Manifest]) -> None:
    env = environment(container(keda), keda)
    assert triggers(keda)["claimed"]["metadata"]["listLength"] == env["WORKERS"]


def test_slack_aware_reads_all_triggers_and_starts_no_poller_while_the_pool_is_full() -> None:
    objects = render(COMBINATIONS / "keda-slack-aware")
    (scaled,) = of_kind(objects, "ScaledObject")
    modifiers = scaled["spec"]["advanced"]["scalingModifiers"]
    names = set(re.findall(r"[a-z]+", modifiers["formula"]))
    assert names == set(triggers(objects))
    assert modifiers["formula"].endswith(": claimed")
    assert modifiers["target"] == environment(container(objects), objects)["WORKERS"]


def test_the_poller_calls_the_dispatch_door(keda: list[Manifest], knative: list[Manifest]) -> None:
    url = environment(container(keda), keda)["HANDLER_URL"]
    doors = {
        s["metadata"]["name"]
        for s in knative_services(knative)
        if s["metadata"]["labels"].get("networking.knative.dev/visibility") == "cluster-local"
    }
    assert url in {f"http://{door}.$(POD_NAMESPACE).svc.cluster.local" for door in doors}


def test_the_namespace_stands_before_the_url_that_uses_it() -> None:
    """Kubernetes expands only names that were set earlier, so components must not change the order."""
    for folder in kustomizations():
        for pod in pods(render(folder)):
            names = [entry["name"] for entry in pod.spec["containers"][0].get("env", [])]
            if "HANDLER_URL" in names:
                assert names.index("POD_NAMESPACE") < names.index("HANDLER_URL"), folder


def test_without_knative_the_poller_has_no_handler_url() -> None:
    objects = render(COMBINATIONS / "keda-in-process")
    assert "HANDLER_URL" not in environment(container(objects), objects)


def test_a_request_ends_before_the_stop_and_the_stop_before_the_platform_cuts(
    keda: list[Manifest], knative: list[Manifest]
) -> None:
    (poller,) = of_kind(keda, "Deployment")
    grace = poller["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    env = environment(container(keda), keda)
    request, stop = int(env["REQUEST_TIMEOUT_SECONDS"]), int(env["SHUTDOWN_GRACE_SECONDS"])
    assert request < stop
    assert stop + 5 < grace
    for service in knative_services(knative):
        spec = service["spec"]["template"]["spec"]
        limits = environment(spec["containers"][0], knative)
        assert int(limits["REQUEST_TIMEOUT_SECONDS"]) < int(limits["SHUTDOWN_GRACE_SECONDS"])
        assert int(limits["SHUTDOWN_GRACE_SECONDS"]) < spec["timeoutSeconds"] <= KNATIVE_TIMEOUT_LIMIT
        assert spec["responseStartTimeoutSeconds"] == spec["timeoutSeconds"], "the first byte comes at the end"
        assert spec["timeoutSeconds"] < grace, "the poller waits longer than the handler may take"


def test_handlers_do_not_know_where_the_queue_is(knative: list[Manifest]) -> None:
    for service in knative_services(knative):
        env = environment(service["spec"]["template"]["spec"]["containers"][0], knative)
        assert not [name for name in env if name.startswith("REDIS_")]


def test_a_second_handler_starts_before_the_first_is_full(knative: list[Manifest]) -> None:
    for service in knative_services(knative):
        template = service["spec"]["template"]
        target = int(template["metadata"]["annotations"]["autoscaling.knative.dev/target"])
        assert 0 < target < template["spec"]["containerConcurrency"] <= 1000


def test_cloud_run_gets_one_object_without_what_it_refuses() -> None:
    """The fields and annotations are those that Cloud Run's API (v1) marks as not supported."""
    objects = render(ROOT / "knative/overlays/cloud-run")
    (service,) = objects
    template = service["spec"]["template"]
    settings = read_settings()
    only = template["spec"]["containers"][0]
    env = {entry["name"]: entry["value"] for entry in only["env"]}
    assert not {"envFrom", "securityContext", "readinessProbe", "volumeMounts"} & only.keys()
    assert template["spec"].keys() == {
        "containerConcurrency",
        "containers",
        "serviceAccountName",
        "timeoutSeconds",
    }
    known = ("autoscaling.knative.dev/minScale", "autoscaling.knative.dev/maxScale", "run.googleapis.com/")
    assert all(name.startswith(known) for name in template["metadata"]["annotations"])
    assert "from-settings" not in str(service)
    assert not any("/" in label for label in service["metadata"]["labels"])
    assert service["metadata"]["annotations"]["run.googleapis.com/custom-audiences"] == (
        f'["{settings["PUSH_AUDIENCE"]}"]'
    )
    assert template["spec"]["serviceAccountName"] == settings["GOOGLE_SERVICE_ACCOUNT"]
    assert {name: env[name] for name in env if name in settings} == {n: settings[n] for n in env if n in settings}
    assert {
        "IGW_BASE_URL",
        "PROJECT_ID",
        "RESULT_TOPIC_ID",
        "PUSH_AUDIENCE",
        "PUSH_SERVICE_ACCOUNT",
    } <= env.keys()


def test_the_image_carries_the_version_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert read_settings()["IMAGE"].endswith(f":{version}")


def test_settings_are_written_plainly() -> None:
    """Kustomize takes quotes and spaces literally."""
    for name, value in read_settings().items():
        assert re.fullmatch(r"[A-Z][A-Z_]*", name), name
        assert value, f"{name} is empty"
        assert not re.search(r"""["'\s]""", value), f"{name}={value}"
    assert not re.search(r"PASSWORD=|TOKEN=", SETTINGS_FILE.read_text())


def test_scraped_ports_are_served_and_handlers_accept_the_scrapers_token() -> None:
    """Each endpoint names a port of the pods that it selects; a handler's page asks for the monitor's own token."""
    objects = render(COMBINATIONS / "knative-pod-monitor")
    (monitor,) = of_kind(objects, "PodMonitor")
    (own,) = monitor["spec"]["podMetricsEndpoints"]
    assert (own["port"], own["path"]) == ("user-port", "/metrics")
    for service in knative_services(objects):
        env = service["spec"]["template"]["spec"]["containers"][0]["env"]
        (token,) = (entry["valueFrom"] for entry in env if entry["name"] == "METRICS_TOKEN")
        assert token["secretKeyRef"] == own["authorization"]["credentials"]


def test_the_poller_is_scraped_at_the_port_of_its_pages() -> None:
    objects = render(COMBINATIONS / "keda-pod-monitor")
    (monitor,) = of_kind(objects, "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    (port,) = (one for one in container(objects)["ports"] if one["name"] == endpoint["port"])
    assert environment(container(objects), objects)["METRICS_PORT"] == str(port["containerPort"])
    assert endpoint["path"] == "/metrics"


@pytest.mark.parametrize("combination", ["knative-config-file", "keda-config-file"])
def test_a_changed_configuration_file_reaches_the_pods_that_run(combination: str) -> None:
    """With a hash in its name, a change would be another ConfigMap, which running pods do not see."""
    maps = of_kind(render(COMBINATIONS / combination), "ConfigMap")
    assert "async-processor-config" in {one["metadata"]["name"] for one in maps}
