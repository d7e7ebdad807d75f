"""`gcs_uri_multipart`: a payload that points to a file in Cloud Storage becomes a form that the gateway fetches.

Active where `metadata.provider` is one of `providers` and the payload has a `gcs_uri`. The form has that URI as `url`
and the other fields of the payload; text goes as it is, all else as JSON. A signed URL must outlive the deadline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import httpx
import msgspec

from handlers.contract.errors import InvalidRequest, InvalidSetting
from handlers.contract.request import Request
from handlers.forward.transforms.transform import Body

_URI, _FILE = "gcs_uri", "file_base64"
_GOOG_TIME: Final = "%Y%m%dT%H%M%SZ"
_decoder = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, slots=True)
class GcsUriMultipart:
    """For requests of these `providers`."""

    providers: frozenset[str]

    def body(self, request: Request) -> Body | None:
        """The form; None for another provider or a payload without a `gcs_uri`."""
        if request.metadata.get("provider") not in self.providers:
            return None
        fields = _decoder.decode(request.payload)
        uri = fields.pop(_URI, None)
        if not uri:
            return None
        if not isinstance(uri, str):
            raise _invalid(request, _URI, "no string", "the URI as a string")
        if fields.pop(_FILE, None):
            raise _invalid(request, _FILE, "a file beside gcs_uri", "one of the two")
        expires_at = _expires_at(request, uri)
        if expires_at is not None and expires_at <= request.deadline:
            accepted = "a signed URL that is good until after the deadline"
            raise _invalid(request, _URI, "a signed URL that expires before the deadline", accepted)
        return _form({"url": uri, **fields})


def build(params: Mapping[str, Any], setting: str) -> GcsUriMultipart:
    """From the file's parameters: `providers`, a list of names. Raises `InvalidSetting`."""
    unknown = sorted(set(params) - {"providers"})
    if unknown:
        raise InvalidSetting(f"{setting}.{unknown[0]}", found="an unknown field", accepted="providers")
    providers = params.get("providers")
    if (
        not isinstance(providers, list)
        or not providers
        or not all(isinstance(one, str) and one for one in providers)
    ):
        raise InvalidSetting(f"{setting}.providers", found="no list of names", accepted='such as ["gcs"]')
    return GcsUriMultipart(frozenset(providers))


def _form(fields: Mapping[str, Any]) -> Body:
    parts = [(name, (None, _text(value))) for name, value in fields.items()]
    made = httpx.Request("POST", "http://form", files=parts)
    return Body(made.read(), made.headers["content-type"])


def _text(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else msgspec.json.encode(value)


def _expires_at(request: Request, uri: str) -> float | None:
    """When a signed URL ends, Unix seconds; None for one that is not signed."""
    query = dict(parse_qsl(urlsplit(uri).query))
    try:
        if "X-Goog-Expires" in query:
            signed = datetime.strptime(query.get("X-Goog-Date", ""), _GOOG_TIME).replace(tzinfo=UTC)
            return signed.timestamp() + int(query["X-Goog-Expires"])
        return float(int(query["Expires"])) if "Expires" in query else None
    except (ValueError, OverflowError):
        raise _invalid(request, _URI, "a signed URL without a readable end", "a signed URL") from None


def _invalid(request: Request, field: str, found: str, accepted: str) -> InvalidRequest:
    return InvalidRequest(
        f"payload.{field}",
        found=found,
        accepted=accepted,
        request_id=request.id,
        request_token=request.request_token,
    )
