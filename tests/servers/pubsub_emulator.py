"""The Pub/Sub emulator for tests: one per process, resources under names of their own for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from handlers.demo.pubsub_emulator import NoEmulator, PubSubEmulator, find_emulator
from tests.servers.presence import not_found


def running_emulator() -> Iterator[PubSubEmulator]:
    """The body of a fixture: the emulator, until the scope of the fixture ends."""
    found = find_emulator()
    if isinstance(found, NoEmulator):
        not_found(f"the Pub/Sub emulator ({found.reason})")
    with PubSubEmulator(found) as emulator:
        yield emulator


@pytest.fixture(scope="session")
def pubsub_emulator() -> Iterator[PubSubEmulator]:
    """An emulator for all tests of this process; each test uses its own project."""
    yield from running_emulator()
