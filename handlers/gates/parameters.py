"""Gate parameters: convert strings or JSON values to a gate's msgspec struct.

A struct declares the types and bounds of its fields, like the structs of the configuration file:

    class Parameters(msgspec.Struct, frozen=True, kw_only=True):
        pool: Annotated[Text, Meta(description="Inference pool.")]
        threshold: Annotated[float, Meta(gt=0, le=1, description="Saturation that closes the gate.")] = 0.8

Besides msgspec's own types there are `Text`, `Duration`, `HttpUrl` and `Labels`. For a type of your own, name a
function that parses the value: `Annotated[..., Meta(extra={READ: function, NOUN: "a description"})]`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from handlers.contract.accepted import NOUN, described, extra_of, nearest, types_of
from handlers.contract.errors import InvalidSetting, SettingFaults
from handlers.contract.masked_text import shown_value
from handlers.number_text import parse_duration

P = TypeVar("P", bound=msgspec.Struct)
READ: Final = "read"
"""Key in `Meta.extra` of a function that parses the raw value, or raises `ValueError`."""

_MISSING: Final = re.compile(r"Object missing required field `(\w+)`(?: - at `\$(.*)`)?")
"""msgspec's message for an incomplete inner gate: its field and its place."""


class InconsistentParameters(ValueError):
    """Raised by a struct's `__post_init__` for valid parameters that contradict each other."""

    def __init__(self, name: str, *, found: str, accepted: str) -> None:
        super().__init__(f"{name}: expected {accepted}, got {found}")
        self.name = name
        self.found = found
        self.accepted = accepted


def parse_parameters(kind: type[P], gate_type: str, raw: Mapping[str, Any], setting: str) -> P:
    """Convert `raw` to the struct `kind`.

    `setting` is the path of `raw` in the settings, for errors. Raises `InvalidSetting` for unknown, missing, invalid
    and inconsistent parameters.
    """
    fields = msgspec.structs.fields(kind)
    names = [field.encode_name for field in fields]
    faults = SettingFaults()
    for name in raw:
        if name not in names:
            close = nearest(name, names)
            hint = f" (did you mean {close}?)" if close else ""
            accepted = f"one of {', '.join(sorted(names))}" if names else "no parameter"
            found = f"an unknown parameter of {gate_type}{hint}"
            faults.add(InvalidSetting(f"{setting}.{name}", found=found, accepted=accepted))
    values: dict[str, Any] = {}
    for field in fields:
        path = f"{setting}.{field.encode_name}"
        if field.encode_name in raw:
            with faults.collected():
                values[field.name] = _read(field.type, raw[field.encode_name], path, gate_type)
        elif field.required and not faults.found:  # a misspelt name explains a missing one
            accepted = f"{described(types_of(kind)[field.encode_name])} (required by {gate_type})"
            faults.add(InvalidSetting(path, found="nothing", accepted=accepted))
    faults.raise_all()
    try:
        return kind(**values)
    except InconsistentParameters as error:
        raise InvalidSetting(
            f"{setting}.{error.name}", found=error.found, accepted=f"{error.accepted} ({gate_type})"
        ) from None


def _read(kind: Any, value: Any, setting: str, gate_type: str) -> Any:
    info = msgspec.inspect.type_info(kind)
    prepared = extra_of(info).get(READ, _stripped)
    try:
        read = msgspec.convert(prepared(value), kind, strict=False)
        if isinstance(read, float) and not math.isfinite(read):
            raise ValueError("not finite")
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        if missing := _MISSING.fullmatch(str(error)):
            path = f"{setting}{missing[2] or ''}.{missing[1]}"
            raise InvalidSetting(path, found="nothing", accepted=f"a value (required by {gate_type})") from None
        raise InvalidSetting(setting, found=shown_value(value), accepted=f"{described(info)} ({gate_type})") from None
    return read


def _stripped(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object of `pairs`. Raises `ValueError` for a repeated key."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is repeated")
    return found


def json_of(value: Any) -> Any:
    """Parse a string as JSON; return other values unchanged. Raises `ValueError`."""
    return json.loads(value, object_pairs_hook=unique_keys) if isinstance(value, str) else value


def _seconds(value: Any) -> Any:
    """Seconds of a text such as `1m30s`; a number is returned unchanged."""
    if not isinstance(value, str):
        return value
    found = value.strip()
    seconds = None if " " in found else parse_duration(found)
    return found if seconds is None else seconds


def _labels(value: Any) -> dict[str, str]:
    """Labels from a JSON object or `a=b,c=d`. Other values become strings."""
    if isinstance(value, str) and not value.lstrip().startswith("{"):
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        if any(not sep or not name.strip() for name, sep, _ in pairs):
            raise ValueError
        return {name.strip(): found.strip().strip('"') for name, _, found in pairs}
    read = json_of(value)
    if not isinstance(read, Mapping):
        raise ValueError
    return {str(name): str(found) for name, found in read.items()}


def read_by(read: Callable[[Any], Any], noun: str) -> Meta:
    """Metadata of a type. `read` parses its raw values, `noun` describes valid ones."""
    return Meta(extra={READ: read, NOUN: noun})


Text = Annotated[str, Meta(min_length=1)]
"""A string that is not empty, without surrounding space."""

DURATION: Final = read_by(_seconds, "a duration such as 500ms, 10s, 1m30s or 1h")
"""Metadata of seconds that may be a number or a text such as `1m30s`."""

Duration = Annotated[float, DURATION, Meta(gt=0, le=31_536_000)]
"""Seconds above 0, at most a year."""

HttpUrl = Annotated[
    str,
    Meta(
        pattern=r"^https?://[^\s/@]+(/\S*)?$",
        extra={NOUN: "an http:// or https:// URL without user and password"},
    ),
]
"""An http or https URL without credentials."""

Labels = Annotated[dict[str, str], read_by(_labels, 'labels as {"name": "value"} or name=value,name=value')]
"""Names and values, read from a JSON object or from `a=b,c=d`."""
