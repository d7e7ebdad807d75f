"""Several receivers: a failing one delays no other, memory is bounded, nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from redis.asyncio import Redis

from handlers.backoff import Backoff
from handlers.client import AsyncClient
from handlers.client.options import ClientOptions
from handlers.client.results import ResultDelivery, ResultStream
from handlers.contract.result import Result, answered_result, encode_result
from handlers.demo.valkey import Valkey
from handlers.webhook.call import event_body, read_secrets
from handlers.webhook.deliver import LONGEST_PAUSE_SECONDS, Lane, Receiver, Webhook, WebhookOptions
from handlers.webhook.destinations import WebhookTarget, read_destination
from tests.servers.raw_http import Answer, End, RawHttp, answer, running_raw_http
from tests.servers.valkey import LONG_LIMIT
from tests.waiting import wait_until_async

KEYS = read_secrets("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "secret")
SILENT = Answer(end=End.HANG)
AT_ONCE = 2
IN_TIME = 60.0


@pytest.fixture
async def client(valkey: Valkey, store: Redis) -> AsyncIterator[AsyncClient]:
    async with AsyncClient.for_redis(valkey.url, ClientOptions(lease_seconds=600.0), access=LONG_LIMIT) as opened:
        yield opened


@pytest.fixture
async def own() -> AsyncIterator[RawHttp]:
    async with running_raw_http() as running:
        running.reply(answer(204))
        yield running


@pytest.fixture
async def other() -> AsyncIterator[RawHttp]:
    async with running_raw_http() as running:
        running.reply(answer(204))
        yield running


@pytest.fixture
async def third() -> AsyncIterator[RawHttp]:
    async with running_raw_http() as running:
        running.reply(answer(204))
        yield running


def hook_of(
    own: RawHttp | str, *others: RawHttp, seconds: float = 3_600.0, first_pause_seconds: float = 0.02
) -> Webhook:
    async def given_up(result: Result) -> None:
        raise AssertionError(f"{result.id} was given up")

    options = WebhookOptions(
        f"{own if isinstance(own, str) else own.url}/own",
        KEYS,
        allow_private=True,
        at_once=AT_ONCE,
        call_seconds=60.0,
        first_pause_seconds=first_pause_seconds,
        destinations=[read_destination(f"127.0.0.1:{one.port}/hooks/", KEYS, "x") for one in others],
        destination_seconds=seconds,
    )
    return Webhook(options, given_up)


class WatchedStream:
    """A stream of results; `handled` counts those that were dealt with, `given_back` the claims that return to it."""

    def __init__(self, stream: ResultStream) -> None:
        self._stream = stream
        self.let_go = stream.let_go
        self.handled = -1
        self.given_back: set[bytes] = set()

    def __aiter__(self) -> WatchedStream:
        return self

    async def __anext__(self) -> ResultDelivery:
        self.handled += 1
        return await anext(self._stream)

    async def give_back(self, claim_keys: Sequence[bytes]) -> None:
        self.given_back.update(claim_keys)
        await self._stream.give_back(claim_keys)


@contextlib.asynccontextmanager
async def delivering(client: AsyncClient, hook: Webhook) -> AsyncIterator[WatchedStream]:
    """Deliver until the block ends."""
    async with client.results() as stream, hook:
        watched: Any = WatchedStream(stream)
        running = asyncio.create_task(hook.run(watched))
        try:
            yield watched
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running


async def deliver_all(client: AsyncClient, hook: Webhook) -> None:
    async with client.results(idle=0) as stream, hook:
        await asyncio.wait_for(hook.run(stream), IN_TIME)


@pytest.mark.parametrize("shift_seconds", [400_000.0, -400_000.0])
async def test_a_clock_that_is_set_ends_and_delays_no_delivery(
    client: AsyncClient, store: Redis, monkeypatch: pytest.MonkeyPatch, shift_seconds: float
) -> None:
    statuses: list[int] = []

    async def receive(_request: web.Request) -> web.Response:
        if not statuses:
            monkeypatch.setattr(time, "time", lambda now=time.time: now() + shift_seconds)
        statuses.append(204 if statuses else 503)
        return web.Response(status=statuses[-1])

    app = web.Application()
    app.router.add_post("/own", receive)
    async with TestServer(app) as server:
        await queue(store, ["r"])
        await deliver_all(client, hook_of(str(server.make_url("")).rstrip("/")))
    assert statuses == [503, 204]


async def queue(store: Redis, ids: list[str], url: str = "") -> None:
    for request_id in ids:
        result = answered_result(request_id, "t", 200, b"{}")
        if url:
            result = msgspec.structs.replace(result, metadata={"webhook_url": url})
        await store.lpush("result-list", encode_result(result))


def taken(receiver: RawHttp) -> set[str]:
    return {json.loads(one.body)["data"]["id"] for one in receiver.received}


async def none_left(store: Redis) -> bool:
    """Whether all results were acked."""
    return not await store.exists("result-list", "result-list:result-claimed")


async def are_back(store: Redis, count: int, name: bytes) -> bool:
    """Whether no result is held, and so many whose text contains `name` wait in the list."""
    waiting = [text for text in await store.lrange("result-list", 0, -1) if name in text]
    return len(waiting) == count and not await store.exists("result-list:result-claimed")


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


async def test_a_silent_named_receiver_with_many_results_does_not_delay_others(
    client: AsyncClient, own: RawHttp, other: RawHttp, third: RawHttp, store: Redis
) -> None:
    other.reply(SILENT)
    await queue(store, names("stuck", 40), f"{other.url}/hooks/1")
    await queue(store, names("ours", 20))
    await queue(store, names("theirs", 20), f"{third.url}/hooks/1")
    async with delivering(client, hook_of(own, other, third)):
        await wait_until_async(lambda: (len(taken(own)), len(taken(third))) == (20, 20), "the others' results")
        assert len(other.received) <= AT_ONCE
    # None of these was delivered. Others may come back too, if they were taken and not yet acked.
    await wait_until_async(partial(are_back, store, 40, b'"stuck'), "all held results to return")


async def test_an_unavailable_operators_receiver_does_not_delay_named_ones(
    client: AsyncClient, own: RawHttp, other: RawHttp, store: Redis
) -> None:
    own.reply(answer(503))
    await queue(store, names("ours", 40))
    await queue(store, names("theirs", 20), f"{other.url}/hooks/1")
    async with delivering(client, hook_of(own, other)):
        await wait_until_async(lambda: len(taken(other)) == 20, "the named receiver's results")


async def test_below_one_entry_of_the_list_a_silent_receiver_takes_one_slot_at_most(
    client: AsyncClient, own: RawHttp, other: RawHttp, store: Redis
) -> None:
    """Two tenants behind one host: the one that is cut off each time does not use up the other's calls."""
    other.reply(answer(503))
    await queue(store, names("first", 30), f"{other.url}/hooks/1")
    async with delivering(client, hook_of(own, other)) as stream:
        await wait_until_async(lambda: stream.handled == 30, "all to be received")
        other.reply(answer(204))
        await queue(store, names("second", 5), f"{other.url}/hooks/2")
        expected = {*names("first", 30), *names("second", 5)}
        await wait_until_async(lambda: taken(other) == expected, "all, when it is back")
        assert len(stream.given_back) == 30 - 4 * AT_ONCE, "so many waited by their leases alone, not in memory"
        # A receiver has a result before it is acked.
        await wait_until_async(lambda: none_left(store), "every result to be acked")


