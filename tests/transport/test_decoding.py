"""Content codings: every form that servers send is read, and nothing grows past the limit."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from functools import partial

import brotli
import pytest
import zstandard

from handlers.transport.decoding import decoded
from handlers.transport.failures import ResponseTooLarge, UnusableResponse

GOOD = b'{"ok":true}' * 20
LIMIT = 100_000


def raw_deflate(body: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    return deflater.compress(body) + deflater.flush()


def zstd(body: bytes) -> bytes:
    return zstandard.compress(body)


FORMS = {
    "gzip": ("gzip", gzip.compress(GOOD)),
    "gzip in capitals, with space": (" GZIP ", gzip.compress(GOOD)),
    "x-gzip": ("x-gzip", gzip.compress(GOOD)),
    "gzip of two members": ("gzip", gzip.compress(GOOD[:5]) + gzip.compress(GOOD[5:])),
    "gzip with padding": ("gzip", gzip.compress(GOOD) + b"\0\0\0"),
    "deflate": ("deflate", zlib.compress(GOOD)),
    "deflate without its header": ("deflate", raw_deflate(GOOD)),
    "br": ("br", brotli.compress(GOOD)),
    "zstd": ("zstd", zstd(GOOD)),
    "zstd of two frames": ("zstd", zstd(GOOD[:5]) + zstd(GOOD[5:])),
    "identity": ("identity", GOOD),
    "a charset by mistake": ("utf-8", GOOD),
    "none": ("none", GOOD),
    "nothing": ("", GOOD),
    "identity, gzip": ("identity, gzip", gzip.compress(GOOD)),
    "gzip, identity": ("gzip, identity", gzip.compress(GOOD)),
    "deflate, then gzip": ("deflate, gzip", gzip.compress(zlib.compress(GOOD))),
    "gzip, then br": ("gzip,br", brotli.compress(gzip.compress(GOOD))),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_content_coding_is_decoded(name: str) -> None:
    encoding, body = FORMS[name]
    assert decoded(body, encoding, LIMIT) == GOOD


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, br", "unknown"])
def test_an_empty_body_is_empty_under_any_coding(encoding: str) -> None:
    assert decoded(b"", encoding, LIMIT) == b""


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "pack200", "gzip,gzip,gzip,gzip,gzip"])
def test_a_body_that_does_not_match_its_coding_is_refused(encoding: str) -> None:
    with pytest.raises(UnusableResponse, match=r"cannot be decoded as|unknown|more than 4"):
        decoded(GOOD, encoding, LIMIT, 200)


@pytest.mark.parametrize("name", ["gzip", "deflate", "deflate without its header", "br", "zstd"])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_truncated_stream_is_reported(name: str, kept: float) -> None:
    encoding, body = FORMS[name]
    with pytest.raises(UnusableResponse):
        decoded(body[: int(len(body) * kept)], encoding, LIMIT)


BOMBS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": raw_deflate,
    "br": partial(brotli.compress, quality=5),
    "zstd": zstd,
    "gzip, gzip": lambda body: gzip.compress(gzip.compress(body)),
}


@pytest.mark.parametrize("encoding", BOMBS)
def test_a_decompression_bomb_is_refused(encoding: str) -> None:
    bomb = BOMBS[encoding](bytes(50_000_000))
    with pytest.raises(ResponseTooLarge):
        decoded(bomb, encoding, LIMIT)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_the_limit_is_exact(encoding: str) -> None:
    make = {"gzip": gzip.compress, "deflate": zlib.compress, "br": brotli.compress, "zstd": zstd}[encoding]
    assert decoded(make(b"x" * LIMIT), encoding, LIMIT) == b"x" * LIMIT
    with pytest.raises(ResponseTooLarge):
        decoded(make(b"x" * (LIMIT + 1)), encoding, LIMIT)


def test_too_many_empty_members_are_refused() -> None:
    with pytest.raises(UnusableResponse, match="members"):
        decoded(gzip.compress(b"") * 10_001, "gzip", LIMIT)
