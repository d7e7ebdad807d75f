"""Parameters arrive as strings or JSON values, and stop the start if they are invalid."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from handlers.contract.errors import InvalidSetting
from handlers.gates.parameters import (
    Duration,
    HttpUrl,
    InconsistentParameters,
    Labels,
    Text,
    parse_parameters,
)
from handlers.gates.registry import build_gate
from tests.gates.building import ReadableLog, sources


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    name: Text
    share: Annotated[float, Meta(gt=0, le=1)] = 0.8
    least: float = 0.0
    count: Annotated[int, Meta(ge=1, le=10**9)] = 3
    window: Duration = 60.0
    mode: Literal["one", "two"] = "one"
    labels: Labels = msgspec.field(default_factory=dict)
    url: HttpUrl = ""

    def __post_init__(self) -> None:
        if self.mode == "two" and self.count < 2:
            raise InconsistentParameters("count", found="1 with mode two", accepted="at least 2")


def parsed(raw: Mapping[str, Any]) -> Parameters:
    return parse_parameters(Parameters, "sample", raw, "queues[2].gate_params")


def read(name: str, value: Any) -> Any:
    return getattr(parsed({"name": "x", name: value}), name)


def test_an_omitted_parameter_has_its_default() -> None:
    assert parsed({"name": "x"}) == Parameters(name="x")


@given(st.floats(0, 1, exclude_min=True), st.integers(1, 10**9))
def test_a_string_and_a_json_value_are_the_same(share: float, count: int) -> None:
    assert parsed({"name": "x", "share": share, "count": count}) == parsed(
        {"name": "x", "share": repr(share), "count": str(count)}
    )


@pytest.mark.parametrize(
    ("raw", "setting", "accepted"),
    [
        ({}, "name", "required by sample"),
        ({"name": ""}, "name", "non-empty"),
        ({"name": "x", "thershold": 1}, "thershold", "count, labels, least, mode, name, share, url, window"),
        ({"name": "x", "share": 0}, "share", "above 0 and at most 1"),
        ({"name": "x", "share": "nan"}, "share", "a number"),
        ({"name": "x", "share": True}, "share", "a number"),
        ({"name": "x", "share": None}, "share", "a number"),
        ({"name": "x", "share": [1]}, "share", "a number"),
        ({"name": "x", "count": 1.5}, "count", "an integer"),
        ({"name": "x", "count": "0"}, "count", "from 1"),
        ({"name": "x", "window": "1 fortnight"}, "window", "1m30s"),
        ({"name": "x", "window": 0}, "window", "above 0"),
        ({"name": "x", "window": "-1"}, "window", "above 0"),
        ({"name": "x", "least": "inf"}, "least", "a number"),
        ({"name": "x", "mode": "three"}, "mode", "one or two"),
        ({"name": "x", "labels": "nonsense"}, "labels", "name=value"),
        ({"name": "x", "mode": "two", "count": 1}, "count", "at least 2"),
    ],
)
def test_an_invalid_parameter_is_named_with_the_accepted_values(
    raw: Mapping[str, Any], setting: str, accepted: str
) -> None:
    with pytest.raises(InvalidSetting) as caught:
        parsed(raw)
    assert caught.value.setting == f"queues[2].gate_params.{setting}"
    assert accepted in caught.value.accepted
    assert "sample" in str(caught.value)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1m", 60),
        ("1m30s", 90),
        ("500ms", 0.5),
        ("1.5h", 5400),
        (10, 10),
        ("10", 10),
        ("0.25", 0.25),
        ("2h45m", 9900),
    ],
)
def test_durations_are_written_as_go_writes_them(written: str | float, meant: float) -> None:
    assert read("window", written) == pytest.approx(meant)


@pytest.mark.parametrize("written", ["", "1x", "m", "1m 30s", "-1s", "1e400", "inf", "nan", True, None, [], {}])
def test_an_invalid_duration_is_refused(written: Any) -> None:
    with pytest.raises(InvalidSetting):
        read("window", written)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.text("abc-./", min_size=1), max_size=4))
def test_labels_may_be_json_or_pairs(labels: dict[str, str]) -> None:
    assert read("labels", labels) == labels
    assert read("labels", json.dumps(labels)) == labels
    assert read("labels", ",".join(f"{name}={value}" for name, value in labels.items())) == labels


@pytest.mark.parametrize(
    "address", ["", "gateway:80", "ftp://x", "http://", "http:///x", "http://user:secret@host/", 5]
)
def test_an_address_is_http_and_holds_no_secret(address: Any) -> None:
    with pytest.raises(InvalidSetting):
        read("url", address)


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())))
def test_every_value_is_parsed_or_raises_invalid_setting(value: Any) -> None:
    for name in Parameters.__struct_fields__:
        try:
            parsed({"name": "x", name: value})
        except InvalidSetting as error:
            assert error.setting.endswith(name)


@pytest.mark.parametrize("url", ["http://user:hunter2@h/metrics", "http://h /metrics?token=hunter2"])
def test_an_error_about_an_address_does_not_repeat_its_credentials(url: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        build_gate("endpoint-scrape", {"url": url, "metric": "m"}, sources(), "queues[0]")
    assert "hunter2" not in str(caught.value)


async def test_a_gate_does_not_tell_the_query_of_its_address() -> None:
    given = {"url": "http://127.0.0.1:1/metrics?token=hunter2", "metric": "m"}
    reported = ReadableLog()
    from_there = sources(log=reported)
    built = build_gate("endpoint-scrape", given, from_there, "queues[0]")
    await built.start()
    try:
        assert reported.lines, "the log names the source"
        assert "hunter2" not in str(reported.lines)
    finally:
        await built.aclose()
        await from_there.http.aclose()
