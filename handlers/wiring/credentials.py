"""Credentials of outgoing connections, from settings and files."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from handlers.contract.errors import InvalidSetting
from handlers.settings.settings import Settings, read_secret

if TYPE_CHECKING:
    from handlers.redis_store.connection import RedisOptions

TOKEN_CACHE_SECONDS = 5.0


def file_token(setting: str, path: str) -> Callable[[], str] | None:
    """A function that returns the current bearer token in a file.

    The function reads the file again every few seconds. If the file becomes unreadable or empty, the last
    token stays in use. Raises `InvalidSetting` at once if the file holds no valid token.
    """
    if not path:
        return None
    known = (_read_token(setting, path), 0.0)

    def token() -> str:
        nonlocal known
        now = time.monotonic()
        if now >= known[1]:
            value = known[0]
            with contextlib.suppress(InvalidSetting):
                value = _read_token(setting, path)
            known = (value, now + TOKEN_CACHE_SECONDS)
        return known[0]

    return token


def _read_token(setting: str, path: str) -> str:
    token = read_secret(setting, path)
    if not token or not token.isascii() or not token.isprintable():
        raise InvalidSetting(
            setting, found=f"{path} without a token", accepted="a file with one line of printable ASCII"
        )
    return token


def gateway_tls(settings: Settings) -> ssl.SSLContext | None:
    """TLS context with the gateway's CA and client certificate, or None."""
    env = settings.env
    return _tls("GATEWAY_CA_FILE, GATEWAY_CERT_FILE", env.gateway_ca_file, env.gateway_cert_file, env.gateway_key_file)


def prometheus_tls(settings: Settings) -> ssl.SSLContext | None:
    """TLS context with the CA of the Prometheus server, or None."""
    return _tls("PROMETHEUS_CA_FILE", settings.env.prometheus_ca_file)


def _tls(setting: str, ca_file: str, cert_file: str = "", key_file: str = "") -> ssl.SSLContext | None:
    if not (ca_file or cert_file):
        return None
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
        if cert_file:
            context.load_cert_chain(cert_file, key_file or None)
    except (OSError, ssl.SSLError) as error:
        raise InvalidSetting(setting, found=f"{type(error).__name__}: {error}", accepted="PEM files") from None
    return context


def redis_options(settings: Settings) -> RedisOptions:
    """Address and credentials of the Redis that holds the queues."""
    from handlers.redis_store.connection import RedisOptions  # not loaded by a dispatch door

    env = settings.env
    return RedisOptions(
        url=settings.redis_url,
        username=env.redis_username,
        password=lambda: settings.redis_password,
        ca_file=env.redis_ca_file,
        cert_file=env.redis_cert_file,
        key_file=env.redis_key_file,
        timeout_seconds=env.redis_timeout_seconds,
        connect_timeout_seconds=env.redis_timeout_seconds,
    )
