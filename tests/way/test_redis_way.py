"""End to end on Redis: each member of the sorted set ends as one result."""

from __future__ import annotations

import re
import time
from typing import Any, cast

import msgspec
import pytest
import redis

from tests.waiting import wait_until

QUEUE, RESULTS, RETRIES = "request-sortedset", "result-list", "retry-sortedset"
GUIDES_REQUEST = (
    '{"id" : "testmsg", "payload":{ "model":"your-model", "prompt":"Hi, good morning "}, "deadline" :"1999999999" }'
)


def results_of(store: redis.Redis, count: int) -> list[dict[str, Any]]:
    """The next `count` results, oldest first."""
    found: list[dict[str, Any]] = []

    def take() -> bool:
        while (text := store.rpop(RESULTS)) is not None:
            found.append(msgspec.json.decode(text))  # type: ignore[arg-type]  # a synchronous client's reply
        return len(found) >= count

    wait_until(take, what=f"{count} results")
    return found


def is_clean(store: redis.Redis) -> bool:
    """Whether finished requests have left nothing but dead letters and keys that expire within a minute."""
    keys = {key.decode() for key in store.scan_iter() if not re.search(rb":settled:|:status:|^request-sent:", key)}
    return keys <= {f"{QUEUE}:dead"}


def test_the_guides_own_commands_work_as_written(store: redis.Redis) -> None:
    store.execute_command("ZADD", QUEUE, "1999999999", GUIDES_REQUEST)  # type: ignore[no-untyped-call]  # untyped

    (result,) = results_of(store, 1)

    assert result["id"] == "testmsg"
    assert result["status_code"] == 200
    assert "choices" in msgspec.json.decode(result["payload"])
    wait_until(lambda: is_clean(store), what="no key left")


def test_the_result_of_an_envelope_has_its_token_and_goes_to_its_own_list(store: redis.Redis) -> None:
    body = '{"id":"e1","created":1700000000,"deadline":1999999999,"payload":{"model":"m"}}'
    envelope = (
        '{"internal":{"request_token":"t-1","result_queue_name":"own-results"},"request_kind":"redis","data":'
        + body
        + "}"
    )
    store.set("request-active:e1", "t-1", ex=600)
    store.zadd(QUEUE, {envelope: 1999999999.25})

    text = store.brpop(["own-results"], timeout=60)

    assert text is not None
    result = msgspec.json.decode(text[1])
    assert (result["id"], result["request_token"], result["status_code"]) == ("e1", "t-1", 200)
    wait_until(lambda: is_clean(store), what="the marker of the live submission gone")


@pytest.mark.parametrize(
    ("member", "field"),
    [
        ('{"id":"b1","payload":{}}', "deadline"),
        ('{"id":"b2","payload":{},"deadline":-5}', "deadline"),
        ('{"id":"b3","payload":{},"deadline":"soon"}', "deadline"),
        ('{"id":"b4","payload":[1],"deadline":1999999999}', "payload"),
        ('{"id":"b5","deadline":1999999999}', "payload"),
        ('{"id":"b6","payload":{},"deadline":1999999999,"metadata":{"a":1}}', "metadata"),
        ('{"id":"b7","payload":{},"deadline":1999999999,"endpoint":"//evil/x"}', "endpoint"),
        ('{"id":"b8","payload":{"a":' + "[" * 10_001 + "]" * 10_001 + '},"deadline":1999999999}', "body"),
        ('{"id":"b9","payload":{"a":"' + "x" * 10_500_000 + '"},"deadline":1999999999}', "body"),
    ],
    ids=lambda value: value[:40],
)
def test_a_bad_request_gets_a_result_that_names_the_field(store: redis.Redis, member: str, field: str) -> None:
    store.zadd(QUEUE, {member: 1})

    (result,) = results_of(store, 1)

    assert result["id"] == member[7:9]
    assert result["error_code"] == "INVALID_REQUEST"
    assert result["error_message"].startswith(field)


@pytest.mark.parametrize(
    "member", [b"no JSON", b"[]", b'{"payload":{},"deadline":1999999999}', b"\xff\xfe", b'{"id":7}', b""]
)
def test_a_request_without_an_id_is_dead_lettered(store: redis.Redis, member: bytes) -> None:
    before = store.hlen(f"{QUEUE}:dead")
    store.zadd(QUEUE, {member: 1})

    wait_until(
        lambda: store.hlen(f"{QUEUE}:dead") == before + 1,
        what="a dead letter",
    )
    assert not store.llen(RESULTS)


