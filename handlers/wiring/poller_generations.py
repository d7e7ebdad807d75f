"""A poller that takes a changed configuration while it runs: the next one claims, the one before finishes its work.

Each is a whole poller with its own connections, gates and pools. What the one before still has in flight counts against
the pools and gates of the next, so that no limit is exceeded; what waits in the one before goes back to its queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping

from handlers.settings.settings import Settings
from handlers.telemetry.logs import get_logger
from handlers.wiring.poller import PollerApp
from handlers.wiring.reload import ConfigWatch


class PollerGenerations:
    """Runs a poller of these settings, and of those that follow. `run` ends when all are stopped and drained."""

    def __init__(self, variables: Mapping[str, str], settings: Settings) -> None:
        self._log = get_logger("poller")
        self._watch = ConfigWatch(variables, settings, self._log)
        self._current = PollerApp(settings)
        self._current.show_refusals(lambda: self._watch.is_refused)
        self._running: dict[asyncio.Task[None], PollerApp] = {}
        self._is_stopping = False

    @property
    def has_begun(self) -> bool:
        """Whether a poller may have claimed requests."""
        return any(app.has_begun for app in self._running.values())

    def stop(self) -> None:
        """Drain all; a second call ends the grace period."""
        self._is_stopping = True
        for app in self._running.values():
            app.poller.stop()

    async def run(self) -> None:
        """Poll until stopped and drained. Raises what ended a poller."""
        self._begin(self._current, self._current.run())
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

    def _begin(self, app: PollerApp, run: Coroutine[None, None, None]) -> None:
        self._running[asyncio.create_task(run)] = app

    async def _follow(self) -> None:
        """Take every valid change until cancelled."""
        if not self._watch.is_watching:
            await asyncio.Event().wait()
        while True:
            settings = await self._watch.next()
            if self._is_stopping:
                continue
            try:
                following = PollerApp(settings, self._current)
            except Exception as error:  # noqa: BLE001  # whatever is wrong with a change, the poller goes on
                self._watch.refuse(error)
                continue
            self._watch.take()
            self._succeed(following)
            self._log.info("configuration reloaded", queues=[one.queue_name for one in settings.queues])

    def _succeed(self, following: PollerApp) -> None:
        """Let `following` stand in the place of the current one, and claim once that claims no more."""
        before, self._current = self._current, following
        before.poller.retire()
        following.show_refusals(lambda: self._watch.is_refused)
        following.take_over_pages(before)
        self._begin(following, _run_after(before, following))


async def _run_after(before: PollerApp, following: PollerApp) -> None:
    await before.poller.claimed_last()
    following.take_over(before)
    await following.run()
