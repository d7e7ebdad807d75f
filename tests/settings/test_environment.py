"""Environment variables are typed and checked; errors name the accepted values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.contract.errors import InvalidSetting
from handlers.settings.environment import Environment, read_environment


def refused(**variables: str) -> InvalidSetting:
    with pytest.raises(InvalidSetting) as caught:
        read_environment(variables)
    return caught.value


def test_without_variables_there_are_the_published_defaults() -> None:
    env = read_environment({})
    assert env.request_queue_name == "request-sortedset"
    assert (env.retry_queue_name, env.result_queue_name) == ("retry-sortedset", "result-list")
    assert (env.lease_seconds, env.heartbeat_seconds, env.reclaim_seconds) == (15.0, 5.0, 2.0)
    assert env.request_path_url == "/v1/completions"
    assert env.push_auth == "oidc", "authentication is on by default"
    assert env.poll_interval_ms <= 25


def test_values_are_read_with_the_space_around_them_removed() -> None:
    env = read_environment({"WORKERS": " 8 ", "LEASE_SECONDS": "7.5\n", "IGW_BASE_URL": "http://g"})
    assert (env.workers, env.lease_seconds, env.igw_base_url) == (8, 7.5, "http://g")


@pytest.mark.parametrize("value", ["", " ", "\n"])
def test_an_empty_variable_is_not_set(value: str) -> None:
    assert read_environment({"WORKERS": value, "PUSH_AUTH": value}) == Environment()


@pytest.mark.parametrize(
    ("value", "expected"), [("true", True), ("TRUE", True), ("1", True), ("False", False), ("0", False)]
)
def test_a_switch_is_read_as_people_write_it(value: str, expected: bool) -> None:
    assert read_environment({"FAIRNESS_DISABLED": value}).fairness_disabled is expected


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("WORKERS", "many", "an integer from 1 to 100000"),
        ("WORKERS", "0", "an integer from 1 to 100000"),
        ("WORKERS", "-1", "an integer from 1 to 100000"),
        ("WORKERS", "1.5", "an integer from 1 to 100000"),
        ("PORT", "65536", "an integer from 0 to 65535"),
        ("LEASE_SECONDS", "nan", "a number from 0.1 to 3600"),
        ("LEASE_SECONDS", "inf", "a number from 0.1 to 3600"),
        ("LEASE_SECONDS", "15s", "a number from 0.1 to 3600"),
        ("REQUEST_TIMEOUT_SECONDS", "0", "a number above 0 and at most 86400"),
        ("MAX_RESPONSE_BYTES", "10", "an integer of at least 1024"),
        ("PUSH_AUTH", "off", "none or oidc"),
        ("LOG_LEVEL", "loud", "debug or error or info or warning"),
        ("FAIRNESS_DISABLED", "maybe", "true or false"),
        ("FUNCTION_TARGET", "push", "dispatch or pubsub_push"),
    ],
)
def test_an_invalid_value_is_reported_with_the_accepted_values(name: str, value: str, accepted: str) -> None:
    error = refused(**{name: value})
    assert (error.setting, error.found, error.accepted) == (name, repr(value), accepted)
    assert "\n" not in str(error)


@given(
    name=st.sampled_from([name.upper() for name in Environment.__struct_fields__]),
    value=st.text(st.characters(exclude_categories=["Cs"]), max_size=100),
)
def test_every_text_is_a_valid_value_or_an_error_that_names_the_setting(name: str, value: str) -> None:
    try:
        read_environment({name: value})
    except InvalidSetting as error:
        assert error.setting == name
        assert len(str(error)) < 400
