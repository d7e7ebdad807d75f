"""`async-processor demo`: one run of the whole way, shown while it happens, with a closing table."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import msgspec
from rich.console import Console
from rich.live import Live

from handlers.client import AsyncClient, NewRequest
from handlers.contract.result import decode_result
from handlers.demo.broken import queue_broken
from handlers.demo.pubsub_emulator import NoEmulator
from handlers.demo.pubsub_layout import DEMO_PROJECT, REQUEST_TOPIC, RESULT_SUBSCRIPTION
from handlers.demo.scenario import BROKEN, Planned, planned
from handlers.demo.stack import Stack, StackOptions
from handlers.demo.tally import Tally, WitnessLine, read_witness, stages
from handlers.demo.view import closing_table, failures_table, progress_view
from handlers.pubsub.api import PubSubApi, PubSubOptions
from handlers.pubsub.publisher import Publisher
from handlers.pubsub.puller import Puller
from handlers.redis_store.connection import RedisOptions, connect
from handlers.redis_store.queue.depths import QueueDepths, queue_depths

QUEUE: Final = "request-sortedset"
_LOOK_SECONDS: Final = 0.2
_GATEWAY: Final = ("--capacity", "16", "--queue-size", "64", "--time-to-first-token", "0.05")
_VARIABLES: Final = {"REQUEST_TIMEOUT_SECONDS": "3", "WORKERS": "32", "SHUTDOWN_GRACE_SECONDS": "5"}
_PUBSUB_SHARE: Final = 0.2  # the emulator pushes two at a time


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """How many requests, whether Pub/Sub takes part, and when the demo gives up."""

    requests: int = 200
    has_pubsub: bool = True
    timeout_seconds: float = 90.0


def run_demo(options: DemoOptions, console: Console) -> bool:
    """Run it; True if every request got exactly one final result."""
    with TemporaryDirectory(prefix="async-processor-") as folder:
        witness = Path(folder) / "witness.jsonl"
        stack_options = StackOptions(
            has_pubsub=options.has_pubsub,
            gateway_arguments=(*_GATEWAY, "--witness", str(witness)),
            variables=_VARIABLES,
            on_started=lambda name, address: console.print(f"  [green]✓[/] {name:24} {address}"),
        )
        console.print("[bold]Starting[/] the whole stack on this machine; only the gateway is simulated:")
        with Stack(stack_options) as stack:
            if options.has_pubsub and isinstance(stack.pubsub, NoEmulator):
                console.print(f"  [yellow]-[/] without Pub/Sub: {stack.pubsub.reason}")
            return asyncio.run(_run(stack, witness, options, console))


async def _run(stack: Stack, witness: Path, options: DemoOptions, console: Console) -> bool:
    tallies = {"Redis": Tally()}
    work = [_redis_way(stack, options, tallies["Redis"], console)]
    if stack.emulator_host:
        tallies["Pub/Sub"] = Tally()
        work.append(_pubsub_way(stack, options, tallies["Pub/Sub"]))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(options.timeout_seconds):
            await asyncio.gather(*work)
    witnessed = _witnessed(witness)
    console.print()
    console.print(closing_table({name: (tally, stages(tally, witnessed)) for name, tally in tallies.items()}))
    console.print(failures_table(tallies))
    dead = await _depths(stack)
    console.print(f"Among the dead letters, since nobody can be told their result: {dead.dead}")
    return all(len(tally.results) == len(tally.sent_at) and not tally.doubles for tally in tallies.values())


async def _redis_way(stack: Stack, options: DemoOptions, tally: Tally, console: Console) -> None:
    """Queue requests in Redis, and read results until every one has come."""
    await queue_broken(stack.redis_url, QUEUE, BROKEN)
    tally.sent_at |= dict.fromkeys(("broken-deadline", "broken-payload"), time.time())
    async with AsyncClient.for_redis(stack.redis_url) as client:
        requests = list(planned(options.requests, "redis"))
        await client.submit_many([_new(request) for request in requests])
        tally.sent_at |= {request.request_id: time.time() for request in requests}
        with Live(console=console, refresh_per_second=8, transient=True) as live:
            watch = asyncio.create_task(_watch(stack, tally, live))
            async with client.results(limit=len(tally.sent_at)) as results:
                async for delivery in results:
                    tally.take(delivery.result, time.time())
                    await delivery.ack()
            watch.cancel()


def _new(request: Planned) -> NewRequest:
    deadline = timedelta(seconds=request.deadline_seconds)
    return NewRequest(payload=request.payload, deadline=deadline, id=request.request_id)


async def _watch(stack: Stack, tally: Tally, live: Live) -> None:
    """Show where the requests are."""
    while True:
        live.update(progress_view(await _depths(stack), tally))
        await asyncio.sleep(_LOOK_SECONDS)


async def _depths(stack: Stack) -> QueueDepths:
    redis = connect(RedisOptions(stack.redis_url))
    try:
        return await queue_depths(redis, QUEUE, "retry-sortedset")
    finally:
        await redis.aclose()


async def _pubsub_way(stack: Stack, options: DemoOptions, tally: Tally) -> None:
    """Publish requests to a topic with a push subscription, and pull their results."""
    api = PubSubApi(PubSubOptions(project_id=DEMO_PROJECT, emulator_host=stack.emulator_host))
    publisher, puller = Publisher(api), Puller(api, RESULT_SUBSCRIPTION)
    try:
        requests = list(planned(max(20, int(options.requests * _PUBSUB_SHARE)), "pubsub"))
        now = time.time()
        await asyncio.gather(*(publisher.publish(REQUEST_TOPIC, _body(one, now)) for one in requests))
        tally.sent_at |= {request.request_id: now for request in requests}
        while len(tally.results) < len(tally.sent_at):
            pulled = await puller.receive(100, wait_seconds=10.0)
            for one in pulled:
                _take_once(tally, one.data)
            if pulled:
                await puller.ack([one.ack_id for one in pulled])
    finally:
        await publisher.close()
        await api.close()


def _body(request: Planned, now: float) -> bytes:
    return msgspec.json.encode(
        {
            "id": request.request_id,
            "deadline": int(now + request.deadline_seconds) + 1,
            "payload": request.payload,
        }
    )


def _take_once(tally: Tally, data: bytes) -> None:
    """Pub/Sub may deliver a result twice: consumers drop the second by its id."""
    result = decode_result(data)
    if result.id not in tally.results:
        tally.take(result, time.time())


def _witnessed(witness: Path) -> Sequence[WitnessLine]:
    with witness.open("rb") as lines:
        return read_witness(lines)
