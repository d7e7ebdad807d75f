"""Transforms, which replace a request's body: interface, each transform, table, entries of the configuration file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Protocol
from urllib.parse import parse_qsl, urlsplit

import msgspec

from handlers.contract.accepted import about
from handlers.contract.errors import InvalidRequest, InvalidSetting, SettingFaults
from handlers.contract.lenient_json import shape_of
from handlers.contract.masked_text import shown_value
from handlers.contract.request import Request
from handlers.number_text import whole


class Body(msgspec.Struct, frozen=True):
    """A body that is sent in place of the payload."""

    content: bytes
    content_type: str


class Transform(Protocol):
    """One transform. Its body depends on the request only, except random form boundaries."""

    def body(self, request: Request) -> Body | None:
        """The new body; None leaves the request unchanged. Raises `InvalidRequest`."""
        ...


def transformed(request: Request, transforms: Sequence[Transform]) -> Body | None:
    """The body of the first transform that applies to the request. Raises `InvalidRequest`."""
    for transform in transforms:
        body = transform.body(request)
        if body is not None:
            return body
    return None


_URI, _FILE, _URL = "gcs_uri", "file_base64", "url"
_GOOG_TIME: Final = "%Y%m%dT%H%M%SZ"
_NULL: Final = b"null"
_EMPTY: Final = frozenset({_NULL, b'""', b"[]", b"{}"})
_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


class GcsUriMultipart(msgspec.Struct, frozen=True):
    """Sends a Cloud Storage URI in a multipart form.

    The transform applies if `metadata.provider` is one of `providers` and the payload has a `gcs_uri`. The form has
    this URI as `url`, which the gateway fetches, and the other fields of the payload: strings as text, null as an empty
    string, other values as unchanged JSON. A signed URL must expire after the deadline.
    """

    providers: frozenset[str]

    def body(self, request: Request) -> Body | None:
        """The form; None for another provider or without a `gcs_uri`."""
        if request.metadata.get("provider") not in self.providers:
            return None
        if request.payload == _NULL:
            return None
        fields = {name: bytes(value) for name, value in _decoder.decode(request.payload).items()}
        uri = fields.pop(_URI, _NULL)
        if uri in _EMPTY:
            return None
        url = _string(uri)
        if url is None:
            raise _invalid(request, _URI, shape_of(uri), "the URI as a string")
        if fields.pop(_FILE, _NULL) not in _EMPTY:
            raise _invalid(request, _FILE, "a file and a gcs_uri", "only one of them")
        expires_at = _expires_at(request, url)
        if expires_at is not None and expires_at <= request.deadline:
            accepted = "a signed URL that expires after the deadline"
            raise _invalid(request, _URI, "a signed URL that expires earlier", accepted)
        fields.pop(_URL, None)  # with two `url` fields, the gateway might fetch the unchecked one
        return _form({_URL: url.encode(), **{name: _field(value) for name, value in fields.items()}})


def gcs_uri_multipart(params: Mapping[str, Any], setting: str) -> GcsUriMultipart:
    """Build the transform from `providers`, a list of names. Raises `InvalidSetting`."""
    unknown = sorted(set(params) - {"providers"})
    if unknown:
        raise InvalidSetting(f"{setting}.{unknown[0]}", found="an unknown field", accepted="providers")
    providers = params.get("providers")
    if not isinstance(providers, list) or not providers or not all(isinstance(one, str) and one for one in providers):
        shown = msgspec.json.encode(providers, enc_hook=str)[:60].decode("utf-8", "replace")
        found = shown if "providers" in params else "nothing"
        raise InvalidSetting(f"{setting}.providers", found=found, accepted='a list of names, such as ["gcs"]')
    return GcsUriMultipart(frozenset(providers))


def _form(fields: Mapping[str, bytes]) -> Body:
    import httpx  # noqa: PLC0415  # settings import this module, and most commands send no HTTP

    parts = [(name, (None, value)) for name, value in fields.items()]
    made = httpx.Request("POST", "http://form", files=parts)
    return Body(made.read(), made.headers["content-type"])


def _field(value: bytes) -> bytes:
    text = _string(value)
    if text is not None:
        return text.encode()
    return b"" if value == _NULL else value


def _string(value: bytes) -> str | None:
    """The text of a JSON string; None for anything else."""
    return msgspec.json.decode(value, type=str) if value.startswith(b'"') else None


def _expires_at(request: Request, uri: str) -> float | None:
    """Unix seconds at which a signed URL expires; None without a signature."""
    try:
        query = dict(parse_qsl(urlsplit(uri).query))
        if "X-Goog-Expires" in query:
            signed = datetime.strptime(query.get("X-Goog-Date", ""), _GOOG_TIME).replace(tzinfo=UTC)
            return signed.timestamp() + _seconds(query["X-Goog-Expires"])
        return _seconds(query["Expires"]) if "Expires" in query else None
    except ValueError:
        raise _invalid(request, _URI, "a signed URL with an invalid expiry", "a valid signed URL") from None


def _invalid(request: Request, field: str, found: str, accepted: str) -> InvalidRequest:
    return InvalidRequest(
        f"payload.{field}",
        found=found,
        accepted=accepted,
        request_id=request.id,
        request_token=request.request_token,
    )


def _seconds(digits: str) -> float:
    seconds = whole(digits)
    if seconds is None:
        raise ValueError(digits)
    return seconds


Build = Callable[[Mapping[str, Any], str], Transform]
TRANSFORMS: Final[Mapping[str, Build]] = {
    "gcs_uri_multipart": gcs_uri_multipart,
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
        raise InvalidSetting(f"{where}.name", found="''", accepted="a unique name")
    if entry.name in names:
        raise InvalidSetting(f"{where}.name", found=f"{shown_value(entry.name)} twice", accepted="each name once")
    kind = entry.type or entry.name
    if kind not in TRANSFORMS:
        known = ", ".join(sorted(TRANSFORMS))
        raise InvalidSetting(f"{where}.type", found=shown_value(kind), accepted=f"one of {known}")
    word, parameters = _parameters(entry, where)
    return TRANSFORMS[kind](parameters, f"{where}.{word}")


def _parameters(entry: TransformEntry, where: str) -> tuple[str, Mapping[str, Any]]:
    if entry.params is None:
        return "parameters", entry.parameters or {}
    if entry.parameters is not None:
        raise InvalidSetting(f"{where}.params", found="params beside parameters", accepted="parameters alone")
    return "params", entry.params