def test_invalid_utf8_is_accepted_as_the_reference_accepts_it(store: redis.Redis) -> None:
    store.zadd(QUEUE, {b'{"id":"u1","payload":{"a":"\xff"},"deadline":1999999999}': 1})

    (result,) = results_of(store, 1)

    assert (result["id"], result["status_code"]) == ("u1", 200)


def test_a_request_that_expires_in_the_queue_gets_deadline_exceeded(store: redis.Redis) -> None:
    store.zadd(QUEUE, {'{"id":"old","payload":{},"deadline":1000000000}': 1_000_000_000})

    (result,) = results_of(store, 1)

    assert (result["id"], result["error_code"]) == ("old", "DEADLINE_EXCEEDED")


def test_a_refused_request_is_retried_and_answered(store: redis.Redis) -> None:
    simulate = '{"key":"r1","status":503,"times":1,"retry_after":"600"}'
    store.zadd(QUEUE, {f'{{"id":"r1","payload":{{"simulate":{simulate}}},"deadline":1999999999,"x":[1.10]}}': 1})

    (waiting,) = cast(
        "list[bytes]", wait_until(lambda: store.zrange(RETRIES, 0, -1), what="the request in the retry set")
    )
    assert b'"x":[1.10]' in waiting, "unknown fields are kept byte for byte"
    store.zadd(RETRIES, {waiting: 1})  # due now, not in ten minutes
    (result,) = results_of(store, 1)

    assert (result["id"], result["status_code"]) == ("r1", 200)
    wait_until(lambda: is_clean(store), what="no key left")


def test_two_thousand_requests_at_once_are_all_answered_once(store: redis.Redis) -> None:
    bodies = {
        msgspec.json.encode({"id": f"n{n}", "payload": {"prompt": str(n)}, "deadline": 1_999_999_999}): n
        for n in range(2_000)
    }
    store.zadd(QUEUE, bodies)

    results = results_of(store, len(bodies))

    assert sorted(result["id"] for result in results) == sorted(f"n{n}" for n in range(2_000))
    wait_until(lambda: is_clean(store), what="no key left")


def test_a_result_list_of_another_type_loses_no_result(store: redis.Redis) -> None:
    store.set("no-result-list", "x")
    store.zadd(QUEUE, {'{"id":"w1","payload":{},"deadline":1999999999,"result_queue_name":"no-result-list"}': 1})

    (result,) = results_of(store, 1)

    store.delete("no-result-list")
    assert (result["id"], result["status_code"]) == ("w1", 200)


def test_an_id_that_is_queued_twice_at_once_is_answered_twice(store: redis.Redis) -> None:
    now = int(time.time())
    for prompt in ("one", "two"):
        body = msgspec.json.encode({"id": "twin", "payload": {"prompt": prompt}, "deadline": now + 600})
        store.zadd(QUEUE, {body: now + 600})

    assert [result["id"] for result in results_of(store, 2)] == ["twin", "twin"]


def offloaded(request_id: str) -> tuple[str, str]:
    """An envelope without its payload, and the key of the payload."""
    key = f"request-payload:{request_id}:t"
    internal = f'{{"request_token":"t","payload_ref":"{key}"}}'
    body = f'{{"id":"{request_id}","deadline":1999999999}}'
    return f'{{"internal":{internal},"request_kind":"redis","data":{body}}}', key


def test_an_offloaded_payload_is_read_and_deleted(store: redis.Redis) -> None:
    member, key = offloaded("apart-1")
    store.set(key, '{"prompt":"Hi","max_tokens":3}', ex=600)
    store.zadd(QUEUE, {member: 1_999_999_999})

    (result,) = results_of(store, 1)

    assert result["status_code"] == 200
    assert msgspec.json.decode(result["payload"])["usage"]["completion_tokens"] == 3
    wait_until(lambda: store.exists(key) == 0, what="the payload's key gone")


def test_a_missing_payload_gives_payload_unavailable(store: redis.Redis) -> None:
    member, _ = offloaded("apart-2")
    store.zadd(QUEUE, {member: 1_999_999_999})

    (result,) = results_of(store, 1)

    assert (result["id"], result["error_code"]) == ("apart-2", "PAYLOAD_UNAVAILABLE")
