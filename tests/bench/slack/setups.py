"""The compared setups: every gate with sensible settings, for a plain gateway and one with priorities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

POOL: Final = "demo-pool"
SATURATION: Final = "llm_d_epp_flow_control_pool_saturation"
QUEUED_OBJECTIVE: Final = "batch"
TENANT: Final = "team-a"


@dataclass(frozen=True, slots=True)
class Setup:
    """One run; `gate` builds type and parameters from the run's `Addresses`.

    With `has_priorities`, the gateway evicts queued requests when real-time ones need their slots. `controller` names
    the outside controller that the gate follows.
    """

    name: str
    gate_type: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    has_queue: bool = True
    has_priorities: bool = False
    has_prometheus: bool = False
    refresh_seconds: float = 0.2
    controller: str = ""


def scrape(**more: Any) -> dict[str, Any]:
    """`endpoint-scrape` of the router's saturation."""
    return {"url": "{gateway}/metrics", "metric": SATURATION, **more}


HEADROOM: Final = {"budget_means": "headroom"}
SCRAPE_HEADROOM: Final = scrape(**HEADROOM)

BASELINE: Final = Setup("no queue", has_queue=False)
NO_GATE: Final = Setup("no gate")
SCRAPED: Final = Setup("endpoint-scrape, headroom", "endpoint-scrape", SCRAPE_HEADROOM)
HELD_BACK: Final = Setup(
    "endpoint-scrape, headroom, 4 % held back",
    "endpoint-scrape",
    scrape(**HEADROOM, reading_lag_seconds=0.05, hold_back=0.04),
    refresh_seconds=0.1,
)
SCRAPED_SHARE: Final = Setup("endpoint-scrape, share", "endpoint-scrape", scrape())

PLAIN: Final = (
    BASELINE,
    NO_GATE,
    Setup("constant", "constant"),
    Setup("local-max-concurrency 12", "local-max-concurrency", {"limit": 12}),
    Setup(
        "redis-quota concurrency 12",
        "redis-quota",
        {"address": "{redis}", "limit": 12, "mode": "concurrency"},
    ),
    Setup("redis, controller", "redis", {"address": "{redis}"}, controller="budget"),
    Setup(
        "redis-leased-rate, controller",
        "redis-leased-rate",
        {"address": "{redis}", "control_key": "rate", "pool": POOL, "burst": 1},
        controller="rate",
    ),
    Setup(
        "prometheus-saturation, defaults",
        "prometheus-saturation",
        {"pool": POOL},
        has_prometheus=True,
        refresh_seconds=5,
    ),
    Setup(
        "prometheus-saturation, headroom",
        "prometheus-saturation",
        {"pool": POOL, "threshold": 1, "reading_lag_seconds": 1, **HEADROOM},
        has_prometheus=True,
    ),
    Setup(
        "prometheus-budget, share",
        "prometheus-budget",
        {"pool": POOL, "max_concurrency": 4},
        has_prometheus=True,
    ),
    Setup(
        "prometheus-query, headroom",
        "prometheus-query",
        {"query": f"1 - max({SATURATION})", "reading_lag_seconds": 1, **HEADROOM},
        has_prometheus=True,
    ),
    SCRAPED_SHARE,
    SCRAPED,
    HELD_BACK,
    Setup(
        "tier-priority-admission",
        "tier-priority-admission",
        {"saturation_gate": "endpoint-scrape", "saturation_gate_params": SCRAPE_HEADROOM},
    ),
    Setup(
        "wait-on-refuse, endpoint-scrape",
        "wait-on-refuse",
        {"gate": {"gate_type": "endpoint-scrape", "gate_params": SCRAPE_HEADROOM}},
    ),
    Setup("aimd", "aimd", {"max_window": 48}),
)
RECOMMENDED: Final = Setup(
    "endpoint-scrape, headroom, 2 % oversubscribed",
    "endpoint-scrape",
    scrape(**HEADROOM, reading_lag_seconds=0.05, hold_back=-0.02),
    has_priorities=True,
    refresh_seconds=0.1,
)
PRIORITIES: Final = (
    Setup("no gate", has_priorities=True),
    Setup("aimd", "aimd", {"max_window": 48}, has_priorities=True),
    Setup("endpoint-scrape, share", "endpoint-scrape", scrape(), has_priorities=True),
    Setup("endpoint-scrape, headroom", "endpoint-scrape", SCRAPE_HEADROOM, has_priorities=True),
    Setup(
        "endpoint-scrape, headroom, none held back",
        "endpoint-scrape",
        scrape(**HEADROOM, reading_lag_seconds=0.05, hold_back=0),
        has_priorities=True,
        refresh_seconds=0.1,
    ),
    RECOMMENDED,
    Setup(
        "composite: endpoint-scrape, aimd",
        "composite",
        {
            "gates": [
                {"gate_type": "endpoint-scrape", "gate_params": SCRAPE_HEADROOM},
                {"gate_type": "aimd", "gate_params": {"max_window": 48, "min_window": 8}},
            ]
        },
        has_priorities=True,
    ),
)
PICTURED: Final = (BASELINE, NO_GATE, SCRAPED_SHARE, HELD_BACK, PRIORITIES[0], RECOMMENDED)
"""The setups in the README's chart."""
SETUPS: Final = (*PLAIN, *PRIORITIES)


def filled(value: Any, addresses: Mapping[str, str]) -> Any:
    """`value` with `{name}` replaced by addresses, at any depth."""
    if isinstance(value, str):
        for name, address in addresses.items():
            value = value.replace("{" + name + "}", address)
        return value
    if isinstance(value, Mapping):
        return {key: filled(one, addresses) for key, one in value.items()}
    if isinstance(value, list):
        return [filled(one, addresses) for one in value]
    return value
