"""Durations as people write them, and nothing else."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.number_text import duration_text, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("1h30m", 5400),
        ("2d", 172_800),
        ("250ms", 0.25),
        ("10", 10),
        ("1.5h", 5400),
        (".5s", 0.5),
    ],
)
def test_a_duration_is_what_a_person_writes(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "h", "1x", "1h-1m", "-5", "1 week", "1h 5", "1e3", "9" * 400, f"{'9' * 400}s"])
def test_an_invalid_text_is_not_a_duration(text: str) -> None:
    assert parse_duration(text) is None


@given(st.one_of(st.text(max_size=30), st.text("0123456789.mshd\u0663 ", max_size=400)))
def test_every_duration_is_a_finite_number_of_seconds(text: str) -> None:
    seconds = parse_duration(text)
    assert seconds is None or (seconds >= 0 and math.isfinite(seconds))


def test_a_duration_shows_its_two_largest_units() -> None:
    given = [0, 42, 190, 7500, 356_400]
    assert [duration_text(seconds) for seconds in given] == ["0s", "42s", "3m10s", "2h05m", "4d03h"]
