"""The scenarios: each runs real processes and returns its figures by name."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import redis

from handlers.contract.events import REQUEST_TYPE, binary_headers
from handlers.demo.view import percentile, read_witness
from tests.bench.load import http_post, send_all
from tests.bench.measuring import Started, gateway, handler, poller, reference_loop, valkey
from tests.bench.nginx import nginx_gateway
from tests.bench.sink import running_sink
from tests.waiting import elapse, wait_until

QUEUE, RESULTS = "request-sortedset", "result-list"
CONNECTIONS = 64
FAR = 1_999_999_999

Figures = dict[str, float]


def body_of(number: int, deadline: float = FAR) -> bytes:
    return msgspec.json.encode(
        {
            "id": f"b{number}",
            "created": int(time.time()),
            "deadline": deadline,
            "payload": {
                "model": "m",
                "prompt": "Say hello to the bench",
                "max_tokens": 16,
                "user": f"b{number}",
            },
        }
    )


def event_of(number: int) -> bytes:
    headers = binary_headers(f"b{number}", "/bench", REQUEST_TYPE, {"queue": QUEUE, "attempt": "0"})
    return http_post("/", {**headers, "function-execution-id": headers["ce-id"]}, body_of(number))


def push_of(number: int) -> bytes:
    message = {"data": base64.b64encode(body_of(number)).decode(), "messageId": str(number)}
    frame = {"subscription": "projects/bench-project/subscriptions/s", "message": message}
    return http_post("/push", {"content-type": "application/json"}, msgspec.json.encode(frame))


def plain_of(number: int) -> bytes:
    return http_post("/", {"content-type": "application/json"}, body_of(number))


def loaded(up: Started, make: Callable[[int], bytes], count: int, wanted: int) -> Figures:
    """Requests per second and CPU per request of one server under load."""

    async def run() -> Figures:
        await send_all(up.url, make, max(50, count // 20), CONNECTIONS)  # warm-up
        cpu, began = up.cpu_seconds(), time.perf_counter()
        statuses = await send_all(up.url, make, count, CONNECTIONS)
        seconds = time.perf_counter() - began
        assert statuses == {wanted: count}, statuses
        return {"requests/s": count / seconds, "CPU ms": (up.cpu_seconds() - cpu) / count * 1000}

    return asyncio.run(run())


@contextlib.contextmanager
def simulated() -> Iterator[str]:
    """The base URL of the simulated gateway."""
    with gateway() as up:
        yield up.url


GatewayMaker = Callable[[], contextlib.AbstractContextManager[str]]
GATEWAYS: dict[str, GatewayMaker] = {"simulated": simulated, "nginx": nginx_gateway}


def bare_forwarder(count: int, serve: GatewayMaker = simulated) -> Figures:
    """The reference loop, as the base of all ratios."""
    with serve() as url, reference_loop(f"{url}/v1/completions") as forwarder:
        figures = loaded(forwarder, plain_of, count, 200)
        return {**figures, "start s": forwarder.ready_seconds, "RSS idle MB": forwarder.rss_mb()}


def handler_alone(count: int, serve: GatewayMaker = simulated) -> Figures:
    """CloudEvents to the dispatch door."""
    with serve() as url, handler("dispatch", {"IGW_BASE_URL": url}) as door:
        idle = door.rss_mb()
        figures = loaded(door, event_of, count, 200)
        return {**figures, "start s": door.ready_seconds, "RSS idle MB": idle}


def handler_memory(in_flight: int) -> Figures:
    """Memory of a new dispatch door with that many requests in flight."""
    with (
        gateway("--time-to-first-token", "4") as up,
        handler("dispatch", {"IGW_BASE_URL": up.url}) as door,
    ):
        return {"RSS in flight MB": most_memory(door, event_of, in_flight)}


def push_memory(in_flight: int) -> Figures:
    """Memory of a new push door with that many requests in flight."""
    with (
        running_sink() as host,
        gateway("--time-to-first-token", "4") as up,
        handler("pubsub_push", {"IGW_BASE_URL": up.url, "PUBSUB_EMULATOR_HOST": host, **PUSH_VARIABLES}) as door,
    ):
        return {"RSS in flight MB": most_memory(door, push_of, in_flight)}


def most_memory(door: Started, make: Callable[[int], bytes], in_flight: int) -> float:
    """The most memory, in MB, while that many requests are in flight."""

    async def run() -> float:
        sending = asyncio.create_task(send_all(door.url, make, in_flight, in_flight))
        most = 0.0
        while not sending.done():
            most = max(most, door.rss_mb())
            await asyncio.wait([sending], timeout=0.05)
        await sending
        return most

    return asyncio.run(run())


PUSH_VARIABLES = {"PROJECT_ID": "bench-project", "RESULT_TOPIC_ID": "results", "PUSH_AUTH": "none"}


def push_door(count: int, serve: GatewayMaker = simulated) -> Figures:
    """Wrapped pushes to the Pub/Sub door, with results to a sink."""
    with (
        running_sink() as host,
        serve() as url,
        handler("pubsub_push", {"IGW_BASE_URL": url, "PUBSUB_EMULATOR_HOST": host, **PUSH_VARIABLES}) as door,
    ):
        figures = loaded(door, push_of, count, 204)
        return {**figures, "start s": door.ready_seconds}


def fill(store: redis.Redis, count: int, deadline: Callable[[int], float] = lambda _: FAR) -> None:
    """Queue requests, a thousand in one call."""
    for begin in range(0, count, 1_000):
        numbers = range(begin, min(begin + 1_000, count))
        store.zadd(QUEUE, {body_of(number, deadline(number)): deadline(number) for number in numbers})


def drain(store: redis.Redis, count: int, *processes: Started) -> tuple[float, list[float]]:
    """Seconds until that many results have arrived, and the CPU of each process."""
    before, began = [one.cpu_seconds() for one in processes], time.perf_counter()
    fill(store, count)
    wait_until(lambda: store.llen(RESULTS) >= count, timeout_seconds=300, what=f"{count} results")
    seconds = time.perf_counter() - began
    store.delete(RESULTS)
    return seconds, [one.cpu_seconds() - cpu for one, cpu in zip(processes, before, strict=True)]


def poller_and_handler(count: int, serve: GatewayMaker = simulated, workers: int = 64) -> Figures:
    """Requests in Redis, with poller and handler as two processes."""
    with (
        valkey() as server,
        serve() as url,
        handler("dispatch", {"IGW_BASE_URL": url}) as door,
        poller(
            {
                "REDIS_URL": server.url,
                "HANDLER_URL": door.url,
                "IGW_BASE_URL": url,
                "WORKERS": str(workers),
            }
        ) as polling,
    ):
        store = redis.Redis.from_url(server.url)
        drain(store, max(100, count // 20), polling, door)
        seconds, (cpu_poller, cpu_door) = drain(store, count, polling, door)
        store.close()
        return {
            "requests/s": count / seconds,
            "CPU ms": cpu_poller / count * 1000,
            "handler CPU ms": cpu_door / count * 1000,
            "RSS idle MB": polling.rss_mb(),
        }


def poller_in_process(count: int, serve: GatewayMaker = simulated, workers: int = 64) -> Figures:
    """Requests in Redis, the handler in the poller's own process."""
    with (
        valkey() as server,
        serve() as url,
        poller({"REDIS_URL": server.url, "IGW_BASE_URL": url, "WORKERS": str(workers)}) as polling,
    ):
        store = redis.Redis.from_url(server.url)
        drain(store, max(100, count // 20), polling)
        seconds, (cpu,) = drain(store, count, polling)
        store.close()
        return {"requests/s": count / seconds, "CPU ms": cpu / count * 1000}


def queue_to_gateway(count: int) -> Figures:
    """Latency from ZADD to the gateway, at 50 requests per second into an idle queue."""
    with tempfile.TemporaryDirectory() as folder, valkey() as server:
        witness = Path(folder) / "witness.jsonl"
        with (
            gateway("--witness", str(witness)) as up,
            handler("dispatch", {"IGW_BASE_URL": up.url}) as door,
            poller({"REDIS_URL": server.url, "HANDLER_URL": door.url, "IGW_BASE_URL": up.url}),
        ):
            store = redis.Redis.from_url(server.url)
            sent: dict[str, float] = {}
            for number in range(count):
                body = body_of(number)
                sent[f"b{number}"] = time.time()
                store.zadd(QUEUE, {body: FAR})
                elapse(0.02, "the rate that is measured")
            wait_until(lambda: store.llen(RESULTS) >= count, what="all results")
            store.close()
            elapse(0.2, "the witness writes every 50 ms")
            with witness.open("rb") as lines:
                seen = {line.key: line.started_at for line in read_witness(lines)}
        warm = [key for key in sent if int(key[1:]) >= count // 10]
        waits = [(seen[key] - sent[key]) * 1000 for key in warm]
        return {"p50 ms": percentile(waits, 0.5), "p99 ms": percentile(waits, 0.99)}


def deep_queue(count: int) -> Figures:
    """Many requests queued at once: the poller holds only claimed ones, in order of deadlines."""
    with tempfile.TemporaryDirectory() as folder, valkey() as server:
        witness = Path(folder) / "witness.jsonl"
        with gateway("--witness", str(witness)) as up:
            store = redis.Redis.from_url(server.url)
            fill(store, count, lambda number: FAR + (number * 7_919) % count)
            with poller({"REDIS_URL": server.url, "IGW_BASE_URL": up.url}) as polling:
                wait_until(lambda: store.llen(RESULTS) >= count // 20, what="the first results")
                early, most = polling.rss_mb(), 0.0
                while store.llen(RESULTS) < count:
                    most = max(most, polling.rss_mb())
                    elapse(0.05, "memory is read twenty times a second")
            elapse(0.2, "the witness writes every 50 ms")
            with witness.open("rb") as lines:
                order = [(int(line.key[1:]) * 7_919) % count for line in read_witness(lines)]
            store.close()
        worst = max(abs(place - at) for at, place in enumerate(order))
        assert len(order) == count
        return {"RSS early MB": early, "RSS most MB": max(most, early), "worst place off": float(worst)}
