"""How queues share their pools, in the form that the reference has for it: `{"type": …, "parameters": {…}}`.

It says one policy for all pools; a pool that names its own keeps it.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from handlers.contract.errors import InvalidSetting

MERGE_POLICY: Final = "request_merge_policy"
"""The field of the configuration file that it becomes."""
_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_FORM: Final = frozenset({"type", "parameters"})


class MergeParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the gateway is told, and by which names; what is not given is as the settings say.

    An empty `fairness_header` sends none. `priority_header` is sent where it is named, with the number of the lane.
    `lane_objectives` by lane (`reserved-interactive`, …); `tier_label` names the label that holds a queue's tier.
    """

    fairness_header: str | None = None
    fairness_attribute: str = ""
    priority_header: str = ""
    objective_header: str = ""
    lane_objectives: dict[str, str] = msgspec.field(default_factory=dict)
    tier_label: str = ""


class MergePolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`random-robin` or `tier-priority`."""

    type: str = "random-robin"
    parameters: MergeParameters = msgspec.field(default_factory=MergeParameters)


def is_merge_policy(content: dict[str, Any]) -> bool:
    """Whether a whole file is one."""
    return "type" in content and content.keys() <= _FORM


def check_merge_policy(policy: MergePolicy) -> None:
    """Raises `InvalidSetting` for a name that no header can have."""
    given = policy.parameters
    for field in ("fairness_header", "priority_header", "objective_header"):
        name = getattr(given, field)
        if name and not _HEADER.fullmatch(name):
            setting = f"{MERGE_POLICY}.parameters.{field}"
            raise InvalidSetting(setting, found=repr(name[:80]), accepted="the name of a header")
