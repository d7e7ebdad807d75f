"""Rows of the troubleshooting tables of keda/ and knative/, with real servers and processes."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from redis import Redis
from redis.exceptions import AuthenticationError, ResponseError

from handlers.demo.servers import Valkey, free_port
from handlers.redis_store.admin.acl import Role, acl_rules
from handlers.redis_store.keys import queue_keys
from tests.manifests.keda_rehearsal import COUNT
from tests.manifests.rendering import ROOT, render_text
from tests.servers.presence import redis_program
from tests.servers.process import running_process
from tests.servers.pubsub_broker import broker_in_threads, refuses
from tests.waiting import wait_until

PASSWORD = "right"
TOKEN = "the-token-of-both-menus"
QUEUE, RETRIES = "request-sortedset", "retry-sortedset"
COMMAND = str(Path(sys.executable).parent / "async-processor")
README = (ROOT / "keda" / "README.md").read_text()
KNATIVE = (ROOT / "knative" / "README.md").read_text()


@pytest.fixture
def server() -> Iterator[Valkey]:
    """A server of this test's own: these tests change its users."""
    with Valkey(redis_program()) as server:
        yield server


@contextlib.contextmanager
def running(arguments: list[str], variables: Mapping[str, str], log: Path) -> Iterator[Path]:
    """One of our commands without a gateway; gives the file with its log."""
    environment = {"PATH": os.environ["PATH"], "IGW_BASE_URL": "http://127.0.0.1:9", **variables}
    with (
        log.open("wb") as output,
        running_process([COMMAND, *arguments], env=environment, stdout=output, stderr=subprocess.STDOUT),
    ):
        yield log


def line_with(log: Path, text: str) -> str:
    """The first line of the log that holds `text`, once there is one."""
    return wait_until(
        lambda: next((line for line in log.read_text().splitlines() if text in line), ""),
        f"{text!r} in the log",
    )


def port_of(log: Path) -> int:
    """The port of a door that has started."""
    return int(json.loads(line_with(log, '"event":"ready"'))["port"])


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_missing_and_wrong_passwords_give_the_errors_of_the_table(server: Valkey) -> None:
    with Redis.from_url(server.url) as admin:
        admin.config_set("requirepass", PASSWORD)
    with (
        Redis.from_url(server.url, protocol=2) as client,
        pytest.raises(AuthenticationError, match="Authentication required"),  # NOAUTH, without the word
    ):
        client.eval(COUNT, 1, QUEUE)
    with (
        Redis.from_url(server.url, protocol=2, username="default", password="wrong") as client,
        pytest.raises(AuthenticationError, match="invalid username-password pair"),  # WRONGPASS
    ):
        client.eval(COUNT, 1, QUEUE)
    assert "| `NOAUTH` or `WRONGPASS` in KEDA's log |" in README


def test_a_user_without_llen_fails_on_empty_queues_only(server: Valkey) -> None:
    rules = acl_rules(Role.KEDA)
    assert "+llen" in rules
    with Redis.from_url(server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "keda", "on", f">{PASSWORD}", *rules.split(), "-llen")
        with Redis.from_url(server.url, username="keda", password=PASSWORD) as keda:
            of_redis, of_valkey = "can't run this command", "no permissions to run the 'llen' command"
            with pytest.raises(ResponseError, match=f"{of_redis}|{of_valkey}"):
                keda.eval(COUNT, 1, QUEUE)
            admin.zadd(QUEUE, {"a request": 1})
            assert keda.eval(COUNT, 1, QUEUE) == 1
    assert "lacks `+llen`: every read of an empty queue fails" in README


def test_a_queue_of_another_type_is_named_in_the_log_of_the_poller(server: Valkey, tmp_path: Path) -> None:
    with Redis.from_url(server.url) as admin:
        admin.set(QUEUE, "not a sorted set")
    variables = {"REDIS_URL": server.url, "METRICS_PORT": "0"}
    with running(["poll"], variables, tmp_path / "log") as log:
        wait_until(lambda: "WRONGTYPE" in log.read_text(), "the error in the poller's log")
    assert QUEUE in next(line for line in log.read_text().splitlines() if "WRONGTYPE" in line)
    assert "`WRONGTYPE` in the poller's" in README


def test_what_keeps_one_poller_running_is_where_the_table_says() -> None:
    keys = queue_keys(QUEUE)
    assert f"`ZCARD {RETRIES}`, `HLEN {keys.claimed}`" in README


