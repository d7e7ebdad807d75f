"""The client without `await` is the same client."""

from __future__ import annotations

import inspect
import pydoc
import threading
from datetime import timedelta

import pytest
from redis import Redis

from handlers.client import AsyncClient, Client, ClientOptions, NewRequest, NoResultYet, RequestState
from tests.client.echo_poller import answer
from tests.servers.valkey import LONG_LIMIT
from tests.waiting import wait_until


@pytest.fixture
def sync_client(valkey_url: str, options: ClientOptions) -> Client:
    return Client.for_redis(valkey_url, options, access=LONG_LIMIT)


def test_the_synchronous_client_has_every_method_of_the_asynchronous_one() -> None:
    def methods(kind: type) -> set[str]:
        return {name for name, _ in inspect.getmembers(kind) if not name.startswith("_")}

    assert methods(Client) - {"run"} == methods(AsyncClient)


def test_ask_submits_and_waits(sync_client: Client, redis: Redis, options: ClientOptions) -> None:
    poller = threading.Thread(target=lambda: wait_until(lambda: answer(redis, options.queue), "a request"))
    poller.start()
    with sync_client as client:
        result = client.ask(b'{"prompt":"Hi"}', deadline=timedelta(minutes=1), within=60)
    poller.join()
    assert (result.status_code, result.payload) == (200, '{"prompt":"Hi"}')


def test_results_are_iterated_and_acknowledged(sync_client: Client, redis: Redis, options: ClientOptions) -> None:
    with sync_client as client:
        requests = [NewRequest(payload={"n": n}, deadline=timedelta(minutes=1)) for n in range(5)]
        submissions = client.submit_many(requests)
        answer(redis, options.queue)
        assert client.look_up(submissions[0]) is RequestState.FINISHED
        with client.results(limit=3) as stream:
            first = next(stream)
            first.ack()
            stream.ack(list(stream))
        with client.results(idle=0) as stream:
            rest = [delivery.result.id for delivery in stream]
        assert rest == [submission.id for submission in submissions[3:]]
        assert client.cancel_many(submissions) == [False] * 5
        assert not client.cancel(submissions[0])


def test_errors_are_raised_and_a_second_close_has_no_effect(sync_client: Client) -> None:
    submission = sync_client.submit({"a": 1}, deadline=timedelta(minutes=1), has_own_results=True)
    with pytest.raises(NoResultYet):
        sync_client.wait(submission, within=0.02)
    sync_client.close()
    sync_client.close()
    assert "async-processor" not in {thread.name for thread in threading.enumerate()}


def test_peek_reads_results_and_leaves_them(sync_client: Client, redis: Redis, options: ClientOptions) -> None:
    redis.lpush(options.results, b'{"id":"one","status_code":200,"payload":"{}"}')
    with sync_client as client:
        assert [result.id for result in client.peek()] == ["one"]
    assert redis.llen(options.results) == 1


def test_help_is_short_and_describes_every_method() -> None:
    text = pydoc.plain(pydoc.render_doc(Client))
    assert len(text.splitlines()) < 120
    assert "See `AsyncClient" not in text
    methods = [name for name in vars(Client) if not name.startswith("_")]
    assert [name for name in methods if not getattr(Client, name).__doc__] == []
