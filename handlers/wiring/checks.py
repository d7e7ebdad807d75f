"""Check settings and the servers that they name; nothing is changed.

A starting process stops at the first part that it cannot build. `all_faults` then checks every part, so that a user
can correct all faults at once. `run_checks` are those of `async-processor check`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from handlers.byte_budget import memory_limit
from handlers.contract.errors import InvalidSetting, SettingFaults
from handlers.contract.lenient_json import MALFORMED
from handlers.contract.masked_text import shown_value
from handlers.forward.gateway import Gateway
from handlers.forward.outcome import FAILURES, failure_reason
from handlers.forward.route import joined
from handlers.gates.gate import TIERS
from handlers.number_text import counted
from handlers.poller.priority import build_merge, check_objectives
from handlers.redis_store.admin.acl import RightsOptions, refused_commands, wrong_types
from handlers.redis_store.connection import STORE_FAILURES, Store, connect, durability_warnings, server_time
from handlers.redis_store.faults import explained, has_fix
from handlers.redis_store.opening import open_queue, open_retries
from handlers.redis_store.queue.queue import QueueOptions
from handlers.settings.environment import DEFAULT_GATEWAY
from handlers.settings.settings import (
    UNUSED_GATE_FIX,
    Settings,
    masked_url,
    memory_warnings,
    read_settings,
    unused_gates,
    without_faulty,
)
from handlers.telemetry.dependencies import GateState
from handlers.transport.failures import UnusableResponse
from handlers.transport.transport import TransportOptions
from handlers.wiring.credentials import file_token, gateway_tls, prometheus_tls, redis_options
from handlers.wiring.dispatch_door import check_event_sources
from handlers.wiring.forward_stack import gateway_of
from handlers.wiring.gates import GateEntry, ProcessGates, gate_entries, is_available
from handlers.wiring.metrics import check_tracing

if TYPE_CHECKING:
    from handlers.pubsub.channel import PubSubChannel
    from handlers.pubsub.publisher import Publisher


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


_TIMEOUT_SECONDS: Final = 10.0
"""Time limit of one part; longer if a setting allows more for a connection."""
_CLOCK_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 0.05
_SET_UP: Final = "async-processor pubsub setup creates it"

State = Literal["ok", "warning", "fault"]


class Finding(msgspec.Struct, frozen=True):
    """Result of one check, with the fix if it found a fault."""

    what: str
    state: State
    found: str
    fix: str = ""


Check = Callable[[Settings], Awaitable[list[Finding]]]


async def run_checks(settings: Settings, parts: Sequence[str]) -> list[Finding]:
    """The findings of `parts`, which are keys of `CHECKS`.

    Raises one `InvalidSetting` with all faults that would stop the start.
    """
    faults = SettingFaults()
    await find_faults(settings, faults)
    faults.raise_all()
    env = settings.env
    seconds = max(_TIMEOUT_SECONDS, env.redis_timeout_seconds, env.connect_timeout_seconds)
    found = await asyncio.gather(*(_bounded(part, CHECKS[part](settings), seconds) for part in parts))
    unused = [Finding(path, "warning", text, UNUSED_GATE_FIX) for path, text in unused_gates(settings).items()]
    return [*_names(settings), *_tiers(settings), *unused, *(finding for findings in found for finding in findings)]


async def _bounded(part: str, check: Awaitable[list[Finding]], seconds: float) -> list[Finding]:
    try:
        async with asyncio.timeout(seconds):
            return await check
    except TimeoutError:
        return [Finding(part, "fault", f"no answer in {seconds:g} s", "check network policies and proxies")]


def _names(settings: Settings) -> list[Finding]:
    """Warnings about ignored variables whose names resemble settings."""
    parts = [text.replace("; ", ": ").split(": ", 2) for text in settings.name_warnings]
    return [Finding(name, "warning", found, fix) for name, found, fix in parts]


def _tiers(settings: Settings) -> list[Finding]:
    """Warnings about unknown tiers, whose queues would silently be served last."""
    label = settings.tier_label
    entries = [(f"queues[{n}]", one.labels) for n, one in enumerate(settings.file.queues)]
    entries += [(f"topics[{n}]", one.labels) for n, one in enumerate(settings.file.topics)]
    fix = f"use one of {', '.join(TIERS)}; any other counts as batch"
    return [
        Finding(settings.place_of(f"{path}.labels.{label}"), "warning", shown_value(labels[label]), fix)
        for path, labels in entries
        if labels.get(label, "batch") not in TIERS
    ]


def default_parts(settings: Settings) -> list[str]:
    """The parts that these settings use, as keys of `CHECKS`."""
    parts = ["memory", "gateway", "redis"]
    if settings.env.handler_url:
        parts.append("handler")
    if settings.project_id:
        parts.append("pubsub")
    if settings.env.prometheus_url:
        parts.append("prometheus")
    if gate_entries(settings):
        parts.append("gates")
    return parts


async def _memory(settings: Settings) -> list[Finding]:
    """Check that a poller's byte budget fits into its memory limit."""
    limit, env = memory_limit(), settings.env
    used = {queue.worker_pool_id for queue in settings.queues}
    workers = sum(pool.workers or env.workers for pool in settings.pools if pool.id in used)
    fix = "raise the container's memory limit, or lower MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES or MAX_IN_FLIGHT_BYTES"
    found = (
        f"limit {f'{limit >> 20} MiB' if limit else 'none'}; a poller of {counted(workers, 'worker')} "
        f"holds at most {settings.max_in_flight_bytes >> 20} MiB of requests "
        f"(each up to {env.max_request_bytes >> 20} MiB) and answers (up to {env.max_response_bytes >> 20} MiB)"
    )
    warnings = memory_warnings(settings)
    return [Finding("memory", "warning", warnings[0], fix) if warnings else Finding("memory", "ok", found)]


