"""A handler's /metrics is disabled without a token, and otherwise requires it."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from handlers.contract.errors import InvalidSetting
from handlers.settings.settings import load_settings
from handlers.wiring.handler import Handler
from tests.servers.pubsub_broker import running_broker

TOKEN = "a-token-for-prometheus"
PUSH = {"PROJECT_ID": "p-roject", "RESULT_TOPIC_ID": "results", "PUSH_AUTH": "none"}


async def asked(variables: dict[str, str], token: str = "", method: str = "GET", target: str = "dispatch") -> Response:
    """The response of a new handler to a request for its metrics."""
    async with running_broker() as broker:
        return await _asked(
            {**variables, "PUBSUB_EMULATOR_HOST": broker.host}, token=token, method=method, target=target
        )


async def _asked(variables: dict[str, str], *, token: str, method: str, target: str) -> Response:
    handler = Handler(load_settings(variables), target)
    headers = [(b"authorization", f"Bearer {token}".encode())] if token else []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": method, "path": "/metrics", "headers": headers, "query_string": b""}
    try:
        return await handler.respond(Request(scope, receive))
    finally:
        await handler.aclose()


async def test_without_a_token_there_is_no_page() -> None:
    assert (await asked({})).status_code == 404


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper()])
async def test_without_the_token_the_page_is_refused(token: str) -> None:
    response = await asked({"METRICS_TOKEN": TOKEN}, token)
    assert response.status_code == 401
    assert b"llm_d" not in bytes(response.body)


@pytest.mark.parametrize("target", ["dispatch", "pubsub_push"])
async def test_with_the_token_the_page_is_served(target: str) -> None:
    response = await asked({"METRICS_TOKEN": TOKEN, **PUSH}, TOKEN, target=target)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert f'handler_inflight_deliveries{{door="{target}"}} 0.0'.encode() in bytes(response.body)


async def test_the_dispatch_token_does_not_open_the_page() -> None:
    variables = {"METRICS_TOKEN": TOKEN, "DISPATCH_TOKEN": "a-token-for-the-poller"}
    assert (await asked(variables, "a-token-for-the-poller")).status_code == 401


async def test_a_post_to_the_page_gets_405() -> None:
    assert (await asked({"METRICS_TOKEN": TOKEN}, TOKEN, "POST")).status_code == 405


async def test_a_guessable_token_stops_the_start() -> None:
    with pytest.raises(InvalidSetting) as caught:
        Handler(load_settings({"METRICS_TOKEN": "short"}), "dispatch")
    assert caught.value.setting == "METRICS_TOKEN"


@pytest.mark.parametrize(
    ("variables", "is_warned"),
    [({}, True), ({"DISPATCH_AUTH": "none"}, False), ({"DISPATCH_TOKEN": "a-token-for-the-poller"}, False)],
)
async def test_an_open_dispatch_door_logs_a_warning(
    variables: dict[str, str], is_warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    await Handler(load_settings(variables), "dispatch").aclose()
    assert any("dispatch authentication" in record.getMessage() for record in caplog.records) is is_warned
