"""Gate parameters: reads strings or JSON values into the frozen dataclass of a gate.

The fields of the dataclass say what they accept:

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Parameters:
        pool: str = parameter(string())
        threshold: float = parameter(real(above=0, most=1), default=0.8)

`parse_parameters` raises `InvalidSetting` for unknown, missing, invalid and inconsistent parameters.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from handlers.contract.errors import InvalidSetting
from handlers.contract.masked_text import without_secrets

T = TypeVar("T")
_ACCEPTS: Final = "accepts"
_MEANS: Final = "means"
_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(ms|s|m|h)")
_SECONDS_PER: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises `ValueError` for a key that occurs twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return found


class InconsistentParameters(ValueError):
    """Valid parameters that exclude each other; raised by `__post_init__` of a gate's dataclass."""

    def __init__(self, name: str, *, found: str, accepted: str) -> None:
        super().__init__(f"{name}: found {found}; accepted is {accepted}")
        self.name = name
        self.found = found
        self.accepted = accepted


@dataclass(frozen=True, slots=True)
class Accepts(Generic[T]):
    """Accepted values of a parameter: a description, and a reader that raises `ValueError` for others."""

    described: str
    read: Callable[[Any], T]


def parameter(accepts: Accepts[T], *, default: Any = dataclasses.MISSING, means: str = "") -> Any:
    """Dataclass field of a parameter; it is required if it has no default. Typed Any, as `field` is.

    `means` is the parameter's description with its unit, for docs/gates.md.
    """
    return dataclasses.field(default=default, metadata={_ACCEPTS: accepts, _MEANS: means})


@dataclass(frozen=True, slots=True)
class ParameterDescription:
    """One parameter as documented in docs/gates.md; the default is None if it is required."""

    name: str
    accepts: str
    default: Any
    is_required: bool
    means: str


def described_parameters(kind: type[Any]) -> list[ParameterDescription]:
    """Descriptions of all parameters of a gate's dataclass, required ones first."""
    found = [
        ParameterDescription(
            field.name,
            field.metadata[_ACCEPTS].described,
            None if field.default is dataclasses.MISSING else field.default,
            field.default is dataclasses.MISSING,
            field.metadata[_MEANS],
        )
        for field in dataclasses.fields(kind)
    ]
    return sorted(found, key=lambda one: not one.is_required)


def parse_parameters(kind: type[T], gate_type: str, raw: Mapping[str, Any], setting: str) -> T:
    """Read `raw` into the dataclass `kind`; `setting` is the path of `raw` in the settings, for errors."""
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]  # no type says "class of a dataclass"
    for name in raw:
        if name not in fields:
            known = ", ".join(sorted(fields)) or "no parameter"
            close = difflib.get_close_matches(name, list(fields), 1, 0.5)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise InvalidSetting(
                f"{setting}.{name}", found=f"an unknown parameter of {gate_type}{hint}", accepted=known
            )
    values: dict[str, Any] = {}
    for name, field in fields.items():
        accepts: Accepts[Any] = field.metadata[_ACCEPTS]
        if name in raw:
            values[name] = _read(accepts, raw[name], f"{setting}.{name}", gate_type)
        elif field.default is dataclasses.MISSING:
            raise InvalidSetting(
                f"{setting}.{name}",
                found="nothing",
                accepted=f"{accepts.described} (required by {gate_type})",
            )
    try:
        return kind(**values)
    except InconsistentParameters as error:
        raise InvalidSetting(
            f"{setting}.{error.name}", found=error.found, accepted=f"{error.accepted} ({gate_type})"
        ) from None


def _read(accepts: Accepts[T], value: Any, setting: str, gate_type: str) -> T:
    try:
        return accepts.read(value)
    except (ValueError, TypeError, OverflowError):
        shown = repr(without_secrets(value) if isinstance(value, str) else value)
        shown = (
            shown
            if len(shown) <= 60 and isinstance(value, str | int | float)
            else f"a {type(value).__name__}"
        )
        raise InvalidSetting(setting, found=shown, accepted=f"{accepts.described} ({gate_type})") from None


def string(*, may_be_empty: bool = False) -> Accepts[str]:
    """A string."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or not (value.strip() or may_be_empty):
            raise ValueError
        return value.strip()

    return Accepts("a string" if may_be_empty else "a non-empty string", read)


def http_address() -> Accepts[str]:
    """An http or https URL."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(r"https?://[^\s/@]+(/\S*)?", value.strip()):
            raise ValueError
        return value.strip()

    return Accepts("an http:// or https:// URL without user and password", read)


def choice(*names: str) -> Accepts[str]:
    """One of `names`."""

    def read(value: Any) -> str:
        if value not in names:
            raise ValueError
        return str(value)

    return Accepts(" or ".join(names), read)


def real(
    *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf, below: float = math.inf
) -> Accepts[float]:
    """A finite number within the bounds; `above` and `below` are exclusive."""

    def read(value: Any) -> float:
        if isinstance(value, bool):
            raise ValueError
        read_value = float(value)
        if not (math.isfinite(read_value) and least <= read_value <= most and above < read_value < below):
            raise ValueError
        return read_value

    bounds = [
        f"{word} {bound:g}"
        for word, bound in (("at least", least), ("above", above), ("at most", most), ("below", below))
        if math.isfinite(bound)
    ]
    return Accepts("a number " + " and ".join(bounds) if bounds else "a number", read)


def integer(*, least: int, most: int = 1_000_000_000) -> Accepts[int]:
    """A whole number within the bounds."""

    def read(value: Any) -> int:
        if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
            raise ValueError
        read_value = int(value)
        if not least <= read_value <= most:
            raise ValueError
        return read_value

    return Accepts(f"a whole number from {least} to {most}", read)


def duration(*, above: float = 0.0, most: float = 31_536_000.0) -> Accepts[float]:
    """A duration in seconds, read from a number or text such as `1m30s` or `500ms`."""

    def read(value: Any) -> float:
        read_value = _duration(value)
        if not above < read_value <= most:
            raise ValueError
        return read_value

    return Accepts("a duration above 0 such as 500ms, 10s, 1m30s or 1h", read)


def _duration(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    if isinstance(value, int | float):
        return float(value)
    found = str(value).strip()
    parts = _DURATION.findall(found)
    if parts and "".join(amount + unit for amount, unit in parts) == found:
        return sum(float(amount) * _SECONDS_PER[unit] for amount, unit in parts)
    return float(found)


def json_value(described: str, read: Callable[[Any], T]) -> Accepts[T]:
    """A JSON value or a string that holds one, converted by `read`."""

    def read_json(value: Any) -> T:
        return read(json.loads(value, object_pairs_hook=unique_keys) if isinstance(value, str) else value)

    return Accepts(described, read_json)


def string_map() -> Accepts[Mapping[str, str]]:
    """A JSON object of strings, or `a=b,c=d`."""

    def read(value: Any) -> Mapping[str, str]:
        if isinstance(value, str) and not value.lstrip().startswith("{"):
            pairs = [part.partition("=") for part in value.split(",") if part.strip()]
            if any(not sep or not name.strip() for name, sep, _ in pairs):
                raise ValueError
            return {name.strip(): found.strip().strip('"') for name, _, found in pairs}
        read_value = json.loads(value, object_pairs_hook=unique_keys) if isinstance(value, str) else value
        if not isinstance(read_value, Mapping):
            raise ValueError
        return {str(name): str(found) for name, found in read_value.items()}

    return Accepts('labels as {"name": "value"} or name=value,name=value', read)
