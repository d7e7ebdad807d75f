"""The settlement of each outcome: its result, list and lifetime, and dead letters."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.contract.errors import InvalidRequest
from handlers.contract.request import Envelope, decode_member
from handlers.contract.result import ErrorCode, ResultNames, answered_result, decode_result, filled_result
from handlers.forward.outcome import Answered, LastResponse, Retry
from handlers.poller.settlement import ResultRoute, dead_lettered, dead_record, refuse, settle
from handlers.redis_store.queue.queue import Ack, Claim, Nack
from handlers.redis_store.results.payloads import StoredPayload

NOW = 1_000.0
PLAIN = ResultRoute("", None, "result-list")


def claim_of(internal: dict[str, Any] | None = None, **fields: Any) -> tuple[Claim, Envelope]:
    data = {"id": "a", "deadline": 2_000, "payload": {}, **fields}
    member = json.dumps({"internal": internal or {}, "request_kind": "redis", "data": data}).encode()
    claim = Claim("q", member, 2_000.0, b"a", b"owner", delivery_count=3)
    return claim, decode_member(member, "q")


def settled(outcome: Answered | Retry, route: ResultRoute = PLAIN, **internal: Any) -> Ack | Nack:
    claim, envelope = claim_of(internal)
    return settle(claim, envelope, outcome, route, NOW)


def acked(settlement: Ack | Nack) -> Ack:
    assert isinstance(settlement, Ack)
    return settlement


ANSWER = Answered(answered_result("a", "t", 200, b"{}"))


def test_an_answer_is_an_ack_with_all_that_recording_needs() -> None:
    internal: dict[str, Any] = {
        "request_token": "t",
        "payload_ref": "request-payload:a:t",
        "result_ttl_seconds": 60,
    }
    internal["result_queue_name"] = "result-list:result-of:a"
    ack = acked(settled(ANSWER, PLAIN, **internal))
    assert decode_result(ack.result).status_code == 200
    assert (ack.request_id, ack.request_token, ack.payload_ref) == ("a", "t", "request-payload:a:t")
    assert (ack.result_queue_name, ack.result_ttl_seconds, ack.dead) == ("result-list:result-of:a", 60, None)


@pytest.mark.parametrize(
    ("own", "named", "name"),
    [
        ("", "", "result-list"),
        ("", "mine", "mine"),
        ("queue's", "", "queue's"),
        ("queue's", "mine", "queue's"),
    ],
)
def test_the_queues_own_list_wins_over_the_requests_and_that_over_the_default(own: str, named: str, name: str) -> None:
    route = ResultRoute(own, None, "result-list")
    assert acked(settled(ANSWER, route, result_queue_name=named)).result_queue_name == name


OWN = "result-list:result-of:a"
"""The list of the request "a" alone."""


@pytest.mark.parametrize("named", [None, 0, 1, 3_600])
@pytest.mark.parametrize("own", [None, 0, 60])
@pytest.mark.parametrize("is_resolved", [False, True])
@pytest.mark.parametrize("name", ["", "result-list", "mine", "results:batch:b", f"{OWN}b"])
def test_a_request_cannot_set_the_expiry_of_a_list_that_others_use(
    name: str, is_resolved: bool, own: int | None, named: int | None
) -> None:
    route = ResultRoute("", own, "result-list", may_name=ResultNames())
    internal: dict[str, Any] = {"result_queue_name": name, "result_routing_resolved": is_resolved}
    ack = acked(settled(ANSWER, route, result_ttl_seconds=named, **internal))
    is_the_operators = name in ("", "result-list") or not is_resolved
    assert ack.result_queue_name == (name or "result-list")
    assert ack.result_ttl_seconds == (own if is_the_operators else None)


@pytest.mark.parametrize(
    ("own", "named", "is_resolved", "seconds"),
    [
        (None, 5, False, 5),
        (7, 5, False, 7),
        (0, 5, False, 0),
        (7, 5, True, 5),
        (7, None, True, 7),
        (None, None, False, None),
    ],
)
def test_a_request_sets_the_expiry_of_its_own_list(
    own: int | None, named: int | None, is_resolved: bool, seconds: int | None
) -> None:
    internal: dict[str, Any] = {"result_queue_name": OWN, "result_routing_resolved": is_resolved}
    ack = acked(settled(ANSWER, ResultRoute("", own, "result-list"), result_ttl_seconds=named, **internal))
    assert (ack.result_queue_name, ack.result_ttl_seconds) == (OWN, seconds)


@pytest.mark.parametrize("is_per_request", [False, True])
@pytest.mark.parametrize(("named", "seconds"), [(1, 86_400), (100_000, 100_000), (None, 60)])
def test_below_another_queues_list_a_request_sets_no_expiry_under_a_day(
    named: int | None, seconds: int, is_per_request: bool
) -> None:
    internal: dict[str, Any] = {"result_queue_name": "results-b:result-of:a", "result_routing_resolved": True}
    route = ResultRoute("", 60, "result-list", is_per_request=is_per_request)
    ack = acked(settled(ANSWER, route, result_ttl_seconds=named, **internal))
    assert ack.result_ttl_seconds == seconds


@pytest.mark.parametrize(
    ("own", "internal", "name", "seconds"),
    [
        ("", {}, "result-list:result-of:a", 86_400),
        ("queue's", {"result_ttl_seconds": 5}, "queue's:result-of:a", 5),
        ("", {"result_queue_name": "mine"}, "mine:result-of:a", 86_400),
        ("queue's", {"result_queue_name": "mine", "result_routing_resolved": True}, "mine", None),
    ],
    ids=["default", "queue's list", "request's list", "request resolved its list"],
)
def test_each_request_may_have_a_list_of_its_own_that_expires(
    own: str, internal: dict[str, Any], name: str, seconds: int | None
) -> None:
    ack = acked(settled(ANSWER, ResultRoute(own, None, "result-list", is_per_request=True), **internal))
    assert (ack.result_queue_name, ack.result_ttl_seconds) == (name, seconds)


def test_an_invalid_request_finds_its_own_list_too() -> None:
    claim, _ = claim_of()
    ack = refuse(claim, invalid("a"), ResultRoute("", None, "results", is_per_request=True), NOW)
    assert (ack.result_queue_name, ack.result_ttl_seconds) == ("mine:result-of:a", 86_400)


@pytest.mark.parametrize("size", [99, 100, 101])
def test_a_large_answer_is_offloaded_byte_for_byte(size: int) -> None:
    body = "é".encode() * (size // 2) + b"x" * (size % 2)
    route = ResultRoute("", None, "result-list", offload_bytes=100, offload_seconds=60)
    answer = Answered(answered_result("a", "t", 200, body), content_type="application/json")
    ack = acked(settled(answer, route))
    result = decode_result(ack.result)
    if size < 100:
        assert (ack.stored, result) == (None, answered_result("a", "t", 200, body))
        return
    described = (result.content_type, result.payload_size, result.payload_sha256)
    assert described == ("application/json", size, hashlib.sha256(body).hexdigest())
    changed = filled_result(result, body[:-1] + b"?")
    assert (changed.error_code, changed.payload_ref) == (ErrorCode.PAYLOAD_UNAVAILABLE, "")
    assert ack.stored == StoredPayload(result.payload_ref, body, 60)
    assert (result.payload, result.status_code) == ("", 200)
    assert filled_result(result, body) == answered_result("a", "t", 200, body)


def test_an_offloaded_answer_expires_with_its_list() -> None:
    route = ResultRoute("", None, "result-list", offload_bytes=1, offload_seconds=60)
    ack = acked(settled(ANSWER, route, result_ttl_seconds=7, result_queue_name=OWN))
    assert ack.stored is not None
    assert ack.stored.seconds == 7


def test_binary_members_are_stored_unchanged() -> None:
    answer = answered_result("a", "", 200, b"\xff\x00" * 60, keeps_bytes=True)
    ack = acked(settled(Answered(answer), ResultRoute("", None, "result-list", offload_bytes=100)))
    assert ack.stored is not None
    assert ack.stored.payload == b"\xff\x00" * 60
    assert filled_result(decode_result(ack.result), ack.stored.payload) == answer


def test_an_error_is_never_offloaded() -> None:
    route = ResultRoute("", None, "result-list", offload_bytes=1)
    claim, envelope = claim_of()
    ack = dead_lettered(claim, envelope, route, NOW)
    assert ack.stored is None


def test_a_result_has_details_only_if_they_are_enabled() -> None:
    for has_details in (False, True):
        route = ResultRoute("", None, "result-list", has_details=has_details)
        result = decode_result(acked(settled(ANSWER, route, retry_count=4)).result)
        assert (result.attempts, result.finished_at) == ((4, NOW) if has_details else (0, None))


@pytest.mark.parametrize(
    ("retry", "attempts", "seconds"),
    [
        (Retry(1e9, "rejected", gateway_seconds=0.25), 3, 0.25),
        (Retry(1e9, "rejected", LastResponse(503, b"busy"), gateway_seconds=0.25), 3, 0.25),
        (Retry(1e9, "handler_lost"), 3, None),
        (Retry(1e9, "gate_closed", counts_attempt=False), 2, None),
    ],
    ids=["no answer", "last answer", "lost", "not sent"],
)
def test_a_retry_after_the_deadline_counts_its_attempt(retry: Retry, attempts: int, seconds: float | None) -> None:
    route = ResultRoute("", None, "result-list", has_details=True)
    result = decode_result(acked(settled(retry, route, retry_count=2)).result)
    assert (result.attempts, result.gateway_seconds, result.finished_at) == (attempts, seconds, NOW)


def test_the_result_of_an_invalid_request_has_a_time() -> None:
    claim, _ = claim_of()
    for has_details, at in ((False, None), (True, NOW)):
        route = ResultRoute("", None, "results", has_details=has_details)
        assert decode_result(refuse(claim, invalid("a"), route, NOW).result).finished_at == at


def test_a_retry_is_a_nack_with_one_attempt_more() -> None:
    nack = settled(Retry(5.0, "rejected"), retry_count=2)
    assert isinstance(nack, Nack)
    assert nack.delay_seconds == 5.0
    assert decode_member(nack.retry_member, "q").request.attempt == 3
    assert json.loads(nack.retry_member)["internal"]["request_queue_name"] == "q"


def test_a_request_that_never_reached_the_gateway_has_no_attempt() -> None:
    nack = settled(Retry(5.0, "handler_unavailable", counts_attempt=False), retry_count=2)
    assert isinstance(nack, Nack)
    assert decode_member(nack.retry_member, "q").request.attempt == 2


@given(delay=st.floats(0, 1e6), left=st.floats(0.001, 1e6))
def test_no_retry_comes_after_the_deadline(delay: float, left: float) -> None:
    claim, envelope = claim_of(deadline=NOW + left)
    settlement = settle(claim, envelope, Retry(delay, "rejected"), PLAIN, NOW)
    assert isinstance(settlement, Nack) is (NOW + delay < envelope.request.deadline)


def test_a_retry_after_the_deadline_ends_with_the_last_response_or_without_one() -> None:
    last = Retry(1_000.0, "unavailable", LastResponse(503, b"busy"))
    result = decode_result(acked(settled(last)).result)
    assert (result.status_code, result.payload) == (503, "busy")
    result = decode_result(acked(settled(Retry(1_000.0, "connect"))).result)
    assert result.error_code == ErrorCode.DEADLINE_EXCEEDED


def invalid(request_id: str) -> InvalidRequest:
    return InvalidRequest(
        "payload",
        found="x",
        accepted="y",
        request_id=request_id,
        request_token="t",
        result_queue_name="mine",
        payload_ref="request-payload:a:t",
    )


def test_an_invalid_request_with_an_id_gets_its_result_in_the_list_that_it_names() -> None:
    claim, _ = claim_of()
    ack = refuse(claim, invalid("a"), PLAIN, NOW)
    result = decode_result(ack.result)
    assert (result.id, result.error_code, result.request_token) == ("a", ErrorCode.INVALID_REQUEST, "t")
    assert (ack.result_queue_name, ack.dead, ack.request_token) == ("mine", None, "t")
    assert ack.payload_ref == "request-payload:a:t", "the offloaded payload is deleted with it"


def test_an_invalid_request_without_an_id_is_a_dead_letter_and_no_result() -> None:
    claim, _ = claim_of()
    ack = refuse(claim, invalid(""), PLAIN, NOW)
    assert ack.result == b""
    assert ack.dead is not None
    record = json.loads(ack.dead)
    assert (record["reason"], record["at"], record["deaths"]) == ("INVALID_REQUEST", NOW, 3)
    assert record["member"] == claim.member.decode()


@pytest.mark.parametrize("member", [b"\xff\x00", b"\x01" * 1_000])
def test_a_binary_member_is_kept_as_base64(member: bytes) -> None:
    """Of control characters too: as a JSON string they have six bytes each."""
    text = dead_record(Claim("q", member, 5.0, b"k", b"o"), "r", "m", NOW)
    record = json.loads(text)
    assert base64.b64decode(record["member_base64"]) == member
    assert "member" not in record
    assert len(text) < 200 + 2 * len(member)


@pytest.mark.parametrize("member", [b"", b'{"a":"\\n"}\n\t', '"é"'.encode()])
def test_a_member_that_is_text_is_kept_as_it_is(member: bytes) -> None:
    record = json.loads(dead_record(Claim("q", member, 5.0, b"k", b"o"), "r", "m", NOW))
    assert (record["member"], "member_base64" in record) == (member.decode(), False)


def test_the_message_about_one_crash_is_in_the_singular() -> None:
    claim, envelope = claim_of({})
    ack = dead_lettered(msgspec.structs.replace(claim, delivery_count=1), envelope, PLAIN, NOW)
    message = "1 poller crashed or lost its lease while it held this request (MAX_DEATHS)"
    assert decode_result(ack.result).error_message == message


def test_a_request_that_killed_its_owners_gets_a_result_and_a_dead_letter() -> None:
    claim, envelope = claim_of({"request_token": "t"})
    ack = dead_lettered(claim, envelope, PLAIN, NOW)
    result = decode_result(ack.result)
    assert (result.error_code, result.request_token) == (ErrorCode.UNDELIVERABLE, "t")
    assert "3 pollers crashed or lost their leases while they held this request" in result.error_message
    assert ack.dead is not None
