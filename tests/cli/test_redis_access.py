"""Commands reach a Redis with the variables that a poller's user, password and certificates are in."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from handlers.cli.flags import QueueFlags
from handlers.client import Client, RedisAccess
from handlers.client.options import ClientOptions
from handlers.contract.errors import InvalidSetting
from handlers.redis_store.submit.submissions import client_options
from handlers.settings.settings import load_settings
from handlers.wiring.credentials import redis_options
from tests.servers.certificates import self_signed
from tests.servers.forked import COMMAND, LONG_REDIS_TIMEOUT, ForkedChild, run_forked, running_gateway
from tests.servers.presence import redis_program
from tests.servers.redis_topologies import Server

pytestmark = pytest.mark.xdist_group("redis-access")
SECRET = "canary-of-access"


class Locked:
    """A server that accepts only TLS, a client certificate and its password."""

    def __init__(self, server: Server, pem: Path, folder: Path) -> None:
        self.server = server
        self.pem = str(pem)
        self.password_file = folder / "password"
        self.password_file.write_text(f"{SECRET}\n")
        self.url = f"rediss://127.0.0.1:{server.port}"
        self.queue = f"requests-{uuid.uuid4().hex}"

    @property
    def variables(self) -> dict[str, str]:
        """As a poller has them."""
        files = dict.fromkeys(("REDIS_CA_FILE", "REDIS_CERT_FILE", "REDIS_KEY_FILE"), self.pem)
        named = {"REDIS_URL": self.url, "REQUEST_QUEUE_NAME": self.queue}
        return {**LONG_REDIS_TIMEOUT, **named, **files, "REDIS_PASSWORD_FILE": str(self.password_file)}

    def run(self, *arguments: str, without: str = "") -> subprocess.CompletedProcess[str]:
        given = {name: value for name, value in self.variables.items() if name != without}
        return run_forked([COMMAND, *arguments], given)


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Locked]:
    program = redis_program()
    pem = self_signed(tmp_path)
    server = Server(program, "--requirepass", SECRET, tls=pem)
    yield Locked(server, pem, tmp_path)
    server.stop()


def test_every_command_signs_in_with_the_variables_of_a_poller(locked: Locked, tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "m"}}\n')
    sent = locked.run("submit", "--prompt", "hi", "--model", "m", "--id", "one")
    assert (sent.returncode, sent.stdout.strip()) == (0, "one"), sent.stderr
    assert locked.run("results", "--for", "0s").returncode == 0
    assert locked.run("cancel", "one").stdout == "one cancelled\n"
    assert locked.run("dead", "list").returncode == 0
    assert locked.run("top", "--once").returncode == 0
    with running_gateway() as gateway:
        variables = {**locked.variables, "IGW_BASE_URL": gateway, "METRICS_PORT": "0"}
        with ForkedChild("poller", [COMMAND, "poll"], variables):
            batch = locked.run("batch", "run", str(lines), "--out", str(tmp_path / "out.jsonl"))
    assert "done: 1 answered" in batch.stderr, batch.stderr
    door = ["cancel", "--from", "pubsub", "--dedupe-redis-url", locked.url, "one"]
    assert locked.run(*door).returncode == 0


@pytest.mark.parametrize(
    ("without", "reported"),
    [
        ("REDIS_PASSWORD_FILE", "requires a password"),
        ("REDIS_CA_FILE", "set REDIS_CA_FILE to its CA"),
        ("REDIS_CERT_FILE", "without REDIS_CERT_FILE"),
    ],
)
def test_missing_servers_are_named_without_a_traceback(locked: Locked, without: str, reported: str) -> None:
    for command in (["submit", "--prompt", "hi", "--model", "m"], ["dead", "list"], ["cancel", "x"]):
        failed = locked.run(*command, without=without)
        assert failed.returncode == 4
        assert reported in failed.stderr
        assert failed.stderr.count("\n") <= 2, failed.stderr
        assert "Traceback" not in failed.stderr
        assert SECRET not in failed.stdout + failed.stderr


def test_refused_credentials_get_one_hint(locked: Locked) -> None:
    locked.password_file.write_text("wrong")
    for command in (
        ["submit", "--prompt", "hi", "--model", "m"],
        ["dead", "list"],
        ["check", "--only", "redis"],
    ):
        failed = locked.run(*command)
        shown = failed.stdout + failed.stderr
        assert "check REDIS_USERNAME and REDIS_PASSWORD_FILE" in shown
        assert "Set its address" not in shown
        assert "check REDIS_URL" not in shown


def test_a_password_that_rotates_is_read_for_the_next_connection(locked: Locked) -> None:
    access = RedisAccess("", "", str(locked.password_file), locked.pem, locked.pem, locked.pem, timeout_seconds=60)
    with Client.for_redis(locked.url, ClientOptions(queue=locked.queue), access) as client:
        client.submit({}, deadline=timedelta(minutes=1))
        with locked.server.client(password=SECRET) as admin:
            admin.config_set("requirepass", "another")
            locked.password_file.write_text("another")
            admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        client.submit({}, deadline=timedelta(minutes=1))
    with locked.server.client(password="another") as admin:
        assert admin.zcard(locked.queue) == 2


def test_flags_and_access_show_no_password() -> None:
    variables = {"REDIS_PASSWORD": SECRET}
    flags = QueueFlags(variables=variables)
    assert flags.access.password == SECRET
    assert SECRET not in repr(flags) + repr(flags.access)


@pytest.mark.parametrize(("variable", "seconds"), [("", 2.0), ("7", 7.0)])
def test_commands_wait_as_long_for_a_connection_as_a_poller_does(variable: str, seconds: float) -> None:
    access = QueueFlags(variables={"REDIS_TIMEOUT_SECONDS": variable}).access
    assert client_options("redis://h", access).connect_timeout_seconds == seconds
    settings = load_settings({"IGW_BASE_URL": "http://h", "REDIS_TIMEOUT_SECONDS": variable})
    assert redis_options(settings).connect_timeout_seconds == seconds


@pytest.mark.parametrize("wrong", ["soon", "0", "61", "nan"])
def test_an_invalid_time_limit_is_refused_by_its_name(wrong: str) -> None:
    with pytest.raises(InvalidSetting, match="REDIS_TIMEOUT_SECONDS"):
        _ = QueueFlags(variables={"REDIS_TIMEOUT_SECONDS": wrong}).access
