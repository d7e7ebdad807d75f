"""Find lines of a batch by their `custom_id`, in its input, output and error file."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import msgspec

from handlers.batch.files import BatchFiles, BatchState, numbered_lines
from handlers.batch.lines import custom_id_of, decode_output, request_id


class FoundLine(msgspec.Struct, kw_only=True):
    """One line of the input; `written` is the file with its answer or error, or empty."""

    custom_id: str
    number: int
    request_id: str
    written: str = ""


def find_lines(files: BatchFiles, state: BatchState, custom_ids: Collection[str]) -> dict[str, FoundLine]:
    """The first line with each `custom_id`; ids without a line are missing."""
    found: dict[str, FoundLine] = {}
    for number, text in numbered_lines(Path(state.source), 1):
        name = custom_id_of(text)
        if name in custom_ids and name not in found:
            found[name] = FoundLine(
                custom_id=name,
                number=number,
                request_id=request_id(state.batch, number),
            )
    by_number = {line.number: line for line in found.values()}
    for path in (files.out, files.errors):
        if path.exists():
            for _, text in numbered_lines(path, 1):
                number, kind = decode_output(state.batch, text) or (0, "")
                if number in by_number:
                    by_number[number].written = f"{kind or 'answered'}, in {path}"
    return found
