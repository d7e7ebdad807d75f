"""Names of topics and subscriptions, short (`results`) or full (`projects/p/topics/results`)."""

from __future__ import annotations

import re
from typing import Final

from handlers.contract.errors import InvalidSetting

_ID: Final = re.compile(r"(?!goog)[A-Za-z][A-Za-z0-9._~+%-]{2,254}")
_PROJECT: Final = re.compile(r"[a-z][a-z0-9:.-]*[a-z0-9]")
_ACCEPTED_ID: Final = "3 to 255 letters, digits or ._~+%-, a letter first, not starting with goog"


def topic_path(project_id: str, topic: str) -> str:
    """The full name of `topic`. Raises `InvalidSetting` for an invalid name."""
    return _path(project_id, "topics", topic)


def subscription_path(project_id: str, subscription: str) -> str:
    """The full name of `subscription`. Raises `InvalidSetting` for an invalid name."""
    return _path(project_id, "subscriptions", subscription)


def short_name(path: str) -> str:
    """The last part of a full name, or the short name itself."""
    return path.rpartition("/")[2]


def _path(project_id: str, kind: str, name: str) -> str:
    setting = kind.removesuffix("s")
    if "/" in name:
        parts = name.split("/")
        if len(parts) != 4 or parts[0] != "projects" or parts[2] != kind:
            raise InvalidSetting(setting, found=repr(name), accepted=f"NAME or projects/PROJECT/{kind}/NAME")
        project_id, name = parts[1], parts[3]
    if not _PROJECT.fullmatch(project_id):
        found = repr(project_id) if project_id else "none"
        raise InvalidSetting("project_id", found=found, accepted="the id of a Google Cloud project")
    if not _ID.fullmatch(name):
        raise InvalidSetting(setting, found=repr(name[:300]), accepted=_ACCEPTED_ID)
    return f"projects/{project_id}/{kind}/{name}"
