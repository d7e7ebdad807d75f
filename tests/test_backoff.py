"""Delays between attempts are bounded, within the deadline, for any hint of the gateway."""

from __future__ import annotations

import ast
import math
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.backoff import (
    BASE_SECONDS,
    CAP_SECONDS,
    Backoff,
    backoff_seconds,
    parse_retry_after,
    retry_delay,
)

JITTERS = st.floats(0, 1, exclude_max=True)
ATTEMPTS = st.integers(0, 10_000)
LEFTS = st.floats(-1e6, 1e10, allow_nan=False)
HINTS = st.none() | st.floats(0, 1e300)
NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("attempt", "least", "most"), [(0, 1, 2), (1, 2, 4), (2, 4, 8), (3, 8, 16), (4, 16, 32), (5, 30, 60)]
)
def test_each_pause_doubles_with_equal_jitter(attempt: int, least: float, most: float) -> None:
    assert backoff_seconds(attempt, 0.0) == least
    assert backoff_seconds(attempt, math.nextafter(1, 0)) == pytest.approx(most)


@pytest.mark.parametrize("attempt", [6, 10_000, 2**80])
def test_the_cap_holds_at_any_attempt(attempt: int) -> None:
    assert backoff_seconds(attempt, 0.0) == CAP_SECONDS / 2
    assert backoff_seconds(attempt, math.nextafter(1, 0)) <= CAP_SECONDS


@given(attempt=st.integers(-5, 10_000), jitter=JITTERS)
def test_a_pause_is_within_half_and_whole_of_its_ceiling(attempt: int, jitter: float) -> None:
    ceiling = min(CAP_SECONDS, BASE_SECONDS * 2.0 ** min(max(attempt, 0), 100))
    assert ceiling / 2 <= backoff_seconds(attempt, jitter) <= ceiling


@given(attempt=ATTEMPTS, left=LEFTS, asked=HINTS, jitter=JITTERS, earliest=st.floats(0, 600))
def test_a_retry_always_comes_before_the_deadline(
    attempt: int, left: float, asked: float | None, jitter: float, earliest: float
) -> None:
    delay = retry_delay(attempt, left_seconds=left, hint_seconds=asked, jitter=jitter, earliest_seconds=earliest)
    if delay is None:
        return
    assert delay < left
    assert delay >= max(earliest, BASE_SECONDS / 2)


@given(attempt=ATTEMPTS, asked=HINTS, jitter=JITTERS)
def test_a_retry_is_made_if_two_pauses_fit(attempt: int, asked: float | None, jitter: float) -> None:
    delay = retry_delay(attempt, left_seconds=2 * BASE_SECONDS, hint_seconds=asked, jitter=jitter)
    assert delay is not None


@given(attempt=ATTEMPTS, left=st.floats(10, 1e9), asked=st.floats(0, 1e300), jitter=JITTERS)
def test_a_longer_retry_after_is_followed_up_to_half_of_the_time_left(
    attempt: int, left: float, asked: float, jitter: float
) -> None:
    own = retry_delay(attempt, left_seconds=left, hint_seconds=None, jitter=jitter)
    delay = retry_delay(attempt, left_seconds=left, hint_seconds=asked, jitter=jitter)
    assert own is not None
    assert delay is not None
    assert delay >= min(asked, left / 2)
    assert delay <= max(own, 1.25 * min(asked, left / 2)) * 1.000001


def test_clients_with_the_same_retry_after_return_spread_out() -> None:
    delays = {retry_delay(0, left_seconds=1e4, hint_seconds=100, jitter=n / 100) for n in range(100)}
    assert len(delays) == 100
    assert all(delay is not None and 100 <= delay <= 125 for delay in delays)


def test_at_the_very_end_there_is_no_storm_of_ever_closer_attempts() -> None:
    for asked in (None, 5.0, 1e9):
        left, attempts = 30.0, 0
        while (delay := retry_delay(9, left_seconds=left, hint_seconds=asked, jitter=0.0)) is not None:
            left, attempts = left - delay, attempts + 1
        assert attempts <= 6
        assert left < 2 * BASE_SECONDS


