"""The reference of settings, configuration file and gates: generated, complete, and its example file is accepted."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from handlers.contract.accepted import meaning, types_of
from handlers.gates.registry import GATE_KINDS
from handlers.settings.config_file import PoolEntry, QueueEntry, TopicEntry
from handlers.settings.environment import SECRETS, Environment
from handlers.settings.reference import SECTIONS, config_page, example_file, settings_page, with_section
from handlers.settings.settings import load_settings

DOCS = Path(__file__).parents[2] / "docs"


def test_the_pages_match_the_structs() -> None:
    gates = (DOCS / "gates.md").read_text(encoding="utf-8")
    fix = "run: python -m handlers.settings.reference docs"
    assert (DOCS / "settings.md").read_text(encoding="utf-8") == settings_page(), fix
    assert (DOCS / "config-file.md").read_text(encoding="utf-8") == config_page(), fix
    assert gates == with_section(gates), fix


@pytest.mark.parametrize("struct", [struct for _, struct, _ in SECTIONS])
def test_every_field_of_the_file_is_described(struct: type[msgspec.Struct]) -> None:
    assert [name for name, kind in types_of(struct).items() if not meaning(kind)] == []


@pytest.mark.parametrize("gate_type", sorted(GATE_KINDS))
def test_every_parameter_of_a_gate_is_described(gate_type: str) -> None:
    found = types_of(GATE_KINDS[gate_type].parameters)
    assert [name for name, kind in found.items() if not meaning(kind)] == []


def test_the_example_file_sets_every_field_and_is_accepted(tmp_path: Path) -> None:
    text = example_file()
    file = tmp_path / "config.yaml"
    file.write_text(text)
    settings = load_settings({"CONFIG_FILE": str(file)})
    assert settings.pools[0].workers == 64
    for struct in (QueueEntry, TopicEntry, PoolEntry):
        assert [name for name in struct.__struct_encode_fields__ if f"{name}:" not in text] == []


def test_every_variable_has_one_row_and_a_meaning() -> None:
    rows = [line for line in settings_page().splitlines() if line.startswith("| `")]
    names = [row.split("`")[1] for row in rows]
    assert names == [name.upper() for name in Environment.__struct_fields__]
    assert [name for name, kind in types_of(Environment).items() if not meaning(kind)] == []
    assert all(row.count("|") == 5 for row in rows), "a bar in a text would break the table"


def test_large_defaults_have_no_exponent() -> None:
    assert "`3153600000`" in settings_page()
    assert "e+" not in settings_page()


def test_secrets_are_marked() -> None:
    for name in SECRETS:
        (row,) = [line for line in settings_page().splitlines() if f"`{name.upper()}`" in line]
        assert "kept secret" in row
