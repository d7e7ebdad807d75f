"""A payload with a Cloud Storage URI becomes a form; invalid ones are refused unsent."""

from __future__ import annotations

from datetime import UTC, datetime
from email.message import Message
from email.parser import BytesParser
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.contract.errors import InvalidRequest, InvalidSetting
from handlers.contract.request import Request
from handlers.contract.result import ErrorCode
from handlers.forward.forward import Forwarder
from handlers.forward.gateway import Gateway
from handlers.forward.outcome import Answered
from handlers.forward.route import Route, Routes
from handlers.forward.transforms import TRANSFORMS, GcsUriMultipart, TransformEntry, build_transforms
from handlers.transport.transport import TransportOptions
from tests.servers.raw_http import answer, running_raw_http
from tests.settings.config_files import parse_config_file

TRANSFORM = GcsUriMultipart(frozenset({"gcs"}))
DEADLINE = datetime(2033, 5, 18, 3, 33, 20, tzinfo=UTC).timestamp()  # 2,000,000,000
FILE = """
requestTransforms:
  - name: whisper-multipart
    type: gcs_uri_multipart
    parameters: {providers: [gcs]}
"""


def request(provider: str = "gcs", payload: dict[str, Any] | None = None, **fields: Any) -> Request:
    return Request(
        id="a",
        deadline=DEADLINE,
        payload=msgspec.json.encode({**(payload or {}), **fields}),
        metadata={"provider": provider} if provider else {},
    )


def form(content: bytes, content_type: str) -> dict[str, str]:
    """Decoded by the standard library, not by the code under test."""
    whole = BytesParser().parsebytes(f"content-type: {content_type}\r\n\r\n".encode() + content)
    parts = [part for part in whole.walk() if not part.is_multipart()]
    return {_name(part): _text(part) for part in parts}


def _name(part: Message) -> str:
    return str(part.get_param("name", header="content-disposition"))


def _text(part: Message) -> str:
    payload = part.get_payload(decode=True)
    assert isinstance(payload, bytes)
    return payload.decode()


def test_the_uri_becomes_the_url_of_the_form_and_the_other_fields_are_kept() -> None:
    body = TRANSFORM.body(
        request(gcs_uri="gs://bucket/a.wav", model="m", temperature=0.5, options={"a": [1]}, stream=False)
    )
    assert body is not None
    assert body.content_type.startswith("multipart/form-data; boundary=")
    assert form(body.content, body.content_type) == {
        "url": "gs://bucket/a.wav",
        "model": "m",
        "temperature": "0.5",
        "options": '{"a":[1]}',
        "stream": "false",
    }


def test_form_fields_are_unchanged_json_and_null_is_empty() -> None:
    numbers = b'"n":1.50,"big":123456789012345678901234567890,"far":1e400'
    payload = b'{"gcs_uri":"gs://b/x",' + numbers + b',"l":[1.0, {"a": 2}],"z":null}'
    body = TRANSFORM.body(Request(id="a", deadline=DEADLINE, payload=payload, metadata={"provider": "gcs"}))
    assert body is not None
    assert form(body.content, body.content_type) == {
        "url": "gs://b/x",
        "n": "1.50",
        "big": "123456789012345678901234567890",
        "far": "1e400",
        "l": '[1.0, {"a": 2}]',
        "z": "",
    }


def test_no_field_of_the_payload_takes_the_place_of_the_uri_that_was_checked() -> None:
    body = TRANSFORM.body(request(gcs_uri="gs://b/x", url="https://elsewhere"))
    assert body is not None
    assert body.content.count(b"form-data") == 1
    assert form(body.content, body.content_type) == {"url": "gs://b/x"}


def test_a_fields_name_cannot_begin_a_field_of_its_own() -> None:
    name = 'a"\r\n\r\nb\r\nContent-Disposition: form-data; name="c'
    body = TRANSFORM.body(request(payload={"gcs_uri": "gs://b/x", name: "v"}))
    assert body is not None
    assert body.content.count(b"\r\nContent-Disposition") == 2
    assert list(form(body.content, body.content_type).values()) == ["gs://b/x", "v"]


