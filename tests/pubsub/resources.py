"""Create and read topics and subscriptions by the emulator's REST API, without the code under test."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import quote

import httpx

from handlers.pubsub.channel import PubSubOptions


class Resources:
    """Resources of the project of `options`, by short names."""

    def __init__(self, options: PubSubOptions) -> None:
        self.project = f"projects/{options.project_id}"
        self._root = f"http://{options.emulator_host}/v1/{self.project}/"

    async def call(self, method: str, path: str, verb: str = "", body: Any = None) -> Any:
        url = self._root + quote(f"{path}:{verb}" if verb else path, safe="/:+~")
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            answer = await client.request(method, url, json=body)
        answer.raise_for_status()
        return answer.json()

    async def topic(self, name: str, **fields: Any) -> str:
        await self.call("PUT", f"topics/{name}", body=fields)
        return name

    async def subscription(self, name: str, topic: str, **fields: Any) -> str:
        body = {"topic": f"{self.project}/topics/{topic}", **fields}
        await self.call("PUT", f"subscriptions/{name}", body=body)
        return name

    async def pulled(self, subscription: str, count: int) -> list[tuple[bytes, dict[str, str]]]:
        """`count` deliveries, acknowledged: their data and attributes."""
        got: list[tuple[bytes, dict[str, str]]] = []
        while len(got) < count:
            path = f"subscriptions/{subscription}"
            received = (await self.call("POST", path, "pull", {"maxMessages": 1000})).get("receivedMessages", [])
            if received:
                ids = [delivery["ackId"] for delivery in received]
                await self.call("POST", path, "acknowledge", {"ackIds": ids})
            messages = [delivery["message"] for delivery in received]
            got += [(base64.b64decode(m.get("data", "")), m.get("attributes", {})) for m in messages]
        return got
