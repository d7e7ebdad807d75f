"""A search by a Redis user that may only read the queues: less is known, and it is still an answer."""

from __future__ import annotations

import time
from typing import Any, cast
from urllib.parse import urlsplit

from redis.asyncio import Redis

from handlers.app.status_page import RedisSource
from handlers.demo.valkey import Valkey
from handlers.settings.settings import load_settings


async def test_a_user_without_the_producers_keys_finds_what_is_queued(store: Redis, valkey: Valkey) -> None:
    body = b'{"id": "here", "deadline": %d, "payload": {}}' % (time.time() + 60)
    await store.zadd("request-sortedset", {body: time.time() + 60})
    rights = ["%R~request-sortedset*", "%R~retry-sortedset*", "%R~{async-processor}:status:*"]
    allowed = [
        "+ping",
        "+hello",
        "+client|setname",
        "+zcard",
        "+hlen",
        "+zrange",
        "+hget",
        "+hscan",
        "+zscan",
        "+hgetall",
        "+lrange",
        "+time",
    ]
    await cast(Any, store).execute_command("ACL", "SETUSER", "looker", "on", ">pw", *rights, *allowed)
    try:
        url = f"redis://looker:pw@{urlsplit(valkey.url).netloc}"
        source = RedisSource(load_settings({"REDIS_URL": url}))
        redis = Redis.from_url(url)
        found = await source._find(redis, "here")
        await redis.aclose()
    finally:
        await cast(Any, store).execute_command("ACL", "DELUSER", "looker")
    assert [place.where for place in found.places] == ["pending"]