async def _gateway(settings: Settings) -> list[Finding]:
    routes = settings.routes
    bases = sorted({routes.default.base_url, *(route.base_url for route in routes.by_queue.values())})
    found = [
        await _page(settings, f"gateway {masked_url(base)}", joined(base, "/v1/models"), "IGW_BASE_URL")
        for base in bases
    ]
    return [
        msgspec.structs.replace(one, fix=_DEFAULT_DNS) if base == DEFAULT_GATEWAY and one.found == "dns" else one
        for base, one in zip(bases, found, strict=True)
    ]


async def _handler(settings: Settings) -> list[Finding]:
    url = joined(settings.env.handler_url, "/readyz")
    return [await _page(settings, f"handler {masked_url(settings.env.handler_url)}", url, "HANDLER_URL")]


async def _prometheus(settings: Settings) -> list[Finding]:
    if not settings.env.prometheus_url:
        return [Finding("prometheus", "fault", "PROMETHEUS_URL is not set", "set it to the server that gates query")]
    url = joined(settings.env.prometheus_url, "/api/v1/query?query=1")
    client = Gateway(TransportOptions(max_response_bytes=65_536, ssl_context=prometheus_tls(settings)))
    token = file_token("PROMETHEUS_TOKEN_FILE", settings.env.prometheus_token_file)
    headers = {"authorization": f"Bearer {token()}"} if token else {}
    what = f"prometheus {masked_url(settings.env.prometheus_url)}"
    return [await _page(settings, what, url, "PROMETHEUS_URL", client=client, headers=headers, is_right=_is_prometheus)]


def _is_prometheus(body: bytes) -> bool:
    """Whether a response is one of Prometheus' API; a metrics page may answer any path."""
    try:
        return msgspec.json.decode(body, type=dict[str, object]).get("status") == "success"
    except MALFORMED:
        return False


async def _page(
    settings: Settings,
    what: str,
    url: str,
    setting: str,
    *,
    client: Gateway | None = None,
    headers: Mapping[str, str] | None = None,
    is_right: Callable[[bytes], bool] | None = None,
) -> Finding:
    gateway = client or gateway_of(settings)
    started_at = time.monotonic()
    try:
        response = await gateway.get(url, headers)
    except UnusableResponse as error:
        return Finding(what, "fault" if is_right else "ok", f"answers; the answer {error}")
    except FAILURES as error:
        reason = failure_reason(error)
        kind = "no_tls" if reason == "tls" and _is_plain_http(error) else reason
        fix = _UNREACHABLE[kind if kind in _UNREACHABLE else "connect"].format(setting)
        return Finding(what, "fault", reason, fix)
    finally:
        await gateway.aclose()
    seconds = time.monotonic() - started_at
    if response.status_code == 200 and is_right and not is_right(response.body):
        fix = f"set {setting} to the server's base URL, not to a metrics page"
        return Finding(what, "fault", "the answer is not one of the Prometheus API", fix)
    if response.status_code == 200:
        return Finding(what, "ok", f"answers in {seconds * 1000:.0f} ms")
    fix = f"check path and credentials in {setting}"
    return Finding(what, "fault", f"{url.rsplit('/', 1)[-1]} answers {response.status_code}", fix)


_NO_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"})


def _is_plain_http(error: BaseException) -> bool:
    """Whether TLS failed because the server does not speak it."""
    found: BaseException | None = error
    while found is not None:
        if any(reason in str(found) for reason in _NO_TLS):
            return True
        found = found.__cause__ or found.__context__
    return False


