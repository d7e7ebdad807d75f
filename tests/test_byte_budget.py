"""The byte budget: holders stay within it, waiters are served, everything is freed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from handlers.byte_budget import ByteBudget, ByteShare, HeldBytes, Holding


def test_room_is_given_in_the_order_in_which_it_was_asked_for() -> None:
    share = ByteShare(100)
    granted: list[str] = []
    first, large, small = Holding(share), Holding(share), Holding(share)
    assert first.ask(60, lambda: granted.append("first"))
    assert not large.ask(90, lambda: granted.append("large"))
    assert not small.ask(10, lambda: granted.append("small"))  # it fits, but was not first
    first.hold(0)
    assert granted == ["large", "small"]
    assert share.held == 100


def test_a_single_item_of_any_size_passes() -> None:
    share = ByteShare(10)
    assert share.has_room(1_000)
    holding = Holding(share)
    assert holding.ask(1_000, lambda: None)
    assert not share.has_room(1)


def test_a_withdrawn_request_for_bytes_does_not_block_later_ones() -> None:
    share = ByteShare(100)
    granted: list[str] = []
    first, large, small = Holding(share), Holding(share), Holding(share)
    first.ask(50, lambda: None)
    large.ask(90, lambda: granted.append("large"))
    small.ask(10, lambda: granted.append("small"))
    large.hold(0)
    assert granted == ["small"]


def test_requests_leave_room_for_answers() -> None:
    budget = ByteBudget(1_000)
    held = HeldBytes(budget, budget.requests.limit)
    assert not budget.requests.has_room(1)
    assert held.answer.ask(budget.answers.limit, lambda: None)
    shares = (budget.requests, budget.answers, budget.payloads, budget.results)
    assert sum(share.limit for share in shares) == 1_000


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["ask", "hold", "release"]), st.integers(1, 150))))
def test_held_bytes_are_bounded_and_all_are_freed(steps: list[tuple[int, str, int]]) -> None:
    """One request at a time may exceed the limit; otherwise only bytes held without asking may."""
    budget = ByteBudget(200)
    held = [HeldBytes(budget, 0) for _ in range(6)]
    granted = 0
    for number, step, size in steps:
        if step == "ask":
            before = budget.answers.held
            is_granted = held[number].answer.ask(size, lambda: None)
            granted += is_granted
            assert not is_granted or budget.answers.held <= max(budget.answers.limit, size, before)
        elif step == "hold":
            held[number].is_settled_with(size)
        else:
            held[number].release()
    for one in held:
        one.release()
    shares = (budget.requests, budget.answers, budget.payloads, budget.results)
    assert [share.held for share in shares] == [0, 0, 0, 0]
    assert held[0].answer.ask(10_000, lambda: None)
