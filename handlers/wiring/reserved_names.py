"""Redis keys and labels of gates, which requests may not use."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from handlers.gates.labels import CLASSIFICATION, TIER
from handlers.redis_store.keys import ReservedNames
from handlers.settings.settings import Settings

KEY_SUFFIX: Final = "_key"
"""Ending of the names of gate parameters that hold a key."""
PREFIX: Final = "prefix"
"""Name of gate parameters that hold the beginning of keys."""
_CONTROL_KEY: Final = "control_key"
_TIER_LABEL: Final = "tier_label"


def reserved_names(names: Iterable[str], gate_params: Iterable[Mapping[str, Any]]) -> ReservedNames:
    """`names` (queues, retry set) and the keys in gate parameters."""
    keys, prefixes = set(names), set[str]()
    for parameters in gate_params:
        for name, value in _texts(parameters):
            if name == PREFIX:
                prefixes.add(value)
            elif name.endswith(KEY_SUFFIX):
                keys.add(value)
            if name == _CONTROL_KEY:
                keys.add(f"{value}:state")
    return ReservedNames(frozenset(keys), tuple(sorted(prefixes)))


def all_gate_params(settings: Settings) -> list[Mapping[str, Any]]:
    """Parameters of every gate in the configuration."""
    file = settings.file
    of_entries = [entry.gate_params for entry in file.queues] + [entry.gate_params for entry in file.topics]
    return of_entries + [entry.gate_params for entry in file.pools]


def withheld_labels(settings: Settings) -> frozenset[str]:
    """Labels that decide a request's priority and that `ALLOWED_LABELS` does not list."""
    named = {
        value
        for parameters in all_gate_params(settings)
        for name, value in _texts(parameters)
        if name == _TIER_LABEL
    }
    allowed = {name.strip() for name in settings.env.allowed_labels.split(",")}
    return frozenset({CLASSIFICATION, TIER, settings.tier_label, *named} - allowed)


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Pairs of parameter name and value, for all values that are strings.

    Parameters of inner gates are included, also if an inner gate is JSON in a string.
    """
    match value:
        case Mapping():
            for inner_name, inner in value.items():
                yield from _texts(inner, str(inner_name))
        case list():
            for inner in value:
                yield from _texts(inner, name)
        case str() if value[:1] in ("{", "["):
            try:
                yield from _texts(json.loads(value), name)
            except (ValueError, RecursionError):
                yield name, value
        case str() if value:
            yield name, value
