"""`async-processor demo`: run requests through all parts, show and check results."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.live import Live

from handlers.cancellation import end_if_cancelled
from handlers.client import AsyncClient, NewRequest
from handlers.contract.result import decode_result
from handlers.demo.pubsub_emulator import DEMO_PROJECT, REQUEST_TOPIC, RESULT_SUBSCRIPTION, NoEmulator
from handlers.demo.stack import Stack, StackOptions
from handlers.demo.view import (
    DemoTally,
    Stages,
    closing_table,
    explanation,
    failures_table,
    latency_table,
    missing_lines,
    progress_line,
    progress_view,
    read_witness,
    stages,
)
from handlers.number_text import counted
from handlers.pubsub.channel import PubSubChannel, PubSubOptions
from handlers.pubsub.publisher import Publisher
from handlers.pubsub.puller import Puller
from handlers.redis_store.admin.depths import QueueDepths, queue_depths, queue_member
from handlers.redis_store.connection import RedisOptions, connect

QUEUE: Final = "request-sortedset"
_POLL_SECONDS: Final = 0.2
_LINE_SECONDS: Final = 2.0
_SAME_LINE_SECONDS: Final = 10.0
_HEALTHY: Final = 10
_MOST_MISSING: Final = 20
_GATEWAY: Final = ("--capacity", "16", "--queue-size", "64", "--time-to-first-token", "0.05")
_VARIABLES: Final = {"REQUEST_TIMEOUT_SECONDS": "3", "WORKERS": "32", "SHUTDOWN_GRACE_SECONDS": "5"}
_PUBSUB_SHARE: Final = 0.2  # the emulator is slow: it pushes two messages at a time


class DemoOptions(msgspec.Struct, frozen=True):
    """Options of a demo run."""

    requests: int = 200
    has_pubsub: bool = True
    timeout_seconds: float = 90.0


def run_demo(options: DemoOptions, console: Console) -> bool:
    """Run the demo; return whether each request got exactly one final result."""
    with TemporaryDirectory(prefix="async-processor-") as folder:
        witness = Path(folder) / "witness.jsonl"
        stack_options = StackOptions(
            has_pubsub=options.has_pubsub,
            gateway_arguments=(*_GATEWAY, "--witness", str(witness)),
            variables=_VARIABLES,
            is_isolated=True,
            on_started=lambda name, address: console.print(f"  [green]✓[/] {name:24} {address}"),
        )
        console.print("[bold]Starting[/] the whole stack on this machine; only the gateway is simulated:")
        with Stack(stack_options) as stack:
            if options.has_pubsub and isinstance(stack.pubsub, NoEmulator):
                console.print(f"  [yellow]-[/] without Pub/Sub: {stack.pubsub.reason}")
            return asyncio.run(_Run(stack, witness, options, console).run())


class _Run:
    """One run of the demo over a running stack."""

    def __init__(self, stack: Stack, witness: Path, options: DemoOptions, console: Console) -> None:
        self._stack, self._witness, self._options, self._console = stack, witness, options, console
        self._brokers = ["Redis", "Pub/Sub"] if stack.emulator_host else ["Redis"]

    async def run(self) -> bool:
        """Make a healthy run, then one with faults.

        Returns whether each request got exactly one final result.
        """
        self._console.print("\n[bold]Healthy[/]: a few requests to a gateway that answers all of them.")
        tallies = {name: DemoTally() for name in self._brokers}
        for one, other in zip(healthy(_HEALTHY, "redis"), healthy(_HEALTHY, "pubsub"), strict=True):
            await self._phase([one], [other], (), tallies)
        paths = self._paths(tallies)
        self._console.print(
            latency_table("Latency of a healthy run", {name: stage for name, (_, stage) in paths.items()})
        )
        if not self._report_missing(paths):
            return False
        count = self._options.requests
        pubsub = list(planned(max(20, int(count * _PUBSUB_SHARE)), "pubsub"))
        also = f" and {len(pubsub)} through Pub/Sub" if "Pub/Sub" in self._brokers else ""
        self._console.print(
            f"\n[bold]Faults[/]: {counted(count + len(BROKEN_IDS), 'request')} through Redis "
            f"({len(BROKEN_IDS)} of them malformed){also}; the gateway resets connections, hangs, "
            "truncates responses, and answers with errors."
        )
        tallies = {name: DemoTally() for name in self._brokers}
        await self._phase(list(planned(count, "redis")), pubsub, BROKEN, tallies)
        return await self._closing(tallies)

    async def _closing(self, tallies: Mapping[str, DemoTally]) -> bool:
        paths = self._paths(tallies)
        self._console.print()
        self._console.print(closing_table(paths, self._options.timeout_seconds))
        self._console.print(failures_table(tallies))
        by_stage = {name: stage for name, (_, stage) in paths.items()}
        self._console.print(latency_table("Latency with faults, retries included", by_stage))
        self._console.print(explanation(len(BROKEN_IDS), (await _depths(self._stack)).dead), highlight=False)
        if not self._report_missing(paths):
            return False
        if any(tally.duplicates for tally in tallies.values()):
            self._console.print("[bold red]Failed[/]: some requests have a second result.")
            return False
        self._console.print("[bold green]Passed[/]: every request has exactly one final result.")
        self._console.print("Next: `async-processor dev` (in a clone: make dev) runs this stack for your requests.")
        return True

    def _paths(self, tallies: Mapping[str, DemoTally]) -> dict[str, tuple[DemoTally, Stages]]:
        with self._witness.open("rb") as lines:
            witnessed = read_witness(lines)
        return {name: (tally, stages(tally, witnessed)) for name, tally in tallies.items()}

    def _report_missing(self, paths: Mapping[str, tuple[DemoTally, Stages]]) -> bool:
        """Print each request without a result; return whether all have one."""
        lines = missing_lines(paths, time.time())
        if not lines:
            return True
        seconds = self._options.timeout_seconds
        self._console.print(
            f"[bold red]Failed[/]: {counted(len(lines), 'request')} without a result within {seconds:g} s:"
        )
        for line in lines[:_MOST_MISSING]:
            self._console.print(f"  {line}", highlight=False, soft_wrap=True)
        if len(lines) > _MOST_MISSING:
            self._console.print(f"  … and {len(lines) - _MOST_MISSING} more")
        logs = self._keep_logs()
        self._console.print(
            f"Search for their ids in the logs of the processes: {logs}", highlight=False, soft_wrap=True
        )
        return False

    def _keep_logs(self) -> Path:
        folder = Path(mkdtemp(prefix="async-processor-demo-logs-"))
        for name, child in self._stack.children.items():
            (folder / f"{name}.log").write_text(child.output(), encoding="utf-8")
        shutil.copy(self._witness, folder / "gateway-requests.jsonl")
        return folder

    async def _phase(
        self,
        redis: Sequence[Planned],
        pubsub: Sequence[Planned],
        broken: Sequence[bytes],
        tallies: Mapping[str, DemoTally],
    ) -> None:
        """Send these requests and wait for their results until the time limit."""
        work = [_redis_way(self._stack, redis, broken, tallies["Redis"])]
        if "Pub/Sub" in tallies:
            work.append(_pubsub_way(self._stack, pubsub, tallies["Pub/Sub"]))
        watch = asyncio.create_task(self._watch(tallies))
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._options.timeout_seconds):
                    await asyncio.gather(*work)
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def _watch(self, tallies: Mapping[str, DemoTally]) -> None:
        """Show the progress, live in a terminal, else as a line."""
        if not self._console.is_terminal:
            await self._watch_lines(tallies)
        with Live(console=self._console, refresh_per_second=8, transient=True) as live:
            while True:
                live.update(progress_view(await _depths(self._stack), tallies["Redis"]))
                end_if_cancelled()
                await asyncio.sleep(_POLL_SECONDS)

    async def _watch_lines(self, tallies: Mapping[str, DemoTally]) -> None:
        started_at = printed_at = time.monotonic()
        printed = ""
        while True:
            await asyncio.sleep(_LINE_SECONDS)
            line, now = progress_line(await _depths(self._stack), tallies), time.monotonic()
            end_if_cancelled()
            if line != printed or now - printed_at >= _SAME_LINE_SECONDS:
                self._console.print(f"{now - started_at:3.0f} s · {line}", highlight=False, soft_wrap=True)
                printed, printed_at = line, now


async def _redis_way(stack: Stack, requests: Sequence[Planned], broken: Sequence[bytes], tally: DemoTally) -> None:
    """Queue requests in Redis, and read results until all have arrived.

    `broken` are malformed members.
    """
    if broken:
        await queue_broken(stack.redis_url, QUEUE, broken)
        tally.sent_at |= dict.fromkeys(BROKEN_IDS, time.time())
    async with AsyncClient.for_redis(stack.redis_url) as client:
        await client.submit_many([_new(request) for request in requests])
        tally.sent_at |= {request.request_id: time.time() for request in requests}
        async with client.results(limit=len(tally.missing)) as results:
            async for delivery in results:
                tally.take(delivery.result, time.time())
                await delivery.ack()


def _new(request: Planned) -> NewRequest:
    deadline = timedelta(seconds=request.deadline_seconds)
    return NewRequest(payload=request.payload, deadline=deadline, id=request.request_id)


async def _depths(stack: Stack) -> QueueDepths:
    redis = connect(RedisOptions(stack.redis_url))
    try:
        return await queue_depths(redis, QUEUE, "retry-sortedset")
    finally:
        await redis.aclose()


async def _pubsub_way(stack: Stack, requests: Sequence[Planned], tally: DemoTally) -> None:
    """Publish requests to a topic, and pull results until all have arrived."""
    channel = PubSubChannel(PubSubOptions(project_id=DEMO_PROJECT, emulator_host=stack.emulator_host))
    publisher, puller = Publisher(channel), Puller(channel, RESULT_SUBSCRIPTION)
    try:
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
        await channel.close()


def _body(request: Planned, now: float) -> bytes:
    return msgspec.json.encode(
        {"id": request.request_id, "deadline": int(now + request.deadline_seconds) + 1, "payload": request.payload}
    )


def _take_once(tally: DemoTally, data: bytes) -> None:
    """Count the first result of each id: Pub/Sub may deliver it twice."""
    result = decode_result(data)
    if result.id in tally.sent_at and result.id not in tally.results:
        tally.take(result, time.time())


_TROUBLES: Final[dict[int, dict[str, Any]]] = {
    1: {"status": 429, "retry_after": "1", "times": 1},
    3: {"status": 503, "times": 2},
    5: {"fault": "reset", "times": 1},
    7: {"fault": "hang", "times": 1},
    9: {"status": 400},
    13: {"fault": "truncated", "times": 1},
}
"""Position among twenty requests -> simulated fault; the gateway answers the other requests at once."""

SHORT_DEADLINE_PLACE: Final = 11
"""Position of a request for which the gateway fails until its deadline."""
_ROUND: Final = 20


class Planned(msgspec.Struct, frozen=True):
    """One request of the demo; its deadline is in `deadline_seconds`."""

    request_id: str
    payload: dict[str, Any]
    deadline_seconds: float


def planned(count: int, prefix: str) -> Iterator[Planned]:
    """Plan `count` requests, always the same ones."""
    for number in range(count):
        place = number % _ROUND
        request_id = f"{prefix}-{number:05d}"
        payload: dict[str, Any] = {"model": "demo-model", "prompt": f"Say hello, number {number}", "max_tokens": 16}
        trouble = _TROUBLES.get(place)
        if place == SHORT_DEADLINE_PLACE:
            trouble = {"status": 503}
        # By the key the gateway recognizes a request that is retried, and names it in its witness log.
        payload["simulate"] = {"key": request_id, **(trouble or {})}
        yield Planned(request_id, payload, 6.0 if place == SHORT_DEADLINE_PLACE else 120.0)


def healthy(count: int, prefix: str) -> Iterator[Planned]:
    """Plan `count` requests that the gateway answers at once."""
    for number in range(count):
        request_id = f"{prefix}-healthy-{number:03d}"
        payload = {"model": "demo-model", "prompt": "Say hello", "max_tokens": 16}
        yield Planned(request_id, {**payload, "simulate": {"key": request_id}}, 120.0)


BROKEN: Final = (
    b'{"id":"broken-deadline","payload":{"prompt":"Hi"},"deadline":"tomorrow"}',
    b'{"id":"broken-payload","payload":"Hi","deadline":1999999999}',
    b"not JSON at all",
)
"""Invalid members, which our clients would not queue. Each must end as a result or a dead letter."""
BROKEN_IDS: Final = ("broken-deadline", "broken-payload")
"""The readable ids in `BROKEN`; each gets a result."""


async def queue_broken(redis_url: str, queue: str, members: Sequence[bytes]) -> None:
    """Add `members` to the sorted set unchanged."""
    redis = connect(RedisOptions(redis_url))
    try:
        for member in members:
            await queue_member(redis, queue, member, 1.0)
    finally:
        await redis.aclose()
