"""`aimd`: the window follows the gateway's answers, band by band."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.gates.aimd import AimdGate, AimdParameters, Sign, Windows, sign_of
from handlers.gates.gate import BANDS, Feedback, Go, Hold, Refuse, band_of
from tests.gates.building import Clock, gate, request, sources

LOWEST = len(BANDS) - 1
OK = Feedback(200)
BARE_429 = Feedback(429)
SATURATED = Feedback(503, dropped_reason="rejected-saturated")


@pytest.mark.parametrize(
    ("answer", "sign"),
    [
        (Feedback(200), Sign.ACCEPTED),
        (Feedback(204), Sign.ACCEPTED),
        (Feedback(429), Sign.NO_CAPACITY),
        (Feedback(429, "rejected-saturated"), Sign.NO_CAPACITY),
        (Feedback(503, "rejected-saturated"), Sign.NO_CAPACITY),
        (Feedback(503, "rejected-ttl-expired"), Sign.EXPIRED),
        (Feedback(429, "evicted-priority"), Sign.NOTHING),
        (Feedback(503, "evicted"), Sign.NOTHING),
        (Feedback(429, "rejected-other"), Sign.NOTHING),
        (Feedback(500), Sign.NOTHING),
        (Feedback(503), Sign.NOTHING),
        (Feedback(400), Sign.NOTHING),
        (Feedback(None), Sign.NOTHING),
    ],
)
def test_responses_are_classified_by_reason_and_status(answer: Feedback, sign: Sign) -> None:
    assert sign_of(answer) is sign


@pytest.mark.parametrize(
    ("labels", "band"),
    [
        ({"classification": "reserved", "tier": "interactive"}, 0),
        ({"classification": "reserved", "tier": "async"}, 1),
        ({"classification": "reserved", "tier": "unheard-of"}, 2),
        ({"classification": "overflow", "tier": "interactive"}, 3),
        ({"classification": "?", "tier": "async"}, 4),
        ({}, 5),
    ],
)
def test_the_band_of_a_request(labels: dict[str, str], band: int) -> None:
    assert band_of(labels) == band


def windows(**options: Any) -> Windows:
    return Windows(AimdParameters(**options))


def test_slow_start_doubles_with_each_full_window_and_then_adds_one() -> None:
    found = windows(max_window=64)
    band = found.bands[LOWEST]
    band.threshold = 16
    sizes = []
    for _ in range(6):
        for _ in range(int(band.window)):
            found.accepted(LOWEST, sent_at=1, now=2, queue_seconds=None)
        sizes.append(round(band.window))
    assert sizes == [2, 4, 8, 16, 17, 18]


def test_a_flight_of_rejections_is_one_decrease() -> None:
    found = windows()
    band = found.bands[LOWEST]
    band.window = 40
    for _ in range(10):
        found.rejected(LOWEST, sent_at=5, now=6, retry_after_seconds=None)
    assert (band.window, band.threshold) == (20, 20)
    found.rejected(LOWEST, sent_at=7, now=8, retry_after_seconds=None)
    assert band.window == 10


def test_a_request_sent_before_a_decrease_does_not_grow_the_window() -> None:
    found = windows()
    band = found.bands[LOWEST]
    band.window = 10
    found.rejected(LOWEST, sent_at=5, now=6, retry_after_seconds=None)
    found.accepted(LOWEST, sent_at=5.5, now=7, queue_seconds=None)
    assert band.window == 5
    found.accepted(LOWEST, sent_at=6.5, now=8, queue_seconds=None)
    assert band.window == pytest.approx(5.2)


def test_a_rejection_shrinks_the_bands_below_and_holds_those_above() -> None:
    found = windows(hold_duration=1)
    for band in found.bands:
        band.window = 10
    found.rejected(3, sent_at=5, now=6, retry_after_seconds=None)
    assert [band.window for band in found.bands] == [10, 10, 10, 5, 5, 5]
    found.accepted(1, sent_at=6.1, now=6.5, queue_seconds=None)
    assert found.bands[1].window == 10, "held"
    found.accepted(1, sent_at=6.2, now=7.1, queue_seconds=None)
    assert found.bands[1].window > 10, "the hold is over"


def test_an_answer_below_ends_the_hold_above_if_it_was_sent_after_it() -> None:
    found = windows(hold_duration=100)
    found.rejected(5, sent_at=5, now=6, retry_after_seconds=None)
    found.accepted(4, sent_at=5.5, now=7, queue_seconds=None)
    assert found.bands[0].held_until == 106
    found.accepted(4, sent_at=6.5, now=7, queue_seconds=None)
    assert found.bands[0].held_until == 0
    assert found.bands[4].held_until == 106, "its own band is not below itself"


def test_retry_after_closes_the_band_and_those_below_until_then() -> None:
    found = windows()
    for band in found.bands:
        band.window = 8
    found.rejected(3, sent_at=5, now=10, retry_after_seconds=4)
    assert [found.room(band, 13.9) for band in range(6)] == [8, 8, 8, 0, 0, 0]
    assert [found.room(band, 14) for band in range(6)] == [8, 8, 8, 1, 1, 1]
    assert found.bands[5].threshold == 4, "slow start up to where the decrease left it"


def test_expiry_in_the_gateways_queue_is_a_gentle_decrease() -> None:
    found = windows()
    for band in found.bands:
        band.window = 10
    found.expired(4, sent_at=5, now=6)
    assert [band.window for band in found.bands] == [10, 10, 10, 10, 9, 10]
    assert found.bands[0].held_until == 7


@pytest.mark.parametrize(("queued", "window"), [(0.4, 11), (0.5, 10), (0.9, 10), (1.0, 9), (None, 11)])
def test_long_queueing_holds_and_then_shrinks_the_window(queued: float | None, window: float) -> None:
    found = windows(queue_duration_target=0.5)
    found.bands[2].window = 10
    found.accepted(2, sent_at=5, now=6, queue_seconds=queued)
    assert found.bands[2].window == pytest.approx(window)


events = st.tuples(
    st.sampled_from(["accepted", "rejected", "closed", "expired", "cap"]),
    st.integers(0, LOWEST),
    st.floats(0, 3),
    st.floats(0, 3),
)


@given(st.lists(events, max_size=200), st.floats(1, 4), st.floats(4, 64))
def test_a_window_stays_within_its_bounds_for_any_responses(
    steps: list[tuple[str, int, float, float]], least: float, most: float
) -> None:
    found = windows(min_window=least, max_window=most, increase=3)
    now = 10.0
    for kind, band, age, passed in steps:
        now += passed
        if kind == "accepted":
            found.accepted(band, now - age, now, None)
        elif kind == "expired":
            found.expired(band, now - age, now)
        elif kind == "cap":
            found.cap(band, age)
        else:
            found.rejected(band, now - age, now, 1.0 if kind == "closed" else None)
        assert all(least <= one.window <= most for one in found.bands)
        assert all(found.room(number, now + 1e6) >= 1 for number in range(6)), "always a probe"


def aimd(clock: Clock | None = None, **params: float | str) -> AimdGate:
    built = gate("aimd", params, sources(clock=clock) if clock else None)
    assert isinstance(built, AimdGate)
    return built


async def answered(built: AimdGate, answer: Feedback, request_id: str = "r") -> None:
    asked = request(request_id)
    verdict = await built.admit(asked)
    assert isinstance(verdict, Go)
    built.observe(asked, answer)
    await verdict.reservation.release()


async def test_overflow_is_refused_and_reserved_waits_when_the_window_is_full() -> None:
    built = aimd()
    reserved = {"classification": "reserved"}
    first = await built.admit(request("a"))
    assert isinstance(await built.admit(request("b")), Refuse)
    second = await built.admit(request("c", labels=reserved))
    assert isinstance(first, Go)
    assert isinstance(second, Go), "each band has its own window"
    held = await built.admit(request("d", labels=reserved))
    assert isinstance(held, Hold)
    waiting = asyncio.ensure_future(held.wait_open(time.time() + 600))
    await asyncio.sleep(0)
    await first.reservation.release()
    await asyncio.sleep(0)
    assert not waiting.done(), "another band's release is not for it"
    await second.reservation.release()
    assert await waiting


async def test_a_request_waiting_for_a_closed_band_is_admitted_when_it_reopens() -> None:
    built = aimd()
    await answered(built, Feedback(429, retry_after_seconds=0.05))
    assert await built.wait_open(time.time() + 60)
    assert built.room() == 1


async def test_a_band_stays_closed_for_the_time_of_retry_after() -> None:
    built = aimd()
    await answered(built, Feedback(429, retry_after_seconds=600))
    assert built.room() == 0
    assert "Retry-After" in built.state().inner[-1].why_closed
    assert not await built.wait_open(time.time() + 0.01)


async def test_the_window_grows_with_answers_and_halves_with_a_rejection() -> None:
    clock = Clock()
    built = aimd(clock)
    for number in range(9):
        clock.now += 1
        await answered(built, OK, str(number))
    assert built.room() == 10
    clock.now += 1
    await answered(built, SATURATED)
    assert built.room() == 5
    (band,) = [one for one in built.state().inner if one.label == BANDS[LOWEST]]
    assert band.figures == {"aimd_window": 5, "aimd_ssthresh": 5, "aimd_inflight": 0}


@pytest.mark.parametrize(
    "answer", [Feedback(None), Feedback(500), Feedback(503), Feedback(404), Feedback(429, "evicted")]
)
async def test_errors_do_not_change_the_window(answer: Feedback) -> None:
    clock = Clock()
    built = aimd(clock)
    for _ in range(3):
        clock.now += 1
        await answered(built, OK)
    clock.now += 1
    await answered(built, answer)
    assert built.room() == 4


async def test_feedback_of_a_request_that_was_not_admitted_is_ignored() -> None:
    built = aimd()
    built.observe(request("other"), BARE_429)
    assert built.room() == 1


async def test_the_gateways_headroom_caps_the_window() -> None:
    clock = Clock()
    built = aimd(clock)
    for _ in range(20):
        clock.now += 1
        await answered(built, OK)
    clock.now += 1
    await answered(built, Feedback(200, band_headroom=6))
    assert 6 <= built.room() <= 8


async def test_the_window_converges_to_a_fixed_capacity() -> None:
    """One second of requests; the gateway accepts 20 at a time and rejects the rest."""
    clock, rng = Clock(), random.Random(3)
    built = aimd(clock)
    running: list[tuple[float, str, Go]] = []
    used: list[int] = []
    number = 0
    for step in range(4_000):
        clock.now += 0.05
        for ends_at, name, one in [one for one in running if one[0] <= clock.now]:
            built.observe(request(name), OK)
            await one.reservation.release()
            running.remove((ends_at, name, one))
        while built.room() > 0:
            number += 1
            verdict = await built.admit(request(str(number)))
            assert isinstance(verdict, Go)
            if len(running) >= 20:
                built.observe(request(str(number)), BARE_429)
                await verdict.reservation.release()
                break
            running.append((clock.now + rng.uniform(0.8, 1.2), str(number), verdict))
        if step > 1_000:
            used.append(len(running))
    assert max(used) <= 20
    assert sum(used) / len(used) > 14, "on average over 70 % of what there is"
