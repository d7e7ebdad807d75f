"""Topics and subscriptions made and read by the REST API alone: a witness beside the code under test."""

from __future__ import annotations

import base64
import json
from typing import Any

from handlers.pubsub.api import PubSubApi


class Resources:
    """Resources of the project of `api`, by short names."""

    def __init__(self, api: PubSubApi) -> None:
        self._api = api
        self.project = f"projects/{api.options.project_id}"

    async def call(self, method: str, path: str, verb: str = "", body: Any = None) -> Any:
        sent = None if body is None else json.dumps(body).encode()
        answer = await self._api.call(method, f"{self.project}/{path}", verb, body=sent, timeout_seconds=20)
        return json.loads(answer)

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
            received = (await self.call("POST", path, "pull", {"maxMessages": 1000})).get(
                "receivedMessages", []
            )
            if received:
                ids = [delivery["ackId"] for delivery in received]
                await self.call("POST", path, "acknowledge", {"ackIds": ids})
            messages = [delivery["message"] for delivery in received]
            got += [(base64.b64decode(m.get("data", "")), m.get("attributes", {})) for m in messages]
        return got
