"""Which names a request may give to the place of its result: an operator's list, else any. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ANY: Final = "*"
LONGEST_NAME: Final = 2_048
"""Characters: room for a result list of a request's own, which ends in its id."""


@dataclass(frozen=True, slots=True)
class ResultNames:
    """Names of lists or topics, in full, or as the beginning of a name with `*` behind it."""

    names: tuple[str, ...] = (ANY,)

    def allow(self, name: str) -> bool:
        """Whether a request may name it. `*` inside what a request says is a character like any other."""
        return any(
            name.startswith(known[:-1]) if known.endswith(ANY) else name == known for known in self.names
        )


def read_result_names(text: str) -> ResultNames:
    """The names of a text with commas between; nothing allows nothing."""
    return ResultNames(tuple(name.strip() for name in text.split(",") if name.strip()))


def is_plain_name(name: str) -> bool:
    """Whether a name can be that of a list: not overly long, and without control characters such as NUL or newlines."""
    return len(name) <= LONGEST_NAME and name.isprintable()
