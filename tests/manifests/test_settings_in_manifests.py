"""Settings in manifests and guides exist, have the stated defaults, and the app accepts them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from handlers.settings.environment import Environment
from handlers.settings.settings import load_settings
from tests.manifests.rendering import (
    ROOT,
    SETTINGS_FILE,
    environment,
    kustomizations,
    pods,
    read_settings,
    render,
)
from tests.settings.config_files import parse_config_file

KNOWN = {name.upper(): name for name in Environment.__struct_fields__}
DEFAULTS = Environment()
# Read by kustomize, or by the manifests themselves.
NOT_FOR_THE_APP = {"IMAGE", "GOOGLE_SERVICE_ACCOUNT", "POD_NAMESPACE"}
# Values of a deployment; the defaults in the code suit a laptop, or no deployment at all.
OWN_VALUES = NOT_FOR_THE_APP | {
    *(
        "REDIS_URL",
        "PROJECT_ID",
        "RESULT_TOPIC_ID",
        "PUSH_AUDIENCE",
        "PUSH_SERVICE_ACCOUNT",
        "PROMETHEUS_URL",
    ),
    *("REQUEST_TIMEOUT_SECONDS", "SHUTDOWN_GRACE_SECONDS"),  # must fit below Knative's 600 s
}
CONFIG = ROOT / "knative/components/config-file/config.yaml"
GUIDES = ("keda/README.md", "knative/README.md", "docs/coming-from-llm-d-async.md")
# Words in capitals that the guides use for something else.
NOT_SETTINGS = NOT_FOR_THE_APP | {
    *("NAMESPACE", "PYTHON_DIGEST", "PUSH_ENDPOINT", "REQUEST_TOPIC_NAME", "PROJECT_NUMBER"),
    *("DEADLINE_EXCEEDED", "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"),
}


def default(name: str) -> str:
    """A setting's default in the code, as it would be written."""
    value = getattr(DEFAULTS, KNOWN[name])
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_every_name_in_the_settings_file_is_a_setting() -> None:
    shown = set(re.findall(r"^#? ?([A-Z][A-Z_]+)=", SETTINGS_FILE.read_text(), re.M))
    assert shown - NOT_FOR_THE_APP <= KNOWN.keys()


def test_values_in_the_settings_file_are_the_defaults_of_the_code() -> None:
    for name, value in read_settings().items():
        if name not in OWN_VALUES:
            assert value == default(name), name


def test_a_line_behind_a_hash_shows_the_default() -> None:
    for name, value in re.findall(r"^# ([A-Z][A-Z_]+)=(.*)$", SETTINGS_FILE.read_text(), re.M):
        assert value == default(name), name


def test_the_published_gateway_is_the_default_everywhere() -> None:
    for guide in ("keda/README.md", "knative/README.md"):
        assert f"`{DEFAULTS.igw_base_url}`" in (ROOT / guide).read_text()


@pytest.mark.parametrize("folder", [pytest.param(f, id=str(f.relative_to(ROOT))) for f in kustomizations()])
def test_the_app_reads_what_a_pod_gets(folder: Any) -> None:
    """Names are known, values are accepted; secrets and files are filled in as a cluster would."""
    objects = render(folder)
    for pod in pods(objects):
        container = pod.spec["containers"][0]
        if pod.labels.get("app.kubernetes.io/name", "async-processor") != "async-processor":
            continue
        own = {entry["name"] for entry in container["env"]}
        assert own - NOT_FOR_THE_APP <= KNOWN.keys(), pod.name
        env = environment(container, objects)
        filled = {name: value.replace("$(POD_NAMESPACE)", "team-a") for name, value in env.items()}
        if "CONFIG_FILE" in filled:
            filled["CONFIG_FILE"] = str(CONFIG)
        load_settings(filled)


def test_ports_of_the_manifests_are_those_of_the_app() -> None:
    ports = {
        pod.labels["app.kubernetes.io/component"]: pod.spec["containers"][0]["ports"][0]["containerPort"]
        for folder in ("knative", "keda")
        for pod in pods(render(ROOT / folder))
    }
    assert ports == {"dispatch": DEFAULTS.port, "push": DEFAULTS.port, "poller": DEFAULTS.metrics_port}


def test_the_example_of_a_configuration_file_is_accepted() -> None:
    config = parse_config_file(CONFIG.read_text())
    assert [queue.queue_name for queue in config.queues] == [DEFAULTS.request_queue_name]
    assert [pool.workers for pool in config.pools] == [DEFAULTS.workers]


@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_names_settings_that_exist(guide: str) -> None:
    named = set(re.findall(r"`([A-Z][A-Z]+(?:_[A-Z]+)+)`", (ROOT / guide).read_text()))
    assert named - NOT_SETTINGS <= KNOWN.keys(), guide
