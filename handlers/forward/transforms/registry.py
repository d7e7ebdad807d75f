"""All transforms by name, and how a file names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from handlers.contract.errors import InvalidSetting
from handlers.forward.transforms import gcs_uri_multipart
from handlers.forward.transforms.transform import Transform

Build = Callable[[Mapping[str, Any], str], Transform]
TRANSFORMS: Final[Mapping[str, Build]] = {
    "gcs_uri_multipart": gcs_uri_multipart.build,
}


class TransformEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of `requestTransforms`. `type` is the name unless it says otherwise; `params` are the transform's."""

    name: str
    type: str = ""
    params: dict[str, Any] = msgspec.field(default_factory=dict)


def build_transforms(entries: Sequence[TransformEntry], setting: str) -> list[Transform]:
    """The transforms in the order of the file. Raises `InvalidSetting` for an unknown one, or a name twice."""
    built, names = [], set[str]()
    for number, entry in enumerate(entries):
        where = f"{setting}[{number}]"
        if entry.name in names:
            raise InvalidSetting(f"{where}.name", found=f"{entry.name!r} twice", accepted="each name once")
        names.add(entry.name)
        kind = entry.type or entry.name
        if kind not in TRANSFORMS:
            known = ", ".join(sorted(TRANSFORMS))
            raise InvalidSetting(f"{where}.type", found=repr(kind), accepted=f"one of {known}")
        built.append(TRANSFORMS[kind](entry.params, f"{where}.params"))
    return built
