"""Decode the content codings (RFC 9110, 8.4) of a body.

The size is bounded at every step. gzip and deflate are always decoded, br and zstd if the packages `brotli` (1.2 or
later) and `zstandard` are installed.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Final

from handlers.transport.failures import ResponseTooLarge, UnusableResponse

_NO_CODINGS: Final = frozenset({"", "identity", "none", "utf-8", "utf8", "binary"})
"""Values that leave the body unchanged. Some servers send a charset here by mistake."""

_MOST_CODINGS: Final = 4
_MOST_MEMBERS: Final = 10_000
_PIECE_BYTES: Final = 65_536
_ZSTD_PIECE_BYTES: Final = 512
"""Small, because a few bytes of zstd may decode to 128 KB, and its decoder has no output limit."""
_GZIP_MAGIC: Final = memoryview(b"\x1f\x8b")

Decoder = Callable[[bytes, int], bytes]
"""Decodes a body within a size limit; raises `ResponseTooLarge` or `_Undecodable`."""


class _Undecodable(Exception):
    """The body does not match its coding; the text gives the reason."""


def decoded(body: bytes, encoding: str, limit: int, status_code: int = 0) -> bytes:
    """Decode a body according to its `content-encoding`.

    Raises `UnusableResponse` if the body does not match it, `ResponseTooLarge` if any step exceeds `limit` bytes. An
    empty body stays empty.
    """
    if not body or not encoding:
        return body
    names = [name for part in encoding.split(",") if (name := part.strip().lower()) not in _NO_CODINGS]
    if len(names) > _MOST_CODINGS:
        raise UnusableResponse(f"has more than {_MOST_CODINGS} content codings", status_code)
    for name in reversed(names):  # the header lists them in the order in which they were applied
        if not body:
            break
        decode = _decoders().get(name)
        if decode is None:
            raise UnusableResponse(f"has the unknown content-encoding {name[:32]!r}", status_code)
        try:
            body = decode(body, limit)
        except _Undecodable as error:
            raise UnusableResponse(f"cannot be decoded as {name}: {error}", status_code) from None
        except ResponseTooLarge:
            raise ResponseTooLarge(status_code=status_code) from None
    return body


def _gzip(body: bytes, limit: int) -> bytes:
    """Decode all members (RFC 1952, 2.2). Like gunzip, ignore other bytes afterwards."""
    parts: list[bytes] = []
    size = members = 0
    rest = memoryview(body)
    while members == 0 or rest[:2] == _GZIP_MAGIC:
        members += 1
        if members > _MOST_MEMBERS:
            raise _Undecodable(f"more than {_MOST_MEMBERS} members")
        content, rest = _inflated(rest, zlib.MAX_WBITS | 16, limit - size)
        size += len(content)
        parts.append(content)
    return b"".join(parts)


def _deflate(body: bytes, limit: int) -> bytes:
    """Decode a stream with or without zlib header (many servers omit it)."""
    is_zlib = body[0] & 0x0F == 8 and int.from_bytes(body[:2]) % 31 == 0  # RFC 1950, 2.2
    return _inflated(memoryview(body), zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS, limit)[0]


def _inflated(body: memoryview, window: int, limit: int) -> tuple[bytes, memoryview]:
    """The content of one stream, and the bytes after it."""
    inflater = zlib.decompressobj(window)
    parts: list[bytes] = []
    size = taken = 0
    try:
        for piece in _pieces(body, _PIECE_BYTES):
            content = inflater.decompress(piece, limit + 1 - size)
            size += len(content)
            if size > limit or inflater.unconsumed_tail:
                raise ResponseTooLarge
            parts.append(content)
            taken += len(piece) - len(inflater.unused_data)
            if inflater.eof:
                return b"".join(parts), body[taken:]
    except zlib.error as error:
        raise _Undecodable(str(error)[:80]) from None
    raise _Undecodable("the stream ends too early")


def _pieces(body: bytes | memoryview, size: int) -> Iterator[memoryview]:
    view = memoryview(body)
    for start in range(0, len(view), size):
        yield view[start : start + size]


def _brotli_decoder() -> Decoder | None:
    try:
        brotli = importlib.import_module("brotli")
    except ImportError:
        return None
    if not hasattr(brotli.Decompressor, "can_accept_more_data"):
        return None  # version 1.1 and older cannot limit the output

    def decode(body: bytes, limit: int) -> bytes:
        decompressor = brotli.Decompressor()
        parts: list[bytes] = []
        size, given = 0, body
        try:
            while not decompressor.is_finished():
                content = decompressor.process(given, output_buffer_limit=limit + 1 - size)
                given = b""
                size += len(content)
                if size > limit:
                    raise ResponseTooLarge
                if not content and decompressor.can_accept_more_data():
                    break
                parts.append(content)
        except brotli.error as error:
            raise _Undecodable(str(error)[:80]) from None
        if not decompressor.is_finished():
            raise _Undecodable("the stream ends too early")
        return b"".join(parts)

    return decode


def _zstd_decoder() -> Decoder | None:
    try:
        zstandard = importlib.import_module("zstandard")
    except ImportError:
        return None

    def decode(body: bytes, limit: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        stream = zstandard.ZstdDecompressor(max_window_size=1 << 23).decompressobj()
        rest = memoryview(body)
        try:
            while rest:
                piece, rest = rest[:_ZSTD_PIECE_BYTES], rest[_ZSTD_PIECE_BYTES:]
                while piece:
                    if stream.eof:  # another frame follows
                        stream = zstandard.ZstdDecompressor(max_window_size=1 << 23).decompressobj()
                    content = stream.decompress(piece)
                    size += len(content)
                    if size > limit:
                        raise ResponseTooLarge
                    parts.append(content)
                    piece = memoryview(stream.unused_data) if stream.eof else memoryview(b"")
        except zstandard.ZstdError as error:
            raise _Undecodable(str(error)[:80]) from None
        if not stream.eof:
            raise _Undecodable("the stream ends too early")
        return b"".join(parts)

    return decode


@lru_cache(maxsize=1)  # on first use: most processes never see a coded body
def _decoders() -> dict[str, Decoder]:
    found: dict[str, Decoder] = {"gzip": _gzip, "x-gzip": _gzip, "deflate": _deflate}
    installed = {"br": _brotli_decoder(), "zstd": _zstd_decoder()}
    return found | {name: decoder for name, decoder in installed.items() if decoder is not None}
