"""Rows of the troubleshooting tables, with real servers and processes.

`tests/test_documents.py` names the test of each row.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import cast

import pytest
import yaml
from redis import Redis
from redis.exceptions import AuthenticationError, ResponseError

from handlers.demo.pubsub_emulator import (
    REQUEST_TOPIC,
    RESULT_TOPIC,
    PubSubEmulator,
)
from handlers.demo.servers import free_port
from handlers.demo.valkey import Valkey
from handlers.pubsub.admin import LayoutOptions, layout, set_up
from handlers.pubsub.channel import PubSubChannel, PubSubOptions
from handlers.pubsub.publisher import Publisher
from handlers.redis_store.admin.acl import Role, acl_rules
from handlers.redis_store.keys import queue_keys
from tests.manifests.keda_rehearsal import COUNT, Autoscaler, Scaling
from tests.manifests.rendering import ROOT, Manifest, of_kind, pods, render, render_fresh, render_text
from tests.redis_store.admin.test_acl import words
from tests.servers.presence import redis_program
from tests.servers.process import running_process
from tests.servers.pubsub_broker import broker_in_threads, refuses
from tests.servers.raw_http import Answer, End, RawHttp, answer, running_raw_http
from tests.waiting import wait_until, wait_until_async

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
    with Redis.from_url(server.url, socket_timeout=60) as admin:
        admin.config_set("requirepass", PASSWORD)
    with (
        Redis.from_url(server.url, protocol=2, socket_timeout=60) as client,
        pytest.raises(AuthenticationError, match="Authentication required"),  # NOAUTH, without the word
    ):
        client.eval(COUNT, 1, QUEUE)
    with (
        Redis.from_url(server.url, protocol=2, username="default", password="wrong", socket_timeout=60) as client,
        pytest.raises(AuthenticationError, match="invalid username-password pair"),  # WRONGPASS
    ):
        client.eval(COUNT, 1, QUEUE)
    assert "| `NOAUTH` or `WRONGPASS` in KEDA's log |" in README


def test_a_user_without_llen_fails_on_empty_queues_only(server: Valkey) -> None:
    rules = acl_rules(Role.KEDA)
    assert "+llen" in rules
    with Redis.from_url(server.url, socket_timeout=60) as admin:
        admin.execute_command("ACL", "SETUSER", "keda", "on", f">{PASSWORD}", *rules.split(), "-llen")
        with Redis.from_url(server.url, username="keda", password=PASSWORD, socket_timeout=60) as keda:
            of_redis, of_valkey = "can't run this command", "no permissions to run the 'llen' command"
            with pytest.raises(ResponseError, match=f"{of_redis}|{of_valkey}"):
                keda.eval(COUNT, 1, QUEUE)
            admin.zadd(QUEUE, {"a request": 1})
            assert keda.eval(COUNT, 1, QUEUE) == 1
    assert "lacks `+llen`, so every read of an empty queue fails" in README


def test_a_queue_of_another_type_is_named_in_the_log_of_the_poller(server: Valkey, tmp_path: Path) -> None:
    with Redis.from_url(server.url, socket_timeout=60) as admin:
        admin.set(QUEUE, "not a sorted set")
    variables = {"REDIS_URL": server.url, "METRICS_PORT": "0"}
    with running(["poll"], variables, tmp_path / "log") as log:
        wait_until(lambda: "WRONGTYPE" in log.read_text(), "the error in the poller's log")
    assert QUEUE in next(line for line in log.read_text().splitlines() if "WRONGTYPE" in line)
    assert "`WRONGTYPE` in the poller's log, `ERR unsupported key type` in KEDA's" in README


@pytest.mark.parametrize(
    ("write", "error"),
    [
        (lambda admin: admin.set(QUEUE, "a"), "unsupported key type"),
        (lambda admin: admin.xadd(QUEUE, {"a": 1}), "unsupported key type"),
        (
            lambda admin: admin.sadd(QUEUE, "a"),
            "can't run this command|no permissions to run the 'scard' command",
        ),
        (lambda admin: admin.rpush(QUEUE, "a", "b"), ""),
    ],
    ids=["string", "stream", "set", "list"],
)
@pytest.mark.parametrize("role", [Role.POLLER, Role.KEDA])
def test_keda_meets_a_key_of_another_type(
    server: Valkey, role: Role, write: Callable[[Redis], object], error: str
) -> None:
    with Redis.from_url(server.url, socket_timeout=60) as admin:
        admin.execute_command("ACL", "SETUSER", role, "on", f">{PASSWORD}", *words(acl_rules(role)))
        write(admin)
    with Redis.from_url(server.url, username=role, password=PASSWORD, socket_timeout=60) as user:
        if error:
            with pytest.raises(ResponseError, match=error):
                user.eval(COUNT, 1, QUEUE)
        else:
            assert user.eval(COUNT, 1, QUEUE) == 2
    assert "KEDA counts a list, and its user may not count a set" in README


def test_retries_and_claims_keep_one_poller_until_their_deadlines(server: Valkey, tmp_path: Path) -> None:
    """The gateway does not exist, so the request goes from claim to retry until its deadline.

    Its deadline comes when the test gives the waiting retry another one, in the past.
    """
    (manifest,) = of_kind(render(ROOT / "keda"), "ScaledObject")
    scaling = Scaling.read(manifest)
    deadline = int(time.time()) + 3_600
    with Redis.from_url(server.url, socket_timeout=60) as redis:
        redis.zadd(QUEUE, {json.dumps({"id": "r", "deadline": deadline, "payload": {}}): deadline})

        def values() -> dict[str, float]:
            return {trigger.name: trigger.measure(redis) for trigger in scaling.triggers}

        with running(["poll"], {"REDIS_URL": server.url, "METRICS_PORT": "0"}, tmp_path / "log"):

            def waits_for_its_retry() -> bool:
                now = values()
                return scaling.is_active(now) and now["retry"] == 1 and now["pending"] == 0

            wait_until(waits_for_its_retry, "an active ScaledObject though nothing is pending")

            def gets_a_past_deadline() -> bool:
                for member in cast("list[bytes]", redis.zrange(RETRIES, 0, -1)):
                    past = member.replace(b"%d" % deadline, b"%d" % (deadline - 7_200))
                    if redis.zrem(RETRIES, member):
                        return bool(redis.zadd(RETRIES, {past: 0}))
                return False  # the poller has just claimed it

            wait_until(gets_a_past_deadline, "the retry to wait again")
            wait_until(lambda: redis.llen("result-list"), "the result after the deadline")
            wait_until(lambda: not scaling.is_active(values()), "nothing left that keeps a poller")
    keys = queue_keys(QUEUE)
    assert f"`ZCARD {RETRIES}`, `HLEN {keys.claimed}`" in README


def test_a_longer_cooldown_keeps_the_poller_in_a_pause() -> None:
    (manifest,) = of_kind(render(ROOT / "keda"), "ScaledObject")
    idle = {"pending": 0.0, "retry": 0.0, "claimed": 0.0}

    def replicas(cooldown: int) -> list[int]:
        """The number every 2 s; one request arrives every 90 s, and is gone at the next poll."""
        manifest["spec"]["cooldownPeriod"] = cooldown
        scaler = Autoscaler(Scaling.read(manifest))
        return [scaler.decide(idle | {"pending": float(now % 90 == 0)}, now) for now in range(0, 900, 2)]

    assert set(replicas(manifest["spec"]["cooldownPeriod"])) == {0, 1}
    assert set(replicas(120)) == {1}
    assert "pauses between requests are longer than `cooldownPeriod`" in README


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
            push = urllib.request.Request(url, json.dumps(frame).encode(), {"content-type": "application/json"})
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(push, timeout=60)
            assert "403" in line_with(log, "told to fail")
    assert "the log has 403 | the publisher's grant is missing | grant `roles/pubsub.publisher`" in KNATIVE


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
    assert "the setting that the last line of the log names" in KNATIVE


@pytest.mark.parametrize("door", ["push", "dispatch"])
def test_the_account_can_be_applied_before_the_door(door: str) -> None:
    (account,) = render(ROOT / "knative/base" / door / "account")
    (service,) = of_kind(render(ROOT / "knative/base" / door), "Service")
    assert account["kind"] == "ServiceAccount"
    assert account["metadata"]["name"] == service["spec"]["template"]["spec"]["serviceAccountName"]
    assert "first apply `-k knative/base/push/account` (or `dispatch/account`)" in KNATIVE


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
    with Redis.from_url(server.url, socket_timeout=60) as admin:
        admin.config_set("requirepass", PASSWORD)
    port = free_port()
    variables = {"REDIS_URL": server.url, "REDIS_TIMEOUT_SECONDS": "60"}
    with running(["status", "--port", str(port)], variables, tmp_path / "log"):
        wait_until(lambda: is_listening(port), "the page's port")
        with pytest.raises(urllib.error.HTTPError, match="503") as found:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60)
        page = found.value.read().decode()
    assert "Redis does not answer" in page
    assert "requires a password" in page
    assert "the status page reports that Redis does not answer | a wrong user" in README


def test_a_port_that_is_closed_to_the_status_page_is_named(tmp_path: Path) -> None:
    closed, port = free_port(), free_port()
    variables = {"REDIS_URL": f"redis://127.0.0.1:{closed}/0", "REDIS_TIMEOUT_SECONDS": "60"}
    with running(["status", "--port", str(port)], variables, tmp_path / "log"):
        wait_until(lambda: is_listening(port), "the page's port")
        with pytest.raises(urllib.error.HTTPError, match="503") as found:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60)
        page = found.value.read().decode()
    assert "Redis does not answer" in page
    assert f"127.0.0.1:{closed}" in page, "the error that the row refers to"
    assert "the page shows the error" in README


def test_the_status_page_gets_the_ca_of_components_below_it_only(tmp_path: Path) -> None:
    for tree in ("knative", "keda"):
        shutil.copytree(ROOT / tree, tmp_path / tree)
    menu = tmp_path / "keda/kustomization.yaml"
    head = menu.read_text()

    def volumes(*components: str) -> set[str]:
        menu.write_text(head + "".join(f"  - components/{name}\n" for name in components))
        (page,) = [pod for pod in pods(render_fresh(tmp_path / "keda")) if "status" in pod.name]
        return {volume["name"] for volume in page.spec.get("volumes", [])}

    assert volumes("status-page", "redis-tls") > volumes("redis-tls", "status-page")
    assert "the TLS component above `status-page` in the menu" in README


def sources(objects: list[Manifest]) -> list[str]:
    """Where the poller's environment comes from, in order; of two values the later one wins."""
    (poller,) = [pod for pod in pods(objects) if pod.name.endswith("poller")]
    return [next(iter(source)) for source in poller.spec["containers"][0]["envFrom"]]