async def test_all_results_arrive_after_an_outage_of_a_receiver(
    client: AsyncClient, own: RawHttp, other: RawHttp, store: Redis
) -> None:
    other.reply(*[answer(503)] * 5, answer(204))
    await queue(store, names("r", 60), f"{other.url}/hooks/1")
    await deliver_all(client, hook_of(own, other))
    assert taken(other) == set(names("r", 60))
    assert own.received == []


async def test_results_for_a_crashed_receiver_go_to_the_default_one_without_waiting_one_by_one(
    client: AsyncClient, own: RawHttp, other: RawHttp, store: Redis
) -> None:
    other.reply(answer(503))
    await queue(store, names("r", 60), f"{other.url}/hooks/1")
    await deliver_all(client, hook_of(own, other, seconds=0.5))
    assert taken(own) == set(names("r", 60))
    assert all("not accepted within 0.5 s" in json.loads(one.body)["undelivered"] for one in own.received)


async def test_a_receiver_that_answered_410_is_not_called_again_and_the_default_one_gets_its_results(
    client: AsyncClient, own: RawHttp, other: RawHttp, store: Redis
) -> None:
    other.reply(answer(410))
    await queue(store, ["r1"], f"{other.url}/hooks/1")
    hook = hook_of(own, other)
    async with delivering(client, hook):
        await wait_until_async(lambda: taken(own) == {"r1"}, "the first result")
        await queue(store, names("later", 9), f"{other.url}/hooks/1")
        await wait_until_async(lambda: len(taken(own)) == 10, "the later results")
    assert len(other.received) == 1


