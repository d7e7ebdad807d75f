"""`async-processor pubsub` as a user meets it: output and exit codes, on the emulator."""

from __future__ import annotations

import uuid

import pytest
from click.testing import CliRunner, Result

from handlers.cli.pubsub import pubsub
from handlers.demo.pubsub_emulator import PubSubEmulator

NOBODY = "127.0.0.1:9"
"""The discard port, on which nothing listens here."""


class Command:
    """The command on one project of the emulator at `host`."""

    def __init__(self, host: str) -> None:
        self._where = ["--project", f"p{uuid.uuid4().hex[:12]}", "--emulator-host", host]

    def __call__(self, name: str, *arguments: str) -> Result:
        if name == "setup" and "--push-endpoint" not in arguments:
            arguments = ("--push-endpoint", "http://127.0.0.1:9/", *arguments)
        return CliRunner().invoke(pubsub, [name, *self._where, *arguments])


@pytest.fixture
def command(pubsub_emulator: PubSubEmulator) -> Command:
    return Command(pubsub_emulator.host)


def test_a_dry_run_shows_all_changes_nothing_and_exits_1(command: Command) -> None:
    for _ in range(2):
        shown = command("setup", "--dry-run")
        assert shown.exit_code == 1, shown.output
        assert shown.output.count("+ topic") == 3
        assert shown.output.count("+ subscription") == 4
        assert "max_delivery_attempts: 35" in shown.output
        assert "7 would be created, 0 to correct; 0 resources as wanted" in shown.output


def test_setup_twice_is_a_no_op_and_a_difference_exits_1_with_the_command_that_corrects_it(command: Command) -> None:
    assert command("setup").exit_code == 0
    again = command("setup")
    assert again.exit_code == 0
    assert "0 created, 0 to correct; 7 resources as wanted" in again.output
    for arguments in (["--dry-run"], []):
        changed = command("setup", "--ack-deadline", "5m", *arguments)
        assert changed.exit_code == 1
        assert "! subscription async-proc-requests-sub" in changed.output
        assert "ack_deadline_seconds: expected 300, got 600" in changed.output
        assert "subscriptions/async-proc-requests-sub --ack-deadline=300\n" in changed.output


def test_setup_warns_of_the_emulators_loss_of_nacked_requests(command: Command) -> None:
    without = command("setup", "--min-retry-delay", "0s", "--max-retry-delay", "0s")
    assert without.exit_code == 0, without.output
    assert "never redeliver" not in without.output
    assert "never redeliver" in command("setup").output


def test_a_filter_that_cannot_change_names_the_command_that_deletes_the_subscription(command: Command) -> None:
    command("setup")
    refused = command("setup", "--filter", "attributes:x")
    assert refused.exit_code == 1
    assert "filter: expected attributes:x, got none" in refused.output
    assert "gcloud pubsub subscriptions delete" in refused.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ack-deadline", "601"], "ack_deadline_seconds"),
        (["--ack-deadline", "soon"], "expected a duration"),
        (["--push-endpoint", "push.example.com"], "push_endpoint"),
        (["--push-audience", "a"], "push_service_account"),
        (["--request-topic", "x"], "3 to 255 letters"),
    ],
)
def test_wrong_settings_exit_2_and_are_named(arguments: list[str], message: str) -> None:
    refused = Command(NOBODY)("setup", *arguments)
    assert refused.exit_code == 2
    assert message in refused.output


def test_a_broker_that_does_not_answer_exits_4() -> None:
    refused = Command(NOBODY)("setup")
    assert refused.exit_code == 4
    assert "503" in refused.output
