"""F73: which headers of untrusted requests pass, and that ours win; as values and on the wire."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.contract.request import Request
from handlers.forward.forward import (
    FORBIDDEN,
    FORBIDDEN_PREFIXES,
    MAX_REQUEST_HEADERS,
    MAX_TOTAL_BYTES,
    MAX_VALUE_BYTES,
    NEVER,
    allowed_headers,
    gateway_headers,
    is_fairness_id,
)
from handlers.forward.gateway import Gateway
from handlers.forward.route import DEFAULT_HEADERS, Route
from handlers.settings.settings import load_settings
from tests.servers.raw_http import RawHttp

ROUTE = Route("http://gateway")
TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


def request(**fields: object) -> Request:
    return Request(id="a", deadline=5.0, payload=b"{}", **fields)  # type: ignore[arg-type]  # fields of Request


@pytest.mark.parametrize("name", sorted(FORBIDDEN | NEVER) + [f"{prefix}x" for prefix in FORBIDDEN_PREFIXES])
def test_a_forbidden_header_never_passes_in_any_letter_case(name: str) -> None:
    for form in (name, name.upper(), name.title()):
        assert allowed_headers({form: "1"}) == {}


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            " ",
            "a b",
            "a\r\nhost",
            "a:",
            "é",
            "a_b",
            "a\0",
            "x" * 65,
            "a\t",
            "host ",
            " host",
            "transfer-encoding ",
        ),
        *("(x)", "x/y", "x=y", '"x"', "{x}", "[x]", "x,y", "x;y", "x@y", "x?y", "<x>", "x\\y"),
    ],
)
def test_an_invalid_header_name_never_passes(name: str) -> None:
    assert allowed_headers({name: "1"}) == {}


@pytest.mark.parametrize(
    "value", ["a\r\nx: y", "a\nb", "a\rb", "a\0b", "é", "\x7f", "\x1b[0m", "x" * (MAX_VALUE_BYTES + 1)]
)
def test_a_value_that_could_break_a_line_never_passes(value: str) -> None:
    assert allowed_headers({"x-request-id": value}) == {}


def test_an_honest_header_passes_in_lower_case() -> None:
    assert allowed_headers({"X-Request-ID": "7f", "Accept": "*/*"}) == {"x-request-id": "7f", "accept": "*/*"}


STRANGE = [
    *("x-llm-d-prefiller-host-port", "x-encoder-hosts-ports", "x-kv-cache-source-host-port"),
    *("x-data-parallel-host-port", "x-gateway-model-name-rewrite", "x-auth-request-user", "remote-user"),
    *("x-user-id", "x-ssl-client-cert", "true-client-ip", "x-original-host", "x-host", "x-note", "x-api-key"),
    *(
        "x-real-ip",
        "cookie",
        "x-session-token",
        "x-llm-d-anything",
        "x-client-ip",
        "api-key",
        "x-forwarded-user",
    ),
]


LISTED_IN_FULL = [
    *("x-cluster-client-ip", "x-gateway-inference-slo", "x-request-priority", "x-upstream", "x-forwarded"),
    *("x-original-uri", "x-service-route", "x-target-pod", "x-remote-addr", "x-routing-key", "x-backend-server"),
    *("x-destination-cluster", "x-model-endpoint", "x-scheme", "x-http-protocol", "x-team-tenant"),
]


@pytest.mark.parametrize("name", STRANGE)
def test_an_unlisted_header_does_not_pass(name: str) -> None:
    """New headers of routers and proxies are refused before anybody here knows them."""
    assert allowed_headers({name: "1"}) == {}
    assert gateway_headers(request(headers={name: "1"}), ROUTE).get(name) is None


@given(st.from_regex(r"[a-z0-9-]{1,40}", fullmatch=True))
def test_unlisted_names_never_pass(name: str) -> None:
    is_listed = any(name == known or (known[-1] == "*" and name.startswith(known[:-1])) for known in DEFAULT_HEADERS)
    assert is_listed or allowed_headers({name: "1"}) == {}


@pytest.mark.parametrize("name", ["x-note", "x-team-name", "x-api-key", "x-gateway-priority", "cookie"])
def test_the_operator_may_list_any_header_except_framing_and_routing(name: str) -> None:
    listed = (*DEFAULT_HEADERS, name)
    assert allowed_headers({name.upper(): "1"}, listed) == {name: "1"}
    assert gateway_headers(request(headers={name: "1"}), Route("http://g", allowed_headers=listed))[name] == "1"


@pytest.mark.parametrize("name", sorted({*STRANGE, *LISTED_IN_FULL} - {"x-note"}))
def test_no_pattern_lists_a_header_of_routing_identity_or_priority(name: str) -> None:
    assert allowed_headers({name.upper(): "1"}, ["x-*", "*"]) == {}
    assert allowed_headers({name.upper(): "1"}, [name]) == {name: "1"}


@pytest.mark.parametrize("name", ["x-api-key", "x-auth-request-user", "x-user-id", "x-gateway-priority", "x-envoy-a"])
def test_a_pattern_does_not_list_credentials_identity_or_routing(name: str) -> None:
    assert allowed_headers({name: "1", "x-note": "2"}, ["x-*"]) == {"x-note": "2"}


@pytest.mark.parametrize("name", sorted(NEVER))
def test_framing_headers_are_never_forwarded(name: str) -> None:
    assert allowed_headers({name: "1"}, [name, "*"]) == {}


def test_the_operators_list_adds_to_the_default_one() -> None:
    route = load_settings({"ALLOWED_HEADERS": "X-Team-*, x-note"}).routes.default
    own = {"X-Request-ID": "1", "X-Note": "2", "x-team-name": "3", "x-other": "4"}
    found = gateway_headers(request(headers=own), route)
    assert {name: found.get(name) for name in ("x-request-id", "x-note", "x-team-name", "x-other")} == {
        "x-request-id": "1",
        "x-note": "2",
        "x-team-name": "3",
        "x-other": None,
    }


def test_authorization_passes_only_if_the_route_allows_it() -> None:
    headers = {"Authorization": "Bearer x"}
    assert allowed_headers(headers) == {}
    assert allowed_headers(headers, allow_authorization=True) == {"authorization": "Bearer x"}


def test_ten_thousand_headers_are_cut_to_the_limits() -> None:
    many = allowed_headers({f"x-{n}": "v" for n in range(10_000)}, ["x-*"])
    assert len(many) == MAX_REQUEST_HEADERS
    large = allowed_headers({f"x-{n}": "v" * 1_000 for n in range(20)}, ["x-*"])
    assert sum(len(name) + len(value) for name, value in large.items()) <= MAX_TOTAL_BYTES


@given(headers=st.dictionaries(st.text(max_size=20) | st.sampled_from(sorted(FORBIDDEN)), st.text(max_size=20)))
def test_every_forwarded_header_is_one_plain_line(headers: dict[str, str]) -> None:
    for name, value in allowed_headers(headers).items():
        assert re.fullmatch(r"[a-z0-9-]{1,64}", name)
        assert value.isascii()
        assert not set(value) & {"\r", "\n", "\0"}
        assert name not in FORBIDDEN
        assert not name.startswith(FORBIDDEN_PREFIXES)


def test_route_and_lane_determine_the_objective() -> None:
    route = Route("http://g", inference_objective="sheddable")
    own = {"X-LLM-D-Inference-Objective": "critical", "x-gateway-inference-objective": "critical"}
    headers = gateway_headers(request(headers=own), route)
    assert headers["x-llm-d-inference-objective"] == "sheddable"
    assert "x-gateway-inference-objective" not in headers
    assert gateway_headers(request(objective="batch"), route)["x-llm-d-inference-objective"] == "batch"
    assert "x-llm-d-inference-objective" not in gateway_headers(request(headers=own), ROUTE)


def test_older_gateways_get_their_own_objective_header() -> None:
    route = Route("http://g", inference_objective="o", objective_header="x-gateway-inference-objective")
    headers = gateway_headers(request(), route)
    assert headers["x-gateway-inference-objective"] == "o"
    assert "x-llm-d-inference-objective" not in headers


def test_an_objective_that_would_break_a_line_is_not_sent() -> None:
    assert "x-llm-d-inference-objective" not in gateway_headers(request(objective="a\r\nhost: b"), ROUTE)


def test_the_tenant_of_the_metadata_replaces_the_callers_own() -> None:
    own = {"X-LLM-D-Inference-Fairness-ID": "somebody"}
    headers = gateway_headers(request(headers=own, metadata={"userid": "me"}), ROUTE)
    assert headers["x-llm-d-inference-fairness-id"] == "me"
    assert "x-llm-d-inference-fairness-id" not in gateway_headers(request(headers=own), ROUTE)


def test_a_fairness_header_of_the_operators_choice_is_ours_too() -> None:
    route = Route("http://g", fairness_header="x-tenant", fairness_attribute="team")
    headers = gateway_headers(request(headers={"X-Tenant": "forged"}, metadata={"team": "t"}), route)
    assert headers["x-tenant"] == "t"
    assert "x-tenant" not in gateway_headers(request(headers={"X-Tenant": "forged"}), route)


def test_fairness_can_be_switched_off() -> None:
    route = Route("http://g", fairness_header="")
    assert "x-llm-d-inference-fairness-id" not in gateway_headers(request(metadata={"userid": "me"}), route)


@pytest.mark.parametrize(
    "tenant", ["", " a", "a ", "a\nb", "a\x7f", "é\r\nhost: b", "\ud800", "x" * 257, "é" * 129, "\t"]
)
def test_a_tenant_that_is_not_a_header_value_is_not_sent(tenant: str) -> None:
    assert not is_fairness_id(tenant)
    headers = gateway_headers(request(metadata={"userid": tenant}), ROUTE)
    assert "x-llm-d-inference-fairness-id" not in headers


@pytest.mark.parametrize("tenant", ["a", "x" * 256, "team one", "a,b", "Zoë", "é" * 128, "團隊"])
def test_a_tenant_of_1_to_256_bytes_is_sent(tenant: str) -> None:
    assert gateway_headers(request(metadata={"userid": tenant}), ROUTE)["x-llm-d-inference-fairness-id"] == tenant


def test_a_lane_stamps_its_priority_over_the_callers_own() -> None:
    own = {"X-Gateway-Priority": "99"}
    assert gateway_headers(request(headers=own, priority=0), ROUTE)["x-gateway-priority"] == "0"
    assert "x-gateway-priority" not in gateway_headers(request(headers=own), ROUTE)


def test_the_producers_trace_continues_from_the_metadata() -> None:
    metadata = {"traceparent": TRACE, "tracestate": "a=b", "baggage": "k=v", "other": "x"}
    headers = gateway_headers(request(metadata=metadata, headers={"traceparent": "forged"}), ROUTE)
    assert (headers["traceparent"], headers["tracestate"], headers["baggage"]) == (TRACE, "a=b", "k=v")
    assert "other" not in headers


@pytest.mark.parametrize(
    "parent",
    [
        *("", "x", TRACE + "\r\n", TRACE.upper(), TRACE[:-1], "01" + TRACE[2:], TRACE + "-extra"),
        *("00-" + "0" * 32 + "-" + "b" * 16 + "-01", "00-" + "a" * 32 + "-" + "0" * 16 + "-01"),
    ],
)
def test_a_trace_that_is_not_well_formed_is_dropped_with_its_state(parent: str) -> None:
    headers = gateway_headers(request(metadata={"traceparent": parent, "tracestate": "a=b"}), ROUTE)
    assert not {"traceparent", "tracestate"} & set(headers)


async def test_only_allowed_headers_reach_the_wire(gateway: Gateway, server: RawHttp) -> None:
    """F73, I16: seen by the gateway, byte for byte."""
    route = Route("http://gateway", allowed_headers=("x-*",))
    hostile = dict.fromkeys(FORBIDDEN | NEVER, "forged") | {f"{prefix}x": "forged" for prefix in FORBIDDEN_PREFIXES}
    hostile |= {"x-ok": "fine", "bad name": "forged", "x-break": "a\r\nx-injected: forged", "X-OK2": "fine"}
    given = request(headers=hostile, metadata={"userid": "me", "traceparent": TRACE})
    await gateway.send(server.url + "/v1/x", gateway_headers(given, route), b"{}")
    (received,) = server.received
    assert b"forged" not in received.head
    assert sorted(received.headers) == [
        ("accept-encoding", "identity"),
        ("content-length", "2"),
        ("content-type", "application/json"),
        ("host", f"127.0.0.1:{server.port}"),
        ("traceparent", TRACE),
        ("x-llm-d-inference-fairness-id", "me"),
        ("x-ok", "fine"),
        ("x-ok2", "fine"),
    ]