def test_check_prints_the_value_that_won(server: Valkey) -> None:
    assert sources(render(ROOT / "keda")) == ["configMapRef", "secretRef"]
    environment = {
        "PATH": os.environ["PATH"],
        "IGW_BASE_URL": "http://127.0.0.1:9",
        "REDIS_URL": server.url,
        "REQUEST_QUEUE_NAME": "of-another-clone",
    }
    done = subprocess.run([COMMAND, "check"], env=environment, capture_output=True, text=True, check=False)
    assert re.search(r"^ *REQUEST_QUEUE_NAME\b.*of-another-clone", done.stdout, re.M)
    assert "kubectl exec deploy/async-processor-poller -- async-processor check" in README


async def test_a_door_that_is_not_ready_is_in_the_pollers_log(server: Valkey, tmp_path: Path) -> None:
    """Knative's activator answers 503 while no handler is ready."""
    member = json.dumps({"id": "r", "deadline": 1_999_999_999, "payload": {}})
    with Redis.from_url(server.url, socket_timeout=60) as admin:
        admin.zadd(QUEUE, {member: 1_999_999_999})
        async with running_raw_http() as activator:
            activator.reply(answer(503, b"no ready address"))
            variables = {"REDIS_URL": server.url, "METRICS_PORT": "0", "HANDLER_URL": activator.url}
            with running(["poll"], variables, tmp_path / "log") as log:
                await wait_until_async(lambda: '"reason":"handler_unavailable"' in log.read_text(), "the line")
                await wait_until_async(lambda: admin.zcard(RETRIES), "the retry")
    assert "`retry` with `reason=handler_unavailable` in the poller's log | dispatch door not ready" in README


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
    with Redis.from_url(server.url, socket_timeout=60) as admin:
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


