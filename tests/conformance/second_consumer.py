"""Another processor on the same queue, with code of its own: what the claim protocol says, and no more.

Imports nothing of the product. Claims, renews, acks, nacks, promotes and reclaims as the published protocol has it;
`python second_consumer.py REDIS_URL QUEUE GATEWAY_URL` runs until it is killed.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import uuid
from typing import Any
from urllib.parse import urlsplit

import redis

LEASE_SECONDS = 1.5
THREADS = 6
_NEVER = threading.Event()
CLAIM = """
local taken = redis.call('ZPOPMIN', KEYS[1], 1)
if #taken == 0 then return nil end
local member = taken[1]
local read, fields = pcall(cjson.decode, member)
local body = read and fields or {}
local key = body['id']
if type(body['data']) == 'table' then
  key = body['data']['id']
  local token = type(body['internal']) == 'table' and body['internal']['request_token']
  if token and token ~= '' then key = key .. '\\0' .. token end
end
redis.call('HSET', KEYS[2], key, member)
redis.call('HSET', KEYS[3], key, ARGV[1])
redis.call('ZADD', KEYS[4], redis.call('TIME')[1] + ARGV[2], key)
return {key, member}
"""
SETTLE = """
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
if ARGV[3] == 'ack' then redis.call('LPUSH', KEYS[4], ARGV[4])
else redis.call('ZADD', KEYS[5], redis.call('TIME')[1] + ARGV[5], ARGV[4]) end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
return 1
"""
RECLAIM = """
local now = tonumber(redis.call('TIME')[1])
for _, key in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', now, 'LIMIT', 0, 100)) do
  local member = redis.call('HGET', KEYS[2], key)
  if member then
    local fields = cjson.decode(member)
    local body = type(fields['data']) == 'table' and fields['data'] or fields
    redis.call('ZADD', KEYS[1], tonumber(body['deadline']), member)
  end
  redis.call('HDEL', KEYS[2], key)
  redis.call('HDEL', KEYS[3], key)
  redis.call('ZREM', KEYS[4], key)
end
"""


class Consumer:
    """One process's part."""

    def __init__(self, url: str, queue: str, gateway_url: str) -> None:
        self._redis = redis.Redis.from_url(url)
        self._queue = queue
        self._gateway = urlsplit(gateway_url)
        self._owned = {part: f"{queue}:{part}" for part in ("claimed", "claim-owners", "claims-idx")}
        self._held: dict[str, str] = {}
        self._lock = threading.Lock()
        self._claim = self._redis.register_script(CLAIM)
        self._settle = self._redis.register_script(SETTLE)
        self._reclaim = self._redis.register_script(RECLAIM)

    def run(self) -> None:
        """Work in threads until the process ends."""
        for _ in range(THREADS):
            threading.Thread(target=self._work, daemon=True).start()
        print("consuming", flush=True)
        while True:
            self._keep()
            _NEVER.wait(0.3)

    def _keep(self) -> None:
        with self._lock:
            held = dict(self._held)
        now = float(self._redis.time()[0])
        for key, owner in held.items():
            if self._redis.hget(self._owned["claim-owners"], key) == owner.encode():
                self._redis.zadd(self._owned["claims-idx"], {key: now + LEASE_SECONDS}, xx=True)
        self._reclaim(keys=[self._queue, *self._owned.values()])
        due: Any = self._redis.zrangebyscore("retry-sortedset", "-inf", now, start=0, num=100)
        for member in due:
            fields = json.loads(member)
            if self._redis.zrem("retry-sortedset", member):
                queue = fields["internal"].get("request_queue_name") or self._queue
                self._redis.zadd(queue, {member: float(fields["data"]["deadline"])})

    def _work(self) -> None:
        while True:
            owner = uuid.uuid4().hex
            taken = self._claim(keys=[self._queue, *self._owned.values()], args=[owner, LEASE_SECONDS])
            if taken is None:
                _NEVER.wait(0.02)
                continue
            key, member = taken[0].decode(), taken[1]
            with self._lock:
                self._held[key] = owner
            self._process(key, owner, member)
            with self._lock:
                self._held.pop(key, None)

    def _process(self, key: str, owner: str, member: bytes) -> None:
        fields = json.loads(member)
        is_envelope = isinstance(fields.get("data"), dict)
        body = fields["data"] if is_envelope else fields
        internal = fields.get("internal", {}) if is_envelope else {}
        status, text = self._ask(body["payload"])
        if status == 200:
            result = {"id": body["id"], "status_code": status, "payload": text}
            if token := internal.get("request_token"):
                result["request_token"] = token
            self._end(key, owner, "ack", json.dumps(result), 0)
            return
        again = {
            **internal,
            "retry_count": internal.get("retry_count", 0) + 1,
            "request_queue_name": self._queue,
        }
        envelope = {"internal": again, "request_kind": fields.get("request_kind", "redis"), "data": body}
        self._end(key, owner, "nack", json.dumps(envelope), 1)

    def _end(self, key: str, owner: str, what: str, text: str, delay: int) -> None:
        keys = [*self._owned.values(), "result-list", "retry-sortedset"]
        self._settle(keys=keys, args=[key, owner, what, text, delay])

    def _ask(self, payload: Any) -> tuple[int, str]:
        connection = http.client.HTTPConnection(str(self._gateway.hostname), self._gateway.port, timeout=60)
        try:
            headers = {"content-type": "application/json"}
            connection.request("POST", "/v1/completions", json.dumps(payload), headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except (OSError, http.client.HTTPException):
            return 0, ""
        finally:
            connection.close()


if __name__ == "__main__":
    Consumer(*sys.argv[1:4]).run()
