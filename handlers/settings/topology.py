"""Build a Redis URL from the fields of `llm-d-async`'s transport file.

These are `url`, `mode` (`standalone`, `cluster` or `sentinel`), `addrs` (further nodes or Sentinels) and `master_name`.
Query parameters that tune its Redis client are dropped, because they have no effect here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from handlers.contract.errors import InvalidSetting

_DEFAULT_PORT: Final = 6379  # `llm-d-async` uses it for Sentinels too
_MODES: Final = ("standalone", "cluster", "sentinel")
_TUNING: Final = frozenset(
    {
        *("max_retries", "min_retry_backoff", "max_retry_backoff", "dial_timeout", "read_timeout", "write_timeout"),
        *("pool_fifo", "pool_size", "pool_timeout", "min_idle_conns", "max_idle_conns", "max_active_conns"),
        *("max_concurrent_dials", "idle_timeout", "conn_max_idle_time", "max_conn_age", "conn_max_lifetime"),
    }
)


def redis_address(url: str, mode: str, addrs: Sequence[str], master_name: str) -> str:
    """The URL for `connect`. Raises `InvalidSetting` if the fields contradict each other."""
    if mode not in ("", *_MODES):
        raise InvalidSetting("mode", found=repr(mode), accepted=f"one of {', '.join(_MODES)}")
    _check_fields(mode, addrs, master_name)
    try:
        parts = urlsplit(url)
    except ValueError:  # `check_url` reports it
        return url
    given = parse_qsl(parts.query)
    ours = [(name, value) for name, value in given if name not in _TUNING]
    if len(ours) < len(given):
        parts = parts._replace(query=urlencode(ours))
        url = parts.geturl()
    if mode in ("", "standalone"):
        return url
    if parts.scheme not in ("redis", "rediss"):
        raise InvalidSetting("mode", found=f"{mode} beside {parts.scheme}://", accepted="a redis:// or rediss:// URL")
    return _of_several(parts, mode, addrs, master_name)


def _check_fields(mode: str, addrs: Sequence[str], master_name: str) -> None:
    if addrs and mode not in ("cluster", "sentinel"):
        accepted = "no addresses unless mode is cluster or sentinel"
        raise InvalidSetting("addrs", found=", ".join(addrs)[:80], accepted=accepted)
    if master_name and mode != "sentinel":
        accepted = "no name unless mode is sentinel"
        raise InvalidSetting("master_name", found=repr(master_name), accepted=accepted)
    if mode == "sentinel" and (not master_name or "/" in master_name):
        raise InvalidSetting("master_name", found=repr(master_name), accepted="the master's name at the Sentinels")


def _of_several(parts: SplitResult, mode: str, addrs: Sequence[str], master_name: str) -> str:
    credentials, at, host = parts.netloc.rpartition("@")
    hosts = ",".join([_with_port(host), *addrs])
    query = dict(parse_qsl(parts.query))
    database = query.pop("db", "") or parts.path.strip("/")
    if mode == "cluster" and database not in ("", "0"):
        raise InvalidSetting("url", found=f"database {database!r}", accepted="database 0 with mode: cluster")
    path = f"/{master_name}/{database or 0}" if mode == "sentinel" else ""
    scheme, netloc = f"{parts.scheme}+{mode}", f"{credentials}{at}{hosts}"
    return SplitResult(scheme, netloc, path, urlencode(query), "").geturl()


def _with_port(host: str) -> str:
    return host if host.rpartition("]")[2].count(":") else f"{host}:{_DEFAULT_PORT}"