@pytest.mark.parametrize(
    "left_alone",
    [
        request("", gcs_uri="gs://b/x"),
        request("other", gcs_uri="gs://b/x"),
        request(prompt="x"),
        request(gcs_uri=""),
        request(gcs_uri=None),
        Request(id="a", deadline=DEADLINE, payload=b"null", metadata={"provider": "gcs"}),
    ],
    ids=["no provider", "another provider", "no uri", "empty", "null", "no payload"],
)
def test_a_request_without_the_provider_or_the_uri_is_unchanged(left_alone: Request) -> None:
    assert TRANSFORM.body(left_alone) is None


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({"gcs_uri": "gs://b/x", "file_base64": "AAAA"}, "payload.file_base64"),
        ({"gcs_uri": 5}, "payload.gcs_uri"),
        ({"gcs_uri": "https://s/x?X-Goog-Date=20330518T030000Z&X-Goog-Expires=2000"}, "payload.gcs_uri"),
        ({"gcs_uri": "https://s/x?X-Goog-Date=soon&X-Goog-Expires=2000"}, "payload.gcs_uri"),
        ({"gcs_uri": "https://s/x?X-Goog-Expires=2000"}, "payload.gcs_uri"),
        ({"gcs_uri": "https://s/x?Expires=2000000000"}, "payload.gcs_uri"),
        ({"gcs_uri": "https://s/x?Expires=never"}, "payload.gcs_uri"),
        ({"gcs_uri": "https://[s/x?Expires=2000000001"}, "payload.gcs_uri"),
    ],
)
def test_a_payload_that_cannot_become_a_form_is_refused(payload: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        TRANSFORM.body(request(**payload))
    assert caught.value.field == field
    assert "https://" not in str(caught.value), "a signed URL is a secret"


@pytest.mark.parametrize(
    "uri",
    [
        "https://s/x?X-Goog-Date=20330518T030000Z&X-Goog-Expires=2001",
        "https://s/x?Expires=2000000001",
        "https://s/x?other=1",
    ],
)
def test_a_url_that_outlives_the_deadline_is_sent(uri: str) -> None:
    body = TRANSFORM.body(request(gcs_uri=uri, file_base64=""))
    assert body is not None
    assert form(body.content, body.content_type) == {"url": uri}


@given(
    st.dictionaries(
        st.text("abcdefghijklmnopqrstuvwxyz_0123456789", min_size=1, max_size=8),
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20),
        max_size=5,
    )
)
def test_text_of_any_characters_is_unchanged_in_a_form(fields: dict[str, str]) -> None:
    body = TRANSFORM.body(request(payload={**fields, "gcs_uri": "gs://b/x"}))
    assert body is not None
    others = {name: value for name, value in fields.items() if name != "gcs_uri"}
    assert form(body.content, body.content_type) == {**others, "url": "gs://b/x"}


async def test_the_gateway_gets_the_form_and_a_refusal_is_a_final_result() -> None:
    transforms = build_transforms(parse_config_file(FILE).request_transforms, "requestTransforms")
    async with running_raw_http() as server:
        server.reply(answer(200, b"{}"))
        gateway = Gateway(TransportOptions())
        forwarder = Forwarder(gateway, Routes(Route(server.url)), request_timeout_seconds=600, transforms=transforms)
        sent = await forwarder.forward(request(gcs_uri="gs://b/x", model="m"))
        plain = await forwarder.forward(request("other", prompt="x"))
        refused = await forwarder.forward(request(gcs_uri="gs://b/x", file_base64="AAAA"))
        await gateway.aclose()
    assert isinstance(sent, Answered)
    assert isinstance(plain, Answered)
    first, second = server.received
    assert form(first.body, first.header("content-type") or "") == {"url": "gs://b/x", "model": "m"}
    assert (second.body, second.header("content-type")) == (b'{"prompt":"x"}', "application/json")
    assert isinstance(refused, Answered)
    assert refused.result.error_code == ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize(
    ("entries", "setting"),
    [
        ("[{name: gcs_uri_multipart}]", r"requestTransforms\[0\].parameters.providers"),
        ("[{name: x, type: gcs_uri_multipart, parameters: {providers: [a], b: 1}}]", r"parameters.b"),
        ("[{name: gcs_uri_multipart, params: {}}]", r"requestTransforms\[0\].params.providers"),
        (
            "[{name: gcs_uri_multipart, params: {}, parameters: {providers: [a]}}]",
            r"requestTransforms\[0\].params",
        ),
        (
            "[{name: '', type: gcs_uri_multipart, parameters: {providers: [a]}}]",
            r"requestTransforms\[0\].name",
        ),
        ("[{name: gcs_uri_multipart, params: {providers: []}}]", "providers"),
        ("[{name: gcs_uri_multipart, params: {providers: [gcs], other: 1}}]", "params.other"),
        ("[{name: nothing}]", r"requestTransforms\[0\].type"),
        ("[{name: a, type: nothing}]", "type"),
        ("[{name: gcs_uri_multipart, parms: {}}]", "parms"),
        (
            "[{name: x, type: gcs_uri_multipart, params: {providers: [a]}},"
            " {name: x, type: gcs_uri_multipart, params: {providers: [b]}}]",
            r"requestTransforms\[1\].name",
        ),
    ],
)
def test_an_invalid_file_stops_the_start(entries: str, setting: str) -> None:
    with pytest.raises(InvalidSetting, match=setting):
        parse_config_file(f"requestTransforms: {entries}")


def test_every_transform_is_in_the_registry_under_its_own_name() -> None:
    entries = [TransformEntry(name="gcs_uri_multipart", params={"providers": ["x"]})]
    assert set(TRANSFORMS) == {"gcs_uri_multipart"}
    assert len(build_transforms(entries, "requestTransforms")) == 1
