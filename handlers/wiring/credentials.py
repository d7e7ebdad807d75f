"""Files with tokens and certificates, as what the clients take. Each error names its setting."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable

from handlers.contract.errors import InvalidSetting
from handlers.settings.settings import Settings, read_secret

_TOKEN_SECONDS = 5.0


def file_token(setting: str, path: str) -> Callable[[], str] | None:
    """A bearer token, read again from its file every few seconds: a mounted secret rotates."""
    if not path:
        return None
    read_secret(setting, path)
    known = ("", 0.0)

    def token() -> str:
        nonlocal known
        now = time.monotonic()
        if now >= known[1]:
            known = (read_secret(setting, path), now + _TOKEN_SECONDS)
        return known[0]

    return token


def gateway_tls(settings: Settings) -> ssl.SSLContext | None:
    """The gateway's CA and our client certificate; None where neither is set."""
    env = settings.env
    if not (env.gateway_ca_file or env.gateway_cert_file):
        return None
    try:
        context = ssl.create_default_context(cafile=env.gateway_ca_file or None)
        if env.gateway_cert_file:
            context.load_cert_chain(env.gateway_cert_file, env.gateway_key_file or None)
    except (OSError, ssl.SSLError) as error:
        found = f"{type(error).__name__}: {error}"
        raise InvalidSetting(
            "GATEWAY_CA_FILE, GATEWAY_CERT_FILE", found=found, accepted="PEM files"
        ) from None
    return context


def prometheus_tls(settings: Settings) -> ssl.SSLContext | None:
    """The CA of the Prometheus server; None where none is set."""
    path = settings.env.prometheus_ca_file
    if not path:
        return None
    try:
        return ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError) as error:
        found = f"{type(error).__name__}: {error}"
        raise InvalidSetting("PROMETHEUS_CA_FILE", found=found, accepted="a PEM file") from None