async def _gates(settings: Settings) -> list[Finding]:
    """Start every gate and check that its source has a value."""
    entries = gate_entries(settings)
    gates = ProcessGates(settings, entries)
    built = [(owner, gate) for owner in entries for gate in gates.at(owner)]
    try:
        await gates.start()
        for _ in range(round(settings.env.gate_source_timeout_seconds / _POLL_SECONDS)):
            if gates.are_available():
                break
            await asyncio.sleep(_POLL_SECONDS)
        return [
            _gate_finding(entries[owner], name, state) for owner, gate in built for name, state in _leaves(gate.state())
        ]
    finally:
        await gates.aclose()


def _gate_finding(entry: GateEntry, name: str, state: GateState) -> Finding:
    what = f"gate {entry.setting} (pool {entry.pool}) {name}"
    if not is_available(state):
        rule = f"; rule in force: {state.on_missing}" if state.on_missing else ""
        fix = "is the source running, and are its address and credentials right? From a pod: is egress allowed?"
        fix = next((text for start, text in _NO_VALUE.items() if state.why_missing.startswith(start)), fix)
        return Finding(what, "fault", f"{state.why_missing or 'no reading'}{rule}", fix)
    reading = f": {state.reading}" if state.reading else ""
    now = f"closed: {state.closed_because}" if state.closed_because else f"open{reading}"
    return Finding(what, "ok", f"budget {state.budget:.2f}, {now}")


def _leaves(state: GateState) -> Iterator[tuple[str, GateState]]:
    """Each gate inside combinators, or the gate itself, with its name: `composite[0] redis`."""
    if not state.inner or state.gate_type == "aimd":  # its inner states are bands, not gates
        yield state.gate_type, state
        return
    for at, inner in enumerate(state.inner):
        for name, leaf in _leaves(inner):
            yield f"{state.gate_type}[{at}] {name}", leaf


_NO_VALUE: Final = {
    "no series ": "compare metric, labels and url with the page",
    "the query has no result: ": "run the query in Prometheus: compare its metric names, labels and pool",
    "Prometheus refuses the query: ": "correct the query in gate_params",
}
"""The fix by the start of the reason for a missing reading (`handlers/gates/metric/`)."""


_DEFAULT_DNS: Final = (
    f"IGW_BASE_URL has its default, {DEFAULT_GATEWAY}, which does not resolve on this machine: set it to your gateway"
)
_UNREACHABLE: Final = {
    "connect": "is it running, and is {} right? From a pod: is egress to it allowed?",
    "dns": "the host name in {} does not resolve on this machine",
    "tls": "its certificate is not trusted: set the CA (GATEWAY_CA_FILE, PROMETHEUS_CA_FILE)",
    "no_tls": "the port answers without TLS: use http:// in {}, or the port that serves TLS",
    "timeout": "it accepts connections but does not answer: check {}",
}


async def _redis(settings: Settings) -> list[Finding]:
    redis = connect(redis_options(settings))
    what = f"redis {masked_url(settings.redis_url)}"
    try:
        started_at = time.time()
        server_seconds = await server_time(redis)
        round_trip_seconds = time.time() - started_at
        findings = [Finding(what, "ok", f"answers in {round_trip_seconds * 1000:.0f} ms")]
        findings.append(clock_finding(server_seconds, started_at, round_trip_seconds))
        findings += [Finding(what, "warning", warning, _DURABLE) for warning in await durability_warnings(redis)]
        for entry in settings.queues:
            findings += await _queue(settings, redis, entry.queue_name)
    except STORE_FAILURES as error:
        fix = "is it running, and is REDIS_URL right? From a pod: is egress to it allowed?"
        return [Finding(what, "fault", explained(error), "" if has_fix(error) else fix)]
    finally:
        await redis.aclose()
    return findings


_DURABLE: Final = "see keda/README.md: appendonly yes, maxmemory-policy noeviction"


def clock_finding(server_seconds: float, started_at: float, round_trip_seconds: float) -> Finding:
    """The difference between the server's clock and the local one.

    The server reads its clock at an unknown moment of the round trip, so half of the round trip is tolerated.
    """
    skew = server_seconds - (started_at + round_trip_seconds / 2)
    if abs(skew) <= _CLOCK_SECONDS + round_trip_seconds / 2:
        return Finding("clocks", "ok", f"{abs(skew) * 1000:.0f} ms apart")
    return Finding("clocks", "fault", f"{skew:+.1f} s apart", "synchronise both clocks (NTP): deadlines depend on them")


