"""Environment and file together: precedence, refusals, masking."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.contract.errors import InvalidSetting
from handlers.settings.config_file import ConfigFile
from handlers.settings.environment import Environment
from handlers.settings.settings import Settings, check_url, load_settings, masked_url, read_secret

FILE = """
result_queue_name: file-results
poll_interval_ms: 7
queues:
  - {queue_name: chat, request_path_url: /v1/chat/completions, inference_objective: low}
  - {queue_name: plain}
topics:
  - {subscriber_id: projects/p/subscriptions/s, igw_base_url: "https://other:443"}
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    path = tmp_path / "queues.yaml"
    path.write_text(FILE)
    return load_settings({"CONFIG_FILE": str(path), "IGW_BASE_URL": "http://g:80", "RESULT_QUEUE_NAME": "env-results"})


def refused(**variables: str) -> InvalidSetting:
    with pytest.raises(InvalidSetting) as caught:
        load_settings(variables)
    return caught.value


def test_the_file_wins_over_the_environment_and_that_over_the_defaults(settings: Settings) -> None:
    assert (settings.result_queue_name, settings.retry_queue_name) == ("file-results", "retry-sortedset")
    assert settings.poll_interval_seconds == 0.007
    assert [queue.queue_name for queue in settings.queues] == ["chat", "plain"]


def test_each_queue_has_its_own_route_and_all_others_the_default(settings: Settings) -> None:
    routes = settings.routes
    assert (routes.of("chat").path, routes.of("chat").inference_objective) == ("/v1/chat/completions", "low")
    assert (routes.of("plain").path, routes.of("plain").base_url) == ("/v1/completions", "http://g:80")
    assert routes.of("unknown") == routes.default
    assert routes.of("projects/p/subscriptions/s").base_url == "https://other:443"


def test_a_subscription_of_another_project_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "topics.yaml"
    path.write_text("topics: [{subscriber_id: a}, {subscriber_id: projects/q/subscriptions/b}]")
    settings = load_settings({"CONFIG_FILE": str(path), "PROJECT_ID": "p"})
    names = ["a", "projects/p/subscriptions/a", "projects/q/subscriptions/b"]
    assert [settings.subscription(name) is not None for name in names] == [True, True, True]
    others = [
        "",
        "b",
        "projects/q/subscriptions/a",
        "projects/p/subscriptions/b",
        "x/projects/p/subscriptions/a",
    ]
    assert [settings.subscription(name) for name in others] == [None] * len(others)


@pytest.mark.parametrize("name", ["s", "projects/p/subscriptions/s", "projects/q/subscriptions/s"])
def test_a_subscription_is_known_by_its_short_and_its_full_name(settings: Settings, name: str) -> None:
    entry = settings.subscription(name)
    assert entry is not None
    assert entry.subscriber_id == "projects/p/subscriptions/s"
    assert settings.subscription("t") is None


def test_without_a_file_there_is_one_queue_and_one_pool() -> None:
    settings = load_settings({"REQUEST_QUEUE_NAME": "mine"})
    assert [queue.queue_name for queue in settings.queues] == ["mine"]
    assert [pool.id for pool in settings.pools] == ["default"]


@pytest.mark.parametrize("url", ["gateway:80", "ftp://g", "http://", "http://g:port", "http://g:99999", "http://["])
@pytest.mark.parametrize("name", ["IGW_BASE_URL", "HANDLER_URL"])
def test_a_gateway_is_an_http_url_with_a_host(name: str, url: str) -> None:
    assert refused(**{name: url}).setting == name


@pytest.mark.parametrize("url", ["http://g?x=1", "http://g/#x", "http://g h", "http://g\rx"])
def test_a_base_url_with_a_query_a_fragment_or_spaces_is_refused(url: str) -> None:
    assert refused(IGW_BASE_URL=url).setting == "IGW_BASE_URL"


@pytest.mark.parametrize("url", ["http://r", "redis:", "r:6379", "redis://", "redis://h:70000", "redis://["])
def test_a_redis_is_a_redis_url_with_a_host(url: str) -> None:
    assert refused(REDIS_URL=url).setting == "REDIS_URL"
    assert refused(DEDUPE_REDIS_URL=url).setting == "DEDUPE_REDIS_URL"


@pytest.mark.parametrize(
    "url",
    [
        *("redis://h", "rediss://h:6380/2", "redis://user:p@h", "redis://[::1]:6379", "unix:///run/r.sock"),
        *("redis+sentinel://a:1,b:2/master/0", "rediss+cluster://a,b:2"),
    ],
)
def test_every_form_of_a_redis_url_is_taken(url: str) -> None:
    assert load_settings({"REDIS_URL": url}).redis_url == url


