"""The status page as a process with the pod's arguments and settings."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from handlers.demo.servers import free_port
from handlers.demo.valkey import Valkey
from tests.manifests.rendering import COMBINATIONS, Manifest, environment, of_kind, pods, render
from tests.servers.process import running_process
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def objects() -> list[Manifest]:
    """What the component adds to the menu's base."""
    return render(COMBINATIONS / "keda-status-page")


def container(objects: list[Manifest]) -> dict[str, Any]:
    """The page's container."""
    (page,) = (p for p in pods(objects) if p.labels.get("app.kubernetes.io/component") == "status")
    found: dict[str, Any] = page.spec["containers"][0]
    return found


@pytest.fixture(scope="module")
def running(
    objects: list[Manifest], valkey: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """The process, its address, its home: nothing of the machine's environment but the path."""
    page, port, home = container(objects), free_port(), tmp_path_factory.mktemp("home")
    assert page["ports"][0]["containerPort"] == int(page["args"][-1])
    args = [one.replace("$(POD_NAMESPACE)", "team-a") for one in [*page["args"][:-1], str(port)]]
    variables = {**environment(page, objects), "REDIS_URL": valkey.url, "REDIS_TIMEOUT_SECONDS": "60"}
    command = [str(Path(sys.executable).parent / "async-processor"), *args]
    with running_process(
        command, env={"PATH": os.environ["PATH"], "HOME": str(home), **variables}, start_new_session=True
    ) as process:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answer_of(f"{url}/readyz") == 200, "the status page")
        yield process, url, home
    assert process.returncode == 0


def answer_of(url: str, host: str = "") -> int:
    """The status of one request, with the header `host` if given; 0 if no server listens."""
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_probes_and_page_get_200(objects: list[Manifest], running: tuple[subprocess.Popen[bytes], str, Path]) -> None:
    _, url, _ = running
    page = container(objects)
    for probe in ("livenessProbe", "readinessProbe"):
        assert answer_of(url + page[probe]["httpGet"]["path"]) == 200
    assert answer_of(url) == 200


def test_the_page_is_served_under_localhost_its_service_and_ip_addresses_only(
    objects: list[Manifest], running: tuple[subprocess.Popen[bytes], str, Path]
) -> None:
    _, url, _ = running
    (service,) = of_kind(objects, "Service")
    name = service["metadata"]["name"]
    ways = ["localhost:8090", "127.0.0.1:8090", "10.4.0.7", "10.4.0.7:8090", "[fd00::7]:8090"]
    ways += [name, f"{name}.team-a", f"{name}.team-a.svc", f"{name}.team-a.svc.cluster.local:80"]
    assert {way: answer_of(url, way) for way in ways} == dict.fromkeys(ways, 200)
    others = ["evil.example", f"{name}.evil.example", f"{name}.team-b.svc.cluster.local"]
    assert {way: answer_of(url, way) for way in others} == dict.fromkeys(others, 421)
    assert answer_of(f"{url}/readyz", "evil.example") == 200, "a probe may call it what it likes"


def test_the_page_runs_one_process_and_writes_no_files(
    objects: list[Manifest], running: tuple[subprocess.Popen[bytes], str, Path]
) -> None:
    """`WORKERS` of the shared settings is the poller's number of slots."""
    process, _, home = running
    assert int(environment(container(objects), objects)["WORKERS"]) > 1
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children == []
    assert not list(home.iterdir())


def test_the_page_has_the_pollers_settings_and_may_have_its_own_redis_user(objects: list[Manifest]) -> None:
    (poller,) = (p for p in pods(objects) if p.labels.get("app.kubernetes.io/component") == "poller")
    same, own = container(objects)["envFrom"][:2], container(objects)["envFrom"][2]
    assert same == poller.spec["containers"][0]["envFrom"]
    assert own == {"secretRef": {"name": "async-processor-status-redis", "optional": True}}
    assert container(objects)["image"] == poller.spec["containers"][0]["image"]


def test_the_service_is_reachable_only_inside_the_cluster(objects: list[Manifest]) -> None:
    (service,) = of_kind(objects, "Service")
    assert service["spec"]["type"] == "ClusterIP"


def test_tls_and_queues_reach_the_page_as_they_reach_the_poller() -> None:
    """The page gets every setting that a component adds to the poller's Redis or queues, and its files."""
    objects = render(COMBINATIONS / "keda-everything")
    page = container(objects)
    (poller,) = (p for p in pods(objects) if p.labels.get("app.kubernetes.io/component") == "poller")
    theirs = {e["name"]: e.get("value") for e in poller.spec["containers"][0]["env"]}
    ours = {e["name"]: e.get("value") for e in page["env"]}
    shared = {name for name in theirs if name.startswith("REDIS_") or name == "CONFIG_FILE"}
    assert shared
    assert {name: theirs[name] for name in shared} == {name: ours.get(name) for name in shared}
    folders = [mount["mountPath"] for mount in page["volumeMounts"]]
    assert all(str(Path(str(ours[name])).parent) in folders for name in shared)