@contextlib.asynccontextmanager
async def pushed(
    emulator: PubSubEmulator, gateway: RawHttp, variables: dict[str, str], log: Path
) -> AsyncIterator[Path]:
    """A push door and one request for it; the ack deadline is the shortest, 10 s. Gives the door's log."""
    port, host, project = free_port(), emulator.host, f"p{uuid.uuid4().hex[:12]}"
    wanted = layout(
        LayoutOptions(
            project_id=project,
            push_endpoint=f"http://127.0.0.1:{port}/",
            ack_deadline_seconds=10,
            minimum_backoff_seconds=0,  # with another one, the emulator loses deliveries
            maximum_backoff_seconds=0,
        )
    )
    own = {
        "IGW_BASE_URL": gateway.url,
        "PUBSUB_EMULATOR_HOST": host,
        "PROJECT_ID": project,
        "RESULT_TOPIC_ID": RESULT_TOPIC,
        "PUSH_AUTH": "none",
        "SHUTDOWN_GRACE_SECONDS": "1",  # the gateway never answers
    }
    async with PubSubChannel(PubSubOptions(project_id=project, emulator_host=host)) as channel:
        async for _ in set_up(channel, wanted):
            pass
        door = ["serve", "--target", "pubsub_push", "--port", str(port), "--host", "127.0.0.1"]
        with running(door, own | variables, log):
            await wait_until_async(lambda: '"event":"ready"' in log.read_text(), "the door")
            async with Publisher(channel) as publisher:
                await publisher.publish(REQUEST_TOPIC, b'{"id":"r","payload":{},"deadline":1999999999}', {})
            yield log


