"""Counts with their noun, for every text that prints one."""

from __future__ import annotations


def counted(count: int, noun: str, plural: str = "") -> str:
    """The count with its noun: `1 error`, `1,200 errors`. `plural` is for nouns with another ending."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"
