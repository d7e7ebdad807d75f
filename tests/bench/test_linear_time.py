"""The time per byte of each reader of untrusted bytes does not grow with the text."""

from __future__ import annotations

import contextlib
import time

import pytest

from tests.contract.test_linear import READERS, REFUSALS, open_forms

SMALL, LARGE = 100_000, 2_000_000
FACTOR = 3.0
"""Most times that a byte of the large text may take longer; with quadratic time it is 20 times."""
_FIXED_SECONDS = 0.000_5
"""The fixed cost of a call, and the noise of a short one."""


def fastest_seconds(reader: str, text: bytes, repeats: int, enough: float = 0.0) -> float:
    """CPU seconds of this thread, the least of at most `repeats` calls; stops early at `enough`."""
    least = float("inf")
    for _ in range(repeats):
        began_at = time.thread_time()
        with contextlib.suppress(*REFUSALS):
            READERS[reader](text)
        least = min(least, time.thread_time() - began_at)
        if least <= enough:
            break
    return least


@pytest.mark.bench
@pytest.mark.parametrize("form", open_forms(8))
def test_the_time_per_byte_does_not_grow_with_the_size_of_a_text(form: str) -> None:
    small, large = open_forms(SMALL)[form], open_forms(LARGE)[form]
    slower = []
    for reader in READERS:
        per_byte = max(fastest_seconds(reader, small, 5), _FIXED_SECONDS) / len(small)
        allowed = FACTOR * per_byte * len(large)
        seconds = fastest_seconds(reader, large, 3, allowed)
        if seconds > allowed:
            slower.append(f"{reader}: {len(large)} bytes took {seconds:.3f} s, allowed {allowed:.3f} s")
    assert slower == []
