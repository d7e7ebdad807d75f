"""How a client asks for memory before it reads a large answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

FREE_BYTES: Final = 65_536
"""Bytes of an answer that are read without asking; most answers are smaller."""

AskForRoom = Callable[[int, Callable[[], None]], bool]
"""Takes the most bytes that the answer can have, and a callback for when there is room; True: there is room now."""
