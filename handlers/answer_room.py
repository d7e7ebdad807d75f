"""How a client asks for room before it reads a large answer: who reads it cannot know what the process holds."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

FREE_BYTES: Final = 65_536
"""What of an answer is read without asking: most answers are smaller."""

AskForRoom = Callable[[int, Callable[[], None]], bool]
"""Takes the bytes that the answer will have (at most), and what to call once there is room; True: there is room now."""

ANSWER_ROOM: ContextVar[AskForRoom | None] = ContextVar("answer_room", default=None)
"""Whom the attempt of this task asks; None: nobody, there is no limit but that of a single answer."""
