"""docs/adding-a-gate.md: its example is a gate, and what it names exists."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

import handlers.gates.parameters
from handlers.gates.gate import Gate
from handlers.gates.metric.reading_gate import ReadingGate, ReadingParameters, Rule
from handlers.gates.parameters import parameter, parse_parameters, real, string
from handlers.gates.sources import GateSources, MetricSample

PAGE = (Path(__file__).parents[2] / "docs" / "adding-a-gate.md").read_text(encoding="utf-8")


async def test_the_example_is_a_gate_that_works(redis: Redis, from_redis: GateSources) -> None:
    names: dict[str, Any] = {
        "__name__": __name__,
        "dataclass": dataclass,
        "real": real,
        "parameter": parameter,
        "string": string,
        "GateSources": GateSources,
        "ReadingGate": ReadingGate,
        "ReadingParameters": ReadingParameters,
        "Rule": Rule,
        "MetricSample": MetricSample,
    }
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(example, names)
    parameters = parse_parameters(names["NightShiftParameters"], "night-shift", {"address": "a"}, "x")
    await redis.set("night-share", "0.5")
    built = names["NightShiftGate"](parameters, from_redis)
    await built.start()
    assert built.budget() == 0.5
    await built.aclose()


def test_every_method_and_parameter_kind_that_it_names_exists() -> None:
    methods = re.findall(r"^\|[^|]*\| `(\w+)\(", PAGE, re.MULTILINE)
    assert {"budget", "admit", "observe"} <= set(methods)
    assert [name for name in methods if not hasattr(Gate, name)] == []
    (kinds,) = re.findall(r"names what it accepts \((.*?)\)", PAGE, re.DOTALL)
    known = {*dir(handlers.gates.parameters), "inner_gate"}
    assert [name for name in re.findall(r"`(\w+)`", kinds) if name not in known] == []
