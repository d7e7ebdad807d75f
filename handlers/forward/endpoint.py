"""Where at the gateway a request may go: a path below an allowed prefix, never another host. Pure.

URLs are built from a constant base and a checked path; nothing a stranger wrote is ever parsed as a URL.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from handlers.contract.errors import InvalidRequest

_PATH = re.compile(r"/[A-Za-z0-9._~/-]{1,255}")


def is_safe_path(path: str, allowed: Sequence[str]) -> bool:
    """Whether `path` is plain, has no dot segments or empty ones, and lies below an allowed prefix.

    A prefix that ends in `/` allows all below it, any other one itself alone.
    """
    if not _PATH.fullmatch(path):
        return False
    segments = path[1:].split("/")
    if any(segment in (".", "..") for segment in segments) or "" in segments[:-1]:
        return False
    return any(path.startswith(prefix) if prefix.endswith("/") else path == prefix for prefix in allowed)


def gateway_url(base_url: str, path: str, endpoint: str, allowed: tuple[str, ...], request_id: str) -> str:
    """The URL of one request. Raises `InvalidRequest` for an `endpoint` that may not be used."""
    if not endpoint:
        return joined(base_url, path)
    if not is_safe_path(endpoint, allowed):
        raise InvalidRequest(
            "endpoint",
            found="a path that is not allowed",
            accepted=f"a plain path below {', '.join(allowed)}",
            request_id=request_id,
        )
    return joined(base_url, endpoint)


@lru_cache(maxsize=1_024)
def joined(base_url: str, path: str) -> str:
    """The base's own path, then the request's."""
    return base_url.rstrip("/") + "/" + path.lstrip("/")
