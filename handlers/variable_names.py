"""Find variables that are ignored because their names only resemble known ones."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

_LEAST_LIKENESS: Final = 0.88
_SHORT: Final = 6
"""Names of up to this many characters are not compared: `PORT` resembles variables of other programs."""
_SHARED: Final = frozenset(
    {"CONFIG", "CONNECT", "CONNECTION", "EVENT", "FUNCTION", "GATEWAY", "HOST", "K", "LOG", "MAX", "METRICS", "MIN"}
    | {"OTEL", "POLL", "PORT", "PROJECT", "PROMETHEUS", "PUBSUB", "PUSH", "READINESS", "RECEIVE", "SHUTDOWN"}
    | {"STATUS", "WAIT", "WORKERS"}
)  # fmt: skip
"""First words that variables of other programs also have."""
_SERVICE: Final = re.compile(r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_\w+)?)")
_SERVICE_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://.*")


def unknown(variables: Mapping[str, str], known: Collection[str]) -> Iterator[str]:
    """The names of other variables with a value, sorted.

    Those that Kubernetes adds for each Service (`REDIS_PORT_6379_TCP`) are left out.
    """
    for name in sorted(variables.keys() - known):
        value = variables[name]
        if value and not _SERVICE.fullmatch(name) and not _SERVICE_ADDRESS.fullmatch(value):
            yield name


def misspelt(name: str, known: Collection[str]) -> str:
    """The known name that `name` misspells, or an empty string."""
    compared = [one for one in known if len(one) > _SHORT]
    swapped = next((one for one in compared if sorted(one) == sorted(name)), "")
    return swapped or _closest(name, compared, _LEAST_LIKENESS)


def incomplete(name: str, known: Collection[str]) -> str:
    """The known name with more or fewer words, or an empty string.

    The first word is the same: `IGW_URL`.
    """
    words = name.split("_")
    related = [
        one for one in known if len(words) > 1 and one.split("_")[0] == words[0] and _is_part(words, one.split("_"))
    ]
    return _closest(name, related, 0.0)


def warning(name: str, known: Collection[str]) -> str:
    """The warning about an ignored variable. Empty if no known variable has its first word."""
    first, _, rest = name.partition("_")
    close = misspelt(name, known) or incomplete(name, known)
    family = sorted(one for one in known if one.startswith(f"{first}_"))
    if close:
        return f"{name}: unknown variable, ignored; did you mean {close}?"
    if not rest or first in _SHARED or not family:
        return ""
    return f"{name}: unknown variable, ignored; expected one of {', '.join(family)}"


def is_shared(name: str) -> bool:
    """Whether other programs have variables with this first word."""
    return name.split("_", maxsplit=1)[0] in _SHARED


def _is_part(some: list[str], others: list[str]) -> bool:
    return set(some) < set(others) or set(others) < set(some)


def _closest(name: str, known: Iterable[str], cutoff: float) -> str:
    return next(iter(difflib.get_close_matches(name, list(known), 1, cutoff)), "")
