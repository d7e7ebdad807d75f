"""A warning that a stranger can cause as often as he likes: logged once a minute, with how often it was."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from handlers.telemetry.logs import Logger

EVERY_SECONDS: Final = 60.0


class RareWarning:
    """Logs the first of a kind at once and then one line a minute. `clock` gives seconds that never go back."""

    def __init__(self, log: Logger, event: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._event = event
        self._clock = clock
        self._count = 0
        self._next_at = float("-inf")

    def tell(self, **fields: Any) -> None:
        """It happened; `fields` are logged with the line, if there is one, and `count`, how often since the last."""
        self._count += 1
        now = self._clock()
        if now >= self._next_at:
            self._log.warning(self._event, count=self._count, **fields)
            self._count, self._next_at = 0, now + EVERY_SECONDS
