"""The guide's own commands, as written, by `gcloud` against the emulator: their requests in, our results out."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from handlers.contract.request import decode_body
from handlers.contract.result import answered_result, encode_result
from handlers.pubsub.admin import LayoutOptions, layout, set_up
from handlers.pubsub.channel import PubSubChannel, PubSubOptions
from handlers.pubsub.publisher import Publisher
from handlers.pubsub.puller import Puller
from tests.pubsub.resources import Resources
from tests.servers.presence import not_found

PUBLISH = """gcloud pubsub topics publish $REQUEST_TOPIC_NAME --message='{"id" : "testmsg", "payload":{ "model":"your-model", "prompt":"Hi, good morning "}, "deadline" :"1999999999" }'"""  # noqa: E501  # as published
PULL = "gcloud pubsub subscriptions pull async-proc-results-sub --auto-ack --limit=1"
Shell = Callable[[str], Coroutine[Any, Any, str]]


@pytest.fixture
def shell(options: PubSubOptions, tmp_path: Path) -> Shell:
    """A shell whose gcloud knows the emulator and no account."""
    if shutil.which("gcloud") is None:
        not_found("gcloud")
    environment = {
        **os.environ,
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_PUBSUB": f"http://{options.emulator_host}/",
        "CLOUDSDK_CORE_PROJECT": options.project_id,
        "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
        "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
        "CLOUDSDK_CONFIG": str(tmp_path),
        "REQUEST_TOPIC_NAME": "async-proc-requests",
    }

    async def run(command: str) -> str:
        process = await asyncio.create_subprocess_shell(
            command,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return out.decode()

    return run


async def test_the_guides_commands_pass_as_written(channel: PubSubChannel, resources: Resources, shell: Shell) -> None:
    wanted = LayoutOptions(project_id=channel.options.project_id, push_endpoint="http://127.0.0.1:9/")
    async for _ in set_up(channel, layout(wanted)):
        pass
    await resources.subscription("witness", "async-proc-requests")

    await shell(PUBLISH)
    (pulled,) = await Puller(channel, "witness").receive(1, wait_seconds=60)
    request = decode_body(pulled.data, queue="witness")
    assert (request.id, request.deadline) == ("testmsg", 1999999999.0)

    result = answered_result(request.id, request.request_token, 200, b'{"choices": []}')
    async with Publisher(channel) as publisher:
        await publisher.publish("async-proc-results", encode_result(result))
    shown = await shell(PULL)
    assert encode_result(result).decode() in shown
    assert await Puller(channel, "async-proc-results-sub").receive(1) == [], "--auto-ack"


async def test_the_printed_commands_correct_every_difference(channel: PubSubChannel, shell: Shell) -> None:
    """Except those that the emulator does not correct: the expiration, and a topic's retention if none is wanted."""
    at_first = LayoutOptions(
        project_id=channel.options.project_id,
        push_endpoint="http://127.0.0.1:9/",
        push_service_account="a@b.iam.gserviceaccount.com",
        push_audience="a",
        topic_retention_seconds=86_400,
    )
    other = LayoutOptions(
        project_id=channel.options.project_id,
        push_endpoint="http://127.0.0.1:9/?a=1&b=2",
        is_unwrapped=True,
        ack_deadline_seconds=20,
        minimum_backoff_seconds=11,
        maximum_backoff_seconds=12,
        max_delivery_attempts=6,
        retention_seconds=700,
        topic_retention_seconds=90_000,
        result_ack_deadline_seconds=30,
    )
    async for _ in set_up(channel, layout(at_first)):
        pass
    for wanted in (other, at_first):
        different = [each async for each in set_up(channel, layout(wanted)) if each.repair]
        assert len(different) == 5, "all but two topics"
        await asyncio.gather(*(shell(each.repair) for each in different))
        assert [each.lines async for each in set_up(channel, layout(wanted)) if each.lines] == []
