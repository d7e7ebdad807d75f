"""A push subscription and the topic for its results, played by the harness.

Each request is pushed until it is acknowledged (a 2xx), with growing pauses. Some are pushed twice at once, as
at-least-once delivery allows.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Self

import aiohttp

from tests.servers.pubsub_broker import PubSubBroker, running_broker
from tests.waiting import elapse_async

_ACKED = frozenset({102, 200, 201, 202, 204})
_AT_ONCE = 16
_LONGEST_PAUSE_SECONDS = 2.0
DOUBLED_SHARE = 0.1


class Pushing:
    """A subscription and a topic in their own thread."""

    def __init__(self, seed: int, *, doubled_share: float = DOUBLED_SHARE) -> None:
        self._doubled_share = doubled_share
        self._chance = random.Random(seed)
        self.doubled: set[str] = set()
        self.deliveries: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="pushing", daemon=True)
        self._thread.start()
        self._serving = AsyncExitStack()
        self._broker = PubSubBroker()
        self.host = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        self._sending: asyncio.Future[None] | None = None

    @property
    def results(self) -> list[tuple[str, dict[str, str]]]:
        """Data and attributes of published messages, in order."""
        return [(data.decode(), attributes) for _, data, attributes in self._broker.published]

    async def _listen(self) -> str:
        self._broker = await self._serving.enter_async_context(running_broker())
        return self._broker.host

    def push(self, url: str, bodies: Sequence[tuple[str, bytes]]) -> None:
        """Push each (id, body) until it is acknowledged."""
        self._pushed = asyncio.run_coroutine_threadsafe(self._push_all(url, bodies), self._loop)

    def wait(self, timeout_seconds: float) -> None:
        """Wait until all are acknowledged; raises `TimeoutError`."""
        self._pushed.result(timeout_seconds)

    async def _push_all(self, url: str, bodies: Sequence[tuple[str, bytes]]) -> None:
        room = asyncio.Semaphore(_AT_ONCE)
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
            for number, (request_id, body) in enumerate(bodies):
                await room.acquire()
                times = 1
                if self._chance.random() < self._doubled_share:
                    self.doubled.add(request_id)
                    times = 2
                task = group.create_task(self._push_one(session, url, (number, request_id, body), times))
                task.add_done_callback(lambda _task: room.release())

    async def _push_one(
        self, session: aiohttp.ClientSession, url: str, request: tuple[int, str, bytes], times: int
    ) -> None:
        number, request_id, body = request
        message = {"data": base64.b64encode(body).decode(), "messageId": str(number), "attributes": {}}
        frame = json.dumps({"message": message, "subscription": "projects/chaos-project/subscriptions/s"})
        await asyncio.gather(*(self._until_acked(session, url, frame, request_id) for _ in range(times)))

    async def _until_acked(self, session: aiohttp.ClientSession, url: str, frame: str, request_id: str) -> None:
        pause = 0.1
        while not await self._is_acked(session, url, frame, request_id):
            await elapse_async(pause * (0.5 + self._chance.random()), "the next delivery is due")
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _is_acked(self, session: aiohttp.ClientSession, url: str, frame: str, request_id: str) -> bool:
        self.deliveries[request_id] += 1
        timeout = aiohttp.ClientTimeout(total=20)
        try:
            async with session.post(
                url, data=frame, headers={"content-type": "application/json"}, timeout=timeout
            ) as answer:
                return answer.status in _ACKED
        except (aiohttp.ClientError, TimeoutError):
            return False

    def close(self) -> None:
        """Close the topic."""
        asyncio.run_coroutine_threadsafe(self._serving.aclose(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
