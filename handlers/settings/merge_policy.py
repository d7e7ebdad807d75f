"""The field `request_merge_policy`, for pools without their own `merge_policy`.

The reference defines it: `{"type": …, "parameters": {…}}`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

import msgspec

from handlers.contract.accepted import about
from handlers.contract.errors import InvalidSetting

MERGE_POLICY: Final = "request_merge_policy"
"""Name of the field in the configuration file."""
_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_FORM: Final = frozenset({"type", "parameters"})


class MergeParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Names of headers, labels and metadata fields; unset ones come from the environment."""

    fairness_header: Annotated[
        str | None, about("Header that carries the tenant; empty: not sent. Default: `FAIRNESS_HEADER`.")
    ] = None
    fairness_attribute: Annotated[
        str, about("Metadata field that names the tenant. Default: `FAIRNESS_ATTRIBUTE`.")
    ] = ""
    priority_header: Annotated[str, about("Header that carries the lane's priority; unset: not sent.")] = ""
    objective_header: Annotated[
        str, about("Header that carries the objective. Default: `INFERENCE_OBJECTIVE_HEADER`.")
    ] = ""
    lane_objectives: Annotated[
        dict[str, str], about("Objective by lane; a pool's own `lane_objectives` win.")
    ] = msgspec.field(default_factory=dict)
    tier_label: Annotated[str, about("Label that holds a queue's tier. Default: `tier`.")] = ""


class MergePolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How queues share pools: `random-robin` or `tier-priority`."""

    type: Annotated[str, about("`random-robin` or `tier-priority`, see `merge_policy` of a pool.")] = (
        "random-robin"
    )
    parameters: Annotated[MergeParameters, about("See below.")] = msgspec.field(
        default_factory=MergeParameters
    )


def is_merge_policy(content: dict[str, Any]) -> bool:
    """Whether a file's content is only a merge policy."""
    return "type" in content and content.keys() <= _FORM


def check_merge_policy(policy: MergePolicy) -> None:
    """Raise `InvalidSetting` for an invalid header name."""
    given = policy.parameters
    for field in ("fairness_header", "priority_header", "objective_header"):
        name = getattr(given, field)
        if name and not _HEADER.fullmatch(name):
            setting = f"{MERGE_POLICY}.parameters.{field}"
            raise InvalidSetting(setting, found=repr(name[:80]), accepted="the name of a header")
