"""Describe the values that a field accepts, for errors and generated docs."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable
from typing import Any, Final, cast

import msgspec
from msgspec import inspect

from handlers.number_text import whole

NOUN: Final = "noun"
"""Key in `Meta.extra` of a description of valid values, which replaces the description derived from the type."""


def about(description: str, example: str = "", **limits: Any) -> msgspec.Meta:
    """Metadata of a field: description, example for the docs, bounds (see `msgspec.Meta`)."""
    return msgspec.Meta(description=description, examples=[example] if example else None, **limits)


@functools.cache
def _type_of(struct: type[msgspec.Struct]) -> inspect.StructType:
    return cast("inspect.StructType", inspect.type_info(struct))


def types_of(struct: type[msgspec.Struct]) -> dict[str, inspect.Type]:
    """The types of a struct's fields by their wire names."""
    return {field.encode_name: field.type for field in _type_of(struct).fields}


def known_fields(struct: type[msgspec.Struct], path: str) -> list[str]:
    """The wire names of the fields at `path` (`queues[0]`) below `struct`.

    Empty if there is no struct at `path`.
    """
    kind = _plain_type(type_at(struct, path))
    return [field.encode_name for field in kind.fields] if isinstance(kind, inspect.StructType) else []


def required_fields(struct: type[msgspec.Struct], path: str) -> list[str]:
    """The wire names of the required fields at `path` below `struct`."""
    kind = _plain_type(type_at(struct, path))
    fields = kind.fields if isinstance(kind, inspect.StructType) else ()
    return [field.encode_name for field in fields if field.required]


def type_at(struct: type[msgspec.Struct], path: str) -> inspect.Type:
    """The type of the field at `path` below `struct`. `AnyType` for an unknown path."""
    kind: inspect.Type = _type_of(struct)
    for step in steps_of(path):
        kind = _below(kind, step)
    return kind


def steps_of(path: str) -> list[str]:
    """The names and indexes of a path such as `queues[0].labels[...]`."""
    return re.findall(r"[^.\[\]]+|\.\.\.", path)


def value_at(content: object, path: str) -> object:
    """The value at a path in decoded JSON; None if it does not exist."""
    for step in steps_of(path):
        place = whole(step)
        if isinstance(content, list) and place is not None and place < len(content):
            content = content[place]
        elif isinstance(content, dict) and step in content:
            content = content[step]
        else:
            return None
    return content


def _below(kind: inspect.Type, step: str) -> inspect.Type:
    kind = _plain_type(kind)
    if isinstance(kind, inspect.ListType):
        return kind.item_type
    if isinstance(kind, inspect.StructType):
        return next((field.type for field in kind.fields if field.encode_name == step), inspect.AnyType())
    if isinstance(kind, inspect.DictType):
        return kind.value_type
    return inspect.AnyType()


def _plain_type(kind: inspect.Type) -> inspect.Type:
    """The type without its metadata. For an optional struct, the struct."""
    if isinstance(kind, inspect.Metadata):
        return _plain_type(kind.type)
    if isinstance(kind, inspect.UnionType):
        return next((one for one in kind.types if isinstance(one, inspect.StructType)), kind)
    return kind


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name most similar to `name`, or an empty string."""
    return next(iter(difflib.get_close_matches(name, list(known), 1)), "")


def described(kind: inspect.Type) -> str:
    """A type's values in words: `an integer from 1 to 10`."""
    match kind:
        case inspect.Metadata(type=inner, extra=extra):
            return _noun_with_bounds(extra[NOUN], inner) if extra and NOUN in extra else described(inner)
        case inspect.UnionType(types=types):
            return " or ".join(described(one) for one in types if not isinstance(one, inspect.NoneType))
        case inspect.LiteralType(values=values):
            return " or ".join(str(value) for value in values)
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return "an integer" + _bounds(kind)
        case inspect.FloatType():
            return "a number" + _bounds(kind)
        case _:
            return _described_other(kind)


def _described_other(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.ListType):
        return "a list"
    if isinstance(kind, inspect.DictType | inspect.StructType):
        return "a mapping"
    is_filled = isinstance(kind, inspect.StrType) and kind.min_length
    return "non-empty text" if is_filled else "text"


def _noun_with_bounds(noun: str, kind: inspect.Type) -> str:
    """The noun with its bounds. A number that has a noun is a duration in seconds."""
    bounds = _bounds(kind) if isinstance(kind, inspect.FloatType) else ""
    return f"{noun},{bounds} seconds" if bounds else noun


def extra_of(kind: inspect.Type) -> dict[str, Any]:
    """`Meta.extra` of a type, or of the first union member with one."""
    if isinstance(kind, inspect.Metadata):
        return kind.extra or extra_of(kind.type)
    if isinstance(kind, inspect.UnionType):
        return next((extra for one in kind.types if (extra := extra_of(one))), {})
    return {}


def meaning(kind: inspect.Type) -> str:
    """The description in a field's annotation, or an empty string."""
    if not isinstance(kind, inspect.Metadata):
        return ""
    schema: dict[str, Any] = kind.extra_json_schema or {}
    return str(schema.get("description", ""))


def _bounds(kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.ge is not None and kind.le is not None:
        return f" from {_plain(kind.ge)} to {_plain(kind.le)}"
    words = [("of at least", kind.ge), ("above", kind.gt), ("at most", kind.le), ("below", kind.lt)]
    message = " and ".join(f"{word} {_plain(bound)}" for word, bound in words if bound is not None)
    return f" {message}" if message else ""


def _plain(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else str(bound)


def shown_default(value: object) -> str:
    """The default of a field as Markdown. Empty without a default."""
    if value in ("", None, msgspec.NODEFAULT):
        return ""
    if isinstance(value, bool):
        return f"`{value}`".lower()
    return f"`{_plain(value)}`" if isinstance(value, float) else f"`{value}`"
