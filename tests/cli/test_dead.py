"""`async-processor dead` as a shell meets it: records that the queue itself wrote, on a real server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import cast

import psutil
import pytest
from click.testing import CliRunner, Result
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from handlers.cli import main
from handlers.contract.errors import InvalidRequest
from handlers.poller.settlement import ResultRoute, dead_record, refuse
from handlers.redis_store.keys import QueueKeys, queue_keys
from handlers.redis_store.queue.queue import Ack, QueueOptions, RedisQueue
from tests.servers.forked import LONG_REDIS_TIMEOUT
from tests.servers.terminal import Terminal
from tests.waiting import wait_until

SCORE = 1_999_999_999 + 3 / 2**21


def good(request_id: str) -> bytes:
    """A member that a poller can send."""
    return json.dumps({"id": request_id, "deadline": 1_999_999_999, "payload": {}}).encode()


class Dead:
    """A queue with dead letters, and the command for it."""

    def __init__(self, url: str, redis: Redis) -> None:
        self.redis = redis
        self.queue = f"requests-{uuid.uuid4().hex}"
        self.keys: QueueKeys = queue_keys(self.queue)
        self.url = url
        self.env = {"REDIS_URL": url, "REQUEST_QUEUE_NAME": self.queue, **LONG_REDIS_TIMEOUT}

    def open_redis(self) -> AsyncRedis:
        """A client for an event loop; on a busy machine the server may answer late."""
        return AsyncRedis.from_url(self.url, socket_timeout=60, socket_connect_timeout=60)

    def run(self, *arguments: str, width: int = 200) -> Result:
        return CliRunner().invoke(main, ["dead", *arguments], env={**self.env, "COLUMNS": str(width)})

    async def dead_letter(
        self,
        member: bytes,
        message: str = "5 pollers crashed",
        at: float = 1_700_000_000,
        reason: str = "UNDELIVERABLE",
    ) -> str:
        """Claim `member` and acknowledge it as dead; returns the dead letter's id."""
        redis = self.open_redis()
        queue = RedisQueue(redis, self.queue, QueueOptions("retries", "results"))
        await redis.zadd(self.queue, {member: SCORE})
        [claim] = await queue.claim(1)
        before = self._ids()
        record = dead_record(claim, reason, message, at)
        assert await queue.ack([Ack(claim, b"", "results", None, "", "", dead=record)]) == [True]
        await redis.aclose()
        [added] = self._ids() - before
        return added

    def _ids(self) -> set[str]:
        return {key.decode() for key in cast(list[bytes], self.redis.hkeys(self.keys.dead))}

    def pending(self) -> object:
        return self.redis.zrange(self.queue, 0, -1, withscores=True)

    def count(self) -> object:
        return self.redis.hlen(self.keys.dead)


@pytest.fixture
def dead(valkey_url: str, redis: Redis) -> Dead:
    return Dead(valkey_url, redis)


