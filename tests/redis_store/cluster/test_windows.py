"""Idempotent submission in a real Redis Cluster: an id is queued exactly once, at whatever step a producer crashes."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, cast

import pytest

from handlers.client.async_client import AsyncClient
from handlers.client.errors import BrokerUnreachable
from handlers.client.options import ClientOptions
from handlers.contract.errors import InvalidSetting
from handlers.contract.request import decode_member
from handlers.redis_store.cluster import submissions as cluster_submissions
from handlers.redis_store.cluster.submissions import ClusterSubmissions
from handlers.redis_store.connection import RedisOptions, Store, connect, executed
from handlers.redis_store.keys import active_key, delivery_name, payload_key, submitted_key
from handlers.redis_store.scripts import Replication
from handlers.redis_store.submit.submissions import MemberParts, Queued, RequestState
from tests.servers.presence import redis_program
from tests.servers.redis_topologies import Cluster
from tests.servers.valkey import LONG_LIMIT

pytestmark = pytest.mark.xdist_group("redis-windows")
WINDOW = 600
HOUR = 3_600


class Died(ConnectionError):
    """The producer, between two steps."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    program = redis_program()
    with Cluster(program) as running:
        yield running


class Queue:
    """A queue of a test's own, and producers."""

    def __init__(self, redis: Store) -> None:
        self.redis = redis
        self.name = f"q-{uuid.uuid4().hex}"
        self.deadline = int(time.time()) + HOUR

    def part(self, request_id: str, *, payload: bytes = b"", deadline: int = 0) -> MemberParts:
        """A submission with a token of its own."""
        token = uuid.uuid4().hex
        head = f'{{"internal":{{"request_token":"{token}-'.encode()
        ends = deadline or self.deadline
        tail = f'}},"request_kind":"redis","data":{{"id":"{request_id}","payload":{{}},"deadline":{ends}}}}}'
        return MemberParts(request_id, ends, token, head, tail.encode(), payload)

    async def submit(self, *parts: MemberParts, window: int = WINDOW, is_repeated: bool = False) -> list[Queued]:
        """As a producer of its own."""
        producer = ClusterSubmissions(self.redis)
        return await producer.submit(self.name, parts, window_seconds=window, is_repeated=is_repeated)

    async def tokens(self) -> list[str]:
        """The pending members."""
        members = cast("list[bytes]", await self.redis.zrange(self.name, 0, -1))
        return [decode_member(member, self.name).request.request_token for member in members]

    async def text(self, key: str) -> str | None:
        """The content of a key."""
        found = cast("bytes | None", await self.redis.get(key))
        return found.decode() if found is not None else None

    async def answer(self, request_id: str) -> None:
        """Take pending requests and delete the mark, like a poller with a final result."""
        await self.redis.delete(self.name)
        await self.redis.delete(active_key(request_id))


@pytest.fixture
async def queue(cluster: Cluster) -> AsyncIterator[Queue]:
    redis = connect(RedisOptions(cluster.url, timeout_seconds=60, connect_timeout_seconds=60))
    await redis.exists("any")  # it learns the slots; a concurrent caller is disconnected and would repeat the call
    yield Queue(redis)
    await redis.aclose()


