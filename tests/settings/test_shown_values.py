"""Every error about a setting shows the value that was got, unless it is secret."""

from __future__ import annotations

import ast
import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from handlers.contract.errors import InvalidSetting, SettingFaults
from handlers.contract.masked_text import shown_value
from handlers.doors.auth.bearer import DispatchToken, DispatchTokenOptions
from handlers.gates.parameters import parse_parameters
from handlers.gates.registry import GATE_KINDS
from handlers.settings.config_file import ConfigFile
from handlers.settings.environment import SECRETS, Environment, read_environment
from handlers.settings.settings import load_settings, read_settings, setting_warnings
from handlers.wiring.checks import find_faults

WRONG: tuple[object, ...] = ("zz-73519", -73519.5, 7351973519735197351973519, True)
"""Values of which most fields refuse some."""
ROOT = Path(__file__).parents[2]


def shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize("name", Environment.__struct_fields__)
def test_an_invalid_variable_is_shown_with_its_value(name: str) -> None:
    for value in ("zz-73519", "-73519.5", "7" * 30):
        try:
            read_environment({name.upper(): value})
        except InvalidSetting as error:
            assert (value in str(error)) != (name in SECRETS), error


def places(struct: type, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The paths of all fields of a struct and of those below it, with one entry in each list."""
    for field in msgspec.structs.fields(struct):
        here = (*path, field.encode_name)
        yield here
        yield from below(inspect.type_info(field.type), here)


def below(kind: inspect.Type, here: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    match kind:
        case inspect.Metadata():
            yield from below(kind.type, here)
        case inspect.UnionType():
            for one in kind.types:
                yield from below(one, here)
        case inspect.StructType():
            yield from places(kind.cls, here)
        case inspect.ListType():
            yield from below(kind.item_type, (*here, 0))


def content_with(path: tuple[str | int, ...], value: object) -> Any:
    """A file's content with `value` at `path`; the required fields of its entries have values."""
    if not path:
        return value
    first, *others = path
    inner = content_with(tuple(others), value)
    if first == 0:
        return [inner]
    needed = {"queue_name": "q", "subscriber_id": "s", "id": "p"} if len(others) == 0 else {}
    return {**needed, first: inner} if isinstance(first, str) else [inner]


PLACES = sorted({path for path in places(ConfigFile) if len(path) <= 4}, key=str)


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(map(str, path)))
def test_an_invalid_field_of_the_file_is_shown_with_its_value(path: tuple[str | int, ...], tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    for value in WRONG:
        file.write_text(json.dumps(content_with(path, value)))
        try:
            load_settings({"CONFIG_FILE": str(file)})
        except InvalidSetting as error:
            last = str(path[-1])
            about = [one for one in (error, *error.others) if one.setting.endswith(last)]
            for one in about:
                assert one.found.startswith("an unknown field") or shown(value) in str(one), one


PARAMETERS = [
    (name, field.encode_name) for name, kind in GATE_KINDS.items() for field in msgspec.structs.fields(kind.parameters)
]


@pytest.mark.parametrize(("gate_type", "name"), PARAMETERS)
def test_an_invalid_parameter_of_a_gate_is_shown_with_its_value(gate_type: str, name: str) -> None:
    for value in WRONG:
        try:
            parse_parameters(GATE_KINDS[gate_type].parameters, gate_type, {name: value}, "gate_params")
        except InvalidSetting as error:
            for one in (error, *error.others):
                if one.setting.startswith(f"gate_params.{name}"):
                    assert shown(value) in str(one).lower(), one


CREDENTIALS = [
    "https://user:{}@host/path",
    "http://{}@host",
    "redis://:{}@h:6379/0",
    "redis://:a@h1,redis://u:pa {}@h2",
    "user:{}@host:8085",
    "https:/user:{}@host",
    "https://host/v1?x=1&key={}",
    "https://host/v1?{}",
    "http://host/#{}",
    "https://host/p;token={}",
    "Bearer {}",
    "sig={}",
    "AccountKey={};x",
    '{{"password":"{}"}}',
    "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----",
]
"""Values in which people hand over a credential, also in the wrong place."""


def reported(variables: dict[str, str]) -> str:
    """All texts that a start or `check` prints about these settings."""
    faults = SettingFaults()
    settings = read_settings(variables, faults)
    asyncio.run(find_faults(settings, faults))
    return "\n".join([*map(str, faults.found), str(settings.shown()), *setting_warnings(settings)])


@pytest.mark.parametrize("carrier", CREDENTIALS)
def test_a_shown_value_has_no_credential(carrier: str) -> None:
    assert "hunter2" not in shown_value(carrier.format("hunter2"))


@pytest.mark.parametrize("carrier", ["https://user:{}@host/path", "https://host/v1?{}", "Bearer {}"])
def test_no_error_shows_a_credential_whatever_its_setting(carrier: str, tmp_path: Path) -> None:
    value, file = carrier.format("hunter2"), tmp_path / "config.json"
    cases = [{name.upper(): value} for name in Environment.__struct_fields__]
    contents = [content_with(path, value) for path in PLACES]
    contents += [{"pools": [{"id": "p", "gate_type": kind, "gate_params": {name: value}}]} for kind, name in PARAMETERS]
    assert [case for case in cases if "hunter2" in reported(case)] == []
    for content in contents:
        file.write_text(json.dumps(content))
        assert "hunter2" not in reported({"CONFIG_FILE": str(file)}), content


@pytest.mark.parametrize(
    "name", [name for name in Environment.__struct_fields__ if name.endswith(("token_file", "password_file"))]
)
def test_a_secret_in_place_of_its_files_name_is_not_shown(name: str) -> None:
    assert "hunter2" not in reported({name.upper(): "hunter2-0123456789abcdef"})
    with pytest.raises(InvalidSetting, match=r"\*\*\*: No such file"):
        DispatchToken(DispatchTokenOptions(path=Path("hunter2-0123456789abcdef")))


WITHOUT_VALUE = {
    "nothing",
    "an unknown field",
    "an unknown variable",
    "a value that is kept secret",
    "bytes that are not UTF-8",
    "an invalid URL",  # its password may be anywhere
    "''",
    "params beside parameters",
    "0 with pods_url",
    "0 with admission counted",
    "budget with admission counted",
}
"""Texts of errors that contain the value, or that have no value, or a secret one."""


@pytest.mark.parametrize("path", sorted((ROOT / "handlers").rglob("*.py")), ids=lambda path: path.name)
def test_no_error_text_leaves_the_value_out(path: Path) -> None:
    """A constant text as `found` is in the list of those without a value, or quotes one."""
    calls = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("InvalidSetting", "InconsistentParameters")
    ]
    texts = [
        keyword.value.value
        for call in calls
        for keyword in call.keywords
        if keyword.arg == "found" and isinstance(keyword.value, ast.Constant)
    ]
    assert [text for text in texts if text not in WITHOUT_VALUE] == []


@pytest.mark.parametrize("path", sorted((ROOT / "handlers").rglob("*.py")), ids=lambda path: path.name)
def test_no_error_text_quotes_a_value_unmasked(path: Path) -> None:
    """`shown_value` masks credentials, `repr` does not."""
    found = [
        ast.unparse(keyword.value)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "InvalidSetting"
        for keyword in node.keywords
        if keyword.arg == "found" and re.search(r"\brepr\(|!r\}", ast.unparse(keyword.value))
    ]
    assert [text for text in found if text not in UNMASKED] == []


UNMASKED = {"repr(os.fsencode(path))"}
"""The name of a file that is not UTF-8."""