async def delivered_twice(
    emulator: PubSubEmulator, variables: dict[str, str], log: Path, *, is_once_at_a_time: bool
) -> None:
    """Two deliveries to a gateway that never answers; the door ended the first attempt, or did not."""
    async with running_raw_http() as gateway:
        gateway.reply(Answer(end=End.HANG))
        async with pushed(emulator, gateway, variables, log):
            await wait_until_async(lambda: len(gateway.received) >= 2, "the second delivery")
            timeout = '"reason":"timeout"'
            if is_once_at_a_time:
                await wait_until_async(lambda: timeout in log.read_text(), "the first attempt to be ended")
            assert (timeout in log.read_text()) == is_once_at_a_time, variables


async def test_a_request_longer_than_the_ack_deadline_runs_twice_at_once(
    pubsub_emulator: PubSubEmulator, tmp_path: Path
) -> None:
    """Or once at a time, if the door knows the deadline: it ends the first attempt, and nacks, before the next."""
    knows = {"ACK_DEADLINE_SECONDS": "10"}
    await asyncio.gather(
        delivered_twice(pubsub_emulator, {}, tmp_path / "expects-600-s", is_once_at_a_time=False),
        delivered_twice(pubsub_emulator, knows, tmp_path / "knows", is_once_at_a_time=True),
    )
    assert "the request takes longer than the ack deadline" in KNATIVE
    assert "and the same `ACK_DEADLINE_SECONDS`" in KNATIVE
