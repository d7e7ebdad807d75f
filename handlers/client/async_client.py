"""Queue requests and read results, from asynchronous code."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Final, Self, TypeVar, Unpack, get_type_hints

from handlers.client.broker import Broker, Submission
from handlers.client.new_request import MAPPINGS, TEXTS, Deadline, NewRequest, Payload, RequestFields
from handlers.client.options import ClientOptions, PubSubFields, check_option, shown
from handlers.client.redis_broker import RedisBroker
from handlers.client.results import BATCH_RESULTS, ResultStream
from handlers.contract.errors import InvalidRequest, InvalidSetting
from handlers.contract.result import Result
from handlers.redis_store.admin.whereabouts import Whereabouts
from handlers.redis_store.submit.submissions import RedisAccess, RequestState


class AsyncClient:
    """Queues requests and reads results. Close it, or use it as a context manager.

    async with AsyncClient.for_redis("redis://localhost:6379") as client:
        submission = await client.submit({"model": "m", "prompt": "Hi"}, deadline=timedelta(hours=1))
        async with client.results(limit=1) as results:
            async for delivery in results:
                print(delivery.result.payload)
                await delivery.ack()
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    @classmethod
    def for_redis(cls, url: str, options: ClientOptions | None = None, access: RedisAccess | None = None) -> Self:
        """A client of the Redis or Valkey at `url`. It connects with its first call.

        `url` has one of the forms of `REDIS_URL`.
        """
        check_redis(url, options, access)
        return cls(RedisBroker(url, options or ClientOptions(), access))

    @classmethod
    def for_pubsub(cls, project_id: str, **options: Unpack[PubSubFields]) -> Self:
        """A client of a topic and a pull subscription. `options` are those of `PubSubFields`."""
        check_pubsub(project_id, options)
        # Loads an HTTP client, which users of Redis do not need.
        from handlers.client.pubsub_broker import PubSubBroker  # noqa: PLC0415  # see above

        return cls(PubSubBroker(project_id, **options))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._broker.close()

    async def submit(self, payload: Payload, *, deadline: Deadline, **fields: Unpack[RequestFields]) -> Submission:
        """Queue one request. The other fields are those of `NewRequest`.

        If a request with the same `idempotency_key` and content was queued before, that submission is returned, with
        `is_new` false. The key is valid until `idempotency_window_seconds` after the result is acknowledged.

        Raises `InvalidRequest` before anything is queued, `IdempotencyConflict` if the key was used for other
        content, `NotOffered` for a key on Pub/Sub, and `BrokerUnreachable` if the broker does not answer.
        """
        return (await self.submit_many([NewRequest(payload=payload, deadline=deadline, **fields)]))[0]

    async def submit_many(self, requests: Iterable[NewRequest]) -> list[Submission]:
        """Queue many requests in order. They are sent in batches, so that other clients are not delayed."""
        return await self._broker.submit(checked_requests(requests))

    async def ask(
        self,
        payload: Payload,
        *,
        deadline: Deadline,
        within: timedelta | float | None = None,
        **fields: Unpack[RequestFields],
    ) -> Result:
        """Queue one request and wait for the result in its own list."""
        fields["has_own_results"] = True
        seconds = seconds_of("within", within)
        submission = await self.submit(payload, deadline=deadline, **fields)
        return await self._broker.own_result(submission, seconds)

    async def wait(self, submission: Submission | str, *, within: timedelta | float | None = None) -> Result:
        """Wait for the result of a request submitted with `has_own_results`.

        The request is a submission or an id. The result stays in its list: any process can read it again until the list
        expires. Raises `NoResultYet` if it does not arrive `within` that many seconds, `NoOwnResults` if it goes to a
        shared list, and `UnknownRequest` for an unknown id.
        """
        check_submission("submission", submission)
        return await self._broker.own_result(submission, seconds_of("within", within))

    def results(
        self,
        name: str = "",
        *,
        limit: int | None = None,
        idle: timedelta | float | None = None,
        batch: int = BATCH_RESULTS,
    ) -> ResultStream:
        """Read the results of a list or subscription under leases.

        `name` is the list or subscription; empty means the default one.
        """
        check_name("name", name)
        check_count("limit", limit, least=0, may_be_none=True)
        check_count("batch", batch, least=1)
        seconds = seconds_of("idle", idle)
        return ResultStream(self._broker.results(name), limit=limit, idle_seconds=seconds, batch=batch)

    def peek(self, name: str = "", *, limit: int | None = None) -> AsyncIterator[Result]:
        """Read the results of a list, oldest first, without removing them.

        An empty `name` means the default list. Results under another reader's lease are not included. Raises
        `NotOffered` on Pub/Sub.
        """
        check_name("name", name)
        check_count("limit", limit, least=0, may_be_none=True)
        return self._broker.peek(name, limit)

    async def cancel(self, submission: Submission | str) -> bool:
        """Cancel a submission, or an id's live submission. False if it has finished."""
        check_submission("submission", submission)
        return (await self.cancel_many([submission]))[0]

    async def cancel_many(self, submissions: Sequence[Submission | str]) -> list[bool]:
        """Cancel many requests. Returns for each whether it was live."""
        return await self._broker.cancel(checked_submissions(submissions))

    async def look_up(self, submission: Submission | str) -> RequestState:
        """The state of a submission, read from a few keys. `where` searches for more."""
        check_submission("submission", submission)
        return await self._broker.look_up(submission)

    async def where(self, submission: Submission | str) -> Whereabouts:
        """Find a request: in queue, retries, dead letters, records or results.

        Reads the whole queue, in parts; for many requests use `look_up`. Raises `NotOffered` on Pub/Sub.
        """
        check_submission("submission", submission)
        return await self._broker.where(submission)


