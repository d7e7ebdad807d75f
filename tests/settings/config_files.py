"""Configuration files as their readers get them: by path, and from a text."""

from __future__ import annotations

import tempfile

from handlers.contract.errors import SettingFaults
from handlers.settings.config_file import ConfigFile, partial_config_file


def read_config_file(path: str) -> ConfigFile:
    """The file, without faults. Raises `InvalidSetting` with all of them."""
    faults = SettingFaults()
    config = partial_config_file(path, faults)
    faults.raise_all()
    return config


def parse_config_file(text: str) -> ConfigFile:
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(text.encode("utf-8", "surrogatepass"))
        file.flush()
        return read_config_file(file.name)
