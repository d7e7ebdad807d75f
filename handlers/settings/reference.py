"""Generate `docs/settings.md`, `docs/config-file.md` and the parameters in `docs/gates.md`.

python -m handlers.settings.reference docs
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml
from msgspec import inspect

from handlers.contract.accepted import NOUN, described, extra_of, meaning, shown_default, types_of
from handlers.forward.transforms import TRANSFORMS, TransformEntry
from handlers.gates.metric.reading_gate import ReadingParameters
from handlers.gates.registry import GATE_KINDS
from handlers.settings.config_file import ConfigFile, MergeParameters, MergePolicy, PoolEntry, QueueEntry, TopicEntry
from handlers.settings.environment import SECRETS, Environment

_SETTINGS_HEAD: Final = """\
# Settings

```sh
async-processor check     # tests the settings and the servers that they name
```

Settings are environment variables. An empty variable counts as unset. A process with an invalid value does not start,
and prints one line that names the variable. The same happens if the name of a variable looks like a misspelt setting
(`WORKRES`, `LOG_LEVE`), or lacks a word of it (`IGW_URL`) and the right one is not set. Other unknown variables that
begin like ours are warnings.

Settings of single queues, subscriptions and pools are in the file that `CONFIG_FILE` names
([config-file.md](config-file.md)). The [glossary](architecture.md#glossary) explains the terms.

<!-- Made by `python -m handlers.settings.reference docs`; change handlers/settings/environment.py instead. -->

| variable | default | takes | what it does |
|---|---|---|---|
"""


def settings_page() -> str:
    """The page about environment variables, as Markdown."""
    defaults = {field.encode_name: field.default for field in msgspec.structs.fields(Environment)}
    rows = [
        f"| `{name}` | {shown_default(defaults[name])} | {_takes_variable(name, described(kind))} | {meaning(kind)} |"
        for name, kind in types_of(Environment).items()
    ]
    return _SETTINGS_HEAD + "\n".join(rows) + "\n"


def _takes_variable(name: str, words: str) -> str:
    return f"{words}, kept secret" if name.lower() in SECRETS else words


_HEAD: Final = """\
# The configuration file

```sh
CONFIG_FILE=config.yaml async-processor check     # tests the file before you deploy it
```

`CONFIG_FILE` names a JSON or YAML file, or several, separated by commas. The file configures single queues,
subscriptions and pools. Fields that it omits have the values of the environment ([settings.md](settings.md)). Changes
of the file are applied without a restart. An unknown field stops the start; the error names its path, the nearest known
field and all known fields.

The field names are those of `llm-d-async`. Some fields are read for compatibility only.

<!-- Made by `python -m handlers.settings.reference docs`; change handlers/settings/config_file.py instead. -->
"""
_BEGIN: Final = "<!-- parameters: made by `python -m handlers.settings.reference docs` -->\n"
_POOLS: Final = """\
One entry for each pool of slots.

A **lane** is a priority class. There are six, from first to last: `reserved-interactive`, `reserved-async`,
`reserved-batch`, `overflow-interactive`, `overflow-async`, `overflow-batch`. The first word is the label
`classification`: quota gates set `reserved` within the quota, else `overflow`. The second word is the label `tier`.
A queue's lane comes from its own `labels`; without them it is `overflow-batch`. `lane_objectives` and
`priority_header` send a request's lane to the gateway. With `merge_policy: tier-priority`, queues of an earlier lane
are always served first; with `random-robin`, lanes have no effect on the order.\
"""
_SHARED: Final = "Gates that follow a metric"
SECTIONS: Final = (
    ("The file", ConfigFile, "The top level."),
    ("`queues`", QueueEntry, "One entry for each Redis queue."),
    ("`topics`", TopicEntry, "One entry for each push subscription."),
    ("`pools`", PoolEntry, _POOLS),
    ("`request_merge_policy`", MergePolicy, "How queues share their pools; a pool's own `merge_policy` wins."),
    ("`request_merge_policy.parameters`", MergeParameters, "Names of headers, labels and metadata fields."),
    (
        "`requestTransforms`",
        TransformEntry,
        f"Known transforms: {', '.join(f'`{name}`' for name in sorted(TRANSFORMS))}.",
    ),
)


def config_page() -> str:
    """The page about the configuration file, as Markdown."""
    parts = [_HEAD]
    for title, struct, text in SECTIONS:
        parts += [
            f"\n## {title}\n\n{text}\n\n| field | takes | default | what it does | example |\n|---|---|---|---|---|\n"
        ]
        parts += [_row(field, kind) for field, kind in _fields(struct)]
    parts.append(f"\n## A file with every field\n\n```yaml\n{example_file()}```\n")
    return "".join(parts)


def example_file() -> str:
    """A valid file that sets every field that has an example."""
    content = _examples(ConfigFile)
    content["queues"] = [_examples(QueueEntry)]
    content["topics"] = [_examples(TopicEntry)]
    content["pools"] = [_examples(PoolEntry)]
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=False, width=110)


def gates_section() -> str:
    """The parameters of all gates, as Markdown."""
    parts = [
        _BEGIN,
        "\n## Parameters of every gate\n\nA duration is a number of seconds or a text such as `500ms` or `1m30s`.\n",
        f"\n### {_SHARED}\n\nThey are `prometheus-*`, `endpoint-scrape` and `redis`.\n\n",
        _parameter_table(_fields(ReadingParameters)),
    ]
    for name, kind in sorted(GATE_KINDS.items()):
        parts.append(f"\n### `{name}`\n\n")
        found = _fields(kind.parameters)
        if issubclass(kind.parameters, ReadingParameters):
            shared = {one.name: one.default for one, _ in _fields(ReadingParameters)}
            found = [one for one in found if shared.get(one[0].name, msgspec.UNSET) != one[0].default]
            anchor = _SHARED.lower().replace(" ", "-")
            parts.append(f"Also takes the [parameters of gates that follow a metric](#{anchor}).\n\n")
        parts.append(_parameter_table(found) if found else "No parameters.\n")
    return "".join(parts)


def _parameter_table(fields: list[tuple[Any, inspect.Type]]) -> str:
    rows = [
        _row(field, kind, with_example=False) for field, kind in sorted(fields, key=lambda one: not one[0].required)
    ]
    return "| parameter | takes | default | what it does |\n|---|---|---|---|\n" + "".join(rows)


def with_section(page: str) -> str:
    """The page about gates with a new generated section."""
    return page.partition(_BEGIN)[0].rstrip("\n") + "\n\n" + gates_section()


def _fields(struct: type[msgspec.Struct]) -> list[tuple[Any, inspect.Type]]:
    kinds = types_of(struct)
    return [(field, kinds[field.encode_name]) for field in msgspec.structs.fields(struct)]


def _row(field: Any, kind: inspect.Type, *, with_example: bool = True) -> str:
    default = "required" if field.required else shown_default(field.default)
    cells = [f"`{field.encode_name}`", _takes(kind), default, meaning(kind)]
    if with_example:
        example = _example(kind)
        cells.append(f"`{example}`" if example else "")
    return f"| {' | '.join(cells)} |\n"


def _takes(kind: inspect.Type) -> str:
    if NOUN in extra_of(kind):
        return described(kind)
    inner = kind.type if isinstance(kind, inspect.Metadata) else kind
    if isinstance(inner, inspect.UnionType):
        inner = next(one for one in inner.types if not isinstance(one, inspect.NoneType))
    if isinstance(inner, inspect.ListType):
        return "a list"
    if isinstance(inner, inspect.DictType | inspect.StructType):
        return "a mapping"
    return described(inner)


def _example(kind: inspect.Type) -> str:
    schema = kind.extra_json_schema if isinstance(kind, inspect.Metadata) else None
    examples = (schema or {}).get("examples") or [""]
    return str(examples[0])


def _examples(struct: type[msgspec.Struct]) -> dict[str, Any]:
    return {
        field.encode_name: yaml.safe_load(example) for field, kind in _fields(struct) if (example := _example(kind))
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "settings.md").write_text(settings_page(), encoding="utf-8")
    (folder / "config-file.md").write_text(config_page(), encoding="utf-8")
    gates = folder / "gates.md"
    gates.write_text(with_section(gates.read_text(encoding="utf-8")), encoding="utf-8")
