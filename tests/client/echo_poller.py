"""A poller of three lines: takes requests, answers each with its own payload. Run as a process of its own.

    python echo_poller.py URL QUEUE [ANSWERS]

It claims nothing (a kill loses what it holds), so only its callers are killed. Lines whose payload has
`"fail": N` get the status N. It stops after ANSWERS requests, if given.
"""

from __future__ import annotations

import sys
from typing import cast

import msgspec
from redis import Redis

from handlers.contract.request import decode_member
from handlers.contract.result import Result, encode_result


class _Fail(msgspec.Struct):
    fail: int = 200


_decoder = msgspec.json.Decoder(_Fail)


def answer(redis: Redis, queue: str, limit: int = 500) -> int:
    """Answer at most `limit` requests; returns how many there were."""
    taken = cast("list[tuple[bytes, float]]", redis.zpopmin(queue, limit))
    pipeline = redis.pipeline(transaction=True)
    for member, _score in taken:
        request = decode_member(member, queue).request
        status = _decoder.decode(request.payload).fail
        result = Result(request.id, status, request.payload.decode(), request_token=request.request_token)
        pipeline.lpush(request.result_queue_name or "result-list", encode_result(result))
        pipeline.delete(f"request-active:{request.id}")
    pipeline.execute()
    return len(taken)


def main() -> None:
    url, queue = sys.argv[1:3]
    left = int(sys.argv[3]) if len(sys.argv) > 3 else -1
    redis = Redis.from_url(url, socket_timeout=60)
    while left:
        # Nothing to do yet: wait without spinning, and return the scanned member.
        first = cast("tuple[bytes, bytes, float] | None", redis.bzpopmin(queue, 1))
        if first:
            redis.zadd(queue, {first[1]: first[2]})
        left -= answer(redis, queue, 500 if left < 0 else min(500, left))


if __name__ == "__main__":
    main()
