"""Only the operator sets labels that rank a request, under any configured name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from handlers.settings.settings import load_settings
from handlers.wiring.gates import withheld_labels

FILE = {
    "queues": [{"queue_name": "q", "gate_type": "aimd", "gate_params": {"tier_label": "lane"}}],
    "pools": [
        {
            "id": "p",
            "gate_type": "composite",
            "gate_params": {
                "gates": json.dumps(
                    [{"gate_type": "tier-priority-admission", "gate_params": {"tier_label": "inner-lane"}}]
                )
            },
        }
    ],
    "request_merge_policy": {"type": "tier-priority", "parameters": {"tier_label": "merge-lane"}},
}
EVERY = {"classification", "tier", "lane", "inner-lane", "merge-lane"}


@pytest.mark.parametrize(
    ("allowed", "withheld"),
    [
        ("", EVERY),
        ("tier", EVERY - {"tier"}),
        ("classification, merge-lane", EVERY - {"classification", "merge-lane"}),
    ],
)
def test_every_label_that_settings_rank_by_is_withheld_unless_allowed(
    tmp_path: Path, allowed: str, withheld: set[str]
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(FILE))
    assert withheld_labels(load_settings({"CONFIG_FILE": str(path), "ALLOWED_LABELS": allowed})) == withheld
