"""What the gateway saw: an independent record of every request, one JSON line each, written when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec

_FLUSH_SECONDS = 0.05


class Witness:
    """Appends to `path`; without one it only counts."""

    def __init__(self, path: Path | None) -> None:
        self._file = path.open("ab") if path else None
        self._lines: list[bytes] = []
        self.statuses: dict[int, int] = {}

    def note(
        self,
        *,
        key: str,
        path: str,
        headers: Mapping[str, str],
        started_at: float,
        admitted_at: float | None = None,
        ended_at: float,
        status: int,
    ) -> None:
        """One request; `status` is 0 where no status was sent, 499 where the client left.

        `admitted_at` is when it got its slot, None for one that never had any.
        """
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if self._file is None:
            return
        if not self._lines:
            asyncio.get_running_loop().call_later(_FLUSH_SECONDS, self.flush)
        line = {
            "key": key,
            "path": path,
            "headers": headers,
            "started_at": started_at,
            "admitted_at": admitted_at,
            "ended_at": ended_at,
            "status": status,
        }
        self._lines.append(msgspec.json.encode(line) + b"\n")

    def flush(self) -> None:
        """Write what is noted."""
        if self._file is not None and self._lines:
            self._file.write(b"".join(self._lines))
            self._file.flush()
            self._lines.clear()
