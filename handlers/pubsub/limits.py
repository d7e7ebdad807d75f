"""Pub/Sub's limits of one publish, checked before anything is sent. The emulator has none of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from handlers.pubsub.errors import ResultTooLarge

MAX_BYTES: Final = 10_000_000
"""Data and attributes of one publish, and of one call."""

MAX_ATTRIBUTES: Final = 100
MAX_ATTRIBUTE_NAME_BYTES: Final = 256
MAX_ATTRIBUTE_BYTES: Final = 1_024

CERTAIN_BYTES: Final = (MAX_BYTES - 1_000) // 4 * 3
"""What fits in a call of 10 MB as base64: between this and `MAX_BYTES` it is the service that decides."""


def check_limits(data: bytes, attributes: Mapping[str, str]) -> int:
    """Returns the size in bytes; raises `ResultTooLarge` naming the limit it breaks.

    Raises `UnicodeEncodeError` for lone surrogates in an attribute, which no JSON takes.
    """
    size = len(data)
    if len(attributes) > MAX_ATTRIBUTES:
        raise ResultTooLarge("number of attributes", size=len(attributes), limit=MAX_ATTRIBUTES)
    for name, value in attributes.items():
        name_size = len(name.encode())
        value_size = len(value.encode())
        if name_size > MAX_ATTRIBUTE_NAME_BYTES:
            raise ResultTooLarge(
                f"bytes in the name of attribute {name[:40]!r}…",
                size=name_size,
                limit=MAX_ATTRIBUTE_NAME_BYTES,
            )
        if value_size > MAX_ATTRIBUTE_BYTES:
            raise ResultTooLarge(f"bytes in attribute {name!r}", size=value_size, limit=MAX_ATTRIBUTE_BYTES)
        size += name_size + value_size
    if size > MAX_BYTES:
        raise ResultTooLarge("bytes of data and attributes", size=size, limit=MAX_BYTES)
    return size
