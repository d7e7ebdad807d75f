"""What a stranger wrote, on its way to a terminal: shown, never obeyed (CWE-150). Pipes and files get it as it is."""

from __future__ import annotations

from typing import Final, TextIO

_KEPT: Final = "\n\t"


def for_output(text: str, out: TextIO) -> str:
    """`text` as it is, or without control characters but line breaks and tabs where `out` is a terminal."""
    return printable(text) if out.isatty() else text


def printable(text: str) -> str:
    """`text` with a replacement character for whatever a terminal might obey."""
    return "".join(
        each if each.isprintable() or each in _KEPT else "\N{REPLACEMENT CHARACTER}" for each in text
    )