def test_a_delivery_is_not_held_if_its_redelivery_would_be_too_late() -> None:
    assert retry_delay(0, left_seconds=10.0, hint_seconds=None, jitter=0.0, earliest_seconds=10.0) is None
    assert retry_delay(0, left_seconds=10.1, hint_seconds=None, jitter=0.0, earliest_seconds=10.0) == 10.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *(("7", 7.0), (" 7 ", 7.0), ("0", 0.0), ("1.5", 1.5), ("1000000000", 1e9), ("007", 7.0)),
        *((value, None) for value in ("", "soon", "-1", "+5", "1e3", "0x5", "nan", "inf", ".", "1.2.3", "7s")),
        *((value, None) for value in ("٣", "²", "9" * 400, "1 2", "Fri, 99 Xyz 2027 00:00:00 GMT")),
        (None, None),
        (format_datetime(datetime.fromtimestamp(NOW + 90, UTC), usegmt=True), 90.0),
        (format_datetime(datetime.fromtimestamp(NOW - 90, UTC), usegmt=True), 0.0),
        ("Fri, 15 Jan 2027 08:01:30 -0000", 90.0),
        ("Friday, 15-Jan-27 08:01:30 GMT", 90.0),
        ("Fri Jan 15 08:01:30 2027", 90.0),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_garbage_is_ignored(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


DATES = st.from_regex(
    r"(Mon|Fri|X), [0-9]{1,3} (Jan|Feb|Q) [0-9]{1,6} [0-9]{1,3}:[0-9]{1,3}(:[0-9]{2,3})? ?(GMT|[+-][0-9]{4,9}|)",
    fullmatch=True,
)


@given(value=st.text(max_size=40) | DATES | st.from_regex(r"[0-9.,:;+-]{0,30}", fullmatch=True))
def test_no_retry_after_header_crashes_or_gives_a_negative_delay(value: str) -> None:
    seconds = parse_retry_after(value, NOW)
    assert seconds is None or (seconds >= 0 and math.isfinite(seconds))


@given(jitters=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=40))
def test_each_pause_is_the_upper_half_of_its_ceiling(jitters: list[float]) -> None:
    given = iter(jitters)
    retry = Backoff(0.05, 2.0, lambda: next(given))
    for n in range(len(jitters)):
        ceiling = min(2.0, 0.05 * 2**n)
        assert ceiling / 2 <= retry.next_seconds() <= ceiling


def test_success_brings_back_the_first_pause() -> None:
    retry = Backoff(1.0, 60.0, lambda: 0.0)
    assert [retry.next_seconds() for _ in range(3)] == [0.5, 1.0, 2.0]
    retry.reset()
    assert retry.next_seconds() == 0.5


def test_an_outage_of_an_hour_costs_at_most_one_try_a_second() -> None:
    """No busy loop: the least pauses of 3,600 tries last longer than an hour."""
    retry = Backoff(jitter=lambda: 0.0)
    assert sum(retry.next_seconds() for _ in range(3_610)) >= 3_600


def test_a_backoff_reports_whether_the_last_call_failed() -> None:
    retry = Backoff()
    seen = [retry.has_failed]
    retry.next_seconds()
    seen.append(retry.has_failed)
    retry.reset()
    assert [*seen, retry.has_failed] == [False, True, False]


async def test_a_backoff_sleeps_for_its_pause() -> None:
    retry = Backoff(0.001, 0.002, lambda: 0.0)
    await retry.pause()
    assert retry.has_failed


def growing_pauses(source: str) -> list[int]:
    """Lines that grow a pause by multiplication: `min(cap, 2 * pause)`, or `pause *= 2`."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name("min"), args=[*arguments]):
                products = [each for each in arguments if isinstance(each, ast.BinOp)]
            case ast.AugAssign(target=ast.Name() | ast.Attribute(), op=ast.Mult()):
                products = [ast.BinOp(node.target, node.op, node.value)]
            case _:
                continue
        if any(isinstance(each.op, ast.Mult | ast.Pow) and "pause" in ast.unparse(each) for each in products):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("pause = min(2 * pause, 5)", [1]),
        ("self.pause_seconds = min(CAP, self.pause_seconds * 1.5)", [1]),
        ("pause_seconds *= 2", [1]),
        ("size = min(2 * size, 5)", []),
        ("pause = min(pause, left)", []),
    ],
)
def test_a_pause_that_grows_is_found(source: str, lines: list[int]) -> None:
    assert growing_pauses(source) == lines


def test_pauses_grow_in_the_backoff_module_only() -> None:
    sources = {path: path.read_text() for path in Path(__file__).parents[1].glob("handlers/**/*.py")}
    assert len(sources) > 100
    assert [path.name for path, text in sources.items() if growing_pauses(text)] == []
