"""A poller that takes a changed configuration while it runs: the next one claims, the one before finishes its work.

Each is a whole poller with its own connections, gates and pools. For a moment, while the one before drains, a pool may
hold what both have in flight.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from handlers.app.poller import PollerApp
from handlers.app.reload import ConfigWatch
from handlers.contract.errors import InvalidSetting
from handlers.settings.settings import Settings
from handlers.telemetry.logs import get_logger


class PollerGenerations:
    """Runs a poller of these settings, and of those that follow. `run` ends when all are stopped and drained."""

    def __init__(self, variables: Mapping[str, str], settings: Settings) -> None:
        self._log = get_logger("poller")
        self._watch = ConfigWatch(variables, settings, self._log)
        self._current = PollerApp(settings)
        self._running: dict[asyncio.Task[None], PollerApp] = {}

    def stop(self) -> None:
        """Drain all; a second call ends the grace period."""
        for app in self._running.values():
            app.poller.stop()

    async def run(self) -> None:
        """Poll until stopped and drained. Raises what ended a poller."""
        self._begin(self._current)
        changing = asyncio.create_task(self._follow())
        try:
            while self._running:
                done, _ = await asyncio.wait({*self._running, changing}, return_when=asyncio.FIRST_COMPLETED)
                for task in done - {changing}:
                    del self._running[task]
                    await task
                if changing in done:
                    await changing
        finally:
            changing.cancel()
            await asyncio.gather(changing, return_exceptions=True)

    def _begin(self, app: PollerApp) -> None:
        self._running[asyncio.create_task(app.run())] = app

    async def _follow(self) -> None:
        """Take every valid change until cancelled."""
        if not self._watch.is_watching:
            await asyncio.Event().wait()
        while True:
            settings = await self._watch.next()
            if self._current.poller.is_stopping:
                continue
            try:
                following = PollerApp(settings)
            except InvalidSetting as error:
                self._watch.refuse(error)
                continue
            following.take_over_pages(self._current)
            self._current.poller.stop()
            self._current = following
            self._begin(following)
            self._log.info("configuration reloaded", queues=[one.queue_name for one in settings.queues])
