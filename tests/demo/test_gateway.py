"""The simulated gateway over real HTTP, as demo, tests and benchmarks use it."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from handlers.demo.servers import Child
from handlers.demo.view import read_witness
from tests.waiting import wait_until, wait_until_async


@pytest.fixture(scope="module")
def witness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gateway") / "witness.jsonl"


@pytest.fixture(scope="module")
def url(witness: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "handlers.demo.gateway", "--capacity", "2", "--queue-size", "1"]
    command += ["--sheddable", "spare", "--witness", str(witness)]
    with Child("gateway", command) as child:
        found = child.wait_for(lambda output: m[1] if (m := re.search(r"listening on (\S+)", output)) else None)
        yield found


@pytest.fixture(scope="module")
def gateway(url: str) -> Iterator[httpx.Client]:
    """A client that keeps no connection, since tests break theirs."""
    with httpx.Client(base_url=url, timeout=60, limits=httpx.Limits(max_keepalive_connections=0)) as client:
        yield client


@pytest.fixture(autouse=True)
def calm(gateway: httpx.Client) -> Iterator[None]:
    """Reset the engine before and after each test."""
    yield
    gateway.post("/simulate/engine", json={"capacity": 2, "queue_size": 1, "time_to_first_token": 0, "evicts": 0})
    gateway.post("/simulate/faults", json={})


WITHOUT_END = 3_600
"""Seconds to the first token; a test ends such a request."""


def state(gateway: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = gateway.get("/simulate/state").json()
    return found


def change_engine(gateway: httpx.Client, options: dict[str, float]) -> None:
    gateway.post("/simulate/engine", json=options)


def complete(gateway: httpx.Client, **simulate: Any) -> httpx.Response:
    payload: dict[str, Any] = {"model": "m", "prompt": "Hi", "max_tokens": 4}
    if simulate:
        payload["simulate"] = simulate
    return gateway.post("/v1/completions", json=payload)


def test_the_gateway_responds_in_openais_format(gateway: httpx.Client) -> None:
    answer = complete(gateway).json()
    chat = gateway.post("/v1/chat/completions", json={"messages": [], "max_tokens": 3}).json()

    assert answer["usage"]["completion_tokens"] == 4
    assert len(answer["choices"][0]["text"].split()) == 4
    assert chat["choices"][0]["message"]["role"] == "assistant"
    assert gateway.get("/v1/models").json()["data"][0]["object"] == "model"


def test_a_simulated_status_is_sent_as_often_as_requested_and_then_an_answer(gateway: httpx.Client) -> None:
    answers = [complete(gateway, key="twice", status=429, retry_after="3", times=2) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [429, 429, 200]
    assert answers[0].headers["retry-after"] == "3"


@pytest.mark.parametrize("fault", ["reset", "truncated", "bad_chunk", "garbage", "reset_after_headers"])
def test_connection_faults_raise_transport_errors(gateway: httpx.Client, fault: str) -> None:
    with pytest.raises(httpx.TransportError):
        complete(gateway, fault=fault)


@pytest.mark.parametrize("fault", ["hang", "hang_mid_body"])
def test_the_fault_hang_never_responds(gateway: httpx.Client, fault: str) -> None:
    payload = {"simulate": {"fault": fault}}
    with pytest.raises(httpx.ReadTimeout):
        gateway.post("/v1/completions", json=payload, timeout=httpx.Timeout(60, read=0.3))


def test_odd_answers_have_the_requested_oddity(gateway: httpx.Client) -> None:
    assert complete(gateway, fault="redirect").status_code == 302
    assert complete(gateway, fault="empty").content == b""
    assert b"\xff" in complete(gateway, fault="invalid_utf8").content
    assert len(complete(gateway, fault="huge_body", bytes=300_000).content) >= 300_000
    assert len(complete(gateway, fault="hostile_headers").headers) > 50
    with pytest.raises(httpx.DecodingError):
        complete(gateway, fault="bad_gzip")


async def test_requests_over_the_capacity_are_queued_and_over_the_queue_rejected(gateway: httpx.Client) -> None:
    change_engine(gateway, {"time_to_first_token": WITHOUT_END})
    async with httpx.AsyncClient(base_url=gateway.base_url, timeout=None) as client, asyncio.TaskGroup() as group:
        calls = [group.create_task(client.post("/v1/completions", json={})) for _ in range(4)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        (rejected,) = [call.result() for call in calls if call.done()]
        await wait_until_async(
            lambda: (state(gateway)["running"], state(gateway)["waiting"]) == (2, 1), "three to be held"
        )
        for call in calls:
            call.cancel()

    assert rejected.status_code == 429
    assert rejected.headers["x-llm-d-request-dropped-reason"] == "rejected-saturated"
    assert state(gateway)["peak"] <= 2


async def test_a_client_that_leaves_frees_its_slot_at_once(gateway: httpx.Client) -> None:
    change_engine(gateway, {"time_to_first_token": WITHOUT_END})
    async with httpx.AsyncClient(base_url=gateway.base_url, timeout=60) as client:
        waiting = asyncio.create_task(client.post("/v1/completions", json={}))
        await wait_until_async(lambda: state(gateway)["running"] == 1, "the request to run")
        waiting.cancel()
        await wait_until_async(lambda: state(gateway)["running"] == 0, "the slot to be free")


async def test_real_time_traffic_evicts_sheddable_requests(gateway: httpx.Client) -> None:
    change_engine(gateway, {"time_to_first_token": WITHOUT_END, "capacity": 1, "evicts": 1})
    spare = {"x-llm-d-inference-objective": "spare"}
    async with httpx.AsyncClient(base_url=gateway.base_url, timeout=60) as client:
        queued = asyncio.create_task(client.post("/v1/completions", json={}, headers=spare))
        await wait_until_async(lambda: state(gateway)["running"] == 1, "the queued request to run")
        change_engine(gateway, {"time_to_first_token": 0})
        real = await client.post("/v1/completions", json={})

        assert real.status_code == 200
        assert (await queued).headers["x-llm-d-request-dropped-reason"].startswith("evicted")


def test_faults_follow_their_rates_and_unknown_faults_are_refused(gateway: httpx.Client) -> None:
    assert gateway.post("/simulate/faults", json={"503": 1.0}).status_code == 200
    assert complete(gateway).status_code == 503
    assert gateway.post("/simulate/faults", json={"nonsense": 1.0}).status_code == 400
    assert gateway.post("/simulate/engine", json={"nonsense": 1}).status_code == 400


def test_every_request_is_recorded_in_the_witness_log(gateway: httpx.Client, witness: Path) -> None:
    gateway.post("/v1/completions", json={"user": "seen-1"}, headers={"X-Mark": "m"})

    def lines() -> list[Any]:
        with witness.open("rb") as file:
            return [line for line in read_witness(file) if line.key == "seen-1"]

    (line,) = wait_until(lines, what="the line")
    assert line.status == 200
    assert line.ended_at >= line.started_at > 0
    assert '"x-mark":"m"' in witness.read_text()  # the same line, which does not change any more


def test_the_gateways_metrics_have_the_names_that_gates_read(gateway: httpx.Client) -> None:
    page = gateway.get("/metrics").text

    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "inference_pool_ready_pods"):
        assert f"\n{name}{{" in f"\n{page}"
    for name in ("llm_d_epp_flow_control_pool_saturation", "llm_d_epp_ready_endpoints"):
        assert f"\n{name}{{" in page


def test_anything_but_a_request_is_refused(gateway: httpx.Client) -> None:
    assert gateway.get("/nowhere").status_code == 404
    assert gateway.get("/v1/completions").status_code == 405
    assert gateway.post("/v1/completions", content=b"no JSON").status_code == 400
