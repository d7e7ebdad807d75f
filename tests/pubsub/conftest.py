"""A project of its own for each test, on one emulator."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

from handlers.demo.pubsub_emulator import PubSubEmulator
from handlers.pubsub.channel import PubSubChannel, PubSubOptions
from tests.pubsub.resources import Resources
from tests.servers.pubsub_emulator import running_emulator


@pytest.fixture
def options(pubsub_emulator: PubSubEmulator) -> Iterator[PubSubOptions]:
    yield PubSubOptions(project_id=f"p{uuid.uuid4().hex[:12]}", emulator_host=pubsub_emulator.host)
    print(pubsub_emulator.log_tail())  # pytest shows it beside a failure


@pytest.fixture
async def channel(options: PubSubOptions) -> AsyncIterator[PubSubChannel]:
    async with PubSubChannel(options) as channel:
        yield channel


@pytest.fixture
def resources(options: PubSubOptions) -> Resources:
    return Resources(options)


@pytest.fixture
def own_emulator() -> Iterator[PubSubEmulator]:
    """For tests that stop it."""
    yield from running_emulator()
