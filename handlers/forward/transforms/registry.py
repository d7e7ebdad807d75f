"""All transforms by name, and their entries in the configuration file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec

from handlers.contract.accepted import about
from handlers.contract.errors import InvalidSetting, SettingFaults
from handlers.forward.transforms import gcs_uri_multipart
from handlers.forward.transforms.transform import Transform

Build = Callable[[Mapping[str, Any], str], Transform]
TRANSFORMS: Final[Mapping[str, Build]] = {
    "gcs_uri_multipart": gcs_uri_multipart.build,
}


class TransformEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of `requestTransforms`; it sets `parameters` or `params`, not both."""

    name: Annotated[str, about("Name of the entry.", "gcs_uri_multipart")]
    type: Annotated[str, about("Transform; default: `name`.", "gcs_uri_multipart")] = ""
    parameters: Annotated[dict[str, Any] | None, about("Parameters of the transform.")] = None
    params: Annotated[dict[str, Any] | None, about("The reference's other name for `parameters`.")] = None


def build_transforms(entries: Sequence[TransformEntry], setting: str) -> list[Transform]:
    """The transforms in the order of the file.

    Raises `InvalidSetting` for unknown transforms and repeated names, all of them together.
    """
    built, names, faults = list[Transform](), set[str](), SettingFaults()
    for number, entry in enumerate(entries):
        with faults.collected():
            built.append(_built(entry, f"{setting}[{number}]", names))
        names.add(entry.name)
    faults.raise_all()
    return built


def _built(entry: TransformEntry, where: str, names: set[str]) -> Transform:
    if not entry.name:
        raise InvalidSetting(f"{where}.name", found="an empty name", accepted="a unique name")
    if entry.name in names:
        raise InvalidSetting(f"{where}.name", found=f"{entry.name!r} twice", accepted="each name once")
    kind = entry.type or entry.name
    if kind not in TRANSFORMS:
        known = ", ".join(sorted(TRANSFORMS))
        raise InvalidSetting(f"{where}.type", found=repr(kind), accepted=f"one of {known}")
    word, parameters = _parameters(entry, where)
    return TRANSFORMS[kind](parameters, f"{where}.{word}")


def _parameters(entry: TransformEntry, where: str) -> tuple[str, Mapping[str, Any]]:
    if entry.params is None:
        return "parameters", entry.parameters or {}
    if entry.parameters is not None:
        raise InvalidSetting(
            f"{where}.params", found="a second set of parameters", accepted="parameters alone"
        )
    return "params", entry.params
