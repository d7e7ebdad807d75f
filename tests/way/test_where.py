"""`where`, `look_up` and the page distinguish finished, cancelled, dead-lettered and unknown requests."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner, Result
from flask import Request
from werkzeug.test import EnvironBuilder

from handlers.cli import main
from handlers.client import Client, ClientOptions, RequestState, UnknownRequest
from handlers.contract.result import ErrorCode
from handlers.demo.stack import Stack
from handlers.settings.settings import load_settings
from handlers.status.page import OwnHosts, StatusPages
from handlers.wiring.status_page import RedisSource
from tests.servers.forked import LONG_REDIS_TIMEOUT
from tests.servers.valkey import LONG_LIMIT
from tests.waiting import wait_until

HOUR = timedelta(hours=1)
REFUSED = {"simulate": {"status": 429, "retry_after": "3000"}}


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with Client.for_redis(stack.redis_url, access=LONG_LIMIT) as opened:
        yield opened


def run(stack: Stack, *arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), env={"REDIS_URL": stack.redis_url, **LONG_REDIS_TIMEOUT})


def state_of(stack: Stack, request_id: str) -> str:
    return str(json.loads(run(stack, "where", request_id, "--json").stdout)["state"])


def page_text(stack: Stack, request_id: str) -> str:
    builder = EnvironBuilder("/find", query_string={"id": request_id}, base_url="http://127.0.0.1/")
    with RedisSource(load_settings({"REDIS_URL": stack.redis_url, **LONG_REDIS_TIMEOUT})) as source:
        pages = StatusPages(source, tuple, OwnHosts("127.0.0.1"))
        return pages.respond(Request(builder.get_environ())).get_data(as_text=True)


def test_a_finished_request_is_found_with_its_result_and_without_it(
    stack: Stack, store: redis.Redis, client: Client
) -> None:
    submission = client.submit({"prompt": "Hi"}, deadline=HOUR, id="where-done")
    wait_until(lambda: store.llen("result-list"), "the result")
    wait_until(lambda: store.hexists("{async-processor}:status:finished", "where-done"), "its record")
    shown = run(stack, "where", "where-done")
    assert (shown.exit_code, "HTTP 200" in shown.stdout) == (0, True)
    assert "is in result-list, waiting to be read" in shown.stdout
    wait_until(lambda: "waiting to be read" in page_text(stack, "where-done"), "the same on the page")

    store.delete("result-list")
    shown = run(stack, "where", "where-done")
    assert "its result was written to result-list and is no longer in it" in shown.stdout
    assert "taken" not in page_text(stack, "where-done")
    assert client.look_up("where-done") is client.look_up(submission) is RequestState.FINISHED
    assert client.where("where-done").state is RequestState.FINISHED
    assert "not cancelled: finished at" in run(stack, "cancel", "where-done").stdout


def test_a_result_without_a_record_is_found_in_its_list(stack: Stack, store: redis.Redis) -> None:
    for number in range(120):
        store.lpush("result-list", json.dumps({"id": f"other-{number}", "status_code": 200, "payload": ""}))
    store.rpush("result-list", json.dumps({"id": "where-old", "status_code": 200, "payload": ""}))
    try:
        assert state_of(stack, "where-old") == "finished"
        assert "(HTTP 200) is in" in page_text(stack, "where-old")
    finally:
        store.delete("result-list")


def test_a_request_waits_for_its_retry_then_it_is_cancelled(stack: Stack, store: redis.Redis, client: Client) -> None:
    client.submit(REFUSED, deadline=HOUR, id="where-cancelled")
    wait_until(lambda: client.look_up("where-cancelled") is RequestState.RETRYING, "its retry")
    wait_until(
        lambda: "waiting for a retry" in run(stack, "where", "where-cancelled").stdout,
        "the retry to be shown",
    )
    assert run(stack, "cancel", "where-cancelled").exit_code == 0
    wait_until(lambda: state_of(stack, "where-cancelled") == "cancelled", "its cancellation")
    wait_until(lambda: client.look_up("where-cancelled") is RequestState.CANCELLED, "its record")
    wait_until(lambda: ErrorCode.CANCELLED in page_text(stack, "where-cancelled"), "its error on the page")
    store.delete("result-list")


def test_a_dead_letter_is_shown_with_the_id_that_dead_show_takes(stack: Stack, store: redis.Redis) -> None:
    letter = {"reason": "UNDELIVERABLE", "at": time.time(), "member": '{"id": "where-dead"}'}
    store.hset("request-sortedset:dead", "0123456789abcdef0123456789abcdef01234567", json.dumps(letter))
    try:
        assert state_of(stack, "where-dead") == "dead-lettered"
        assert "dead show 0123456789abcdef0123456789abcdef01234567 --queue " in run(stack, "where", "where-dead").stdout
        assert "0123456789abcdef0123456789abcdef01234567" in page_text(stack, "where-dead")
    finally:
        store.delete("request-sortedset:dead")


def test_a_requeued_dead_letter_is_shown_with_the_result_of_its_first_run(
    stack: Stack, store: redis.Redis, client: Client
) -> None:
    member = json.dumps({"id": "where-again", "deadline": time.time() + 3600, "payload": REFUSED})
    letter = {"reason": "UNDELIVERABLE", "at": time.time(), "score": time.time() + 3600, "member": member}
    store.hset("request-sortedset:dead", "a" * 40, json.dumps(letter))
    record = ["", "UNDELIVERABLE", time.time(), "request-sortedset", "result-list", True]
    store.hset("{async-processor}:status:finished", "where-again", json.dumps(record))
    store.lpush("result-list", json.dumps({"id": "where-again", "error_code": "UNDELIVERABLE", "payload": ""}))
    try:
        assert client.look_up("where-again") is RequestState.DEAD_LETTERED
        assert "earlier run" not in run(stack, "where", "where-again").stdout + page_text(stack, "where-again")
        assert run(stack, "dead", "requeue", "aaaa").stdout == "1 queued again\n"
        wait_until(lambda: client.look_up("where-again") is RequestState.RETRYING, "the retry of its second run")
        shown = (
            "where-again  waiting for a retry",
            "where-again  an earlier run finished at ",
            "the earlier run's result (UNDELIVERABLE) is in result-list, waiting to be read",
        )
        wait_until(lambda: all(text in run(stack, "where", "where-again").stdout for text in shown), "both runs")
        on_page = (
            "An earlier run finished",
            "The earlier run&#39;s result (UNDELIVERABLE) is in <code>result-list</code>",
        )
        wait_until(lambda: all(text in page_text(stack, "where-again") for text in on_page), "both runs on the page")
        wait_until(lambda: client.where("where-again").is_run_again, "the same in Python")
    finally:
        store.delete("request-sortedset:dead", "result-list", "retry-sortedset")
        store.hdel("{async-processor}:status:finished", "where-again")


def test_an_unknown_id_is_called_unknown_and_waiting_for_it_fails_at_once(stack: Stack, client: Client) -> None:
    shown = run(stack, "where", "where-never")
    assert (shown.exit_code, "where-never  unknown" in shown.stdout) == (1, True)
    assert "unknown in this queue" in run(stack, "cancel", "where-never").stdout
    assert "It is unknown" in page_text(stack, "where-never")
    with pytest.raises(UnknownRequest, match="where-never"):
        client.wait("where-never")


def test_cancel_reports_that_a_bare_member_cannot_be_cancelled(stack: Stack, store: redis.Redis) -> None:
    bare = json.dumps({"id": "where-bare", "deadline": time.time() + 60, "payload": REFUSED})
    store.zadd("other-queue", {bare: time.time() + 60})
    shown = run(stack, "cancel", "--queue", "other-queue", "where-bare")
    assert "has no token, so it cannot be cancelled" in shown.stdout
    store.delete("other-queue")


def test_every_queue_of_the_configuration_file_is_searched(stack: Stack, store: redis.Redis, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("queues: [{queue_name: first-queue}, {queue_name: rq}]\n", encoding="utf-8")
    env = {"REDIS_URL": stack.redis_url, "CONFIG_FILE": str(config), **LONG_REDIS_TIMEOUT}
    with Client.for_redis(stack.redis_url, ClientOptions(queue="rq"), LONG_LIMIT) as other:
        other.submit({"prompt": "x"}, deadline=HOUR, id="where-rq")
    try:
        shown = CliRunner().invoke(main, ["where", "where-rq"], env=env)
        assert "where-rq  queued, queue rq, no attempt yet" in shown.stdout
        assert "no poller reported queue rq" in shown.stderr

        given = CliRunner().invoke(main, ["where", "where-rq", "--queue", "first-queue", "--json"], env=env)
        assert (json.loads(given.stdout)["state"], given.exit_code) == ("elsewhere", 0)
        unseen = "live, but not found in the searched queues"
        assert unseen in run(stack, "where", "where-rq").stdout
        assert unseen in page_text(stack, "where-rq")
    finally:
        store.delete("rq", "request-active:where-rq", "request-submitted:where-rq")


def test_an_id_inside_another_dead_letter_is_only_a_mention(stack: Stack, store: redis.Redis) -> None:
    unreadable = {"reason": "INVALID_REQUEST", "at": time.time(), "member": "no JSON, where-mentioned"}
    readable = {"reason": "UNDELIVERABLE", "at": time.time(), "member": '{"id": "other", "payload": "where-inside"}'}
    store.hset("request-sortedset:dead", mapping={"1" * 40: json.dumps(unreadable), "2" * 40: json.dumps(readable)})
    try:
        label = "mentioned in a dead letter without id"
        assert label in run(stack, "where", "where-mentioned").stdout
        assert label in page_text(stack, "where-mentioned")
        assert state_of(stack, "where-inside") == "unknown"
    finally:
        store.delete("request-sortedset:dead")
