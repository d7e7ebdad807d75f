"""The memory limit comes from the container, and the byte budget follows from it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from handlers.byte_budget import WITHOUT_LIMIT, derived_budget, memory_limit, needed_memory
from handlers.contract.errors import InvalidSetting
from handlers.settings.settings import load_settings


@pytest.mark.parametrize(
    ("texts", "limit"),
    [
        (["1073741824\n"], 1 << 30),
        (["max\n", "536870912\n"], 1 << 29),
        (["9223372036854771712\n"], None),  # version 1 without a limit
        (["max\n"], None),
        (["1073741824", "536870912"], 1 << 29),
        ([], None),
    ],
)
def test_the_least_limit_counts(tmp_path: Path, texts: list[str], limit: int | None) -> None:
    files = [tmp_path / f"{number}" for number in range(3)]
    for file, text in zip(files, texts, strict=False):
        file.write_text(text)
    assert memory_limit(files) == limit


def test_the_default_budget_fits_the_manifests_limit_and_holds_the_largest_bodies() -> None:
    settings = load_settings({})
    budget = derived_budget(WITHOUT_LIMIT, least=settings.least_in_flight_bytes)
    assert settings.least_in_flight_bytes < budget
    assert needed_memory(budget) <= WITHOUT_LIMIT


def test_a_budget_without_room_for_one_request_and_one_answer_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="MAX_IN_FLIGHT_BYTES"):
        load_settings({"MAX_IN_FLIGHT_BYTES": "1000000"})
    settings = load_settings({"MAX_IN_FLIGHT_BYTES": "50000000"})
    assert settings.max_in_flight_bytes == 50_000_000


BESIDE_THREADS = """
import resource, sys, threading
from handlers.byte_budget import save_address_space

taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = taken + 500 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
if sys.argv[1] == "saved":
    save_address_space()
has_heap, may_end = threading.Barrier(7), threading.Event()

def allocate():
    text = [str(number) * 300 for number in range(100)]
    has_heap.wait()
    may_end.wait()

for _ in range(6):
    threading.Thread(target=allocate, daemon=True).start()
has_heap.wait()
bytes(300 * 2**20)
"""


@pytest.mark.parametrize(("how", "fits"), [("saved", True), ("unsaved", False)])
def test_heaps_of_threads_leave_addresses_for_a_large_body_under_ulimit(how: str, fits: bool) -> None:
    command = [sys.executable, "-c", BESIDE_THREADS, how]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "16"}  # the default with two cores
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode == 0) == fits, done.stderr
    assert fits or "MemoryError" in done.stderr
