"""Names of result lists and topics that the operator allows requests to use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ANY: Final = "*"
ANY_RESULT_LIST: Final = "*result*"
"""Default for lists: queues and quotas rarely have `result` in their names."""
LONGEST_NAME: Final = 2_048
"""Characters; a request's own result list ends in its id."""


@dataclass(frozen=True, slots=True)
class ResultNames:
    """Names of lists or topics; a `*` stands for any characters."""

    names: tuple[str, ...] = (ANY,)

    @property
    def allows_any(self) -> bool:
        """Whether the operator allows every name that is not reserved."""
        return ANY in self.names

    def allow(self, name: str) -> bool:
        """Whether a request may use `name`; `*` in `name` has no special meaning."""
        return any(_matches(known, name) for known in self.names)


def read_result_names(text: str) -> ResultNames:
    """Names from comma-separated text; an empty text allows no name."""
    return ResultNames(tuple(name.strip() for name in text.split(",") if name.strip()))


def _matches(pattern: str, name: str) -> bool:
    """Whether `name` is `pattern` with any characters in place of each `*`; linear in the name's length."""
    first, *rest = pattern.split(ANY)
    if not rest:
        return name == pattern
    *middle, last = rest
    if not name.startswith(first):
        return False
    at = len(first)
    for part in middle:
        found = name.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return len(name) - len(last) >= at and name.endswith(last)


def is_plain_name(name: str) -> bool:
    """Whether a name is printable and has at most `LONGEST_NAME` characters."""
    return len(name) <= LONGEST_NAME and name.isprintable()
