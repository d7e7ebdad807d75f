"""With a failing result topic, the push door keeps the delivery open until the topic works. F64."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.servers.pubsub_broker import refuses
from tests.waiting import wait_until_async
from tests.way.push_rig import Rig, open_rig


def takes(_method: str, _request: bytes) -> None:
    """A topic that exists and accepts everything."""


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with open_rig() as running:
        yield running


@pytest.mark.parametrize("status", ["RESOURCE_EXHAUSTED", "INTERNAL", "UNAVAILABLE"])
async def test_deliveries_stay_open_until_the_topic_takes_their_results(rig: Rig, status: str) -> None:
    """F64, I5: no 204 before the broker has the result."""
    assert (await rig.push("before")).status_code == 204
    rig.broker.fault = refuses(status)
    pushes = [asyncio.create_task(rig.push(f"r{number}")) for number in range(30)]
    tried = rig.broker.calls
    await wait_until_async(lambda: rig.broker.calls > tried + 3, "publishes that were refused")

    assert not any(one.done() and one.result().status_code == 204 for one in pushes)
    rig.broker.fault = takes

    answers = await asyncio.gather(*pushes)
    assert {one.status_code for one in answers} <= {204, 503}
    again = [await rig.push(f"r{number}") for number, one in enumerate(answers) if one.status_code == 503]
    assert all(one.status_code == 204 for one in again)


@pytest.mark.parametrize("status", ["PERMISSION_DENIED", "NOT_FOUND"])
async def test_a_forbidden_topic_nacks_at_once_with_retry_after(rig: Rig, status: str) -> None:
    """F64: a retry cannot help, so the delivery is not held; nothing is acked."""
    rig.broker.fault = refuses(status)

    refused = await rig.push("r")

    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert "result not published" in rig.door.output()
    rig.broker.fault = takes
    assert (await rig.push("r")).status_code == 204


@pytest.mark.parametrize("trouble", ["is_hanging", "is_resetting"])
async def test_a_topic_that_hangs_or_resets_loses_no_result(rig: Rig, trouble: str) -> None:
    """F64, F67: the delivery is open until the topic has its result, or nacked; retries have pauses."""
    assert (await rig.push("before")).status_code == 204
    setattr(rig.broker, trouble, True)
    pushes = [asyncio.create_task(rig.push(f"r{number}")) for number in range(30)]
    tried = rig.broker.calls
    await wait_until_async(lambda: rig.broker.calls > tried, "a publish that fails")

    assert not any(one.done() and one.result().status_code == 204 for one in pushes)
    setattr(rig.broker, trouble, False)
    answers = await asyncio.gather(*pushes)
    assert {one.status_code for one in answers} <= {204, 503}
    again = [await rig.push(f"r{number}") for number, one in enumerate(answers) if one.status_code == 503]
    assert all(one.status_code == 204 for one in again)
