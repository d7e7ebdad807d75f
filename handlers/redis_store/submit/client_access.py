"""Connections of clients, without automatic retries.

Callers retry explicitly with `is_repeated=True`, which keeps a submission idempotent (see `submit.lua`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from redis.exceptions import AskError, ClusterError, ReadOnlyError, RedisClusterException, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from handlers.redis_store.connection import STORE_FAILURES, NotReplicated, RedisOptions, Store, connect

TRANSIENT_ERRORS: Final = (
    NotReplicated,
    RedisConnectionError,
    RedisTimeoutError,
    OSError,
    ReadOnlyError,
    ClusterError,
    AskError,
    TryAgainError,
    RedisClusterException,
)
"""Failures worth a retry: connection lost, reply lost, failover, slot migration."""

STORE_ERRORS: Final = STORE_FAILURES
"""Everything that a call may raise."""

CALL_TIMEOUT_SECONDS: Final = 10.0
CONNECTIONS: Final = 64


@dataclass(frozen=True, slots=True)
class RedisAccess:
    """A client's credentials and certificates, which do not belong in a URL.

    `username` and `password` override the URL's. `password_file` overrides both passwords and is read for every new
    connection, so that a secret may rotate. `ca_file` (PEM) is the CA of the server's certificate; empty means the
    system's CAs. `cert_file` and `key_file` are the client's own certificate. `timeout_seconds` is the longest wait for
    a connection.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    password_file: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    timeout_seconds: float = 2.0

    def current_password(self) -> str:
        """The current password. Raises `OSError` or `ValueError` if its file cannot be read."""
        if not self.password_file:
            return self.password
        return Path(self.password_file).read_text(encoding="utf-8").strip()


def client_options(url: str, access: RedisAccess | None = None) -> RedisOptions:
    """Connection options of a client for the Redis at `url`."""
    access = access or RedisAccess()
    return RedisOptions(
        url,
        username=access.username,
        password=access.current_password,
        ca_file=access.ca_file,
        cert_file=access.cert_file,
        key_file=access.key_file,
        timeout_seconds=CALL_TIMEOUT_SECONDS,
        connect_timeout_seconds=access.timeout_seconds,
        max_connections=CONNECTIONS,
    )


def open_redis(url: str, access: RedisAccess | None = None) -> Store:
    """Return a client, which connects with its first call. Raises `InvalidSetting` for an invalid URL."""
    return connect(client_options(url, access))