T = TypeVar("T")
_DURATION: Final = "seconds of at least 0 as a number, a timedelta, or None"
_SUBMISSION: Final = "a Submission, or an id as text"


def seconds_of(name: str, value: timedelta | float | None) -> float | None:
    """The duration in seconds; None stays None."""
    if value is None:
        return None
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
        raise InvalidRequest(name, found=shown(value), accepted=_DURATION)
    return seconds


def check_count(name: str, value: int | None, *, least: int, may_be_none: bool = False) -> None:
    """Raise `InvalidRequest` unless `value` is an integer of at least `least`."""
    if value is None and may_be_none:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        accepted = f"a whole number of at least {least}" + (", or None" if may_be_none else "")
        raise InvalidRequest(name, found=shown(value), accepted=accepted)


def check_name(name: str, value: str) -> None:
    """Refuse a list or subscription name that is not text."""
    if not isinstance(value, str):
        raise InvalidRequest(name, found=shown(value), accepted="text")


def check_submission(name: str, value: Submission | str) -> None:
    """Raise `InvalidRequest` unless `value` is a submission or an id."""
    if not isinstance(value, Submission | str):
        raise InvalidRequest(name, found=shown(value), accepted=_SUBMISSION)


def listed(name: str, values: Iterable[T], accepted: str) -> list[T]:
    """The values as a list. A single text is refused."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InvalidRequest(name, found=shown(values), accepted=accepted)
    return list(values)


def checked_requests(requests: Iterable[NewRequest]) -> list[NewRequest]:
    """The requests as a list, with the types of their fields checked."""
    found = listed("requests", requests, "several NewRequest")
    for number, request in enumerate(found):
        if not isinstance(request, NewRequest):
            raise InvalidRequest(f"requests[{number}]", found=shown(request), accepted="a NewRequest")
        _check_fields(request)
    return found


def checked_submissions(submissions: Iterable[Submission | str]) -> list[Submission | str]:
    """The submissions as a list."""
    found = listed("submissions", submissions, f"several, each {_SUBMISSION}")
    for number, submission in enumerate(found):
        check_submission(f"submissions[{number}]", submission)
    return found


def _check_fields(request: NewRequest) -> None:
    for name in TEXTS:
        if not isinstance(getattr(request, name), str):
            raise InvalidRequest(name, found=_kind_of(getattr(request, name)), accepted="text")
    for name in MAPPINGS:
        value = getattr(request, name)
        accepted = "a mapping of text to text"
        if not isinstance(value, Mapping):
            raise InvalidRequest(name, found=_kind_of(value), accepted=accepted)
        for key, text in value.items():
            if not (isinstance(key, str) and isinstance(text, str)):
                found = f"{_kind_of(key)} to {_kind_of(text)}"
                raise InvalidRequest(name, found=found, accepted=accepted)
    if not isinstance(request.has_own_results, bool):
        raise InvalidRequest("has_own_results", found=_kind_of(request.has_own_results), accepted="True or False")


def _kind_of(value: object) -> str:
    """The type of a value; its content may be a secret."""
    return type(value).__name__


def check_redis(url: str, options: ClientOptions | None, access: RedisAccess | None) -> None:
    """Refuse arguments of `for_redis` of another type."""
    if not isinstance(url, str):
        raise InvalidSetting("url", found=_kind_of(url), accepted="text such as redis://host:6379")
    if options is not None and not isinstance(options, ClientOptions):
        raise InvalidSetting("options", found=_kind_of(options), accepted="ClientOptions, or None")
    _check_access("access", access)


def check_pubsub(project_id: str, options: PubSubFields) -> None:
    """Refuse arguments of `for_pubsub` of another type."""
    texts = {"project_id": project_id, **options}
    _check_access("cancel_redis_access", texts.pop("cancel_redis_access", None))
    for name, value in texts.items():
        if not isinstance(value, str):
            raise InvalidSetting(name, found=_kind_of(value), accepted="text")


def _check_access(name: str, access: object) -> None:
    if access is None:
        return
    if not isinstance(access, RedisAccess):
        raise InvalidSetting(name, found=_kind_of(access), accepted="RedisAccess, or None")
    for field, kind in get_type_hints(RedisAccess).items():
        check_option(f"{name}.{field}", getattr(access, field), kind, is_secret=True)