@pytest.mark.parametrize("path", ["//evil", "/v1/../x", "http://evil", "/a b", "/%2e"])
@pytest.mark.parametrize("name", ["REQUEST_PATH_URL", "ALLOWED_ENDPOINTS"])
def test_a_path_that_is_not_plain_is_refused(name: str, path: str) -> None:
    assert refused(**{name: path}).setting == name


def test_a_heartbeat_beats_twice_in_a_lease_at_least() -> None:
    error = refused(HEARTBEAT_SECONDS="8", LEASE_SECONDS="15")
    assert (error.setting, "LEASE_SECONDS (15)" in error.accepted) == ("HEARTBEAT_SECONDS", True)
    load_settings({"HEARTBEAT_SECONDS": "7.5", "LEASE_SECONDS": "15"})


def test_no_secret_is_ever_shown() -> None:
    """F77: not in shown settings, tracebacks or errors."""
    secret = "hunter2"
    variables = {
        "REDIS_PASSWORD": secret,
        "DISPATCH_TOKEN": secret,
        "REDIS_URL": f"redis://user:{secret}@h:6379",
        "DEDUPE_REDIS_URL": f"rediss://:{secret}@h",
    }
    settings = load_settings(variables)
    assert settings.redis_password == secret
    assert secret not in str(settings.shown())
    assert secret not in repr(settings)
    assert settings.shown()["REDIS_URL"] == "redis://***@h:6379"
    for wrong in (f"redis://user:{secret}@", f"http://user:{secret}@h", f"redis://user:{secret}@h:99999"):
        assert secret not in str(refused(REDIS_URL=wrong))


def test_secrets_come_from_files_too_and_are_read_again(tmp_path: Path) -> None:
    password, tokens = tmp_path / "password", tmp_path / "tokens"
    password.write_text("first\n")
    tokens.write_text("new\nold\n")
    settings = load_settings({"REDIS_PASSWORD_FILE": str(password), "DISPATCH_TOKEN_FILE": str(tokens)})
    assert (settings.redis_password, settings.dispatch_tokens) == ("first", ("new", "old"))
    password.write_text("second")
    assert settings.redis_password == "second"


def test_a_secret_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="REDIS_PASSWORD_FILE"):
        read_secret("REDIS_PASSWORD_FILE", str(tmp_path / "missing"))


def test_a_token_of_the_environment_wins() -> None:
    settings = load_settings({"DISPATCH_TOKEN": "t", "DISPATCH_TOKEN_FILE": "/nowhere"})
    assert settings.dispatch_tokens == ("t",)
    assert load_settings({}).dispatch_tokens == ()


@given(url=st.text(max_size=40) | st.from_regex(r"(redis|http)s?://[\[\]a-z0-9:@/?#%,.-]{0,20}", fullmatch=True))
def test_every_text_is_a_url_or_an_error(url: str) -> None:
    try:
        check_url("X", url, frozenset({"http", "https", "redis"}))
    except InvalidSetting as error:
        assert error.setting == "X"
    masked_url(url)


@pytest.mark.parametrize("url", ["hunter2@h", "user:hunter2://@h", "redis://hunter2@@h", "://hunter2@h"])
def test_a_password_is_masked_in_any_text_that_looks_like_a_url(url: str) -> None:
    assert "hunter2" not in str(masked_url(url))


CARRIERS = [
    "https://user:{}@host/path",
    "http://{}@host",
    "redis://:{}@h:6379/0",
    "user:{}@host:8085",
    "host?token={}",
    "https://host/v1?x=1&key={}",
    "authorization=Bearer {}",
    "Bearer {}",
    "api-key={},other=1",
    '{{"extensions":{{"token":"{}"}}}}',
    '{{"extensions":{{"note":"{}"',
]


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("name", Environment.__struct_fields__)
def test_no_setting_of_any_name_shows_a_credential(name: str, carrier: str) -> None:
    """Also for settings that are added later, because the content is masked."""
    value = carrier.format("hunter2")
    env = msgspec.structs.replace(load_settings({}).env, **{name: value})
    assert "hunter2" not in str(Settings(env=env, file=ConfigFile()).shown())


@pytest.mark.parametrize(
    "plain",
    [
        "redis://h:6379/1",
        "http://host:80/v1",
        "door@project.iam.gserviceaccount.com",
        "team-a,team-b:*",
        "/v1/",
        "projects/p/topics/t",
        "header:x-request-id",
        "/var/run/token",
    ],
)
def test_text_without_credentials_is_shown_unchanged(plain: str) -> None:
    assert masked_url(plain) == plain
