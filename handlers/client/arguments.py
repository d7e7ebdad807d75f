"""Checks of the arguments of the client, before anything is queued.

Type checkers find wrong types; callers without one get an error here that names the parameter, what it expects with its
unit, and what it got.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Final, TypeVar, get_type_hints

from handlers.client.broker import Submission
from handlers.client.new_request import NewRequest
from handlers.client.options import ClientOptions, PubSubFields, check_option, shown
from handlers.contract.errors import InvalidRequest, InvalidSetting
from handlers.redis_store.submit.client_access import RedisAccess

T = TypeVar("T")
_DURATION: Final = "seconds of at least 0 as a number, a timedelta, or None"
_SUBMISSION: Final = "a Submission, or an id as text"
_TEXTS: Final = ("id", "endpoint", "model", "tier", "tenant", "idempotency_key")
_MAPPINGS: Final = ("headers", "metadata", "labels")


def seconds_of(name: str, value: timedelta | float | None) -> float | None:
    """The duration in seconds; None for none."""
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
    """Refuse a name of a list or subscription that is not text."""
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
    for name in _TEXTS:
        if not isinstance(getattr(request, name), str):
            raise InvalidRequest(name, found=_kind_of(getattr(request, name)), accepted="text")
    for name in _MAPPINGS:
        value = getattr(request, name)
        accepted = "a mapping of text to text"
        if not isinstance(value, Mapping):
            raise InvalidRequest(name, found=_kind_of(value), accepted=accepted)
        for key, text in value.items():
            if not (isinstance(key, str) and isinstance(text, str)):
                found = f"{_kind_of(key)} to {_kind_of(text)}"
                raise InvalidRequest(name, found=found, accepted=accepted)
    if not isinstance(request.has_own_results, bool):
        raise InvalidRequest(
            "has_own_results", found=_kind_of(request.has_own_results), accepted="True or False"
        )


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
