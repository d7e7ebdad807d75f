"""The file: the reference's own names, JSON or YAML, and nothing unknown passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handlers.contract.errors import InvalidSetting
from handlers.settings.config_file import MOST_QUEUES, ConfigFile
from tests.contract.json_texts import JSON
from tests.settings.config_files import parse_config_file, read_config_file


def refused(text: str) -> InvalidSetting:
    with pytest.raises(InvalidSetting) as caught:
        parse_config_file(text)
    return caught.value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("queues: [{}]", "queues[0].queue_name: expected non-empty text, got nothing"),
        ("queues: [{queue_name: 7}]", "queues[0].queue_name: expected non-empty text, got 7"),
        ("queues: {a: 1}", "queues: expected a list, got a mapping"),
        (
            "queues: [{queue_name: a, labels: {tier: 3}}]",
            "queues[0].labels[...]: expected text, got an integer",
        ),
        ("pools: [{id: a, shared: often}]", "pools[0].shared: expected true or false, got 'often'"),
        (
            "pools: [{id: a, workers: 0}]",
            "pools[0].workers: expected an integer from 1 to 100000, got 0",
        ),
        (
            "a: 1\n b: 2",
            "CONFIG_FILE: expected valid YAML or JSON, got a syntax error on line 2, column 3: "
            "mapping values are not allowed here",
        ),
        *(
            (
                f"{name}: [{{{field}: a, gate_params: {{limit: 1}}}}]",
                f"{name}[0].gate_type: expected the type of the gate that gate_params configures "
                "(or no gate_params), got nothing",
            )
            for name, field in (("queues", "queue_name"), ("topics", "subscriber_id"), ("pools", "id"))
        ),
    ],
)
def test_an_error_describes_values_in_words(text: str, message: str) -> None:
    assert str(refused(text)) == message


def test_at_most_twenty_faults_are_reported() -> None:
    entries = [{"queue_name": f"q{number}", "labels": 1} for number in range(40)]
    assert len(refused(json.dumps({"queues": entries})).others) == 19


def test_yaml_and_json_give_the_same_settings() -> None:
    yaml = """
url: redis://r:6379
queues:
  - queue_name: chat
    worker_pool_id: large
    labels: {tier: interactive}
    gate_type: constant
pools:
  - {id: large, workers: 8}
"""
    config = parse_config_file(yaml)
    as_json = {
        "url": "redis://r:6379",
        "queues": [
            {
                "queue_name": "chat",
                "worker_pool_id": "large",
                "labels": {"tier": "interactive"},
                "gate_type": "constant",
            }
        ],
        "pools": [{"id": "large", "workers": 8}],
    }
    assert config == parse_config_file(json.dumps(as_json))
    assert (config.queues[0].labels, config.pools[0].workers) == ({"tier": "interactive"}, 8)


@pytest.mark.parametrize(
    ("text", "field"),
    [("[{queue_name: q}]", "queues"), ("[{subscriber_id: s}]", "topics"), ("[{id: p}]", "pools")],
)
def test_a_bare_list_is_recognised_by_its_entries(text: str, field: str) -> None:
    assert len(getattr(parse_config_file(text), field)) == 1


@pytest.mark.parametrize("text", ["", "   ", "# a comment", "{}", "null"])
def test_an_empty_file_is_no_file(text: str) -> None:
    assert parse_config_file(text) == ConfigFile()


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("[{queue_name: q, gate_typ: constant}]", "queues[0].gate_typ"),
        ("{queue: []}", "queue"),
        ("[{queue_name: ''}]", "queues[0].queue_name"),
        ("[{queue_name: 5}]", "queues[0].queue_name"),
        ("[{queue_name: q, result_ttl_seconds: -1}]", "queues[0].result_ttl_seconds"),
        ("[{queue_name: q, labels: {tier: 5}}]", "queues[0].labels[...]"),
        ("[{queue_name: q}, {queue_name: q}]", "queues.queue_name"),
        ("[{queue_name: q, id: x}, {queue_name: r, id: x}]", "queues.id"),
        ("[{subscriber_id: s}, {subscriber_id: s}]", "topics.subscriber_id"),
        ("[{id: p}, {id: p}]", "pools.id"),
        ("[{id: p, workers: 0}]", "pools[0].workers"),
        ("[{queue_name: q, worker_pool_id: nowhere}]", "queues[0].worker_pool_id"),
        ("[{subscriber_id: s, ack_deadline_seconds: 601}]", "topics[0].ack_deadline_seconds"),
        *((text, "CONFIG_FILE") for text in ("5", "text", "[5]", "[]", "{a: [}", "a: b: c", "\0", "[2026-99-99]")),
        ("- !!python/object/apply:os.system [ls]", "CONFIG_FILE"),
    ],
)
def test_faults_are_named(text: str, setting: str) -> None:
    error = refused(text)
    assert error.setting == setting
    assert error.found
    assert error.accepted


def test_a_file_with_more_queues_than_a_poller_serves_is_refused() -> None:
    entries = [{"queue_name": f"q-{number}"} for number in range(MOST_QUEUES + 1)]
    assert len(parse_config_file(json.dumps({"queues": entries[:-1]})).queues) == 10_000
    with pytest.raises(InvalidSetting, match="at most 10000 queues"):
        parse_config_file(json.dumps({"queues": entries}))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_bytes(b"\xff\xfe")
    for path in (tmp_path / "missing.yaml", tmp_path, broken):
        with pytest.raises(InvalidSetting, match="CONFIG_FILE"):
            read_config_file(str(path))
    assert read_config_file("") == ConfigFile()


@example(content="[" * 1_000)
@given(content=JSON.map(json.dumps) | st.text(max_size=60))
def test_no_text_crashes(content: str) -> None:
    try:
        assert isinstance(parse_config_file(content), ConfigFile)
    except InvalidSetting as error:
        assert error.setting


def test_an_unknown_field_is_named_with_its_path_its_nearest_and_all_known_ones() -> None:
    error = refused("{queues: [{queue_name: q}, {queue_name: r, gateway_url: http://x}]}")
    assert error.setting == "queues[1].gateway_url"
    assert "did you mean igw_base_url?" in error.found
    assert error.accepted.startswith("one of gate_params, gate_type, id, idempotent_seconds, igw_base_url")


@pytest.mark.parametrize(
    ("text", "path", "close"),
    [
        ("{quues: []}", "quues", "queues"),
        ("{pools: [{id: p, worker: 1}]}", "pools[0].worker", "workers"),
        ("{topics: [{subscriber_id: s, ack_deadline: 1}]}", "topics[0].ack_deadline", "ack_deadline_seconds"),
    ],
)
def test_a_misspelt_field_suggests_the_right_one(text: str, path: str, close: str) -> None:
    error = refused(text)
    assert (error.setting, f"did you mean {close}?" in error.found) == (path, True)


@pytest.mark.parametrize(
    "text",
    [
        "queues:\n- queue_name: a\n  queue_name: b\n",
        '{"queues": [{"queue_name": "a",\n\n"queue_name": "b"}]}',
    ],
)
def test_a_key_that_occurs_twice_stops_the_start_with_its_lines(text: str) -> None:
    with pytest.raises(InvalidSetting) as refused:
        parse_config_file(text)
    assert "the key 'queue_name' on line" in str(refused.value)
    assert "and on line 3" in str(refused.value)
