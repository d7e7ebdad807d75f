"""Valid settings that are dangerous together stop the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from handlers.contract.errors import InvalidSetting
from handlers.settings.environment import Environment
from handlers.settings.settings import load_settings, setting_warnings

NAMES = [name.upper() for name in Environment.__struct_fields__ if len(name) >= 8]


@pytest.mark.parametrize(
    ("variables", "setting", "other"),
    [
        ({"RETRY_QUEUE_NAME": "request-sortedset"}, "RETRY_QUEUE_NAME", "REQUEST_QUEUE_NAME"),
        ({"RESULT_QUEUE_NAME": "request-sortedset"}, "RESULT_QUEUE_NAME", "REQUEST_QUEUE_NAME"),
        ({"REQUEST_QUEUE_NAME": "result-list"}, "RESULT_QUEUE_NAME", "REQUEST_QUEUE_NAME"),
        ({"RESULT_QUEUE_NAME": "retry-sortedset"}, "RESULT_QUEUE_NAME", "RETRY_QUEUE_NAME"),
    ],
)
def test_equal_names_of_two_keys_are_refused(variables: dict[str, str], setting: str, other: str) -> None:
    with pytest.raises(InvalidSetting) as refused:
        load_settings(variables)
    assert (refused.value.setting, other in refused.value.accepted) == (setting, True)


def test_a_queue_of_the_file_may_not_have_its_results_in_another_queue(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("{queues: [{queue_name: a}, {queue_name: b, result_queue_name: a}]}")
    with pytest.raises(InvalidSetting) as refused:
        load_settings({"CONFIG_FILE": str(file)})
    assert refused.value.setting == "queues[1].result_queue_name"


def test_queues_may_share_a_result_list(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("{queues: [{queue_name: a, result_queue_name: r}, {queue_name: b, result_queue_name: r}]}")
    assert len(load_settings({"CONFIG_FILE": str(file)}).queues) == 2


@pytest.mark.parametrize("name", NAMES)
def test_a_variable_that_lacks_its_last_letter_or_has_two_swapped_is_refused(name: str) -> None:
    for misspelt in (name[:-1], f"{name[:3]}{name[4]}{name[3]}{name[5:]}"):
        if misspelt != name and misspelt.upper() not in NAMES:
            with pytest.raises(InvalidSetting) as refused:
                load_settings({misspelt: "1"})
            assert refused.value.setting == misspelt


@pytest.mark.parametrize("place", range(6))
def test_two_swapped_letters_are_found_in_a_short_name_too(place: int) -> None:
    name = list("WORKERS")
    name[place], name[place + 1] = name[place + 1], name[place]
    with pytest.raises(InvalidSetting, match="did you mean WORKERS"):
        load_settings({"".join(name): "3"})


@pytest.mark.parametrize(
    "name",
    [
        *(
            "REDIS_PORT",
            "REDIS_PORT_6379_TCP",
            "IGW_SERVICE_PORT_HTTP",
            "REDIS_SERVICE_HOST",
            "LOG_DIR",
            "PATH",
            "HOME",
            "HOSTNAME",
            "K_SERVICE",
            "OTEL_TRACES_SAMPLER",
        ),
        *("REQUEST_TOPIC_ID", "REQUEST_TOPIC_NAME", "RESULT_SUBSCRIPTION_ID", "GOOGLE_CLOUD_PROJECT"),
    ],
)
def test_variables_of_other_programs_are_not_misspelt_settings(name: str) -> None:
    settings = load_settings({name: "tcp://10.0.0.1:6379"})
    assert settings == load_settings({})
    assert setting_warnings(settings) == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("IGW_URL", "IGW_BASE_URL"),
        ("REQUEST_QUEUE", "REQUEST_QUEUE_NAME"),
        ("RESULT_QUEUE", "RESULT_QUEUE_NAME"),
        ("RETRY_NAME", "RETRY_QUEUE_NAME"),
        ("REQUEST_TIMEOUT", "REQUEST_TIMEOUT_SECONDS"),
        ("REDIS_TIMEOUT", "REDIS_TIMEOUT_SECONDS"),
        ("ALLOWED_REQUEST_HEADERS", "ALLOWED_HEADERS"),
    ],
)
def test_a_name_with_a_word_too_few_or_too_many_is_refused(name: str, meant: str) -> None:
    with pytest.raises(InvalidSetting) as refused:
        load_settings({name: "http://gateway"})
    assert str(refused.value) == (f"{name}: expected a known variable (did you mean {meant}?), got an unknown variable")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("IGW_ADDRESS", "expected one of IGW_BASE_URL"),
        ("REDIS_HOST", "expected one of REDIS_CA_FILE, "),
        ("RESULT_LIST", "expected one of RESULT_APART_BYTES, "),
        ("MAX_DEADLINE", "did you mean MAX_DEADLINE_SECONDS?"),
        ("GATEWAY_CA", "did you mean GATEWAY_CA_FILE?"),
    ],
)
def test_a_name_that_resembles_a_setting_less_is_a_warning(name: str, meant: str) -> None:
    [warning] = setting_warnings(load_settings({name: "x"}))
    assert warning.startswith(f"{name}: unknown variable, ignored; {meant}")


def test_beside_the_right_variable_a_similar_one_is_a_warning() -> None:
    right = {"IGW_BASE_URL": "http://gateway"}
    [warning] = setting_warnings(load_settings({**right, "IGW_URL": "http://gateway"}))
    assert warning.startswith("IGW_URL: ")


@pytest.mark.parametrize("base", ["http://gateway/v1", "http://gateway/v1/", "http://gateway/prefix/v1"])
def test_a_base_url_that_ends_in_the_version_of_the_path_is_refused(base: str) -> None:
    with pytest.raises(InvalidSetting) as refused:
        load_settings({"IGW_BASE_URL": base})
    assert "without /v1" in refused.value.accepted
    load_settings({"IGW_BASE_URL": base, "REQUEST_PATH_URL": "/completions"})


@pytest.mark.parametrize("base", ["http://gateway/v1/completions", "http://gateway/a/v1/completions/"])
def test_a_base_url_that_contains_the_whole_path_is_refused(base: str) -> None:
    with pytest.raises(InvalidSetting) as refused:
        load_settings({"IGW_BASE_URL": base})
    assert "without /v1/completions" in refused.value.accepted
