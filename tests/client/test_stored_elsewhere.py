"""Results whose payload another system stored, such as under `s3://…`: every reader passes them on."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from redis import Redis

from handlers.batch.lines import encode_result_line
from handlers.cli import main
from handlers.client import AsyncClient, Client, ClientOptions
from handlers.contract.result import Result
from handlers.demo.pubsub_emulator import PubSubEmulator
from handlers.pubsub.channel import PubSubChannel, PubSubOptions
from handlers.pubsub.publisher import Publisher
from handlers.redis_store.keys import result_of_key
from handlers.webhook.call import event_body
from tests.pubsub.resources import Resources
from tests.servers.forked import LONG_REDIS_TIMEOUT
from tests.servers.pubsub_emulator import pubsub_emulator
from tests.servers.valkey import LONG_LIMIT
from tests.waiting import wait_until_async

__all__ = ["pubsub_emulator"]

HANDLERS = Path(__file__).parents[2] / "handlers"
FIELDS = {
    "payload_ref": "s3://bucket/prefix/a/t",
    "content_type": "application/json",
    "payload_size": 123,
    "payload_sha256": "0" * 64,
}
TEXT = json.dumps({"id": "a", "status_code": 200, **FIELDS}).encode()
STORED_TEXT = "the payload is stored elsewhere: s3://bucket/prefix/a/t (application/json, 123 bytes)"


def _passed_on(result: Result) -> bool:
    found = {name: getattr(result, name) for name in FIELDS}
    return (result.id, result.status_code, result.payload, found) == ("a", 200, "", FIELDS)


class Place:
    """A Redis with the result, in the shared list and in the request's own."""

    def __init__(self, url: str, options: ClientOptions, redis: Redis) -> None:
        self.url, self.options, self.redis = url, options, redis
        redis.lpush(options.results, TEXT)
        redis.lpush(result_of_key(options.results, "a"), TEXT)
        self.env = {
            "REDIS_URL": url,
            "REQUEST_QUEUE_NAME": options.queue,
            "RESULT_QUEUE_NAME": options.results,
            **LONG_REDIS_TIMEOUT,
        }

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """The exit code, stdout and stderr of a command."""
        run = CliRunner().invoke(main, list(arguments), input="{}", env={**self.env, "COLUMNS": "200"})
        return run.exit_code, run.stdout, run.stderr


@pytest.fixture
def place(valkey_url: str, options: ClientOptions, redis: Redis) -> Place:
    return Place(valkey_url, options, redis)


@pytest.fixture
async def client(place: Place) -> AsyncIterator[AsyncClient]:
    async with AsyncClient.for_redis(place.url, place.options, access=LONG_LIMIT) as client:
        yield client


async def _stream(client: AsyncClient) -> Result:
    async with client.results(limit=1) as stream:
        delivery = await anext(stream)
        await delivery.ack()
    return delivery.result


async def _peek(client: AsyncClient) -> Result:
    return await anext(client.peek(limit=1))


async def _wait(client: AsyncClient) -> Result:
    return await client.wait("a", within=60)


@pytest.mark.parametrize("read", [_stream, _peek, _wait])
async def test_the_client_returns_the_reference_unchanged(
    client: AsyncClient, read: Callable[[AsyncClient], Awaitable[Result]]
) -> None:
    result = await read(client)
    assert _passed_on(result)
    assert result.stored_elsewhere == STORED_TEXT


def test_the_synchronous_client_returns_the_reference_unchanged(place: Place) -> None:
    with Client.for_redis(place.url, place.options, access=LONG_LIMIT) as client:
        assert _passed_on(client.wait("a", within=60))
        assert _passed_on(next(client.peek(limit=1)))
        with client.results(limit=1) as stream:
            assert _passed_on(next(stream).result)


async def test_the_pubsub_client_returns_the_reference_unchanged(pubsub_emulator: PubSubEmulator) -> None:
    options = PubSubOptions(project_id="p-elsewhere", emulator_host=pubsub_emulator.host)
    resources = Resources(options)
    await resources.topic("results")
    await resources.subscription("results-sub", "results", ackDeadlineSeconds=10)
    client = AsyncClient.for_pubsub(options.project_id, subscription="results-sub", emulator_host=pubsub_emulator.host)
    async with PubSubChannel(options) as channel, client, Publisher(channel) as publisher:
        for read in (_wait, _stream):
            await publisher.publish("results", TEXT)
            assert _passed_on(await read(client))


