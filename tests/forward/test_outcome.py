"""The tables are complete: every status has an outcome, every failure of the client a word."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator

import httpx
import pytest

from handlers.forward.outcome import FAILURE_REASONS, FAILURES, failure_reason, is_final, status_reason
from handlers.transport.failures import UnusableResponse

WORDS = {"timeout", "dns", "tls", "connect", "reset", "broken_body", "broken_response"}


def below(kind: type[BaseException]) -> Iterator[type[BaseException]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from below(narrower)


CLIENT_ERRORS = sorted(below(httpx.TransportError), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", CLIENT_ERRORS, ids=lambda kind: kind.__name__)
def test_every_failure_of_the_client_is_in_the_table(kind: type[BaseException]) -> None:
    error = kind.__new__(kind)
    assert isinstance(error, FAILURES)
    assert failure_reason(error) in WORDS


@pytest.mark.parametrize(
    "kind",
    [
        TimeoutError,
        asyncio.TimeoutError,
        ConnectionResetError,
        BrokenPipeError,
        OSError,
        ssl.SSLError,
        EOFError,
    ],
)
def test_errors_below_the_http_client_are_in_the_table(kind: type[BaseException]) -> None:
    assert isinstance(kind(), FAILURES) is (kind is not EOFError)
    assert failure_reason(kind()) in WORDS


@pytest.mark.parametrize("kind", [asyncio.CancelledError, KeyError, RuntimeError, AssertionError, MemoryError])
def test_our_own_defect_does_not_count_as_a_gateway_failure(kind: type[BaseException]) -> None:
    assert not isinstance(kind(), FAILURES)


def test_no_row_of_the_table_hides_behind_a_wider_one() -> None:
    kinds = [kind for kind, _ in FAILURE_REASONS]
    hidden = [narrow for at, narrow in enumerate(kinds) if any(issubclass(narrow, wide) for wide in kinds[:at])]
    assert hidden == []


def test_an_unusable_answer_is_not_retried() -> None:
    assert not issubclass(UnusableResponse, FAILURES)


@pytest.mark.parametrize("status", range(100, 600))
def test_every_status_has_an_outcome(status: int) -> None:
    retried = status in (408, 425, 429) or status >= 500
    assert is_final(status) is not retried
    if retried:
        assert status_reason(status)


def test_the_only_status_counted_as_a_rejection_is_429() -> None:
    """The doors answer a rejection with 429, and everything else that is retried with 503."""
    assert [s for s in range(100, 600) if not is_final(s) and status_reason(s) == "rejected"] == [429]
