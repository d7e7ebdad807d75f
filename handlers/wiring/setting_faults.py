"""All faults of the settings that stop the start.

A starting process stops at the first part that it cannot build. `all_faults` then checks every part, so that a user
can correct all faults at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from handlers.contract.errors import InvalidSetting, SettingFaults
from handlers.poller.priority import build_merge, check_objectives
from handlers.settings.settings import Settings, read_settings, without_faulty
from handlers.wiring.credentials import file_token, gateway_tls, prometheus_tls
from handlers.wiring.dispatch_door import check_event_sources
from handlers.wiring.gates import ProcessGates, gate_entries
from handlers.wiring.metrics import check_tracing


async def all_faults(variables: Mapping[str, str], known: InvalidSetting) -> list[InvalidSetting]:
    """All faults of environment and file, and the `known` ones."""
    faults = SettingFaults()
    await find_faults(read_settings(variables, faults), faults)
    faults.add(known)
    return faults.found


async def find_faults(settings: Settings, faults: SettingFaults) -> None:
    """Add the faults of credentials, pools and gates that stop the start.

    Parts whose settings have known faults are skipped.
    """
    for names, check in _PARTS.items():
        if not faults.touch(*names):
            with faults.collected():
                check(settings)
    _check_pools(settings, faults)
    await _check_gates(without_faulty(settings, faults), faults)


_PARTS: Final[Mapping[tuple[str, ...], Callable[[Settings], object]]] = {
    ("GATEWAY_TOKEN_FILE",): lambda settings: file_token("GATEWAY_TOKEN_FILE", settings.env.gateway_token_file),
    ("GATEWAY_CA_FILE", "GATEWAY_CERT_FILE", "GATEWAY_KEY_FILE"): gateway_tls,
    ("PROMETHEUS_TOKEN_FILE",): lambda settings: file_token(
        "PROMETHEUS_TOKEN_FILE", settings.env.prometheus_token_file
    ),
    ("PROMETHEUS_CA_FILE",): prometheus_tls,
    ("REDIS_PASSWORD_FILE",): lambda settings: settings.redis_password,
    ("DISPATCH_TOKEN_FILE",): lambda settings: settings.dispatch_tokens,
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL"): check_tracing,
    (): check_event_sources,
}
"""Checks by the variables that they read."""


def _check_pools(settings: Settings, faults: SettingFaults) -> None:
    policy = settings.file.request_merge_policy
    checks: list[Callable[[], object]] = []
    if policy is not None:
        objectives = policy.parameters.lane_objectives
        checks.append(partial(build_merge, policy.type, "request_merge_policy.type"))
        checks.append(partial(check_objectives, objectives, "request_merge_policy.parameters.lane_objectives"))
    for number, pool in enumerate(settings.file.pools):
        path = f"pools[{number}]"
        checks.append(partial(check_objectives, pool.lane_objectives, f"{path}.lane_objectives"))
        if pool.merge_policy:
            checks.append(partial(build_merge, pool.merge_policy, f"{path}.merge_policy"))
    for check in checks:
        with faults.collected():
            check()


async def _check_gates(settings: Settings, faults: SettingFaults) -> None:
    entries = {
        owner: entry
        for owner, entry in gate_entries(settings).items()
        if not faults.touch(f"{entry.setting}.gate_type", f"{entry.setting}.gate_params")
    }
    gates = ProcessGates(settings)
    with faults.collected():
        gates.prepared(entries)
    await gates.aclose()
