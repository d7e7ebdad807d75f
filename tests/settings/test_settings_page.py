"""docs/settings.md matches handlers/settings/environment.py."""

from __future__ import annotations

from pathlib import Path

from handlers.contract.accepted import meaning, types_of
from handlers.settings.environment import SECRETS, Environment
from handlers.settings.table import settings_page

PAGE = Path(__file__).parents[2] / "docs/settings.md"


def test_the_page_is_the_one_that_the_fields_make() -> None:
    assert PAGE.read_text(encoding="utf-8") == settings_page(), (
        "python -m handlers.settings.table > docs/settings.md"
    )


def test_every_variable_has_one_row_and_a_meaning() -> None:
    rows = [line for line in settings_page().splitlines() if line.startswith("| `")]
    names = [row.split("`")[1] for row in rows]
    assert names == [name.upper() for name in Environment.__struct_fields__]
    assert [name for name, kind in types_of(Environment).items() if not meaning(kind)] == []
    assert all(row.count("|") == 5 for row in rows), "a bar in a text would break the table"


def test_secrets_are_marked() -> None:
    for name in SECRETS:
        (row,) = [line for line in settings_page().splitlines() if f"`{name.upper()}`" in line]
        assert "kept secret" in row
