"""Every environment variable that we read: its name, type, bounds, default and meaning.

The name is the field's in upper case. `docs/settings.md` shows this table; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from handlers.contract.accepted import described, known_fields, nearest, types_of
from handlers.contract.errors import InvalidSetting
from handlers.contract.json_limits import MAX_REQUEST_BYTES
from handlers.contract.masked_text import without_secrets
from handlers.forward.route import DEFAULT_PATH, FAIRNESS_HEADER, OBJECTIVE_HEADER

DEFAULT_GATEWAY = (
    "http://infra-inference-scheduling-inference-gateway-istio.llm-d-inference-scheduler.svc.cluster.local:80"
)

_LONGEST_SHOWN = 80

Port = Annotated[int, Meta(ge=0, le=65_535)]


class Environment(msgspec.Struct, frozen=True, kw_only=True, rename="upper"):
    """The variables as typed values; an empty variable counts as not set."""

    # --- the gateway
    igw_base_url: Annotated[str, Meta(description="Base URL of the inference gateway.")] = DEFAULT_GATEWAY
    request_path_url: Annotated[
        str, Meta(description="Path joined to it, unless a queue or request says.")
    ] = DEFAULT_PATH
    inference_objective: Annotated[str, Meta(description="Objective of queues that name none.")] = ""
    inference_objective_header: Annotated[
        str, Meta(description="`x-gateway-inference-objective` for older gateways.")
    ] = OBJECTIVE_HEADER
    fairness_header: Annotated[str, Meta(description="Header that carries the tenant.")] = FAIRNESS_HEADER
    fairness_disabled: Annotated[bool, Meta(description="Send no fairness header.")] = False
    fairness_attribute: Annotated[str, Meta(description="Metadata field that names the tenant.")] = "userid"
    allowed_endpoints: Annotated[
        str, Meta(description="Comma-separated paths a request's `endpoint` may name; `…/` allows all below.")
    ] = "/v1/"
    allowed_headers: Annotated[
        str,
        Meta(
            description="Comma-separated headers that a request may send to the gateway, beside those of ids, traces "
            "and API versions (SECURITY.md lists them). `x-team-*` is what begins so; headers of credentials, "
            "identity, routing and priority pass only by their full names."
        ),
    ] = ""
    allow_request_authorization: Annotated[
        bool, Meta(description="Let a request's own `Authorization` header through.")
    ] = False
    request_timeout_seconds: Annotated[
        float, Meta(gt=0, le=86_400, description="Longest single attempt.")
    ] = 600.0
    connect_timeout_seconds: Annotated[float, Meta(gt=0, le=600, description="Longest wait to connect.")] = (
        10.0
    )
    connection_idle_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=3_600,
            description="How long an unused connection to the gateway or the handler is kept; less than the "
            "server's own limit.",
        ),
    ] = 4.0
    circuit_breaker: Annotated[
        bool, Meta(description="While most calls fail, send one a second and leave the rest queued.")
    ] = True
    retry_budget: Annotated[
        float,
        Meta(ge=0, le=10, description="Retries for each final answer, beside one a second; 0: no limit."),
    ] = 0.25
    max_request_bytes: Annotated[int, Meta(ge=1_024, description="Largest request body.")] = MAX_REQUEST_BYTES
    max_response_bytes: Annotated[
        int, Meta(ge=1_024, description="Largest response; a larger one is a final error.")
    ] = 8_000_000
    gateway_ca_file: Annotated[str, Meta(description="CA that signed the gateway's certificate (PEM).")] = ""
    gateway_cert_file: Annotated[str, Meta(description="Client certificate for the gateway (PEM).")] = ""
    gateway_key_file: Annotated[str, Meta(description="Key of the client certificate (PEM).")] = ""
    gateway_token_file: Annotated[
        str, Meta(description="File with a bearer token for the gateway; read again when it changes.")
    ] = ""

    # --- Redis
    redis_url: Annotated[
        str, Meta(description="`redis://` or `rediss://`, `+sentinel`, `+cluster` forms.")
    ] = "redis://localhost:6379"
    redis_username: Annotated[str, Meta(description="ACL user.")] = ""
    redis_password: Annotated[str, Meta(description="Password; better the file.")] = ""
    redis_password_file: Annotated[str, Meta(description="File that holds the password.")] = ""
    redis_ca_file: Annotated[str, Meta(description="CA that signed the server's certificate (PEM).")] = ""
    redis_cert_file: Annotated[str, Meta(description="Client certificate (PEM).")] = ""
    redis_key_file: Annotated[str, Meta(description="Key of the client certificate (PEM).")] = ""
    redis_timeout_seconds: Annotated[
        float, Meta(ge=0.1, le=60, description="Longest wait for an answer of Redis, then it is asked again.")
    ] = 2.0
    request_queue_name: Annotated[str, Meta(description="Sorted set of pending requests.")] = (
        "request-sortedset"
    )
    retry_queue_name: Annotated[str, Meta(description="Sorted set of requests waiting for a retry.")] = (
        "retry-sortedset"
    )
    result_queue_name: Annotated[str, Meta(description="List that takes the results.")] = "result-list"
    allowed_labels: Annotated[
        str,
        Meta(
            description="Comma-separated labels that rank a request (`classification`, `tier`) and that a request may "
            "give itself in `internal.labels`. Unset: only a queue and its gates give them."
        ),
    ] = ""
    allowed_results: Annotated[
        str,
        Meta(
            description="Comma-separated lists (Pub/Sub: topics) a request may name for its result, `*` for any "
            "characters; a name nobody uses, such as `-`, allows none. Unset: lists with `result` in their name, and "
            "any topic of the project."
        ),
    ] = ""
    result_per_request: Annotated[
        bool, Meta(description="A result list for each request, `<results>:result-of:<id>`, that expires.")
    ] = False
    idempotent_seconds: Annotated[
        int,
        Meta(
            ge=0, description="An id that is live, or finished less than this ago, runs only once; 0: always."
        ),
    ] = 0
    result_apart_bytes: Annotated[
        int,
        Meta(
            ge=0, description="Answers of at least so many bytes are stored apart from their result; 0: none."
        ),
    ] = 0
    result_apart_seconds: Annotated[
        int, Meta(ge=1, description="How long such an answer is kept where its result list does not expire.")
    ] = 604_800
    wait_replicas: Annotated[
        int, Meta(ge=0, le=10, description="Replicas that must hold an ack (`WAIT`).")
    ] = 0

    # --- the poller
    handler_url: Annotated[
        str, Meta(description="The dispatch door; empty: the poller runs the handler in its own process.")
    ] = ""
    workers: Annotated[int, Meta(ge=1, le=100_000, description="Requests in flight at a time.")] = 64
    max_in_flight_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="Bytes of requests and answers that a poller holds; 0: what its memory limit allows.",
        ),
    ] = 0
    poll_interval_ms: Annotated[
        int, Meta(ge=1, le=60_000, description="How often an idle queue is looked at.")
    ] = 20
    lease_seconds: Annotated[
        float,
        Meta(ge=0.1, le=3_600, description="How long a claim, or a push being answered, lasts unrenewed."),
    ] = 15.0
    heartbeat_seconds: Annotated[
        float, Meta(ge=0.05, le=600, description="How often claims are renewed.")
    ] = 5.0
    reclaim_seconds: Annotated[
        float, Meta(ge=0.05, le=600, description="How often dead owners' claims are looked for.")
    ] = 2.0
    max_attempts: Annotated[
        int,
        Meta(
            ge=1,
            description="Attempts of a queued request; then its last answer, or `UNDELIVERABLE`, is its result. At one "
            "a minute the default is a week.",
        ),
    ] = 10_000
    max_deadline_seconds: Annotated[
        float,
        Meta(
            gt=0,
            description="How far ahead the deadline of a queued request may be; the default is a century.",
        ),
    ] = 3_153_600_000.0
    max_deaths: Annotated[
        int, Meta(ge=1, le=1_000, description="Owners that may die on a request before it is dead-lettered.")
    ] = 5
    shutdown_grace_seconds: Annotated[
        float, Meta(ge=0, le=86_400, description="How long a stopping process finishes what it has.")
    ] = 610.0
    status_token_file: Annotated[
        str, Meta(description="File with tokens that let the status page requeue or drop; none: read-only.")
    ] = ""
    status_hosts: Annotated[
        str,
        Meta(
            description="Comma-separated names under which the status page may be asked for, beside loopback and the "
            "address it listens on; others get 421."
        ),
    ] = ""
    metrics_token: Annotated[
        str, Meta(description="Bearer token for a handler's `/metrics`; without one there is no such page.")
    ] = ""
    metrics_token_file: Annotated[
        str, Meta(description="File with that token, one a line; all are accepted.")
    ] = ""
    metrics_port: Annotated[int, Meta(ge=0, le=65_535, description="The poller's health and metrics.")] = 9090

    # --- the doors
    host: Annotated[str, Meta(description="Address to listen on.")] = "0.0.0.0"  # noqa: S104  # a pod's only interface
    port: Annotated[int, Meta(ge=0, le=65_535, description="Port of the handler (Knative sets it).")] = 8080
    function_target: Annotated[
        Literal["dispatch", "pubsub_push"], Meta(description="Which door this process is.")
    ] = "dispatch"
    receive_timeout_seconds: Annotated[
        float, Meta(gt=0, le=600, description="Longest time for a delivery to arrive whole.")
    ] = 30.0
    dispatch_auth: Annotated[
        Literal["token", "none"],
        Meta(
            description="`none`: the dispatch door may take events from anyone, and starts without a warning."
        ),
    ] = "token"
    dispatch_token: Annotated[str, Meta(description="Bearer token between poller and dispatch door.")] = ""
    dispatch_token_file: Annotated[
        str, Meta(description="File with that token, one a line; the first is sent, all are accepted.")
    ] = ""

    event_data: Annotated[
        Literal["request", "payload"],
        Meta(description="What the events of other sources hold: a request, or only its payload."),
    ] = "request"
    event_id_from: Annotated[
        str, Meta(description="Attribute or `header:<name>` that is the id where the data has none.")
    ] = ""
    event_tenant_from: Annotated[
        str, Meta(description="Attribute or `header:<name>` that is the tenant; it wins over the data's own.")
    ] = ""
    event_deadline_from: Annotated[
        str, Meta(description="Attribute or `header:<name>` with the deadline where the data has none.")
    ] = ""
    event_deadline_seconds: Annotated[
        float, Meta(ge=0, le=31_536_000, description="Deadline of other events, from their `time`; 0: none.")
    ] = 0.0
    k_sink: Annotated[
        str, Meta(description="Where the results of other events go, as CloudEvents (Knative sets it).")
    ] = ""
    k_ce_overrides: Annotated[
        str, Meta(description='Extensions for them: `{"extensions": {…}}` (Knative sets it).')
    ] = ""
    k_ca_certs: Annotated[str, Meta(description="CA that signed the sink's certificate (PEM text).")] = ""

    readiness: Annotated[
        Literal["process", "dependencies"],
        Meta(
            description="`dependencies`: a handler is not ready while its gateway, topic, memory or gates fail."
        ),
    ] = "process"

    # --- Pub/Sub
    project_id: Annotated[str, Meta(description="Google Cloud project of the topics.")] = ""
    result_topic_id: Annotated[str, Meta(description="Topic that takes the results.")] = ""
    dead_letter_topic_id: Annotated[str, Meta(description="Topic for deliveries without a readable id.")] = ""
    pubsub_emulator_host: Annotated[str, Meta(description="Emulator in place of Google's service.")] = ""
    pubsub_endpoint: Annotated[
        str,
        Meta(description="Pub/Sub's service, or a regional endpoint of it (`REGION-pubsub.googleapis.com`)."),
    ] = "pubsub.googleapis.com"
    ack_deadline_seconds: Annotated[
        float, Meta(ge=10, le=600, description="The push subscription's ack deadline.")
    ] = 600.0
    min_redelivery_seconds: Annotated[
        float, Meta(ge=0, le=600, description="The push subscription's minimum backoff.")
    ] = 10.0
    push_form: Annotated[
        Literal["wrapped", "unwrapped", "unwrapped-metadata"],
        Meta(
            description="How the subscriptions push: `unwrapped` with `--push-no-wrapper`, `unwrapped-metadata` with "
            "`--push-no-wrapper-write-metadata` too. A push of another form is refused."
        ),
    ] = "wrapped"
    push_auth: Annotated[Literal["oidc", "none"], Meta(description="`none` lets anyone push.")] = "oidc"
    push_audience: Annotated[str, Meta(description="Audience of the push token.")] = ""
    push_service_account: Annotated[str, Meta(description="E-mail of the account that pushes.")] = ""
    dedupe_redis_url: Annotated[
        str, Meta(description="Redis that knows answered and cancelled deliveries.")
    ] = ""

    # --- the rest
    result_details: Annotated[
        bool, Meta(description="Results say attempts, durations, tokens, finish time and metadata too.")
    ] = False
    finished_records: Annotated[
        int,
        Meta(
            ge=0,
            le=10_000_000,
            description="Records of finished requests (id, outcome, time, result list) that `where` reads; 0: none.",
        ),
    ] = 50_000
    finished_records_bytes: Annotated[
        int, Meta(ge=1_024, description="Bytes of all these records together; the oldest are dropped first.")
    ] = 10_000_000
    finished_records_seconds: Annotated[int, Meta(ge=1, description="How long such a record is kept.")] = (
        86_400
    )
    config_file: Annotated[
        str, Meta(description="JSON or YAML: queues, pools, transforms; several with commas.")
    ] = ""
    config_reload_seconds: Annotated[
        float, Meta(ge=0, le=3_600, description="How often it is looked for changes of that file; 0: never.")
    ] = 5.0
    prometheus_url: Annotated[str, Meta(description="Prometheus that the gates ask.")] = ""
    prometheus_token_file: Annotated[
        str, Meta(description="File with a bearer token for Prometheus; read again when it changes.")
    ] = ""
    prometheus_ca_file: Annotated[str, Meta(description="CA that signed Prometheus's certificate (PEM).")] = (
        ""
    )
    gate_refresh_seconds: Annotated[
        float, Meta(ge=0.05, le=3_600, description="How old a gate's reading may be.")
    ] = 5.0
    gate_source_timeout_seconds: Annotated[
        float, Meta(gt=0, le=60, description="Longest wait for a gate's source.")
    ] = 4.0
    gate_most_held: Annotated[
        int, Meta(ge=1, le=100_000, description="Pushes held at a closed gate, at most.")
    ] = 1_000
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="Least level.")] = (
        "info"
    )
    log_format: Annotated[
        Literal["auto", "json", "text"], Meta(description="`auto`: text in a terminal, else JSON.")
    ] = "auto"
    log_hash_ids: Annotated[
        bool, Meta(description="Log the start of an id's SHA-256 in place of the id.")
    ] = False
    otel_exporter_otlp_endpoint: Annotated[str, Meta(description="OTLP/HTTP receiver of the traces.")] = ""
    otel_exporter_otlp_protocol: Annotated[
        str, Meta(description="Only `http/protobuf` is supported; gRPC is refused.")
    ] = "http/protobuf"
    otel_service_name: Annotated[
        str,
        Meta(
            description="Service name in the traces; empty: that of `OTEL_RESOURCE_ATTRIBUTES`, else `llm-d-async`."
        ),
    ] = ""


SECRETS = frozenset({"redis_password", "dispatch_token", "metrics_token"})
"""Fields that are masked wherever the settings are shown."""


def read_environment(variables: Mapping[str, str]) -> Environment:
    """The typed environment. Raises `InvalidSetting` naming the variable and what it takes."""
    known = {name.upper() for name in Environment.__struct_fields__}
    given = {name: _plain(value) for name, value in variables.items() if name in known and value.strip()}
    try:
        return msgspec.convert(given, Environment, strict=False)
    except msgspec.ValidationError as error:
        raise _invalid_variable(error, given) from None


def _invalid_variable(error: msgspec.ValidationError, given: Mapping[str, str]) -> InvalidSetting:
    """One variable, what it held (unless that is a secret), and what its type takes."""
    told = invalid_setting(error, "environment")
    if told.setting not in given:
        return told
    is_secret = told.setting.lower() in SECRETS
    found = (
        "a value that is kept secret"
        if is_secret
        else repr(without_secrets(given[told.setting])[:_LONGEST_SHOWN])
    )
    return InvalidSetting(told.setting, found=found, accepted=described(types_of(Environment)[told.setting]))


def _plain(value: str) -> str:
    """Booleans as people write them; everything else as it is, without surrounding space."""
    text = value.strip()
    return text.lower() if text.lower() in ("true", "false") else text


def invalid_setting(
    error: msgspec.ValidationError, where: str, struct: type[msgspec.Struct] | None = None
) -> InvalidSetting:
    """Turn msgspec's "Expected `int`, got `str` - at `$.WORKERS`" into ours; `struct` lists its known fields."""
    text, _, path = str(error).partition(" - at `$")
    setting = path.rstrip("`").removeprefix(".") or where
    if text.startswith("Object contains unknown field"):
        unknown = text.split("`")[1]
        known = known_fields(struct, path.rstrip("`")) if struct else []
        close = nearest(unknown, known, cutoff=0.5)
        return InvalidSetting(
            f"{setting}.{unknown}" if path else unknown or where,
            found="an unknown field" + (f" (did you mean {close}?)" if close else ""),
            accepted=f"one of {', '.join(sorted(known))}" if known else "a known one",
        )
    expected, _, got = text.removeprefix("Expected ").partition(", got ")
    found = got.replace("`", "") or "a value out of bounds"
    return InvalidSetting(setting, found=found, accepted=expected.replace("`", ""))
