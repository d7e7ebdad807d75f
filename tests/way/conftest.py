"""The whole stack in real processes, for end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from handlers.demo.pubsub_emulator import NoEmulator, find_emulator
from handlers.demo.stack import Stack, StackOptions
from tests.servers.forked import ForkedChild
from tests.servers.presence import not_found

LATENCY = ("--time-to-first-token", "0.02")
VARIABLES = {"SHUTDOWN_GRACE_SECONDS": "30", "REQUEST_TIMEOUT_SECONDS": "20"}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Valkey, gateway, dispatch handler and poller."""
    with Stack(
        StackOptions(child=ForkedChild, has_pubsub=False, gateway_arguments=LATENCY, variables=VARIABLES)
    ) as running:
        yield running


@pytest.fixture(scope="module")
def pubsub_stack() -> Iterator[Stack]:
    """The same with Pub/Sub."""
    found = find_emulator()
    if isinstance(found, NoEmulator):
        not_found(f"the Pub/Sub emulator ({found.reason})")
    with Stack(StackOptions(child=ForkedChild, gateway_arguments=LATENCY, variables=VARIABLES)) as running:
        yield running


@pytest.fixture
def store(stack: Stack) -> Iterator[redis.Redis]:
    """A plain client of the stack's Valkey."""
    client = redis.Redis.from_url(stack.redis_url, socket_timeout=60)
    yield client
    client.close()
