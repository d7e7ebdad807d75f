"""Each reader of untrusted bytes takes a time per byte that does not grow with the text."""

from __future__ import annotations

import contextlib
import time

import pytest

from tests.contract.test_linear import READERS, REFUSALS, open_forms

SIZES = (64_000, 1_000_000, 10_000_000)
FACTOR = 3.0
_FIXED_SECONDS = 0.002
"""What a call costs whatever the text is, and what a loaded machine adds to a short one."""


def fastest_seconds(reader: str, text: bytes, repeats: int) -> float:
    """CPU time of this thread: other work on the machine does not count."""
    found = []
    for _ in range(repeats):
        began_at = time.thread_time()
        with contextlib.suppress(*REFUSALS):
            READERS[reader](text)
        found.append(time.thread_time() - began_at)
    return min(found)


@pytest.mark.bench
@pytest.mark.timeout(300)
@pytest.mark.parametrize("form", open_forms(8))
def test_the_time_per_byte_is_the_same_from_64_kb_to_10_mb(form: str) -> None:
    slower = []
    texts = [open_forms(size)[form] for size in SIZES]
    for reader in READERS:
        least, *larger = [
            (len(text), fastest_seconds(reader, text, 5 if len(text) < 1_000_000 else 1)) for text in texts
        ]
        allowed = FACTOR * max(least[1], _FIXED_SECONDS) / least[0]
        slower += [
            f"{reader}: {size} bytes took {seconds:.3f} s"
            for size, seconds in larger
            if seconds / size > allowed
        ]
    assert slower == []
