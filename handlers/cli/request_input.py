"""A request from a file, from stdin or from flags: a full body, or just the payload."""

from __future__ import annotations

import codecs
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from handlers.contract.errors import InvalidRequest
from handlers.contract.json_limits import MALFORMED

if TYPE_CHECKING:
    from handlers.client.new_request import Deadline, NewRequest


def read_text(source: str) -> bytes:
    """The bytes of a file, or of stdin for `-`, without a byte order mark.

    Raises `InvalidRequest` for what is compressed or not in UTF-8.
    """
    from handlers.batch.check import file_format

    text = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    if found := file_format(text[:8]):
        raise InvalidRequest("body", found=found, accepted="JSON in UTF-8")
    return text.removeprefix(codecs.BOM_UTF8)


def prompt_payload(prompt: str, model: str, max_tokens: int | None) -> bytes:
    """The payload of a completion."""
    fields: dict[str, Any] = {"model": model, "prompt": prompt}
    if max_tokens is not None:
        fields["max_tokens"] = max_tokens
    return msgspec.json.encode({name: value for name, value in fields.items() if value != ""})


def new_request(
    text: bytes, *, deadline: Deadline | None, default_deadline: Deadline, **flags: Any
) -> NewRequest:
    """The request in `text`; what `flags` (fields of `NewRequest`) say wins over what the text says.

    A JSON object with an object under `payload` is a full request body of the contract, any other
    object a payload. The payload stays as it was written, byte for byte. Raises `InvalidRequest`.
    """
    from handlers.client.new_request import NewRequest

    try:
        fields = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except MALFORMED as error:
        raise InvalidRequest("body", found=f"no JSON object ({error})", accepted="one JSON object") from None
    payload = bytes(fields.get("payload", b""))
    if payload[:1] != b"{":
        return NewRequest(payload=text.strip(), deadline=deadline or default_deadline, **flags)
    return NewRequest(
        payload=payload,
        deadline=deadline or _body_deadline(fields) or default_deadline,
        **_body_fields(fields, flags),
    )


def _body_fields(fields: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    merged = dict(flags)
    for name, type_ in (("id", str), ("endpoint", str), ("model", str)):
        if name in fields and not merged.get(name):
            try:
                merged[name] = msgspec.json.decode(fields[name], type=type_)
            except msgspec.ValidationError:
                raise InvalidRequest(name, found="something else", accepted="a string") from None
    for name in ("headers", "metadata"):
        if name in fields:
            try:
                mapping = msgspec.json.decode(fields[name], type=dict[str, str] | None)
            except msgspec.ValidationError:
                raise InvalidRequest(name, found="something else", accepted="an object of strings") from None
            merged[name] = {**(mapping or {}), **merged.get(name, {})}
    return merged


def _body_deadline(fields: dict[str, Any]) -> float | None:
    if "deadline" not in fields:
        return None
    value = msgspec.json.decode(fields["deadline"])
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,9})?", value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest("deadline", found="something else", accepted="Unix seconds")
    return float(value)


def key_value_pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """The callback of repeatable `KEY=VALUE` flags."""
    pairs = {}
    for value in values:
        key, separator, text = value.partition("=")
        if not separator or not key:
            raise click.BadParameter(f"found {value!r}; accepted is KEY=VALUE", ctx, param)
        pairs[key] = text
    return pairs
