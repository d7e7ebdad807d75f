"""Submit, collect and cancel the requests of one batch in Redis."""

from __future__ import annotations

from collections.abc import Sequence

from handlers.batch.files import BatchState
from handlers.batch.lines import BatchLine, InvalidLine, request_id
from handlers.client.new_request import NewRequest, encode_body
from handlers.client.redis_broker import batches, member_parts, observe_time, store_errors
from handlers.clock import FollowedClock
from handlers.contract.errors import InvalidRequest
from handlers.number_text import whole
from handlers.redis_store.keys import payload_key
from handlers.redis_store.opening import open_submissions
from handlers.redis_store.results.payloads import delete_payloads, whole_results
from handlers.redis_store.results.results import drop_oldest_results, oldest_results
from handlers.redis_store.submit.submissions import MemberParts, RedisAccess, open_redis

RESULTS_KEPT_SECONDS = 7 * 86_400
"""Seconds after the last result for which Redis keeps the results of a batch that is not running."""


class BatchQueue:
    """The queue and the result list of one batch."""

    def __init__(
        self,
        redis_url: str,
        state: BatchState,
        *,
        tenant_attribute: str = "userid",
        wait_replicas: int = 0,
        payload_apart_bytes: int | None = None,
        access: RedisAccess | None = None,
    ) -> None:
        self._payload_apart_bytes = payload_apart_bytes
        self._state = state
        self._tenant_attribute = tenant_attribute
        self._redis = open_redis(redis_url, access)
        self._submissions = open_submissions(self._redis, wait_replicas)
        self._payload_keys: list[str] = []
        self._clock = FollowedClock()

    async def follow_clock(self) -> None:
        """Read the time of Redis for `now`."""
        await observe_time(self._redis, self._clock)

    def now(self) -> float:
        """Unix seconds of Redis; local ones if it has not answered `follow_clock`."""
        return self._clock.now()

    def request_id(self, number: int) -> str:
        return request_id(self._state.batch, number)

    def number(self, request_id: str) -> int | None:
        """The line number of a request id. None for another batch's id."""
        batch, _, digits = request_id.rpartition("-")
        return whole(digits) if batch == self._state.batch else None

    def prepare(self, line: BatchLine) -> MemberParts | InvalidLine:
        """Encode a line's request, or return its fault."""
        state = self._state
        request = NewRequest(
            id=self.request_id(line.number),
            payload=line.body,
            deadline=float(state.deadline),
            endpoint=line.url,
            metadata={"batch_id": state.batch, "custom_id": line.custom_id},
            tenant=state.tenant,
        )
        try:
            body = encode_body(request, now=self.now(), tenant_attribute=self._tenant_attribute)
        except InvalidRequest as error:
            return InvalidLine(line.number, line.custom_id, str(error))
        offload_bytes = self._payload_apart_bytes
        is_offloaded = offload_bytes is not None and len(body.payload) >= offload_bytes
        return member_parts(
            body,
            token=state.token,
            payload_ref=payload_key(body.id, state.token) if is_offloaded else "",
            queue=state.queue,
            results=state.results,
            labels={"tier": state.tier} if state.tier else {},
            own_result_seconds=RESULTS_KEPT_SECONDS,
        )

    async def submit(self, parts: Sequence[MemberParts], *, is_repeated: bool) -> None:
        """Queue lines in order. With `is_repeated`, lines that are live are skipped."""
        with store_errors():
            for batch in batches(parts):
                await self._submissions.submit(self._state.queue, batch, is_repeated=is_repeated)

    async def collect(self, limit: int) -> list[bytes]:
        """Read the oldest results with their offloaded payloads. They stay in the list."""
        with store_errors():
            texts = await oldest_results(self._redis, self._state.results, limit)
            whole = await whole_results(self._redis, texts)
        self._payload_keys = [one.payload_key for one in whole]
        return [one.text for one in whole]

    async def drop(self, count: int) -> None:
        """Remove the oldest `count` results and their offloaded payloads."""
        with store_errors():
            await drop_oldest_results(self._redis, self._state.results, count)
            await delete_payloads(self._redis, [key for key in self._payload_keys[:count] if key])
        self._payload_keys = self._payload_keys[count:]

    async def are_live(self, numbers: Sequence[int]) -> list[bool]:
        """Whether the request of each line is live: neither answered nor overdue."""
        with store_errors():
            return await self._submissions.are_live([self.request_id(number) for number in numbers])

    async def cancel(self, numbers: Sequence[int]) -> None:
        """Cancel the requests of these lines. Their results are `CANCELLED`."""
        with store_errors():
            await self._submissions.cancel([(self.request_id(number), "") for number in numbers])

    async def waiting_for_retry(self, retry_queue: str) -> int:
        """The number of requests in the retry set, of all producers."""
        with store_errors():
            return await self._submissions.depth(retry_queue)

    async def delete_results(self) -> None:
        with store_errors():
            await self._redis.unlink(self._state.results)

    async def close(self) -> None:
        await self._redis.aclose()


async def redis_time(redis_url: str, access: RedisAccess | None) -> float:
    """Unix seconds of Redis; local ones if it does not answer."""
    clock = FollowedClock()
    redis = open_redis(redis_url, access)
    try:
        await observe_time(redis, clock)
    finally:
        await redis.aclose()
    return clock.now()
