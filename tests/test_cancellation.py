"""A cancellation ends its task, also if the awaited call swallowed it."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from handlers.cancellation import end_if_cancelled

ROOT = Path(__file__).parents[1]


async def swallowing(reached: asyncio.Event, *, error: Exception | None = None) -> str:
    """Like the Redis library sometimes: a cancellation becomes a reply or a connection error."""
    reached.set()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        if error is not None:
            raise error from None
    return "a reply"


@pytest.mark.parametrize("error", [None, ConnectionResetError()])
async def test_a_cancellation_that_was_swallowed_still_ends_the_task(error: Exception | None) -> None:
    reached, went_on = asyncio.Event(), False

    async def work() -> None:
        nonlocal went_on
        try:
            await swallowing(reached, error=error)
        except ConnectionResetError:
            end_if_cancelled()
        end_if_cancelled()
        went_on = True

    task = asyncio.create_task(work())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not went_on


async def test_a_timeout_that_was_swallowed_is_still_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await swallowing(asyncio.Event())
            end_if_cancelled()


async def test_requests_that_were_not_cancelled_continue() -> None:
    end_if_cancelled()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()
    end_if_cancelled()  # the timeout is over


def unguarded_loops(source: str) -> Iterator[str]:
    """The functions with a loop that may never end by itself and awaits more than asyncio, but never checks."""
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.AsyncFunctionDef):
            continue
        for loop in ast.walk(function):
            if isinstance(loop, ast.While) and ast.unparse(loop.test) == "True":
                inside = list(ast.walk(loop))
                awaited = [ast.unparse(node.value) for node in inside if isinstance(node, ast.Await)]
                is_foreign = any(not call.startswith("asyncio.") for call in awaited)
                if is_foreign and "end_if_cancelled()" not in ast.unparse(loop):
                    yield function.name


def test_every_endless_loop_notices_a_cancellation_that_was_swallowed() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((ROOT / "handlers").rglob("*.py"))
        for name in unguarded_loops(path.read_text())
    }
    assert found == set()


@pytest.mark.parametrize(
    ("body", "is_found"),
    [
        ("await asyncio.sleep(1)", False),
        ("await self.look()", True),
        ("await self.look(); end_if_cancelled()", False),
        ("if await self.look(): return", True),
        ("if await self.look(): return\n        end_if_cancelled()", False),
    ],
)
def test_a_loop_that_swallows_its_cancellation_is_found(body: str, is_found: bool) -> None:
    source = f"async def run(self):\n    while True:\n        {body}\n"
    assert list(unguarded_loops(source)) == (["run"] if is_found else [])
