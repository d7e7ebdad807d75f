"""All environment variables, with types, bounds, defaults and descriptions.

A variable has the name of its field in upper case. `docs/settings.md` is generated from this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from handlers.contract.accepted import about, described, known_fields, nearest, type_at, types_of, value_at
from handlers.contract.errors import InvalidSetting, SettingFaults
from handlers.contract.lenient_json import MAX_REQUEST_BYTES
from handlers.contract.masked_text import shown_value
from handlers.forward.route import DEFAULT_PATH, FAIRNESS_HEADER, OBJECTIVE_HEADER

DEFAULT_GATEWAY = (
    "http://infra-inference-scheduling-inference-gateway-istio.llm-d-inference-scheduler.svc.cluster.local:80"
)

Port = Annotated[int, Meta(ge=0, le=65_535)]


class Environment(msgspec.Struct, frozen=True, kw_only=True, rename="upper"):
    """The variables as typed values. An empty variable counts as unset."""

    # --- the gateway
    igw_base_url: Annotated[str, about("Base URL of the inference gateway.")] = DEFAULT_GATEWAY
    request_path_url: Annotated[str, about("Path appended to `IGW_BASE_URL`; a queue or request may set its own.")] = (
        DEFAULT_PATH
    )
    inference_objective: Annotated[str, about("Inference objective of requests whose queue does not set one.")] = ""
    inference_objective_header: Annotated[
        str, about("Header that carries the inference objective; older gateways use `x-gateway-inference-objective`.")
    ] = OBJECTIVE_HEADER
    fairness_header: Annotated[str, about("Header that carries the tenant.")] = FAIRNESS_HEADER
    fairness_disabled: Annotated[bool, about("Send no fairness header.")] = False
    fairness_attribute: Annotated[str, about("Metadata field that names the tenant.")] = "userid"
    allowed_endpoints: Annotated[
        str,
        about(
            "Comma-separated paths that a request's `endpoint` may name; a path that ends in `/` allows "
            "all paths below it."
        ),
    ] = "/v1/"
    allowed_headers: Annotated[
        str,
        about(
            "Comma-separated headers that a request may send to the gateway, in addition to the default "
            "list in SECURITY.md. `x-team-*` matches a prefix. Headers for credentials, identity, routing and "
            "priority need their full names."
        ),
    ] = ""
    allow_request_authorization: Annotated[
        bool, about("Forward a request's own `Authorization` header to the gateway.")
    ] = False
    request_timeout_seconds: Annotated[float, about("Timeout of one attempt.", gt=0, le=86_400)] = 600.0
    connect_timeout_seconds: Annotated[float, about("Timeout for connecting.", gt=0, le=600)] = 10.0
    connection_idle_seconds: Annotated[
        float,
        about(
            "Idle time after which a connection to gateway or handler is closed. Keep it below the server's own limit.",
            ge=0,
            le=3_600,
        ),
    ] = 4.0
    circuit_breaker: Annotated[
        bool,
        about("Open the circuit while the gateway fails: one call per second is sent, the other requests stay queued."),
    ] = True
    retry_budget: Annotated[
        float, about("Retries allowed per final result, in addition to one per second; 0: unlimited.", ge=0, le=10)
    ] = 0.25
    max_request_bytes: Annotated[int, about("Largest request body.", ge=1_024)] = MAX_REQUEST_BYTES
    max_response_bytes: Annotated[
        int, about("Largest response body; a larger one is a final `INFERENCE_ERROR`.", ge=1_024)
    ] = 8_000_000
    gateway_ca_file: Annotated[str, about("CA that signed the gateway's certificate (PEM).")] = ""
    gateway_cert_file: Annotated[str, about("Client certificate for the gateway (PEM).")] = ""
    gateway_key_file: Annotated[str, about("Key of the client certificate (PEM).")] = ""
    gateway_token_file: Annotated[
        str, about("File with a bearer token for the gateway; read again when it changes.")
    ] = ""

    # --- Redis
    redis_url: Annotated[
        str, about("URL of Redis: `redis://` or `rediss://`, also with `+sentinel` or `+cluster`.")
    ] = "redis://localhost:6379"
    redis_username: Annotated[str, about("ACL user at Redis.")] = ""
    redis_password: Annotated[str, about("Password at Redis; prefer `REDIS_PASSWORD_FILE`.")] = ""
    redis_password_file: Annotated[str, about("File with the password at Redis.")] = ""
    redis_ca_file: Annotated[str, about("CA that signed the certificate of Redis (PEM).")] = ""
    redis_cert_file: Annotated[str, about("Client certificate (PEM).")] = ""
    redis_key_file: Annotated[str, about("Key of the client certificate (PEM).")] = ""
    redis_timeout_seconds: Annotated[
        float,
        about(
            "Longest time to connect to Redis, and longest time without data during a command, which is then retried.",
            ge=0.1,
            le=60,
        ),
    ] = 2.0
    request_queue_name: Annotated[str, about("Sorted set of pending requests.")] = "request-sortedset"
    retry_queue_name: Annotated[str, about("Sorted set of requests waiting for a retry.")] = "retry-sortedset"
    result_queue_name: Annotated[str, about("List to which results are written.")] = "result-list"
    allowed_labels: Annotated[
        str,
        about(
            "Comma-separated labels (`classification`, `tier`) that a request may set itself in "
            "`internal.labels`. They choose its priority class (lane). Unset: only queues and gates set them."
        ),
    ] = ""
    allowed_results: Annotated[
        str,
        about(
            "Comma-separated lists (Pub/Sub: topics) that a request may name for its result; `*` matches "
            "any characters. A name that does not exist, such as `-`, allows no list. Unset: lists with `result` in "
            "their name, and any topic of the project."
        ),
    ] = ""
    result_per_request: Annotated[
        bool, about("Write each result to its own list `<results>:result-of:<id>`, which expires.")
    ] = False
    idempotent_seconds: Annotated[
        int,
        about(
            "Do not run a duplicate of a live request, or of one that finished less than this many seconds ago; "
            "0: off.",
            ge=0,
        ),
    ] = 0
    result_apart_bytes: Annotated[
        int, about("Responses of at least this many bytes are offloaded: stored in separate keys; 0: none.", ge=0)
    ] = 0
    result_apart_seconds: Annotated[
        int, about("Lifetime of an offloaded response if its result list does not expire.", ge=1)
    ] = 604_800
    wait_replicas: Annotated[int, about("Replicas that must confirm an ack (`WAIT`).", ge=0, le=10)] = 0

    # --- the poller
    handler_url: Annotated[
        str, about("URL of the dispatch door; empty: the poller runs the handler in its own process.")
    ] = ""
    workers: Annotated[int, about("Maximum number of requests in flight at once.", ge=1, le=100_000)] = 64
    max_in_flight_bytes: Annotated[
        int,
        about(
            "Maximum bytes of requests and responses in a poller or handler; 0: derived from its memory limit.",
            ge=0,
        ),
    ] = 0
    poll_interval_ms: Annotated[int, about("Interval between polls of an idle queue.", ge=1, le=60_000)] = 20
    lease_seconds: Annotated[
        float, about("Duration of the lease on a claim, or on a push that is being handled.", ge=0.1, le=3_600)
    ] = 15.0
    heartbeat_seconds: Annotated[float, about("Interval between renewals of leases.", ge=0.05, le=600)] = 5.0
    reclaim_seconds: Annotated[
        float, about("Interval between scans for claims of crashed pollers.", ge=0.05, le=600)
    ] = 2.0
    max_attempts: Annotated[
        int,
        about(
            "Maximum number of attempts of a queued request. Its result is then the last response, or "
            "`UNDELIVERABLE`. At one attempt per minute, the default lasts a week.",
            ge=1,
        ),
    ] = 10_000
    max_deadline_seconds: Annotated[
        float, about("Longest accepted time to a queued request's deadline; the default is a century.", gt=0)
    ] = 3_153_600_000.0
    max_deaths: Annotated[
        int, about("A request is dead-lettered when its pollers crashed or lost its lease this often.", ge=1, le=1_000)
    ] = 5
    shutdown_grace_seconds: Annotated[
        float, about("Longest time that a stopping process waits for its requests to finish.", ge=0, le=86_400)
    ] = 610.0
    status_token_file: Annotated[
        str, about("File with tokens that allow the status page to requeue or drop dead letters; empty: read-only.")
    ] = ""
    status_hosts: Annotated[
        str,
        about(
            "Comma-separated host names of the status page, in addition to loopback and the address it "
            "listens on; requests for other hosts get 421."
        ),
    ] = ""
    metrics_token: Annotated[
        str, about("Bearer token that a handler's `/metrics` requires; empty: the page is disabled.")
    ] = ""
    metrics_token_file: Annotated[
        str, about("File with bearer tokens for `/metrics`, one per line; all are accepted.")
    ] = ""
    metrics_port: Annotated[int, about("Port of the poller's health and metrics pages.", ge=0, le=65_535)] = 9090

    # --- the doors
    host: Annotated[str, about("Address to listen on.")] = "0.0.0.0"  # noqa: S104  # a pod's only interface
    port: Annotated[int, about("Port of the handler (Knative sets it).", ge=0, le=65_535)] = 8080
    function_target: Annotated[Literal["dispatch", "pubsub_push"], about("Door that this process serves.")] = "dispatch"
    receive_timeout_seconds: Annotated[
        float, about("Longest time in which a request to a door must arrive completely.", gt=0, le=600)
    ] = 30.0
    dispatch_auth: Annotated[
        Literal["token", "none"], about("`none`: the dispatch door accepts events without a token and logs no warning.")
    ] = "token"
    dispatch_token: Annotated[str, about("Bearer token between poller and dispatch door.")] = ""
    dispatch_token_file: Annotated[
        str, about("File with dispatch tokens, one per line; the poller sends the first, the door accepts all.")
    ] = ""

    event_data: Annotated[
        Literal["request", "payload"],
        about("Data of events from sources other than the poller: a request, or only its payload."),
    ] = "request"
    event_id_from: Annotated[
        str, about("CloudEvent attribute, or `header:<name>`, that has the id if the data has none.")
    ] = ""
    event_tenant_from: Annotated[
        str, about("CloudEvent attribute, or `header:<name>`, that has the tenant; a tenant in the data is ignored.")
    ] = ""
    event_deadline_from: Annotated[
        str, about("CloudEvent attribute, or `header:<name>`, that has the deadline if the data has none.")
    ] = ""
    event_deadline_seconds: Annotated[
        float,
        about(
            "Seconds from an event's `time` to its deadline, if the event has no deadline; 0: no default.",
            ge=0,
            le=31_536_000,
        ),
    ] = 0.0
    k_sink: Annotated[
        str, about("URL to which results of events from other sources are sent as CloudEvents (set by Knative).")
    ] = ""
    k_ce_overrides: Annotated[
        str, about('Extensions of the CloudEvents to `K_SINK`: `{"extensions": {…}}` (set by Knative).')
    ] = ""
    k_ca_certs: Annotated[str, about("CA that signed the sink's certificate (PEM text).")] = ""

    readiness: Annotated[
        Literal["process", "dependencies"],
        about("`dependencies`: a handler is not ready while its gateway, topic, dedup store or gates fail."),
    ] = "process"

    # --- Pub/Sub
    project_id: Annotated[str, about("Google Cloud project of the topics.")] = ""
    result_topic_id: Annotated[str, about("Topic to which results are published.")] = ""
    dead_letter_topic_id: Annotated[str, about("Topic for deliveries without a readable id.")] = ""
    pubsub_emulator_host: Annotated[str, about("`host:port` of a Pub/Sub emulator to use instead of Google.")] = ""
    pubsub_endpoint: Annotated[str, about("Endpoint of Pub/Sub; a regional one is `REGION-pubsub.googleapis.com`.")] = (
        "pubsub.googleapis.com"
    )
    ack_deadline_seconds: Annotated[float, about("The push subscription's ack deadline.", ge=10, le=600)] = 600.0
    min_redelivery_seconds: Annotated[float, about("The push subscription's minimum backoff.", ge=0, le=600)] = 10.0
    push_form: Annotated[
        Literal["wrapped", "unwrapped", "unwrapped-metadata"],
        about(
            "Format of the pushes. Set `unwrapped` for `--push-no-wrapper`, `unwrapped-metadata` if "
            "`--push-no-wrapper-write-metadata` is set too. Pushes in another format are refused."
        ),
    ] = "wrapped"
    push_auth: Annotated[Literal["oidc", "none"], about("`none` disables authentication of pushes.")] = "oidc"
    push_audience: Annotated[str, about("Audience that the token of a push must have.")] = ""
    push_service_account: Annotated[str, about("E-mail address of the service account that signs the pushes.")] = ""
    dedupe_redis_url: Annotated[
        str, about("URL of the dedup store: a Redis that records answered and cancelled deliveries.")
    ] = ""

    # --- the rest
    result_details: Annotated[bool, about("Add attempts, durations, tokens, finish time and metadata to results.")] = (
        False
    )
    finished_records: Annotated[
        int,
        about(
            "Maximum number of records of finished requests (id, outcome, time, result list), for `where`; 0: none.",
            ge=0,
            le=10_000_000,
        ),
    ] = 50_000
    finished_records_bytes: Annotated[
        int, about("Maximum bytes of all records of finished requests; the oldest are dropped first.", ge=1_024)
    ] = 10_000_000
    finished_records_seconds: Annotated[int, about("Lifetime of a record of a finished request.", ge=1)] = 86_400
    config_file: Annotated[str, about("Files (JSON or YAML, comma-separated) with queues, pools and transforms.")] = ""
    config_reload_seconds: Annotated[
        float, about("Interval between checks of the file for changes; 0 disables reloading.", ge=0, le=3_600)
    ] = 5.0
    prometheus_url: Annotated[str, about("URL of the Prometheus that gates query.")] = ""
    prometheus_token_file: Annotated[
        str, about("File with a bearer token for Prometheus; read again when it changes.")
    ] = ""
    prometheus_ca_file: Annotated[str, about("CA that signed Prometheus's certificate (PEM).")] = ""
    gate_refresh_seconds: Annotated[
        float, about("Interval between readings of a gate's metric.", ge=0.05, le=3_600)
    ] = 5.0
    gate_source_timeout_seconds: Annotated[float, about("Timeout of one reading of a metric.", gt=0, le=60)] = 4.0
    gate_most_held: Annotated[
        int, about("Maximum number of pushes or events that wait at one closed gate.", ge=1, le=100_000)
    ] = 1_000
    log_level: Annotated[Literal["debug", "info", "warning", "error"], about("Lowest level that is logged.")] = "info"
    log_format: Annotated[Literal["auto", "json", "text"], about("`auto`: text in a terminal, else JSON.")] = "auto"
    log_hash_ids: Annotated[bool, about("Log the start of each id's SHA-256 instead of the id.")] = False
    otel_exporter_otlp_endpoint: Annotated[str, about("URL of the OTLP/HTTP receiver; empty: no traces.")] = ""
    otel_exporter_otlp_protocol: Annotated[str, about("Only `http/protobuf` is supported; gRPC is refused.")] = (
        "http/protobuf"
    )
    otel_service_name: Annotated[
        str, about("Service name in traces; empty: the name in `OTEL_RESOURCE_ATTRIBUTES`, else `llm-d-async`.")
    ] = ""


SECRETS = frozenset({"redis_password", "dispatch_token", "metrics_token"})
"""Fields that are always shown masked."""


def read_environment(variables: Mapping[str, str], faults: SettingFaults | None = None) -> Environment:
    """Read the environment.

    Invalid variables are added to `faults` and count as unset. Without `faults`, one `InvalidSetting` is raised for all
    of them.
    """
    known = {name.upper() for name in Environment.__struct_fields__}
    given = {name: _plain(value) for name, value in variables.items() if name in known and value.strip()}
    found = faults or SettingFaults()
    while True:
        try:
            environment = msgspec.convert(given, Environment, strict=False)
        except msgspec.ValidationError as error:
            fault = _invalid_variable(error, given)
            found.add(fault)
            if given.pop(fault.setting, None) is None:
                raise fault from None
            continue
        if faults is None:
            found.raise_all()
        return environment


def _invalid_variable(error: msgspec.ValidationError, given: Mapping[str, str]) -> InvalidSetting:
    """The error for one variable, with its value unless secret."""
    found_error = invalid_setting(error, "environment")
    if found_error.setting not in given:
        return found_error
    is_secret = found_error.setting.lower() in SECRETS
    found = "a value that is kept secret" if is_secret else shown_value(given[found_error.setting])
    accepted = described(types_of(Environment)[found_error.setting])
    return InvalidSetting(found_error.setting, found=found, accepted=accepted)


def _plain(value: str) -> str:
    """The value without surrounding whitespace; booleans in lower case."""
    text = value.strip()
    return text.lower() if text.lower() in ("true", "false") else text


def invalid_setting(
    error: msgspec.ValidationError, where: str, struct: type[msgspec.Struct] | None = None, content: object = None
) -> InvalidSetting:
    """Convert msgspec's "Expected `int`, got `str` - at `$.WORKERS`" to an `InvalidSetting`.

    `struct` gives the known fields and the accepted values, `content` the value that was got.
    """
    text, _, path = str(error).partition(" - at `$")
    setting = path.rstrip("`").removeprefix(".") or where
    if text.startswith("Object contains unknown field"):
        unknown = text.split("`")[1]
        known = known_fields(struct, path.rstrip("`")) if struct else []
        close = nearest(unknown, known)
        return InvalidSetting(
            f"{setting}.{unknown}" if path else unknown or where,
            found="an unknown field" + (f" (did you mean {close}?)" if close else ""),
            accepted=f"one of {', '.join(sorted(known))}" if known else "a known one",
            meant=f"{setting}.{close}" if path and close else close,
        )
    if text.startswith("Object missing required field"):
        setting = ".".join(part for part in (path.rstrip("`").removeprefix("."), text.split("`")[1]) if part)
        return InvalidSetting(setting, found="nothing", accepted=_accepted(struct, setting, "a value"))
    expected, _, got = text.removeprefix("Expected ").partition(", got ")
    found = _NOUNS.get(got.strip("`"), got.replace("`", "")) or "a value out of bounds"
    value = value_at(content, setting)
    if value is not None:
        found = shown_value(value)
    return InvalidSetting(setting, found=found, accepted=_accepted(struct, setting, expected.replace("`", "")))


_NOUNS: Final = {
    "str": "text",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "null": "nothing",
    "array": "a list",
    "object": "a mapping",
}
"""msgspec's names of the types of JSON, in words."""


def _accepted(struct: type[msgspec.Struct] | None, setting: str, unknown: str) -> str:
    """The accepted values of a field, in words; `unknown` without a type."""
    kind = type_at(struct, setting) if struct else msgspec.inspect.AnyType()
    return unknown if isinstance(kind, msgspec.inspect.AnyType) else described(kind)
