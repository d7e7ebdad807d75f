"""Encode a request's target, request line and headers."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

import httpx

_PORTS: Final = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """The key by which connections are pooled."""

    scheme: str
    host: str
    port: int


class Target(NamedTuple):
    """A parsed URL: origin, request line without method, fixed headers."""

    origin: Origin
    line: str
    fixed: str


@lru_cache(maxsize=1_024)
def target_of(url: str) -> Target:
    """The parsed URL; cached, since there are few.

    A user and a password in it become `Authorization: Basic`. Raises `httpx.UnsupportedProtocol` or
    `httpx.LocalProtocolError` for a URL that cannot be called.
    """
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):  # the original text may contain a password, so it is not repeated
        raise httpx.LocalProtocolError("the URL cannot be read") from None
    origin = origin_of(parsed)
    fixed = f"host: {parsed.netloc.decode('ascii')}\r\n"
    if parsed.userinfo:
        token = base64.b64encode(f"{parsed.username}:{parsed.password}".encode()).decode()
        fixed += f"authorization: Basic {token}\r\n"
    return Target(origin, f" {parsed.raw_path.decode('ascii')} HTTP/1.1\r\n", fixed)


def origin_of(url: httpx.URL) -> Origin:
    """Scheme, host and port. Raises `httpx.UnsupportedProtocol` for anything but http and https."""
    if url.scheme not in _PORTS or not url.host:
        raise httpx.UnsupportedProtocol(f"expected http:// or https:// with a host, got {url.scheme[:16]!r}")
    return Origin(url.scheme, url.raw_host.decode("ascii"), url.port or _PORTS[url.scheme])


def post_head(target: Target, headers: Mapping[str, str], length: int) -> bytes:
    """Request line and headers of a POST.

    `length` is that of the body. Header names are in lower case. Raises `httpx.LocalProtocolError` if a header contains
    a line break.
    """
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    text = f"POST{target.line}{target.fixed}{''.join(lines)}content-length: {length}\r\n\r\n"
    return _encoded(text, 4 + len(headers) + ("authorization" in target.fixed))


def request_head(request: httpx.Request) -> bytes:
    """Request line and headers of an httpx request."""
    raw: Iterable[tuple[bytes, bytes]] = request.headers.raw
    lines = [f"{request.method} {request.url.raw_path.decode('ascii')} HTTP/1.1\r\n"]
    lines += [f"{name.decode('latin-1')}: {value.decode('latin-1')}\r\n" for name, value in raw]
    return _encoded("".join(lines) + "\r\n", len(lines) + 1, "latin-1")


def _encoded(text: str, lines: int, encoding: str = "utf-8") -> bytes:
    if text.count("\n") != lines or text.count("\r") != lines or "\0" in text:
        raise httpx.LocalProtocolError("a header holds a line break")
    return text.encode(encoding)
