"""Build one door from the settings.

Large modules are imported where they are used, so that a dispatch door does not load Pub/Sub or Redis.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from starlette.requests import Request as HttpRequest
from starlette.responses import Response as HttpResponse

from handlers.cancellation import close_in_time
from handlers.contract.events import wrapped_bytes
from handlers.contract.request import Request
from handlers.doors.door import Answer, Refusal, plain
from handlers.doors.http_endpoint import Authenticator, EndpointOptions, GuardedPage, HttpEndpoint
from handlers.forward.forward import AttemptOptions, Forward
from handlers.forward.outcome import Outcome
from handlers.settings.settings import Settings, load_settings, setting_warnings
from handlers.telemetry.dependencies import Dependencies
from handlers.telemetry.logs import RareWarning, get_logger
from handlers.wiring.forward_stack import Handle, Parts, SharedByHandlers, shared_by_handlers

if TYPE_CHECKING:
    from handlers.gates.gate import Gate


class Handler:
    """One door under one configuration: its endpoint and its resources.

    `shared` outlives a reload; the first handler of a process creates it. A handler takes effect with `start`.
    """

    def __init__(
        self,
        settings: Settings,
        target: str,
        shared: SharedByHandlers | None = None,
        *,
        is_refused: Callable[[], bool] = lambda: False,
    ) -> None:
        """Raises `InvalidSetting`. `is_refused` returns whether a changed configuration is refused."""
        self._settings = settings
        self._log = get_logger(target)
        self._refusals = RareWarning(self._log, "caller refused")
        self._without_room = RareWarning(self._log, "delivery refused: no memory")
        self.shared = shared or shared_by_handlers(settings, target, self._log, is_refused)
        self._metrics = self.shared.metrics
        self._dependencies = Dependencies()
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._is_started = False
        self._starting: asyncio.Future[list[Gate]] | None = None
        self._needs_dependencies = settings.env.readiness == "dependencies"
        self._parts = Parts(self._log, [], [], self.shared, self._dependencies, occupied=self._occupying)
        handle_delivery, authenticator = _door_of(target, settings, self._parts)
        self._endpoint = self._endpoint_of(settings, target, handle_delivery, authenticator)
        if shared is None:
            self._show()
            for warning in setting_warnings(settings):
                self._log.warning(warning)

    def _endpoint_of(
        self, settings: Settings, target: str, handle_delivery: Handle, authenticator: Authenticator | None
    ) -> HttpEndpoint:
        env, metrics = settings.env, self._metrics
        return HttpEndpoint(
            handle_delivery,
            authenticator,
            {"/healthz": lambda: plain(200, "ok"), "/readyz": self._ready},
            self._refused,
            EndpointOptions(
                max_body_bytes=wrapped_bytes(env.max_request_bytes),
                receive_timeout_seconds=env.receive_timeout_seconds,
                ends_with_client=target == "dispatch",
                budget=self.shared.budget,
                on_no_room=self._no_room,
            ),
            guarded_pages={} if metrics is None else {"/metrics": GuardedPage(metrics.authenticator, metrics.page)},
        )

    def _show(self) -> None:
        if self._metrics is not None:
            metrics = self._metrics.metrics
            metrics.watch_ready(lambda: self._is_started and not self.shared.is_stopping)
            metrics.watch_dependencies(self._dependencies)

    def _occupying(self, forward: Forward) -> Forward:
        """A `forward` that keeps this handler open while it runs.

        A request that waited at a gate during a reload came from the previous handler, but is forwarded by this one.
        """

        async def forward_here(request: Request, options: AttemptOptions) -> Outcome:
            self._in_flight += 1
            try:
                return await forward(request, options)
            finally:
                self._left()

        return forward_here

    def _left(self) -> None:
        """Count the end of a request."""
        self._in_flight -= 1
        if self._in_flight == 0:
            self._idle.set()

    def _ready(self) -> Answer:
        """The readiness page, which names failing dependencies.

        They make the pod unready only with `READINESS=dependencies`.
        """
        if self.shared.is_stopping:
            return plain(503, "stopping")
        failing = self._dependencies.failing()
        if not failing:
            refused = self.shared.is_refused()
            return plain(200, "ready, but a changed configuration is refused" if refused else "ready")
        reported = "failing: " + ", ".join(f"{name} for {seconds:.0f} s" for name, seconds in failing.items())
        return plain(503, reported) if self._needs_dependencies else plain(200, f"ready, but {reported}")

    def _refused(self, refusal: Refusal) -> None:
        if self._metrics is not None:
            self._metrics.metrics.refused(refusal.status)
        self._refusals.report(status=refusal.status, reason=refusal.reason)

    def _no_room(self) -> None:
        if self._metrics is not None:
            self._metrics.door.no_room()
        self._without_room.report(fix="raise the memory limit, or lower containerConcurrency or WORKERS")

    async def respond(self, request: HttpRequest) -> HttpResponse:
        """The response to one HTTP request. The first request starts the handler if needed."""
        if not self._is_started:
            await self._started()
        self._in_flight += 1
        try:
            return await self._endpoint.respond(request)
        finally:
            self._left()

    async def retire(self, gates: Sequence[Gate]) -> None:
        """Close this handler and `gates` once its last request is answered."""
        while self._in_flight:
            self._idle.clear()
            await self._idle.wait()
        for gate in gates:
            await gate.aclose()
        await self.close_own()

    async def start(self) -> list[Gate]:
        """Start background work and take effect.

        Returns the gates to close with the previous handler. If a part cannot start, it raises without any effect.
        """
        for start in self._parts.starters:
            await start()
        if self._metrics is not None:
            self._metrics.change(self._settings)
        discarded: list[Gate] = []
        for take_effect in self._parts.effects:
            discarded += await take_effect()
        self._is_started = True
        self._show()
        return discarded

    async def _started(self) -> None:
        """Start once for all requests that arrive before the start has ended.

        The next request repeats a failed start.
        """
        if self._starting is None or self._starting.done():
            self._starting = asyncio.ensure_future(self.start())
        await asyncio.shield(self._starting)

    async def close_own(self) -> None:
        """Close what only this handler uses; published results are flushed first."""
        await close_in_time(reversed(self._parts.closers), self._log)

    async def aclose(self) -> None:
        """Close everything, within seconds: no other handler follows."""
        await close_in_time([*reversed(self._parts.closers), self.shared.aclose], self._log)


def _door_of(target: str, settings: Settings, parts: Parts) -> tuple[Handle, Authenticator | None]:
    """A target's function for deliveries, and the check of their senders."""
    if target == "dispatch":
        from handlers.wiring.dispatch_door import dispatch_door

        return dispatch_door(settings, parts)
    from handlers.wiring.push_door import push_door

    return push_door(settings, parts)


_built: dict[str, Handler] = {}


def handler_of(target: str) -> Handler:
    """The process's handler of one target.

    The first call builds it from the environment, unless `async-processor serve` has set one (`use_handler`).
    """
    if target not in _built:
        _built[target] = Handler(load_settings(os.environ), target)  # noqa: TID251  # no command has read it
    return _built[target]


def use_handler(target: str, handler: Handler) -> None:
    """Use this handler for `target` from now on."""
    _built[target] = handler
