"""How much memory this process may have, and what follows from that for what it holds."""

from __future__ import annotations

import resource
from collections.abc import Iterable
from pathlib import Path
from typing import Final

CGROUP_FILES: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Where the kernel says what a container may have: version 2, version 1."""
_UNLIMITED: Final = 2**50
"""Version 1 says "no limit" as a number of this order."""
WITHOUT_LIMIT: Final = 1 << 30
"""What is reckoned with where no limit is set: that of our manifests."""
BASE_BYTES: Final = 160_000_000
"""What a poller takes with small requests: interpreter, libraries, `WORKERS` requests of some kilobytes."""
COPIES: Final = 4
"""How often a large body is in memory at the worst moment: as it arrived, decoded, encoded, on its way out."""


def memory_limit(files: Iterable[Path] = CGROUP_FILES) -> int | None:
    """Bytes that this process may have: the least of the container's limit and its own; None without one."""
    found = [_read(file) for file in files]
    soft, _hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [limit for limit in (*found, soft) if limit is not None and 0 < limit < _UNLIMITED]
    return min(limits, default=None)


def _read(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such version of cgroups, or "max"
        return None


def derived_budget(limit: int | None, *, least: int) -> int:
    """The byte budget of a poller that may have `limit` bytes; at least `least`, without which nothing moves."""
    return max(least, ((limit or WITHOUT_LIMIT) - BASE_BYTES) // COPIES)


def needed_memory(budget: int) -> int:
    """The memory that a poller of this budget may take."""
    return BASE_BYTES + COPIES * budget
