"""The stack around an attempt: one order for every caller, and each layer in it once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import pytest

from handlers.contract.request import Request
from handlers.contract.result import answered_result
from handlers.forward.forward import NO_OPTIONS, AttemptOptions, Forward
from handlers.forward.gateway import Gateway, GatewayResponse
from handlers.forward.middleware.breaker import BreakerOptions, GatewayBreakers
from handlers.forward.outcome import Answered, Outcome, Retry
from handlers.gates.gate import CLOSED_RETRY_SECONDS, Feedback, Gate, Refuse, Verdict
from handlers.poller.priority import LaneOptions
from handlers.settings.settings import load_settings
from handlers.telemetry.logs import get_logger
from handlers.telemetry.metrics import Metrics
from handlers.transport.transport import TransportOptions
from handlers.wiring.forward_stack import STACK_ORDER, ForwardStack, PollerStack, QueueLayers, forwarder_of

REQUEST = Request(id="a", deadline=4_000_000_000, payload=b"{}", queue="q")
ANSWERED = Answered(answered_result("a", "", 200, b"{}"), Feedback(200))


def noting(seen: list[str], name: str) -> Callable[[Forward], Forward]:
    def layer(forward: Forward) -> Forward:
        async def noted(request: Request, options: AttemptOptions) -> Outcome:
            seen.append(name)
            return await forward(request, options)

        return noted

    return layer


async def answer(_request: Request, _options: AttemptOptions) -> Outcome:
    return ANSWERED


async def test_layers_are_passed_in_the_order_of_their_declaration() -> None:
    seen: list[str] = []
    stack = ForwardStack(**{name: noting(seen, name) for name in reversed(STACK_ORDER)})
    assert await stack.around(answer)(REQUEST, NO_OPTIONS) == ANSWERED
    assert seen == list(STACK_ORDER)


@pytest.mark.parametrize(
    ("outer", "inner", "reason"),
    [
        ("attempts", "admission", "a held attempt has begun"),
        ("cancellation", "admission", "a held request can be cancelled"),
        ("admission", "lane", "a gate may choose the lane"),
        ("admission", "breaker", "a request that no gate admits takes no probe"),
        ("breaker", "details", "a refused call took no time"),
        ("breaker", "health", "a refused call shows nothing about the gateway"),
        ("breaker", "calls", "a refused call was not made"),
        ("breaker", "tracing", "a refused call has no span"),
    ],
)
def test_a_layer_is_outside_another_for_a_reason(outer: str, inner: str, reason: str) -> None:
    assert STACK_ORDER.index(outer) < STACK_ORDER.index(inner), reason


def test_a_stack_without_layers_is_the_inner_function() -> None:
    assert ForwardStack().around(answer) is answer


class ClosedGate(Gate):
    async def admit(self, request: Request) -> Verdict:  # the signature of a gate
        return Refuse(CLOSED_RETRY_SECONDS, "closed")


class Unavailable(Gateway):
    async def send(self, *_call: object) -> GatewayResponse:
        return GatewayResponse(503, {}, b"")


@pytest.fixture
def poller_forward() -> tuple[Callable[..., Forward], Metrics]:
    """Builds a queue's stack of a poller whose gateway is unavailable."""
    settings = load_settings({"IGW_BASE_URL": "http://127.0.0.1:1", "REDIS_URL": "redis://127.0.0.1:1"})
    breakers, metrics = GatewayBreakers(BreakerOptions(retry_share=0), get_logger("test")), Metrics()
    stack = PollerStack(settings, Unavailable(TransportOptions()), None, breakers, lambda: 1_000.0)

    def build(*gates: Gate) -> Forward:
        return stack.of_queue(QueueLayers(gates, LaneOptions(), metrics.of_queue("q", "q", "default")))

    return build, metrics


def dispatched(metrics: Metrics) -> float:
    for line in metrics.render().decode().splitlines():
        if line.startswith("llm_d_async_async_dispatched_requests_total{"):
            return float(line.rpartition(" ")[2])
    raise AssertionError("no such series")


async def test_requests_held_by_gate_or_circuit_do_not_count_as_dispatched(
    poller_forward: tuple[Callable[..., Forward], Metrics],
) -> None:
    build, metrics = poller_forward
    refused = await build(ClosedGate())(REQUEST, NO_OPTIONS)
    assert isinstance(refused, Retry)
    assert (refused.reason, dispatched(metrics)) == ("gate_closed", 0)

    reasons = []
    for number in range(30):
        request = Request(id=str(number), deadline=4_000_000_000, payload=b"{}", queue="q")
        outcome = await build()(request, NO_OPTIONS)
        assert isinstance(outcome, Retry)
        reasons.append(outcome.reason)
    assert "circuit_open" in reasons
    assert dispatched(metrics) == reasons.count("unavailable")


@pytest.mark.parametrize(("gates", "expected"), [((), ["sending"]), ((ClosedGate(),), [])])
async def test_on_sending_is_called_once_the_gates_admit(
    poller_forward: tuple[Callable[..., Forward], Metrics], gates: tuple[Gate, ...], expected: list[str]
) -> None:
    build, _ = poller_forward
    reported: list[str] = []
    await build(*gates)(REQUEST, AttemptOptions(on_sending=partial(reported.append, "sending")))
    assert reported == expected


async def _answer_without_tls(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    writer.close()


async def test_an_unreachable_gateway_is_one_warning_with_the_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = await asyncio.start_server(_answer_without_tls, "127.0.0.1", 0)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    gateway = Gateway(TransportOptions(connect_seconds=60.0))
    forwarder = forwarder_of(load_settings({"IGW_BASE_URL": url}), gateway)
    for _ in range(3):
        assert isinstance(await forwarder.forward(REQUEST), Retry)
    await gateway.aclose()
    server.close()
    [warning] = [record for record in caplog.records if record.levelname == "WARNING"]
    fields = getattr(warning, "fields", {})
    assert (warning.getMessage(), fields["gateway"]) == ("gateway unreachable", url)
    assert fields["reason"].startswith("failed the TLS handshake: ")