def test_a_publish_without_the_grant_is_a_403_in_the_log_of_the_push_door(tmp_path: Path) -> None:
    message = {"data": base64.b64encode(b'{"id": "r", "deadline": 1}').decode(), "messageId": "1"}
    frame = {"subscription": "projects/your-project/subscriptions/s", "message": message}
    with broker_in_threads(refuses("PERMISSION_DENIED")) as broker:
        variables = {
            "PUBSUB_EMULATOR_HOST": broker,
            "PROJECT_ID": "your-project",
            "RESULT_TOPIC_ID": "results",
            "PUSH_AUTH": "none",
        }
        door = ["serve", "--target", "pubsub_push", "--port", "0", "--host", "127.0.0.1"]
        with running(door, variables, tmp_path / "log") as log:
            url = f"http://127.0.0.1:{port_of(log)}"
            with urllib.request.urlopen(f"{url}/healthz", timeout=60) as answer:
                assert answer.status == 200, "the row `no push arrives` asks for this path from outside"
            push = urllib.request.Request(
                url, json.dumps(frame).encode(), {"content-type": "application/json"}
            )
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(push, timeout=60)
            assert "403" in line_with(log, "told to fail")
    assert "`roles/pubsub.publisher` on the result topic; the log says 403" in KNATIVE


def test_the_last_line_of_a_door_that_does_not_start_names_the_setting(tmp_path: Path) -> None:
    failed = subprocess.run(
        [COMMAND, "serve", "--target", "dispatch"],
        env={"PATH": os.environ["PATH"], "IGW_BASE_URL": "no-url"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == 2
    assert "IGW_BASE_URL" in (failed.stdout + failed.stderr).strip().splitlines()[-1]
    assert "the log's last line names the setting" in KNATIVE


def test_a_strategic_merge_patch_of_a_knative_service_empties_its_container(tmp_path: Path) -> None:
    patch = """
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: async-processor-dispatch}
spec:
  template:
    spec:
      containers:
        - env: [{name: LOG_LEVEL, value: debug}]
"""
    (tmp_path / "patch.yaml").write_text(patch)
    base = os.path.relpath(ROOT / "knative/base/dispatch", tmp_path)
    (tmp_path / "kustomization.yaml").write_text(f"resources: [{base}]\npatches: [{{path: patch.yaml}}]\n")
    services = [one for one in yaml.safe_load_all(render_text(tmp_path)) if one["kind"] == "Service"]
    ((container,),) = [one["spec"]["template"]["spec"]["containers"] for one in services]
    assert container == {"env": [{"name": "LOG_LEVEL", "value": "debug"}]}
    assert "a strategic-merge patch replaces lists in Knative kinds" in KNATIVE


def test_the_status_page_names_the_password_that_it_lacks(server: Valkey, tmp_path: Path) -> None:
    with Redis.from_url(server.url) as admin:
        admin.config_set("requirepass", PASSWORD)
    port = free_port()
    with running(["status", "--port", str(port)], {"REDIS_URL": server.url}, tmp_path / "log"):
        wait_until(lambda: is_listening(port), "the page's port")
        with pytest.raises(urllib.error.HTTPError, match="503") as found:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60)
        page = found.value.read().decode()
    assert "Redis does not answer" in page
    assert "requires a password" in page
    assert "the status page reports that Redis does not answer | a wrong user" in README


@pytest.mark.parametrize(
    ("poller", "path", "status"),
    [
        ({"DISPATCH_TOKEN": "another-token-of-another-menu"}, "", 401),
        ({"DISPATCH_TOKEN": TOKEN}, "/renamed", 404),
    ],
    ids=["a token in one menu only", "a URL of something else"],
)
def test_a_handler_that_refuses_the_poller_is_in_the_pollers_log(
    server: Valkey, tmp_path: Path, poller: dict[str, str], path: str, status: int
) -> None:
    member = json.dumps({"id": "r", "deadline": 1_999_999_999, "payload": {}})
    with Redis.from_url(server.url) as admin:
        admin.zadd(QUEUE, {member: 1_999_999_999})
    door = ["serve", "--target", "dispatch", "--port", "0", "--host", "127.0.0.1"]
    with running(door, {"DISPATCH_TOKEN": TOKEN}, tmp_path / "door") as log:
        url = f"http://127.0.0.1:{port_of(log)}{path}"
        variables = {"REDIS_URL": server.url, "METRICS_PORT": "0", "HANDLER_URL": url, **poller}
        with running(["poll"], variables, tmp_path / "poller") as found:
            line = json.loads(line_with(found, "handler refused the poller"))
    assert (line["status"], bool(line["fix"])) == (status, True)
    assert "`handler refused the poller` with `status=401`" in README
    assert "the same with `status=404`" in README


def test_pushes_with_another_audience_get_401(tmp_path: Path) -> None:
    variables = {
        "PROJECT_ID": "your-project",
        "RESULT_TOPIC_ID": "results",
        "PUSH_AUDIENCE": "one",
        "PUSH_SERVICE_ACCOUNT": "pusher@your-project.iam.gserviceaccount.com",
    }
    with broker_in_threads() as broker:
        door = ["serve", "--target", "pubsub_push", "--port", "0", "--host", "127.0.0.1"]
        with running(door, {**variables, "PUBSUB_EMULATOR_HOST": broker}, tmp_path / "log") as log:
            push = urllib.request.Request(
                f"http://127.0.0.1:{port_of(log)}", b"{}", {"authorization": "Bearer of.another.audience"}
            )
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(push, timeout=60)
            assert json.loads(line_with(log, "caller refused"))["status"] == 401
    assert "every push gets 401 | audience or account differ" in KNATIVE
