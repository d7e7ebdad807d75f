"""Changes of the configuration file without a restart: looked for now and then, checked whole, refused or taken.

A ConfigMap changes by a symlink behind the file's back, so its content is compared, not its time.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path

from handlers.contract.errors import InvalidSetting
from handlers.settings.config_file import config_paths
from handlers.settings.settings import Settings, load_settings
from handlers.telemetry.logs import Logger


class ConfigWatch:
    """Looks at the files that `CONFIG_FILE` names; `variables` are the process's environment at its start."""

    def __init__(self, variables: Mapping[str, str], settings: Settings, log: Logger) -> None:
        self._variables = dict(variables)
        self._paths = config_paths(settings.env.config_file)
        self._seconds = settings.env.config_reload_seconds
        self._log = log
        self._seen = self._digest()

    @property
    def is_watching(self) -> bool:
        """Whether there is a file, and it is to be looked at."""
        return bool(self._paths) and self._seconds > 0

    async def next(self) -> Settings:
        """Wait for a change that is valid; one that is not is logged, and the settings before stay in force."""
        while True:
            await asyncio.sleep(self._seconds)
            found = await asyncio.to_thread(self._digest)
            if found == self._seen:
                continue
            self._seen = found
            try:
                return await asyncio.to_thread(load_settings, self._variables)
            except InvalidSetting as error:
                self.refuse(error)

    def refuse(self, error: InvalidSetting) -> None:
        """Say what is wrong with a change, and that nothing of it is in force."""
        self._log.error(
            "configuration refused, the old one stays",
            setting=error.setting,
            found=error.found,
            accepted=error.accepted,
        )

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
