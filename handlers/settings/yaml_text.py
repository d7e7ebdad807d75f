"""Parse the text of a configuration file: YAML, which includes JSON."""

from __future__ import annotations

from typing import Any

import yaml

from handlers.contract.errors import InvalidSetting
from handlers.contract.masked_text import shown_value


def parse_yaml(text: str, setting: str) -> Any:
    """Parse YAML or JSON; returns None for an empty text.

    Raises `InvalidSetting`, which names `setting` and the line, if the text is not YAML or repeats a key.
    """
    try:
        return yaml.load(text, _UniqueKeys)  # noqa: S506  # a subclass of SafeLoader
    except _RepeatedKey as error:
        raise InvalidSetting(setting, found=str(error), accepted="each key once") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also invalid dates and deep nesting
        at = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "a value that cannot be read"
        where = f" on line {at.line + 1}, column {at.column + 1}" if at else ""
        found = f"a syntax error{where}: {problem}"
        raise InvalidSetting(setting, found=found, accepted="valid YAML or JSON") from None


class _RepeatedKey(Exception):
    """A mapping has a key twice."""


class _UniqueKeys(yaml.SafeLoader):
    """Loader of YAML and JSON that raises `_RepeatedKey` for repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise _RepeatedKey(f"the key {shown_value(key.value)} on line {lines[key.value]} and on line {line}")
            lines[key.value] = line
        return super().construct_mapping(node, deep)
