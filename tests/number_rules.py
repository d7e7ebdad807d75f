"""A rule for mypy: text becomes a number only in `handlers.number_text`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mypy.nodes import StrExpr
from mypy.plugin import FunctionContext, Plugin
from mypy.types import Instance, Type, UnionType, get_proper_type

_NUMBERS = frozenset({"builtins.int", "builtins.float"})
_TEXTS = frozenset({"builtins.str", "builtins.bytes"})


def _is_text(found: Type) -> bool:
    proper = get_proper_type(found)
    if isinstance(proper, UnionType):
        return any(_is_text(item) for item in proper.items)
    return isinstance(proper, Instance) and any(base.fullname in _TEXTS for base in proper.type.mro)


def _check(context: FunctionContext) -> Type:
    is_ours = "handlers" in Path(context.api.path).parts
    is_literal = bool(context.args and context.args[0]) and isinstance(context.args[0][0], StrExpr)
    if is_ours and not is_literal and context.arg_types and context.arg_types[0] and _is_text(context.arg_types[0][0]):
        context.api.fail("text becomes a number with handlers.number_text.whole or decimal", context.context)
    return context.default_return_type


class NumberRules(Plugin):
    """Reports `int(text)` and `float(text)` in `handlers`."""

    def get_function_hook(self, fullname: str) -> Callable[[FunctionContext], Type] | None:
        return _check if fullname in _NUMBERS else None


def plugin(_version: str) -> type[Plugin]:
    """What mypy calls."""
    return NumberRules