@pytest.mark.parametrize("flags", [("--peek",), ("-n", "1")])
def test_the_results_command_prints_the_reference_as_json_and_the_place_in_a_table(
    place: Place, flags: tuple[str, ...]
) -> None:
    place.redis.lpush(place.options.results, TEXT)
    code, shown, _ = place.run("results", *flags, "--format", "json", "--for", "0s")
    assert (code, json.loads(shown.splitlines()[0])["payload_ref"]) == (0, FIELDS["payload_ref"])
    code, shown, _ = place.run("results", *flags, "--format", "table", "--for", "0s")
    assert code == 0
    assert STORED_TEXT in shown


async def test_submit_prints_the_place_on_stderr_and_succeeds(place: Place) -> None:
    run = asyncio.get_running_loop().run_in_executor(
        None, place.run, "submit", "-", "--wait", "--id", "own", "--timeout", "60s"
    )
    own = result_of_key(place.options.results, "own")
    await wait_until_async(lambda: bool(place.redis.zcard(place.options.queue)), what="the submission")
    place.redis.lpush(own, TEXT.replace(b'"a"', b'"own"'))
    code, shown, message = await run
    assert (code, shown) == (0, "")
    assert f"own: {STORED_TEXT}" in message


def test_a_batch_writes_an_error_line_that_names_the_place() -> None:
    line, is_answer = encode_result_line("b", 1, "c", Result("b-1", 200, payload_ref="s3://bucket/key"))
    assert not is_answer
    error = json.loads(line)["error"]
    assert (error["code"], error["message"]) == (
        "payload_stored_elsewhere",
        "the payload is stored elsewhere: s3://bucket/key",
    )


def test_a_webhook_sends_the_reference() -> None:
    event = json.loads(event_body(Result("a", 200, **FIELDS), 1.0))  # type: ignore[arg-type]  # of several types
    assert event["data"] == {"id": "a", "status_code": 200, **FIELDS}


def test_credentials_in_a_place_are_masked_in_messages() -> None:
    result = Result("a", 200, payload_ref="https://user:pass@store/a?X-Signature=secret")
    assert result.stored_elsewhere == "the payload is stored elsewhere: https://***@store/a?X-Signature=***"
    assert Result("a", 200, "text").stored_elsewhere == ""


def test_where_finds_a_result_that_is_stored_elsewhere(place: Place) -> None:
    with Client.for_redis(place.url, place.options, access=LONG_LIMIT) as client:
        assert "HTTP 200" in str(client.where("a"))


READERS = {
    "batch/lines.py": test_a_batch_writes_an_error_line_that_names_the_place,
    "batch/run.py": test_a_batch_writes_an_error_line_that_names_the_place,
    "batch/queue.py": test_a_batch_writes_an_error_line_that_names_the_place,
    "cli/results.py": test_the_results_command_prints_the_reference_as_json_and_the_place_in_a_table,
    "cli/submit.py": test_submit_prints_the_place_on_stderr_and_succeeds,
    "client/redis_broker.py": test_the_client_returns_the_reference_unchanged,
    "client/pubsub_broker.py": test_the_pubsub_client_returns_the_reference_unchanged,
    "client/results.py": test_the_client_returns_the_reference_unchanged,
    "redis_store/admin/whereabouts.py": test_where_finds_a_result_that_is_stored_elsewhere,
    "webhook/call.py": test_a_webhook_sends_the_reference,
}
WRITERS = {
    "contract/result.py": "defines the functions",
    "demo/demo.py": "prints results of its own stack",
    "poller/dispatcher.py": "reads a handler's answer, which has its payload",
    "redis_store/results/payloads.py": "fetches payloads for the readers",
    "redis_store/queue/queue.py": "puts a payload back into a result that it writes",
}


def test_every_reader_of_results_has_a_test() -> None:
    reads = re.compile(r"\b(?:decode_result|whole_results?|event_body)\(|\.stored_elsewhere\b")
    found = {str(path.relative_to(HANDLERS)) for path in HANDLERS.rglob("*.py") if reads.search(path.read_text())}
    assert found - {*WRITERS} <= {*READERS}, "a reader of results needs a test of its own here"
    assert all(inspect.isfunction(test) for test in READERS.values())
