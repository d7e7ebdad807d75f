"""Another processor on the same queue, written only from the claim protocol.

It imports nothing of the product. It claims, renews, acks, nacks, promotes and reclaims like the published protocol,
and supports cancellations, offloaded payloads, result lists per request, and the order of submission. `python
second_consumer.py REDIS_URL QUEUE GATEWAY_URL drops|keeps` runs until it is killed. With `keeps`, it keeps its claim
while a request waits for a retry and takes it over afterwards, like newer versions of the reference.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

import redis

LEASE_SECONDS = 60
OWNER_PREFIX = "second-"
THREADS = 6
RETRY_SECONDS = 1
_NEVER = threading.Event()
CLAIM = """
if redis.call('ZREM', KEYS[1], ARGV[2]) == 0 then return 0 end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[3], ARGV[1], ARGV[3])
redis.call('ZADD', KEYS[4], redis.call('TIME')[1] + ARGV[4], ARGV[1])
return 1
"""
ACK = """
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('LPUSH', KEYS[4], ARGV[3])
if ARGV[4] ~= '0' then redis.call('EXPIRE', KEYS[4], ARGV[4]) end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
for at = 5, 6 do
  if ARGV[5] ~= '' and redis.call('GET', KEYS[at]) == ARGV[5] then redis.call('DEL', KEYS[at]) end