async def _queue(settings: Settings, redis: Store, name: str) -> list[Finding]:
    """Check the types of a queue's keys and a poller's rights.

    Scripts run once without effect.
    """
    cluster = redis_options(settings).is_cluster
    wrong = await wrong_types(redis, name, settings.retry_queue_name, settings.result_queue_name, cluster=cluster)
    if wrong:
        fix = "another program uses this key: choose another name for the queue, or remove the key"
        return [Finding(f"key {key}", "fault", f"is a {found}, not a {wanted}", fix) for key, found, wanted in wrong]
    options = QueueOptions(settings.retry_queue_name, settings.result_queue_name, cluster=cluster)
    queue = open_queue(redis, name, options)
    try:
        await queue.claim(0)
        await queue.reclaim(0, 1_000)
        await queue.renew([])
        await open_retries(redis, name, options).promote(0)
    except STORE_FAILURES as error:
        return [Finding(f"queue {name}", "fault", explained(error), "grant the ACL user what docs/redis.md lists")]
    refused = await refused_commands(
        redis, name, settings.retry_queue_name, settings.result_queue_name, cluster=cluster, options=_rights(settings)
    )
    if refused:
        found = f"may not {', '.join(refused[:4])}" + (" and more" if len(refused) > 4 else "")
        return [Finding(f"queue {name}", "fault", found, "grant the ACL user what docs/redis.md lists")]
    reported = "" if refused is not None else " (as far as this server reports them)"
    return [Finding(f"queue {name}", "ok", f"keys and rights as needed{reported}")]


def _rights(settings: Settings) -> RightsOptions:
    env, queues = settings.env, settings.queues
    return RightsOptions(
        is_per_request=env.result_per_request or any(queue.result_per_request for queue in queues),
        offloads_results=env.result_apart_bytes > 0,
        is_idempotent=env.idempotent_seconds > 0 or any(queue.idempotent_seconds for queue in queues),
    )


async def _pubsub(settings: Settings) -> list[Finding]:
    """Check that the topics and subscriptions in the settings exist."""
    from handlers.pubsub.publisher import Publisher
    from handlers.wiring.push_door import channel_of, check_topic_names

    check_topic_names(settings)
    env = settings.env
    topics = {
        settings.result_topic_id,
        env.dead_letter_topic_id,
        *(topic.result_topic_id for topic in settings.file.topics),
    }
    async with channel_of(settings) as channel:
        publisher = Publisher(channel)
        findings = [await _topic(publisher, topic) for topic in sorted(topics - {""})]
        findings += [
            await _subscription(channel, topic.subscriber_id, topic.ack_deadline_seconds or env.ack_deadline_seconds)
            for topic in settings.file.topics
        ]
    if not settings.result_topic_id:
        findings.append(Finding("RESULT_TOPIC_ID", "fault", "not set", "set it to the topic for results"))
    return findings


async def _topic(publisher: Publisher, topic: str) -> Finding:
    from handlers.pubsub.errors import PubSubError
    from handlers.pubsub.publisher import TopicState

    what = f"topic {topic}"
    try:
        state = await publisher.check(topic)
    except PubSubError as error:
        return Finding(what, "fault", str(error)[:200], "check PROJECT_ID and rights")
    match state:
        case TopicState.MISSING:
            return Finding(what, "fault", "does not exist", _SET_UP)
        case TopicState.HIDDEN:
            return Finding(what, "ok", "no right to read it; publishing may be allowed")
        case TopicState.PRESENT:
            return Finding(what, "ok", "exists")


async def _subscription(channel: PubSubChannel, name: str, wanted: float) -> Finding:
    """Check that the subscription exists, pushes, and has the `wanted` ack deadline."""
    from handlers.pubsub.channel import subscription_path
    from handlers.pubsub.errors import PubSubError

    what = f"subscription {name}"
    try:
        path = subscription_path(channel.options.project_id, name)
        found = await channel.call(
            path,
            lambda clients: clients.subscriber.get_subscription(
                subscription=path, retry=None, timeout=_TIMEOUT_SECONDS
            ),
            _TIMEOUT_SECONDS,
        )
    except PubSubError as error:
        return Finding(what, "fault", str(error)[:200], _SET_UP)
    endpoint, deadline = found.push_config.push_endpoint, found.ack_deadline_seconds
    if not endpoint:
        return Finding(what, "fault", "is a pull subscription", "set its push endpoint to the push door")
    if deadline < wanted:
        fix = f"set ACK_DEADLINE_SECONDS to {deadline}, or the subscription's to {wanted:g}"
        return Finding(what, "fault", f"ack deadline is {deadline} s", fix)
    return Finding(what, "ok", f"pushes to {masked_url(endpoint)}")


CHECKS: Final[dict[str, Check]] = {
    "memory": _memory,
    "gateway": _gateway,
    "redis": _redis,
    "handler": _handler,
    "pubsub": _pubsub,
    "prometheus": _prometheus,
    "gates": _gates,
}
