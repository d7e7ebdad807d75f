"""Changes of the configuration file without a restart: looked for now and then, checked whole, refused or taken.

A ConfigMap changes by a symlink behind the file's back, so its content is compared, not its time. A file that is
written in place is empty or half there for a moment, and half a file may be a valid one: a change counts once it has
stood still.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from handlers.contract.errors import InvalidSetting
from handlers.settings.config_file import config_paths
from handlers.settings.settings import Settings, load_settings
from handlers.telemetry.logs import Logger

_SETTLE_SECONDS: Final = 0.25
"""How long a change must stand still: far longer than writing a file takes, or the swap of several files."""


class ConfigWatch:
    """Looks at the files that `CONFIG_FILE` names; `variables` are the process's environment at its start."""

    def __init__(self, variables: Mapping[str, str], settings: Settings, log: Logger) -> None:
        self._variables = dict(variables)
        self._paths = config_paths(settings.env.config_file)
        self._seconds = settings.env.config_reload_seconds
        self._log = log
        self._seen = self._in_force = self._digest()
        self.is_refused = False
        self._look_at = 0.0

    @property
    def is_watching(self) -> bool:
        """Whether there is a file, and it is to be looked at."""
        return bool(self._paths) and self._seconds > 0

    async def next(self) -> Settings:
        """Wait for a change that is valid; one that is not is refused, and the settings before stay in force."""
        while True:
            await asyncio.sleep(self._seconds)
            found = await asyncio.to_thread(self._digest)
            if found == self._seen or not await self._is_still(found):
                continue
            self._seen = found
            if found == self._in_force:
                self.is_refused = False
                self._log.info("configuration is again the one in force")
                continue
            try:
                settings = await asyncio.to_thread(load_settings, self._variables)
            except Exception as error:  # noqa: BLE001  # whatever a file does to its reader, the old one stays
                self.refuse(error)
                continue
            if await asyncio.to_thread(self._digest) == found:
                return settings
            self._seen = b""  # it changed while it was read: what was read may be half of each

    def take(self) -> None:
        """The settings that `next` returned are in force."""
        self._in_force = self._seen
        self.is_refused = False

    def refuse(self, error: Exception) -> None:
        """Say what is wrong with a change, and that nothing of it is in force."""
        self.is_refused = True
        if isinstance(error, InvalidSetting):
            why = {"setting": error.setting, "found": error.found, "accepted": error.accepted}
        else:
            why = {"error": type(error).__name__}  # its text may hold what the file holds
        self._log.error("configuration refused, the old one stays", **why)

    def look(self) -> Settings | None:
        """A valid change since the last look, which is in force then; at most one look every reload interval.

        For a process that acts only when it is asked: half a file is looked at again soon enough.
        """
        if not self.is_watching or time.monotonic() < self._look_at:
            return None
        self._look_at = time.monotonic() + self._seconds
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
        """Apply each valid change until cancelled; one that `apply` rejects is refused."""
        while True:
            settings = await self.next()
            try:
                await apply(settings)
            except Exception as error:  # noqa: BLE001  # whatever is wrong with a change, the process goes on
                self.refuse(error)
            else:
                self.take()

    async def _is_still(self, found: bytes) -> bool:
        await asyncio.sleep(_SETTLE_SECONDS)
        return await asyncio.to_thread(self._digest) == found

    def _digest(self) -> bytes:
        """Of all files; one that cannot be read counts as changed once, and is told by who reads it."""
        whole = hashlib.sha256()
        for path in self._paths:
            try:
                content = Path(path).read_bytes()
            except OSError as error:
                content = repr(error.errno).encode()
            whole.update(hashlib.sha256(content).digest())
        return whole.digest()