@pytest.mark.parametrize("options", [[], ["--json"]])
async def test_a_reader_that_ends_early_is_no_failure_of_redis(dead: Dead, options: list[str]) -> None:
    await dead.dead_letter(b"x" * 100)
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-u", "-c", "from handlers.cli import main; main()", "dead", "list", *options]
    env = {**os.environ, **dead.env}
    try:
        done = await asyncio.to_thread(
            subprocess.run, command, env=env, stdout=writer, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


async def _in_thread(call: Callable[..., Result], *arguments: str, **options: int) -> Result:
    """Run a command, which has an event loop of its own."""
    return await asyncio.to_thread(call, *arguments, **options)


async def test_list_shows_every_dead_letter_with_its_whole_id_latest_last(dead: Dead) -> None:
    late = await dead.dead_letter(b"late", at=1_700_000_600)
    early = await dead.dead_letter(b"early!", at=1_700_000_000)

    done = await _in_thread(dead.run, "list")

    assert done.exit_code == 0
    assert done.stdout.index(early) < done.stdout.index(late)
    assert "11-14 22:13:20Z" in done.stdout
    assert "UNDELIVERABLE" in done.stdout
    assert "5 pollers crashed" in done.stdout


async def test_list_and_show_name_the_request(dead: Dead) -> None:
    dead_id = await dead.dead_letter(b'{"id": "r1", "deadline": 1999999999, "payload": {}}')
    await dead.dead_letter(b"no json")

    listed = (await _in_thread(dead.run, "list")).stdout
    shown = json.loads((await _in_thread(dead.run, "show", dead_id)).stdout)

    header, named, unnamed = sorted(listed.splitlines(), key=lambda line: ("owners" in line, "no id" in line))
    assert named[header.index("REQUEST") : header.index("MESSAGE")].rstrip() == "r1"
    assert unnamed[header.index("REQUEST") :] == "(no id)  5 pollers crashed"
    assert named[header.index("MESSAGE") :] == "5 pollers crashed"
    assert shown["request_id"] == "r1"


def test_an_empty_list_is_reported(dead: Dead) -> None:
    done = dead.run("list")
    assert (done.exit_code, done.stdout) == (0, f"no dead letters of queue {dead.queue}\n")
    assert f"note: no poller reported queue {dead.queue} in the last" in done.stderr


@pytest.mark.parametrize("message", ["[/nope] [red]", "\x1b[2J\x1b]0;title\x07", "two\nlines", "%s {0}"])
async def test_f76_a_message_cannot_command_the_terminal(dead: Dead, message: str) -> None:
    dead_id = await dead.dead_letter(b"x", message)

    done = await _in_thread(dead.run, "list")

    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.stdout
    assert "\x07" not in done.stdout
    assert len(done.stdout.splitlines()) == 2
    assert dead_id in done.stdout
    if message.isprintable():
        assert message in done.stdout


@pytest.mark.parametrize(
    ("member", "shown"), [('{"id": "r", "é": 1}'.encode(), '{"id": "r", "é": 1}'), (b"\xff\0", "\\xff\0")]
)
async def test_show_prints_the_member_as_it_was_queued(dead: Dead, member: bytes, shown: str) -> None:
    dead_id = await dead.dead_letter(member)

    done = await _in_thread(dead.run, "show", dead_id)

    letter = json.loads(done.stdout)
    assert done.exit_code == 0
    assert letter["member"] == shown
    assert (letter["dead_id"], letter["queue"], letter["score"]) == (dead_id, dead.queue, SCORE)
    assert (letter["reason"], letter["deaths"], letter["at"]) == ("UNDELIVERABLE", 0, 1_700_000_000)


@pytest.mark.parametrize(
    ("member", "options"),
    [(b'{"id": "r",  "deadline": 1999999999, "payload": {}}', []), (b"\xff no json", ["--force"])],
)
async def test_a_requeued_dead_letter_is_pending_unchanged(dead: Dead, member: bytes, options: list[str]) -> None:
    dead_id = await dead.dead_letter(member)

    done = await _in_thread(dead.run, "requeue", dead_id, *options)

    assert (done.exit_code, done.stdout) == (0, "1 queued again\n")
    assert dead.pending() == [(member, SCORE)]
    assert dead.count() == 0


async def test_requeue_and_drop_take_several_or_all(dead: Dead) -> None:
    ids = [await dead.dead_letter(good(f"m-{n}")) for n in range(5)]

    assert (await _in_thread(dead.run, "drop", ids[0], ids[1])).stdout == "2 dropped\n"
    assert (await _in_thread(dead.run, "requeue", ids[2])).stdout == "1 queued again\n"
    assert (await _in_thread(dead.run, "drop", "--all", "--yes")).stdout == "2 dropped\n"

    assert dead.pending() == [(good("m-2"), SCORE)]
    assert not dead.redis.exists(dead.keys.dead)


async def test_printed_ids_and_their_unique_prefixes_are_accepted(
    dead: Dead,
) -> None:
    await dead.dead_letter(good("m-1"))
    await dead.dead_letter(good("m-2"))
    listed = await _in_thread(dead.run, "list", width=80)
    ids = [line.split()[0] for line in listed.stdout.splitlines()[1:]]
    assert (await _in_thread(dead.run, "show", ids[0])).exit_code == 0
    unique = next(ids[1][:length] for length in range(1, 40) if not ids[0].startswith(ids[1][:length]))
    assert (await _in_thread(dead.run, "requeue", unique)).stdout == "1 queued again\n"
    assert (await _in_thread(dead.run, "drop", ids[0][:39])).stdout == "1 dropped\n"


async def test_an_ambiguous_prefix_changes_nothing_and_lists_the_ids(dead: Dead) -> None:
    record = b'{"reason": "X", "at": 1, "member": "m"}'
    for name in ("abc1", "abc2"):
        dead.redis.hset(dead.keys.dead, name, record)
    done = await _in_thread(dead.run, "drop", "abc")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "abc1" in done.stderr
    assert "abc2" in done.stderr
    assert dead.count() == 2


async def test_dropping_all_asks_first_with_the_number(dead: Dead) -> None:
    await dead.dead_letter(b"m-1")
    await dead.dead_letter(b"m-2")
    done = await _in_thread(dead.run, "drop", "--all")
    assert (done.exit_code, dead.count()) == (1, 2)
    assert f"pass --yes to drop 2 dead letters of {dead.queue}" in done.stderr


async def test_dropping_all_without_dead_letters_asks_for_no_confirmation(dead: Dead) -> None:
    done = await _in_thread(dead.run, "drop", "--all")
    assert (done.exit_code, done.output) == (1, f"no dead letters of queue {dead.queue}\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_at_the_question_ends_it_and_drops_nothing(dead: Dead, number: int) -> None:
    await dead.dead_letter(b"m-1")
    with Terminal(["dead", "drop", "--all"], dead.env) as terminal:
        terminal.wait_for("Drop 1 dead letter")
        asking = psutil.Process(terminal.process.pid)
        # Python misses a signal that comes just before it reads from the terminal.
        wait_until(lambda: asking.status() == psutil.STATUS_SLEEPING, "the read of the answer")
        terminal.process.send_signal(number)
        assert terminal.end() == (1 if number == signal.SIGINT else 143)
    assert dead.count() == 1


async def test_a_list_in_json_has_everything_a_program_needs(dead: Dead) -> None:
    dead_id = await dead.dead_letter(b'{"id": "r"}')
    [letter] = map(json.loads, (await _in_thread(dead.run, "list", "--json")).stdout.splitlines())
    assert (letter["dead_id"], letter["reason"], letter["member"]) == (
        dead_id,
        "UNDELIVERABLE",
        '{"id": "r"}',
    )


@pytest.mark.parametrize("command", ["requeue", "drop", "show"])
def test_an_unknown_id_is_reported(dead: Dead, command: str) -> None:
    done = dead.run(command, "nobody")
    assert done.exit_code == 1
    listed = f"`async-processor dead list --queue {dead.queue}` shows them"
    assert f"no dead letter nobody of queue {dead.queue}: {listed}" in done.stderr


async def test_an_unknown_id_does_not_stop_the_requeueing_of_others(dead: Dead) -> None:
    dead_id = await dead.dead_letter(good("m"))

    done = await _in_thread(dead.run, "requeue", "nobody", dead_id)

    assert (done.exit_code, done.stdout) == (1, "1 queued again\n")


@pytest.mark.parametrize("arguments", [(), ("--all", "one")])
@pytest.mark.parametrize("command", ["requeue", "drop"])
def test_requeue_and_drop_need_either_ids_or_all(dead: Dead, command: str, arguments: tuple[str, ...]) -> None:
    assert dead.run(command, *arguments).exit_code == 2


def test_an_unreachable_redis_is_reported_without_its_password(dead: Dead) -> None:
    done = dead.run("list", "--redis-url", "redis://:canary@127.0.0.1:1")
    assert (done.exit_code, "Redis does not answer" in done.stderr) == (4, True)
    assert "canary" not in done.output


async def test_i15_an_unreadable_member_is_kept_with_its_reason(dead: Dead) -> None:
    error = InvalidRequest("body", found="[/x]", accepted="a JSON object")
    redis = dead.open_redis()
    queue = RedisQueue(redis, dead.queue, QueueOptions("retries", "results"))
    await redis.zadd(dead.queue, {b"\xff": 1})
    [claim] = await queue.claim(1)
    await queue.ack([refuse(claim, error, ResultRoute("", None, "results"), now=1.0)])
    await redis.aclose()

    done = await _in_thread(dead.run, "list")

    assert done.exit_code == 0
    assert "INVALID_REQUEST" in done.stdout
    assert "[/x]" in done.stdout


async def test_requeue_skips_what_can_only_fail_again_unless_forced(dead: Dead) -> None:
    broken = await dead.dead_letter(b"no json", reason="INVALID_REQUEST")
    late = await dead.dead_letter(b'{"id": "late", "deadline": 1, "payload": {}}')
    await dead.dead_letter(good("fine"))

    one = await _in_thread(dead.run, "requeue", broken[:8])
    assert (one.exit_code, one.stdout) == (1, "")
    assert f"{broken} can only fail again: " in one.stderr
    assert "--force" in one.stderr
    assert "its deadline has passed" in (await _in_thread(dead.run, "requeue", late)).stderr

    every = await _in_thread(dead.run, "requeue", "--all")
    assert (every.exit_code, every.stdout) == (0, "1 queued again\n")
    assert "2 skipped, which can only fail again; --force queues them too" in every.stderr
    assert (dead.pending(), dead.count()) == ([(good("fine"), SCORE)], 2)

    assert (await _in_thread(dead.run, "requeue", "--all", "--force")).stdout == "2 queued again\n"
    assert dead.count() == 0


async def test_a_reason_selects_dead_letters_and_a_limit_the_newest(dead: Dead) -> None:
    for number in range(3):
        await dead.dead_letter(good(f"r-{number}"), at=1_700_000_000 + number)
    await dead.dead_letter(b"no json", reason="INVALID_REQUEST")

    listed = (await _in_thread(dead.run, "list", "--reason", "undeliverable", "--limit", "2")).stdout
    assert ("r-0" in listed, "r-1" in listed, "r-2" in listed, "INVALID" in listed) == (False, True, True, False)
    none = (await _in_thread(dead.run, "list", "--reason", "OTHER")).stdout
    assert none == f"no dead letters of queue {dead.queue} with the reason OTHER\n"

    asked = await _in_thread(dead.run, "drop", "--reason", "INVALID_REQUEST")
    assert "pass --yes to drop 1 dead letter with the reason INVALID_REQUEST of" in asked.stderr
    assert (await _in_thread(dead.run, "drop", "--reason", "INVALID_REQUEST", "--yes")).stdout == "1 dropped\n"
    assert (await _in_thread(dead.run, "requeue", "--reason", "UNDELIVERABLE")).stdout == "3 queued again\n"
    assert dead.count() == 0


async def test_the_runbooks_dead_letter_for_a_rehearsal_can_be_queued_again(dead: Dead) -> None:
    text = (Path(__file__).parents[2] / "docs/runbook.md").read_text(encoding="utf-8")
    [fields] = re.findall(r"redis-cli HSET request-sortedset:dead (\S+ '.+?')", text)
    dead_id, record = shlex.split(fields)
    dead.redis.hset(dead.keys.dead, dead_id, record)
    assert (await _in_thread(dead.run, "requeue", "--reason", "UNDELIVERABLE")).stdout == "1 queued again\n"
