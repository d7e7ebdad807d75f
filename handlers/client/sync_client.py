"""The client for synchronous code. Calls run on an event loop in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Self, TypeVar, Unpack

from handlers.client.async_client import AsyncClient
from handlers.client.broker import Submission
from handlers.client.new_request import Deadline, NewRequest, Payload, RequestFields
from handlers.client.options import ClientOptions, PubSubFields
from handlers.client.results import BATCH_RESULTS, ResultDelivery, ResultStream
from handlers.contract.result import Result
from handlers.redis_store.admin.whereabouts import Whereabouts
from handlers.redis_store.submit.submissions import RedisAccess, RequestState

T = TypeVar("T")


class LoopThread:
    """An event loop in its own thread, which several threads may use."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="async-processor", daemon=True)
        self._thread.start()

    @property
    def is_closed(self) -> bool:
        return self._loop.is_closed()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the loop and return its result. Ctrl-C cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Client:
    """`AsyncClient` for synchronous code: the same methods without `await`.

    Several threads may use it. Close it, or use it as a context manager. `docs/client.md` has examples.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._loop = LoopThread()

    @classmethod
    def for_redis(cls, url: str, options: ClientOptions | None = None, access: RedisAccess | None = None) -> Self:
        return cls(AsyncClient.for_redis(url, options, access))

    @classmethod
    def for_pubsub(cls, project_id: str, **options: Unpack[PubSubFields]) -> Self:
        return cls(AsyncClient.for_pubsub(project_id, **options))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread. A second call has no effect."""
        if self._loop.is_closed:
            return
        self.run(self._client.close())
        self._loop.close()

    def submit(self, payload: Payload, *, deadline: Deadline, **fields: Unpack[RequestFields]) -> Submission:
        return self.run(self._client.submit(payload, deadline=deadline, **fields))

    def submit_many(self, requests: Iterable[NewRequest]) -> list[Submission]:
        return self.run(self._client.submit_many(requests))

    def ask(
        self,
        payload: Payload,
        *,
        deadline: Deadline,
        within: timedelta | float | None = None,
        **fields: Unpack[RequestFields],
    ) -> Result:
        return self.run(self._client.ask(payload, deadline=deadline, within=within, **fields))

    def wait(self, submission: Submission | str, *, within: timedelta | float | None = None) -> Result:
        return self.run(self._client.wait(submission, within=within))

    def results(
        self,
        name: str = "",
        *,
        limit: int | None = None,
        idle: timedelta | float | None = None,
        batch: int = BATCH_RESULTS,
    ) -> SyncResultStream:
        """Read results under leases, which are renewed while the caller works."""
        return SyncResultStream(self, self._client.results(name, limit=limit, idle=idle, batch=batch))

    def cancel(self, submission: Submission | str) -> bool:
        return self.run(self._client.cancel(submission))

    def cancel_many(self, submissions: Sequence[Submission | str]) -> list[bool]:
        return self.run(self._client.cancel_many(submissions))

    def peek(self, name: str = "", *, limit: int | None = None) -> Iterator[Result]:
        """Read the results of the list `name`, oldest first, without removing them."""
        return self._each(self._client.peek(name, limit=limit))

    def _each(self, results: AsyncIterator[Result]) -> Iterator[Result]:
        with contextlib.suppress(StopAsyncIteration):
            while True:
                yield self.run(_next(results))

    def where(self, submission: Submission | str) -> Whereabouts:
        """Find a request: in queue, retries, dead letters, records or results."""
        return self.run(self._client.where(submission))

    def look_up(self, submission: Submission | str) -> RequestState:
        return self.run(self._client.look_up(submission))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the client's loop. Ctrl-C cancels it."""
        return self._loop.run(work)


for _name, _method in vars(Client).items():
    _method = getattr(_method, "__func__", _method)  # the function of a class method
    if callable(_method) and not _name.startswith("_") and not _method.__doc__:
        _method.__doc__ = getattr(AsyncClient, _name).__doc__


class SyncDelivery:
    """One result under a lease. Unless acknowledged, it is delivered again."""

    __slots__ = ("_client", "delivery", "result")

    def __init__(self, client: Client, delivery: ResultDelivery) -> None:
        self._client = client
        self.delivery = delivery
        self.result = delivery.result

    def ack(self) -> None:
        self._client.run(self.delivery.ack())


class SyncResultStream:
    """`ResultStream` without `await`."""

    def __init__(self, client: Client, stream: ResultStream) -> None:
        self._client = client
        self._stream = stream

    def __enter__(self) -> Self:
        self._client.run(self._stream.__aenter__())
        return self

    def __exit__(self, *_error: object) -> None:
        self._client.run(self._stream.close())

    def __iter__(self) -> Iterator[SyncDelivery]:
        return self

    def __next__(self) -> SyncDelivery:
        """The next result. The iteration ends with the stream."""
        delivery = self._client.run(self._next())
        if delivery is None:
            raise StopIteration
        return SyncDelivery(self._client, delivery)

    def ack(self, deliveries: Sequence[SyncDelivery]) -> None:
        self._client.run(self._stream.ack([delivery.delivery for delivery in deliveries]))

    async def _next(self) -> ResultDelivery | None:
        return await anext(self._stream, None)


async def _next(results: AsyncIterator[Result]) -> Result:
    return await anext(results)