@pytest.mark.parametrize("status", [429, 503, 502])
async def test_retry_after_also_applies_to_results_that_arrive_during_the_pause(
    client: AsyncClient, own: RawHttp, store: Redis, status: int
) -> None:
    own.reply(answer(status, headers={"retry-after": "3600"}), answer(204))
    await queue(store, ["first"])
    async with delivering(client, hook_of(own)):
        await wait_until_async(lambda: len(own.received) == 1, "the first call")
        for claimed, name in enumerate(["second", "third"], 2):
            await queue(store, [name])
            await wait_until_async(partial(are_claimed, store, claimed), "the next result to be claimed")
        assert len(own.received) == 1


async def are_claimed(store: Redis, count: int) -> bool:
    return await store.hlen("result-list:result-claimed") == count


async def test_refused_results_do_not_delay_accepted_ones(client: AsyncClient, own: RawHttp, store: Redis) -> None:
    """More of them than it has places in memory; each waits for itself, here for longer than the test lasts."""
    bad = 6 * AT_ONCE
    own.reply(*[answer(400)] * bad, answer(204))
    await queue(store, names("bad", bad))
    await queue(store, names("good", 30))
    async with delivering(client, hook_of(own, first_pause_seconds=3_600.0)):
        await wait_until_async(lambda: len(own.received) == bad + 30, "what it takes")
        await wait_until_async(partial(are_claimed, store, bad), "its results to be acknowledged")
    assert {*names("good", 30)} <= taken(own)
    await wait_until_async(partial(are_back, store, bad, b'"bad'), "all held results to return")


async def test_a_refused_result_is_retried_with_pauses_while_others_are_accepted(
    client: AsyncClient, store: Redis
) -> None:
    calls: Counter[str] = Counter()

    async def take(request: web.Request) -> web.Response:
        name = (await request.json())["data"]["id"]
        calls[name] += 1
        return web.Response(status=503 if name == "poison" else 204)

    app = web.Application()
    app.router.add_post("/own", take)
    async with TestServer(app, host="127.0.0.1") as server:
        await queue(store, ["poison", *names("r", 100)])
        async with delivering(client, hook_of(str(server.make_url("")).rstrip("/"))):
            await wait_until_async(lambda: len(calls) == 101, "all that it takes")
    assert calls["poison"] < 20, "pauses that double from 0.02 s: 20 calls would take more than an hour"
    assert set(calls.values()) == {1, calls["poison"]}


def receiver_of() -> Receiver:
    backoff = Backoff(1.0, LONGEST_PAUSE_SECONDS, lambda: 1.0)
    return Receiver(WebhookTarget("https://a.example/", KEYS), Lane(2, 8, 1_000), 4, backoff)


def test_calls_that_fail_side_by_side_are_one_failure() -> None:
    receiver = receiver_of()
    for _ in range(16):
        receiver.failed(began_at=100.0, now=120.0, retry_after_seconds=None)
    assert receiver.rests_until == 121.0
    receiver.failed(began_at=121.0, now=141.0, retry_after_seconds=None)
    assert receiver.rests_until == 143.0


def test_pauses_and_retry_after_have_an_end() -> None:
    receiver = receiver_of()
    for turn in range(40):
        receiver.failed(began_at=turn, now=turn, retry_after_seconds=None)
    assert receiver.rests_until == 39 + 300.0
    receiver.failed(began_at=50.0, now=50.0, retry_after_seconds=1e9)
    assert receiver.rests_until == 50.0 + 3_600.0


def test_memory_is_also_bounded_by_bytes_but_one_result_always_fits() -> None:
    receiver = receiver_of()
    room = [receiver.has_room]
    receiver.enter(5_000)
    room.append(receiver.has_room)
    receiver.park(b"a")
    receiver.park(b"b")
    assert receiver.leave(5_000) == [b"a", b"b"], "both, since no later result would release the second"
    room.append(receiver.has_room)
    assert room == [True, False, True]


def test_an_event_has_the_time_of_its_result() -> None:
    result = answered_result("r", "t", 200, b"{}")
    made = msgspec.structs.replace(result, finished_at=1_700_000_000.5)
    assert json.loads(event_body(made, 1_800_000_000.0))["timestamp"] == "2023-11-14T22:13:20.500000+00:00"
    assert json.loads(event_body(result, 1_800_000_000.0))["timestamp"] == "2027-01-15T08:00:00+00:00"
