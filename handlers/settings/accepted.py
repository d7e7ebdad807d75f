"""What a field takes, in words: for an error that stops the start, and for the table in the documentation."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import inspect


def types_of(struct: type[msgspec.Struct]) -> dict[str, inspect.Type]:
    """The types of a struct's fields by their wire names."""
    return {field.encode_name: inspect.type_info(field.type) for field in msgspec.structs.fields(struct)}


def described(kind: inspect.Type) -> str:
    """What a type takes: `an integer from 1 to 10`, `oidc or none`, `true or false`."""
    match kind:
        case inspect.Metadata(type=inner):
            return described(inner)
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
            return "text"


def meaning(kind: inspect.Type) -> str:
    """The description that a field was annotated with, or nothing."""
    if not isinstance(kind, inspect.Metadata):
        return ""
    schema: dict[str, Any] = kind.extra_json_schema or {}
    return str(schema.get("description", ""))


def _bounds(kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.ge is not None and kind.le is not None:
        return f" from {_plain(kind.ge)} to {_plain(kind.le)}"
    words = [("of at least", kind.ge), ("above", kind.gt), ("at most", kind.le), ("below", kind.lt)]
    said = ", ".join(f"{word} {_plain(bound)}" for word, bound in words if bound is not None)
    return f" {said}" if said else ""


def _plain(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else str(bound)
