"""Generate `docs/settings.md` from the fields of `Environment`; a test compares them.

python -m handlers.settings.table > docs/settings.md
"""

from __future__ import annotations

import sys

import msgspec

from handlers.contract.accepted import described, meaning, shown_default, types_of
from handlers.settings.environment import SECRETS, Environment

_HEAD = """\
# Settings

All environment variables that a process reads. An empty variable counts as unset. An invalid value stops the
start with one line that names the variable, and so does an unknown one whose name differs from ours by a letter or two
(`WORKRES`, `LOG_LEVE`); other unknown variables are ignored. Settings of single queues, subscriptions and pools go into
the file that `CONFIG_FILE` names ([config-file.md](config-file.md)).

<!-- Made by `python -m handlers.settings.table`; change handlers/settings/environment.py instead. -->

| variable | default | takes | what it does |
|---|---|---|---|
"""


def settings_page() -> str:
    """The page, as Markdown."""
    defaults = {field.encode_name: field.default for field in msgspec.structs.fields(Environment)}
    rows = [
        f"| `{name}` | {shown_default(defaults[name])} | {_takes(name, described(kind))} | {meaning(kind)} |"
        for name, kind in types_of(Environment).items()
    ]
    return _HEAD + "\n".join(rows) + "\n"


def _takes(name: str, words: str) -> str:
    return f"{words}, kept secret" if name.lower() in SECRETS else words


if __name__ == "__main__":
    sys.stdout.write(settings_page())
