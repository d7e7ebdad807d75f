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
    """One entry of `requestTransforms`. `type` is the name unless it says otherwise; `parameters` are the transform's.

    `params` is another word for these; an entry has one of the two.
    """

    name: str
    type: str = ""
    parameters: dict[str, Any] | None = None
    params: dict[str, Any] | None = None


def build_transforms(entries: Sequence[TransformEntry], setting: str) -> list[Transform]:
    """The transforms in the order of the file. Raises `InvalidSetting` for an unknown one, or a name twice."""
    built, names = [], set[str]()
    for number, entry in enumerate(entries):
        where = f"{setting}[{number}]"
        if not entry.name:
            raise InvalidSetting(f"{where}.name", found="an empty name", accepted="a name of its own")
        if entry.name in names:
            raise InvalidSetting(f"{where}.name", found=f"{entry.name!r} twice", accepted="each name once")
        names.add(entry.name)
        kind = entry.type or entry.name
        if kind not in TRANSFORMS:
            known = ", ".join(sorted(TRANSFORMS))
            raise InvalidSetting(f"{where}.type", found=repr(kind), accepted=f"one of {known}")
        word, parameters = _parameters(entry, where)
        built.append(TRANSFORMS[kind](parameters, f"{where}.{word}"))
    return built


def _parameters(entry: TransformEntry, where: str) -> tuple[str, Mapping[str, Any]]:
    if entry.params is None:
        return "parameters", entry.parameters or {}
    if entry.parameters is not None:
        raise InvalidSetting(
            f"{where}.params", found="a second set of parameters", accepted="parameters alone"
        )
    return "params", entry.params
