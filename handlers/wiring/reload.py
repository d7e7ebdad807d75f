"""Watch the configuration file: apply valid changes, refuse invalid ones.

A ConfigMap changes through a symlink, so contents are compared, not modification times. A file that is being written in
place may be valid although half of it is missing. So a change is applied only when the file has stopped changing.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from handlers.cancellation import end_if_cancelled
from handlers.contract.errors import InvalidSetting
from handlers.settings.config_file import config_paths
from handlers.settings.settings import Settings, load_settings
from handlers.telemetry.logs import Logger

_SETTLE_SECONDS: Final = 0.25
"""Time for which a file must stay unchanged; writing or replacing it takes far less."""


class ConfigWatch:
    """Watches the files in `CONFIG_FILE`.

    `variables` are the environment at the start of the process.
    """

    def __init__(self, variables: Mapping[str, str], settings: Settings, log: Logger) -> None:
        self._variables = dict(variables)
        self._paths = config_paths(settings.env.config_file)
        self._seconds = settings.env.config_reload_seconds
        self._log = log
        self._seen = self._in_force = self._digest()
        self.is_refused = False
        self._next_poll_at = 0.0

    @property
    def is_watching(self) -> bool:
        """Whether there is a file and reloading is enabled."""
        return bool(self._paths) and self._seconds > 0

    async def next(self) -> Settings:
        """Wait for a valid change and return its settings; refuse invalid ones."""
        while True:
            await asyncio.sleep(self._seconds)
            end_if_cancelled()
            found = await asyncio.to_thread(self._digest)
            if found == self._seen or not await self._is_still(found):
                continue
            self._seen = found
            if found == self._in_force:
                self.is_refused = False
                self._log.info("configuration reverted")
                continue
            try:
                settings = await asyncio.to_thread(load_settings, self._variables)
            except Exception as error:  # noqa: BLE001  # no content of a file may end the process
                self.refuse(error)
                continue
            if await asyncio.to_thread(self._digest) == found:
                return settings
            self._seen = b""  # a file changed while it was read, so the settings may mix two versions

    def take(self) -> None:
        """Record that the settings returned by `next` are in force."""
        self._in_force = self._seen
        self.is_refused = False

    def refuse(self, error: Exception) -> None:
        self.is_refused = True
        if not isinstance(error, InvalidSetting):  # its text may quote the file
            self._log.error("configuration refused", error=type(error).__name__)
            return
        for one in (error, *error.others):
            self._log.error("configuration refused", setting=one.place, found=one.found, accepted=one.accepted)

    def poll(self) -> Settings | None:
        """The settings of a valid change since the last call, or None.

        For a process without background tasks, which calls this on each request; the files are read at most once per
        reload interval. A file that is still being written is read again at the next interval.
        """
        if not self.is_watching or time.monotonic() < self._next_poll_at:
            return None
        self._next_poll_at = time.monotonic() + self._seconds
        found = self._digest()
        if found == self._seen:
            return None
        self._seen = found
        try:
            settings = load_settings(self._variables)
        except Exception as error:  # noqa: BLE001  # as in `next`
            self.refuse(error)
            return None
        self.take()
        return settings

    async def follow(self, apply: Callable[[Settings], Awaitable[None]]) -> None:
        """Apply each valid change until cancelled. If `apply` raises, the change is refused."""
        while True:
            settings = await self.next()
            try:
                await apply(settings)
            except Exception as error:  # noqa: BLE001  # no change may end the process
                end_if_cancelled()
                if isinstance(error, InvalidSetting):
                    error.put_at(settings.place_of(error.setting))
                self.refuse(error)
            else:
                self.take()
                end_if_cancelled()

    async def _is_still(self, found: bytes) -> bool:
        await asyncio.sleep(_SETTLE_SECONDS)
        return await asyncio.to_thread(self._digest) == found

    def _digest(self) -> bytes:
        """Digest of all files.

        A file that becomes unreadable counts as changed, so that it is read and the error reported.
        """
        whole = hashlib.sha256()
        for path in self._paths:
            try:
                content = Path(path).read_bytes()
            except OSError as error:
                content = repr(error.errno).encode()
            whole.update(hashlib.sha256(content).digest())
        return whole.digest()