def _dies_at(patch: pytest.MonkeyPatch, step: int, *, has_sent: bool) -> Counter[str]:
    """Crash the producer at its `step`th call of the cluster: before the call, or before its answer."""
    calls: Counter[str] = Counter()

    def dying(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def called(*arguments: Any) -> Any:
            calls["all"] += 1
            dies = calls["all"] == step
            if dies and not has_sent:
                raise Died
            answer = await call(*arguments)
            if dies:
                raise Died
            return answer

        return called

    patch.setattr(cluster_submissions, "executed", dying(executed))
    patch.setattr(Replication, "run", dying(Replication.run))
    patch.setattr(Replication, "execute", dying(Replication.execute))
    return calls


STEPS = range(1, 13)
"""More steps than there are: the last ones are not reached, and no producer crashes."""
AFTER_THE_MARKER = 5
"""The step at which a submission without a payload is marked and not queued yet."""


@pytest.mark.parametrize("has_sent", [False, True], ids=["unsent", "unanswered"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("is_finished", [False, True], ids=["live", "finished"])
async def test_after_a_producers_crash_at_any_step_the_next_one_queues_the_id_once(
    queue: Queue, step: int, has_sent: bool, is_finished: bool
) -> None:
    name = f"r-{uuid.uuid4().hex}"
    dying, other = (
        queue.part(name, payload=b'{"of":"the dead"}'),
        queue.part(name, payload=b'{"of":"the next"}'),
    )
    with pytest.MonkeyPatch.context() as patch:
        calls = _dies_at(patch, step, has_sent=has_sent)
        try:
            await queue.submit(dying)
        except Died:
            assert calls["all"] == step
    was_queued = await queue.tokens()
    if is_finished and was_queued:
        await queue.answer(name)

    (second,) = await queue.submit(other)
    if is_finished and was_queued:
        assert await queue.tokens() == []
        assert await queue.text(active_key(name)) is None, "a finished one must not look live again"
    else:
        assert await queue.tokens() == [second.token]
        assert await queue.text(active_key(name)) == second.token
    assert await queue.text(submitted_key(name)) == second.token
    id_record = dying if second.token.startswith(dying.token) else other
    assert second.is_new == (id_record is other)
    assert await queue.text(payload_key(name, id_record.token)) == id_record.payload.decode()
    if id_record is dying:
        assert await queue.text(payload_key(name, other.token)) is None

    (woken,) = await queue.submit(dying, is_repeated=True)
    assert (woken.token, woken.is_new) == (second.token, id_record is dying)
    assert len(await queue.tokens()) == (0 if is_finished and was_queued else 1)


async def test_the_crash_tests_cover_every_step(queue: Queue) -> None:
    with pytest.MonkeyPatch.context() as patch:
        calls = _dies_at(patch, 0, has_sent=False)
        await queue.submit(queue.part(f"r-{uuid.uuid4().hex}", payload=b"{}"))
    assert calls["all"] < max(STEPS)


async def test_many_producers_of_the_same_ids_queue_each_once_and_get_the_same_answer(queue: Queue) -> None:
    names = [f"r-{uuid.uuid4().hex}" for _ in range(40)]

    async def one() -> list[Queued]:
        return await queue.submit(*(queue.part(name) for name in names))

    reported = await asyncio.gather(*(one() for _ in range(8)))
    for at in range(len(names)):
        assert len({answers[at].token for answers in reported}) == 1
        assert sum(answers[at].is_new for answers in reported) == 1
    assert Counter(await queue.tokens()) == Counter(each.token for each in reported[0])


async def test_a_producer_that_stalls_until_all_is_finished_queues_nothing_and_marks_nothing(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"r-{uuid.uuid4().hex}"
    part, goes_on, stalls = queue.part(name), asyncio.Event(), asyncio.Event()
    run = Replication.run

    async def stalled(replication: Replication, script: Any, keys: Any, values: Any) -> Any:
        if name in str(values):
            stalls.set()
            await goes_on.wait()
        return await run(replication, script, keys, values)

    with monkeypatch.context() as patch:
        patch.setattr(Replication, "run", stalled)
        slow = asyncio.create_task(queue.submit(part))
        await stalls.wait()
    (second,) = await queue.submit(queue.part(name))
    await queue.answer(name)
    goes_on.set()
    assert [each.token for each in await slow] == [second.token]
    assert await queue.tokens() == []
    assert await queue.text(active_key(name)) is None


async def test_the_queue_remembers_deliveries_until_the_window_ends(queue: Queue) -> None:
    part = queue.part(f"r-{uuid.uuid4().hex}")
    await queue.submit(part)
    ends = part.deadline + WINDOW
    known = f"{{{queue.name}}}:delivered"
    assert await queue.redis.zscore(known, delivery_name(part.id, part.token)) == ends
    await queue.submit(queue.part(f"r-{uuid.uuid4().hex}"), window=0)
    assert await queue.redis.zscore(known, delivery_name(part.id, part.token)) == ends
    assert await queue.redis.expiretime(known) - ends - 3_600 in (0, 1), "the life is rounded up to seconds"
    assert await queue.redis.expiretime(submitted_key(part.id)) == ends


async def test_an_unqueued_submission_whose_deadline_passed_is_replaced(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"r-{uuid.uuid4().hex}"
    with monkeypatch.context() as patch:
        _dies_at(patch, AFTER_THE_MARKER, has_sent=False)
        with pytest.raises(Died):
            await queue.submit(queue.part(name, deadline=int(time.time()) - 10))
    assert await queue.text(submitted_key(name)) is not None
    other = queue.part(name)
    (reported,) = await queue.submit(other)
    assert reported.is_new
    assert await queue.tokens() == [reported.token]


async def test_a_queued_submission_whose_deadline_passed_is_not_replaced(queue: Queue) -> None:
    name = f"r-{uuid.uuid4().hex}"
    (first,) = await queue.submit(queue.part(name, deadline=int(time.time()) - 10))
    await queue.answer(name)
    (second,) = await queue.submit(queue.part(name))
    assert (second.token, second.is_new) == (first.token, False)
    assert await queue.tokens() == []


async def test_an_id_submitted_to_another_queue_is_not_queued_again(queue: Queue) -> None:
    name, other = f"r-{uuid.uuid4().hex}", Queue(queue.redis)
    (first,) = await queue.submit(queue.part(name))
    (second,) = await other.submit(other.part(name))
    assert (second.token, second.is_new) == (first.token, False)
    assert await other.tokens() == []


async def test_a_live_submission_without_a_window_counts_and_an_unqueued_one_does_not(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"r-{uuid.uuid4().hex}"
    (first,) = await queue.submit(queue.part(name), window=0)
    (second,) = await queue.submit(queue.part(name))
    assert (second.token, second.is_new) == (first.token, False)

    dead = f"r-{uuid.uuid4().hex}"
    await queue.redis.set(active_key(dead), f"{uuid.uuid4().hex}-1", ex=60)
    (third,) = await queue.submit(queue.part(dead))
    assert third.is_new
    assert await queue.tokens() == [first.token, third.token]


async def test_a_live_submission_without_a_window_wins_over_an_older_finished_one(queue: Queue) -> None:
    (finished,) = await queue.submit(queue.part("a"))
    await queue.answer("a")
    (live,) = await queue.submit(queue.part("a"), window=0)
    (found,) = await queue.submit(queue.part("a"))
    assert (found.token, found.is_new) == (live.token, False)
    await queue.answer("a")
    (found,) = await queue.submit(queue.part("a"))
    assert (found.token, found.is_new) == (finished.token, False)
    assert await queue.tokens() == []


async def test_an_id_may_occur_twice_in_one_call(queue: Queue) -> None:
    name = f"r-{uuid.uuid4().hex}"
    first, second = await queue.submit(queue.part(name), queue.part(name))
    assert (first.is_new, second.is_new, second.token) == (True, False, first.token)
    assert await queue.tokens() == [first.token]


async def test_a_queue_of_another_type_is_refused_and_leaves_no_marker(queue: Queue) -> None:
    name = f"r-{uuid.uuid4().hex}"
    await queue.redis.set(queue.name, "text", ex=60)
    with pytest.raises(InvalidSetting, match="another type"):
        await queue.submit(queue.part(name))
    assert await queue.text(submitted_key(name)) is None


async def test_the_client_returns_the_state_of_the_first_submission(cluster: Cluster, queue: Queue) -> None:
    options = ClientOptions(queue=queue.name, idempotent_window_seconds=WINDOW)
    async with AsyncClient.for_redis(cluster.url, options, LONG_LIMIT) as client:
        first = await client.submit({"a": 1}, deadline=queue.deadline)
        second = await client.submit({"a": 2}, deadline=queue.deadline, id=first.id)
        assert (second.token, second.is_new) == (first.token, False)
        assert await client.look_up(second) is RequestState.PENDING
        await queue.answer(first.id)
        third = await client.submit({"a": 3}, deadline=queue.deadline, id=first.id)
        assert (third.token, third.is_new) == (first.token, False)
        assert await client.look_up(third) is RequestState.FINISHED
        assert await client.look_up(first.id) is RequestState.FINISHED


async def test_a_window_counts_once_enough_replicas_have_marker_and_request(cluster: Cluster, queue: Queue) -> None:
    name = f"r-{uuid.uuid4().hex}"
    asking = {"queue": queue.name, "idempotent_window_seconds": WINDOW, "patience_seconds": 0.0}
    options = ClientOptions(**asking, wait_replicas=1)  # type: ignore[arg-type]  # as named above
    async with AsyncClient.for_redis(cluster.url, options, LONG_LIMIT) as client:
        with pytest.raises(BrokerUnreachable, match="0 of 1 replica"):
            await client.submit({}, deadline=queue.deadline, id=name)
    (reported,) = await queue.submit(queue.part(name))
    assert await queue.tokens() == [reported.token]


async def test_an_id_whose_producer_died_before_it_was_queued_is_unknown(
    cluster: Cluster, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"r-{uuid.uuid4().hex}"
    with monkeypatch.context() as patch:
        _dies_at(patch, AFTER_THE_MARKER, has_sent=False)
        with pytest.raises(Died):
            await queue.submit(queue.part(name))
    assert await queue.text(submitted_key(name)) is not None
    async with AsyncClient.for_redis(cluster.url, ClientOptions(queue=queue.name), LONG_LIMIT) as client:
        assert await client.look_up(name) is RequestState.UNKNOWN
        await queue.submit(queue.part(name))
        assert await client.look_up(name) is RequestState.PENDING
