"""The memory limit comes from the container, and the byte budget follows from it."""

from __future__ import annotations

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
