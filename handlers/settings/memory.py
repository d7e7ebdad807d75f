"""This process's memory limit and the byte budget derived from it."""

from __future__ import annotations

import resource
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from handlers.number_text import whole

CGROUP_FILES: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Files with the container's memory limit: cgroup version 2, then version 1."""
_UNLIMITED: Final = 2**50
"""A larger limit counts as none: version 1 writes "no limit" as a huge number."""
WITHOUT_LIMIT: Final = 1 << 30
"""Bytes assumed if there is no limit: the limit in our manifests."""
BASE_BYTES: Final = 160_000_000
"""Memory of a process with small requests: interpreter, libraries, `WORKERS` requests of a few kilobytes."""
COPIES: Final = 4
"""Most copies of a large body in memory at once: received, decoded, encoded, being sent."""


def memory_limit(files: Iterable[Path] = CGROUP_FILES) -> int | None:
    """The memory limit of container or process in bytes, or None."""
    found = [_read(file) for file in files]
    soft, _hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [limit for limit in (*found, soft) if limit is not None and 0 < limit < _UNLIMITED]
    return min(limits, default=None)


def _read(file: Path) -> int | None:
    try:
        return whole(file.read_text(encoding="ascii").strip())  # None for the text "max"
    except (OSError, ValueError):  # another version of cgroups
        return None


def derived_budget(limit: int | None, *, least: int) -> int:
    """The byte budget under a memory limit; at least `least`."""
    return max(least, ((limit or WITHOUT_LIMIT) - BASE_BYTES) // COPIES)


def needed_memory(budget: int) -> int:
    """Most memory of a process with this byte budget, in bytes."""
    return BASE_BYTES + COPIES * budget
