"""Does one thing again and again: a failing tick is logged and does not end it, cancellation does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from handlers.cancellation import end_if_cancelled
from handlers.poller.patience import Patience
from handlers.redis_store.faults import explained
from handlers.telemetry.logs import Logger


class PeriodicTask:
    """Calls `tick` every `interval_seconds`, counted from the end of the last one."""

    def __init__(
        self,
        name: str,
        interval_seconds: float,
        tick: Callable[[], Awaitable[object]],
        log: Logger,
        failures: tuple[type[BaseException], ...],
    ) -> None:
        if interval_seconds <= 0:
            raise ValueError(f"{name}: an interval must be positive, not {interval_seconds}")
        self._name = name
        self._interval_seconds = interval_seconds
        self._tick = tick
        self._log = log
        self._failures = failures
        self._patience = Patience(first_seconds=min(0.1, interval_seconds))

    async def run(self) -> None:
        """Tick until cancelled. Expected failures (a dependency that is down) are logged once a row."""
        while True:
            try:
                await self._tick()
            except self._failures as error:
                end_if_cancelled()
                if not self._patience.is_tried:
                    self._log.warning(f"{self._name} waits for its store", error=explained(error))
                await self._patience.pause()
            except Exception as error:  # noqa: BLE001  # a defect in one tick must not end lease keeping for all
                end_if_cancelled()
                self._log.error(f"{self._name} failed", error=repr(error))
                await self._patience.pause()
            else:
                self._patience.reset()
                end_if_cancelled()
            await asyncio.sleep(self._interval_seconds)