end
if KEYS[7] then redis.call('DEL', KEYS[7]) end
return 1
"""
RETRY = """
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('ZADD', KEYS[4], redis.call('TIME')[1] + ARGV[4], ARGV[3])
if ARGV[5] == 'keeps' then return 1 end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
return 1
"""
RENEW = """
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('ZADD', KEYS[3], redis.call('TIME')[1] + ARGV[3], ARGV[1])
return 1
"""
RECLAIM = """
local ends = redis.call('ZSCORE', KEYS[4], ARGV[1])
if not ends or tonumber(ends) > tonumber(redis.call('TIME')[1]) then return 0 end
local member = redis.call('HGET', KEYS[2], ARGV[1])
if member then redis.call('ZADD', KEYS[1], ARGV[2], member) end
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
return 1
"""


class Taken:
    """A decoded member: bare, or an envelope around a body."""

    def __init__(self, member: bytes) -> None:
        fields = json.loads(member)
        is_envelope = isinstance(fields.get("data"), dict)
        self.member = member
        self.kind = fields.get("request_kind", "plain")
        self.body: dict[str, Any] = fields["data"] if is_envelope else fields
        routing: dict[str, Any] = {}
        if not is_envelope and fields.get("result_queue_name"):
            routing["result_queue_name"] = fields["result_queue_name"]
        self.internal: dict[str, Any] = (fields.get("internal") or {}) if is_envelope else routing
        self.id = str(self.body["id"])
        self.token = str(self.internal.get("request_token") or "")
        self.key = f"{self.id}\0{self.token}" if self.token else self.id
        self.owner = OWNER_PREFIX + uuid.uuid4().hex

    @property
    def score(self) -> float:
        """The deadline plus the place among equal deadlines."""
        place = min(int(self.internal.get("enqueue_seq") or 0), 2**21 - 1)
        return float(self.body["deadline"]) + place / 2**21

    def again(self, queue: str) -> str:
        """The member for the retry set."""
        count = int(self.internal.get("retry_count") or 0) + 1
        internal = {**self.internal, "retry_count": count, "request_queue_name": queue}
        return json.dumps({"internal": internal, "request_kind": self.kind, "data": self.body})


class Consumer:
    """The work of one process."""

    def __init__(self, url: str, queue: str, gateway_url: str, at_a_retry: str) -> None:
        self._redis = redis.Redis.from_url(url, socket_timeout=60)
        self._queue = queue
        self._gateway = urlsplit(gateway_url)
        self._at_a_retry = at_a_retry
        self._owned = [f"{queue}:{part}" for part in ("claimed", "claim-owners", "claims-idx")]
        self._held: dict[str, str] = {}
        self._lock = threading.Lock()
        scripts = {"claim": CLAIM, "ack": ACK, "retry": RETRY, "renew": RENEW, "reclaim": RECLAIM}
        self._scripts = {name: self._redis.register_script(text) for name, text in scripts.items()}

    def run(self) -> None:
        """Work in threads until the process ends."""
        for _ in range(THREADS):
            threading.Thread(target=self._work, daemon=True).start()
        print("consuming", flush=True)
        while True:
            self._renew()
            self._reclaim()
            self._promote()
            _NEVER.wait(0.3)

    def _call(self, name: str, keys: list[str], *arguments: object) -> Any:
        return self._scripts[name](keys=keys, args=list(arguments))  # type: ignore[arg-type]  # text and numbers

    def _renew(self) -> None:
        with self._lock:
            held = dict(self._held)
        for key, owner in held.items():
            if not self._call("renew", self._owned, key, owner, LEASE_SECONDS):
                self._let_go(key, owner)

    def _let_go(self, key: str, owner: str) -> None:
        with self._lock:
            if self._held.get(key) == owner:
                del self._held[key]

    def _reclaim(self) -> None:
        now = self._now()
        ended: Any = self._redis.zrangebyscore(self._owned[2], "-inf", now, start=0, num=100)
        for key in ended:
            member: Any = self._redis.hget(self._owned[0], key)
            score = Taken(member).score if member else 0.0
            self._call("reclaim", [self._queue, *self._owned], key, score)

    def _promote(self) -> None:
        due: Any = self._redis.zrangebyscore("retry-sortedset", "-inf", self._now(), start=0, num=100)
        for member in due:
            taken = Taken(member)
            if self._redis.zrem("retry-sortedset", member):
                queue = taken.internal.get("request_queue_name") or self._queue
                self._redis.zadd(queue, {member: taken.score})

    def _now(self) -> float:
        return float(self._redis.time()[0])

    def _work(self) -> None:
        while True:
            first: Any = self._redis.zrange(self._queue, 0, 0)
            if not first:
                _NEVER.wait(0.02)
                continue
            taken = Taken(first[0])
            keys = [self._queue, *self._owned]
            if self._call("claim", keys, taken.key, taken.member, taken.owner, LEASE_SECONDS):
                with self._lock:
                    self._held[taken.key] = taken.owner
                self._process(taken)

    def _process(self, taken: Taken) -> None:
        if result := self._without_asking(taken):
            return self._ack(taken, result)
        payload = taken.body.get("payload")
        if reference := taken.internal.get("payload_ref"):
            stored: Any = self._redis.get(reference)
            if stored is None:
                return self._ack(taken, {"error_code": "PAYLOAD_UNAVAILABLE", "error_message": "gone"})
            payload = json.loads(stored)
        status, text = self._ask(payload)
        if status == http.HTTPStatus.OK:
            return self._ack(taken, {"status_code": status, "payload": text})
        return self._retry(taken)

    def _without_asking(self, taken: Taken) -> dict[str, object] | None:
        cancelled: Any = self._redis.get(f"request-cancel:{taken.id}")
        if taken.token and cancelled == taken.token.encode():
            return {"error_code": "CANCELLED", "error_message": "cancelled"}
        if float(taken.body["deadline"]) < time.time():
            return {"error_code": "DEADLINE_EXCEEDED", "error_message": "too late"}
        return None

    def _ack(self, taken: Taken, outcome: dict[str, object]) -> None:
        token = {"request_token": taken.token} if taken.token else {}
        result = json.dumps({"id": taken.id, **outcome, **token, "answered_by": "second"})
        results = taken.internal.get("result_queue_name") or "result-list"
        keys = [*self._owned, results, f"request-active:{taken.id}", f"request-cancel:{taken.id}"]
        if reference := taken.internal.get("payload_ref"):
            keys.append(reference)
        ttl = taken.internal.get("result_ttl_seconds") or 0
        self._call("ack", keys, taken.key, taken.owner, result, ttl, taken.token)
        self._let_go(taken.key, taken.owner)

    def _retry(self, taken: Taken) -> None:
        keys = [*self._owned, "retry-sortedset"]
        again = taken.again(self._queue)
        self._call("retry", keys, taken.key, taken.owner, again, RETRY_SECONDS, self._at_a_retry)
        if self._at_a_retry == "drops":
            self._let_go(taken.key, taken.owner)

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
    Consumer(*sys.argv[1:5]).run()
