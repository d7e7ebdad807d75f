"""How a poller sends what it claimed: to the handlers, or through a handler in its own process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from handlers.contract.delivery import wrapped_answer_bytes
from handlers.contract.request import Request
from handlers.forward.forward import NO_LIMITS, Sender
from handlers.forward.gateway import Gateway, GatewayOptions
from handlers.forward.middleware.details import timed
from handlers.forward.outcome import Outcome
from handlers.poller.dispatcher import Dispatch, HttpDispatcher
from handlers.settings.settings import Settings
from handlers.wiring.handler import forwarder_of, gateway_of

if TYPE_CHECKING:
    from handlers.telemetry.tracing import Tracing

Clock = Callable[[], float]

_DISPATCH_MARGIN_SECONDS = 15.0
"""How much longer the poller waits for a handler than the handler for the gateway."""


def poller_client(settings: Settings) -> Gateway:
    """A client of the gateway where the handler runs in this process, else of the handlers."""
    if not settings.env.handler_url:
        return gateway_of(settings)
    env = settings.env
    limit = wrapped_answer_bytes(env.max_response_bytes)
    return Gateway(
        GatewayOptions(env.connect_timeout_seconds, env.connection_idle_seconds, max_response_bytes=limit)
    )


def poller_dispatch(settings: Settings, client: Gateway, tracing: Tracing | None, clock: Clock) -> Dispatch:
    """One attempt, by `client`: traced and timed as the settings say.

    `clock` gives the Redis server's Unix seconds.
    """
    dispatch = _traced_dispatch(settings, client, tracing, clock)
    return timed(dispatch) if settings.env.result_details else dispatch


def _traced_dispatch(settings: Settings, client: Gateway, tracing: Tracing | None, clock: Clock) -> Dispatch:
    if tracing is None:
        return _untraced_dispatch(settings, client, clock)
    from handlers.forward.middleware.traced import AttemptSpans, TracedSender, traced_dispatch
    from handlers.telemetry.tracing import PROCESS_REQUEST

    ids = {entry.queue_name: entry.id for entry in settings.queues if entry.id}
    spans = AttemptSpans(tracing, PROCESS_REQUEST, ids)
    sender = TracedSender(client, tracing, event_too=bool(settings.env.handler_url))
    return traced_dispatch(_untraced_dispatch(settings, sender, clock), spans)


def _untraced_dispatch(settings: Settings, client: Sender, clock: Clock) -> Dispatch:
    env = settings.env
    if env.handler_url:
        dispatcher = HttpDispatcher(
            client,
            env.handler_url,
            timeout_seconds=env.request_timeout_seconds + _DISPATCH_MARGIN_SECONDS,
            tokens=lambda: settings.dispatch_tokens,
            clock=clock,
            keeps_bytes=env.result_details,
        )
        return dispatcher.dispatch
    forward = forwarder_of(settings, client, clock).forward

    async def in_process(request: Request, _body: bytes) -> Outcome:
        return await forward(request, NO_LIMITS)

    return in_process
