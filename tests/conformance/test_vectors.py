"""The conformance vectors in both directions: we read what others write, and they read ours."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from handlers.contract.errors import InvalidRequest
from handlers.contract.request import Request, decode_member, encode_retry, score_of
from handlers.contract.result import ErrorCode, answered_result, decode_result, encode_result, error_result
from handlers.forward.forward import gateway_headers
from handlers.forward.outcome import is_final
from handlers.forward.route import Route, gateway_url
from handlers.gates.gate import band_of, labelled
from handlers.redis_store import keys as submission_keys
from handlers.redis_store.keys import queue_keys
from handlers.redis_store.queue.queue import QueueOptions, RedisQueue

VECTORS = Path(__file__).parent / "vectors"
Case = dict[str, Any]


def cases(name: str) -> pytest.MarkDecorator:
    """One parameter for each case of a file, under its own name where it has one."""
    found: list[Case] = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
    names = [str(case.get("name", f"{name}-{number}")) for number, case in enumerate(found)]
    return pytest.mark.parametrize("case", found, ids=names)


def test_every_file_is_replayed_and_named_in_its_readme() -> None:
    files = {path.stem for path in VECTORS.glob("*.json")}
    here = Path(__file__).parent
    own = "".join(path.read_text(encoding="utf-8") for path in here.glob("test_vectors*.py"))
    readme = (VECTORS / "README.md").read_text(encoding="utf-8")
    assert all(f'@cases("{name}")' in own and f"`{name}.json`" in readme for name in files)


@cases("requests")
def test_a_producers_member_is_read(case: Case) -> None:
    request = decode_member(case["member"].encode(), "q").request
    for name, expected in case["fields"].items():
        found = getattr(request, name)
        assert (found.decode() if isinstance(found, bytes) else found) == expected, name


@cases("refused")
def test_an_invalid_member_is_refused_with_a_reason(case: Case) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_member(case["member"].encode(), "q")
    error = caught.value
    assert (error.field, error.request_id, error.request_token) == (case["field"], case["id"], case["token"])
    assert error.result_queue_name == case["result_queue_name"], "where the error is waited for"


@cases("scores")
def test_the_score_keeps_the_order_of_submission(case: Case) -> None:
    assert score_of(case["deadline"], case["enqueue_seq"]) == pytest.approx(case["score"], abs=1e-7)


@cases("claims")
async def test_a_claim_has_the_claim_key_of_the_reference(store: Redis, case: Case) -> None:
    await store.zadd("q", {case["member"]: 1})
    (claim,) = await RedisQueue(store, "q", QueueOptions("retries", "results")).claim(1)
    assert claim.claim_key == case["claim_key"].encode()
    assert await store.hget("q:claimed", case["claim_key"]) == case["member"].encode()
    assert await store.hget("q:claim-owners", case["claim_key"]) == claim.owner_token
    assert await store.zscore("q:claims-idx", case["claim_key"]) is not None


@cases("takeovers")
async def test_a_claim_that_is_kept_for_a_retry_is_taken_over(store: Redis, case: Case) -> None:
    key = (decode_member(case["held"].encode(), "q").request.request_token and "a\0t") or "a"
    await store.hset("q:claimed", key, case["held"])
    await store.hset("q:claim-owners", key, case["owner"])
    await store.zadd("q:claims-idx", {key: time.time() + 300})
    await store.zadd("q", {case["member"]: 1})
    (claim,) = await RedisQueue(store, "q", QueueOptions("retries", "results")).claim(1)

    owner = await store.hget("q:claim-owners", key)
    assert (owner == claim.owner_token) is (claim.claim_key == key.encode()) is case["is_taken_over"]
    left = case["member"] if case["is_taken_over"] else case["held"]
    assert await store.hget("q:claimed", key) == left.encode(), "neither of two is lost"


@cases("retries")
def test_a_retry_is_an_envelope_in_the_references_format(case: Case) -> None:
    written = encode_retry(case["member"].encode(), queue=case["queue"], attempt=case["attempt"], score=case["score"])
    envelope = json.loads(written)
    assert envelope["internal"] == case["internal"]
    assert case["data"].encode() in written, "the body stays byte for byte"
    assert decode_member(written, case["queue"]).request.attempt == case["attempt"]


@cases("results")
def test_a_result_has_these_fields_and_no_others(case: Case) -> None:
    outcome = case["outcome"]
    token = outcome.get("request_token", "")
    if "error_code" in outcome:
        result = error_result(outcome["id"], token, ErrorCode(outcome["error_code"]), outcome["message"])
    else:
        body = bytes.fromhex(outcome.get("body_hex", "")) or outcome["body"].encode()
        result = answered_result(outcome["id"], token, outcome["status_code"], body)
    assert json.loads(encode_result(result)) == case["result"]
    assert decode_result(json.dumps(case["result"]).encode()) == result
    newer = {**case["result"], "a_field_of_the_future": {"a": [1]}}
    assert decode_result(json.dumps(newer).encode()) == result, "unknown fields are ignored"


@cases("headers")
def test_the_gateway_gets_these_headers(case: Case) -> None:
    request = Request(id="a", deadline=1e9, payload=b"{}", **case["request"])
    found = gateway_headers(request, Route("http://gateway", **case["settings"]))
    assert {name: found.get(name) for name in case["headers"]} == case["headers"]
    assert not set(case["absent"]) & found.keys()


@cases("answers")
def test_a_response_is_final_or_retried(case: Case) -> None:
    assert is_final(case["status"]) is (case["outcome"] == "final")


@cases("lanes")
def test_a_request_is_in_this_lane_and_its_queues_labels_win(case: Case) -> None:
    request = Request(id="a", deadline=1e9, payload=b"{}", labels=case["labels"])
    assert band_of(labelled(request, case["queue"]).labels) == case["lane"]


@cases("paths")
def test_a_request_goes_to_this_url_or_nowhere(case: Case) -> None:
    def url() -> str:
        return gateway_url(case["base"], case["path"], case["endpoint"], ("/v1/",), "a")

    if case["url"] is not None:
        assert url() == case["url"]
        return
    with pytest.raises(InvalidRequest, match="endpoint"):
        url()


@cases("keys")
def test_a_key_has_the_references_name(case: Case) -> None:
    assert getattr(submission_keys, case["name"])(*case["arguments"]) == case["key"]


@cases("queues")
def test_claims_are_stored_under_the_references_keys(case: Case) -> None:
    keys = queue_keys("q", cluster=case["cluster"])
    assert {name: getattr(keys, name) for name in case if name != "cluster"} == {
        name: key for name, key in case.items() if name != "cluster"
    }
