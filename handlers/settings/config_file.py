"""The optional JSON or YAML file that configures queues, topics and pools.

Its field names are those of `llm-d-async` (the reference). A file is a mapping with the fields of `ConfigFile`, a list
of queues, topics or pools, or a merge policy. An unknown field stops the start: otherwise a misspelt gate would have
no effect.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

import msgspec
from msgspec import Meta

from handlers.contract.accepted import about, known_fields, required_fields, steps_of
from handlers.contract.errors import InvalidSetting, SettingFaults
from handlers.contract.masked_text import shown_value, unreadable_file
from handlers.forward.transforms import TransformEntry, build_transforms
from handlers.number_text import whole
from handlers.settings.environment import invalid_setting

Name = Annotated[str, Meta(min_length=1, max_length=512)]


class QueueEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One Redis queue. For an empty string or None, the process's setting applies.

    The reference does not have `result_per_request` and `idempotent_seconds`.
    """

    queue_name: Annotated[Name, about("Sorted set of pending requests.", "request-sortedset")]
    id: Annotated[str, about("Name of the queue in metrics and logs; default: `queue_name`.", "team-a")] = ""
    igw_base_url: Annotated[
        str, about("Base URL of this queue's gateway; default: `IGW_BASE_URL`.", "http://gateway:8000")
    ] = ""
    request_path_url: Annotated[
        str,
        about(
            "Path joined to the base URL; a request's own `endpoint` wins. Default: `REQUEST_PATH_URL`.",
            "/v1/completions",
        ),
    ] = ""
    inference_objective: Annotated[
        str, about("Inference objective of this queue's requests; default: `INFERENCE_OBJECTIVE`.", "batch")
    ] = ""
    result_queue_name: Annotated[
        str,
        about(
            "List for this queue's results; it wins over the list a request names. Default: `RESULT_QUEUE_NAME`.",
            "team-a-results",
        ),
    ] = ""
    result_ttl_seconds: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        about("Seconds until the result list expires, counted from the last result; 0 or unset: never.", "86400"),
    ] = None
    result_per_request: Annotated[
        bool | None,
        about(
            "Write each result to a list of its own, so that consumers do not take each other's results. Default: "
            "`RESULT_PER_REQUEST`.",
            "true",
        ),
    ] = None
    idempotent_seconds: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        about(
            "Do not run a duplicate of a live request, or of one that finished less than this many seconds ago; "
            "0: off. Default: `IDEMPOTENT_SECONDS`.",
            "3600",
        ),
    ] = None
    worker_pool_id: Annotated[
        str, about("Pool whose slots this queue's requests use: an `id` of `pools`, or `default`.", "default")
    ] = "default"
    labels: Annotated[
        dict[str, str],
        about(
            "Labels of all requests of the queue; they win over a request's own. `tier` chooses the lane.",
            "{tier: batch}",
        ),
    ] = msgspec.field(default_factory=dict)
    gate_type: Annotated[
        str, about("Gate of this queue alone, see [gates.md](gates.md); unset: no gate.", "redis-quota")
    ] = ""
    gate_params: Annotated[dict[str, Any], about("Parameters of that gate.", "{address: redis:6379, limit: 10}")] = (
        msgspec.field(default_factory=dict)
    )


class TopicEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One Pub/Sub push subscription."""

    subscriber_id: Annotated[Name, about("Push subscription, by its short or full name.", "async-proc-requests-push")]
    id: Annotated[str, about("Name of the subscription in metrics and logs; default: `subscriber_id`.", "team-a")] = ""
    igw_base_url: Annotated[
        str, about("Base URL of this subscription's gateway; default: `IGW_BASE_URL`.", "http://gateway:8000")
    ] = ""
    request_path_url: Annotated[
        str, about("Path joined to the base URL; default: `REQUEST_PATH_URL`.", "/v1/completions")
    ] = ""
    inference_objective: Annotated[
        str, about("Inference objective of these requests; default: `INFERENCE_OBJECTIVE`.", "batch")
    ] = ""
    result_topic_id: Annotated[
        str,
        about("Topic for these results; default: the file's `result_topic_id` or `RESULT_TOPIC_ID`.", "team-a-results"),
    ] = ""
    result_queue_name: Annotated[str, about("The reference's name for `result_topic_id`.", "team-a-results")] = ""
    worker_pool_id: Annotated[str, about("Pool whose gate and limit apply to these requests.", "default")] = "default"
    labels: Annotated[dict[str, str], about("Labels of all requests of the subscription.", "{tier: batch}")] = (
        msgspec.field(default_factory=dict)
    )
    gate_type: Annotated[
        str,
        about("Gate of this subscription alone, see [gates.md](gates.md); unset: no gate.", "local-max-concurrency"),
    ] = ""
    gate_params: Annotated[dict[str, Any], about("Parameters of that gate.", "{limit: 10}")] = msgspec.field(
        default_factory=dict
    )
    ack_deadline_seconds: Annotated[
        Annotated[float, Meta(ge=10, le=600)] | None,
        about("The subscription's ack deadline in seconds; default: `ACK_DEADLINE_SECONDS`.", "600"),
    ] = None
    min_redelivery_seconds: Annotated[
        Annotated[float, Meta(ge=0, le=600)] | None,
        about("The subscription's minimum backoff in seconds; default: `MIN_REDELIVERY_SECONDS`.", "10"),
    ] = None


class PoolEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One pool of slots, and how queues share it (see `handlers/poller/priority.py`)."""

    id: Annotated[Name, about("Name of the pool.", "default")]
    workers: Annotated[
        Annotated[int, Meta(ge=1, le=100_000)] | None,
        about(
            "Maximum number of requests in flight at once, in each poller; with `shared`, in all pollers together. "
            "Default: `WORKERS`.",
            "64",
        ),
    ] = None
    merge_policy: Annotated[
        str,
        about(
            "How queues share the slots: `random-robin` (equally) or `tier-priority` (strictly by lane). "
            "Default: the file's `request_merge_policy`.",
            "tier-priority",
        ),
    ] = ""
    ageing_seconds: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        about(
            "With `tier-priority`: a lane that had no turn for this many seconds gets the next one; unset: never.", "60"
        ),
    ] = None
    lane_objectives: Annotated[
        dict[str, str], about("Inference objective by lane.", "{reserved-interactive: high, overflow-batch: low}")
    ] = msgspec.field(default_factory=dict)
    priority_header: Annotated[bool, about("Send the lane's priority to the gateway as a header.", "true")] = False
    shared: Annotated[
        bool | None,
        about(
            "Whether all pollers together have `workers` slots, instead of each of them. Default: true if a gate "
            "publishes a budget.",
            "true",
        ),
    ] = None
    gate_type: Annotated[
        str, about("Gate of the pool, see [gates.md](gates.md); unset: no gate.", "endpoint-scrape")
    ] = ""
    gate_params: Annotated[
        dict[str, Any],
        about(
            "Parameters of that gate.",
            "{url: 'http://router:9090/metrics', metric: llm_d_epp_flow_control_pool_saturation}",
        ),
    ] = msgspec.field(default_factory=dict)


class ConfigFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All fields of the file; they win over the environment.

    `mode`, `addrs` and `master_name` describe the Redis at `url` (see `redis_address`). `batch_size` and the last three
    fields are read for compatibility and have no effect.
    """

    url: Annotated[str, about("Redis; wins over `REDIS_URL`.", "redis://redis:6379")] = ""
    mode: Annotated[str, about("Kind of Redis at `url`: `standalone`, `sentinel` or `cluster`.", "standalone")] = ""
    addrs: Annotated[list[str], about("Further addresses, with `mode: sentinel` or `cluster`.", "[]")] = msgspec.field(
        default_factory=list
    )
    master_name: Annotated[str, about("The master's name at the Sentinels, with `mode: sentinel`.")] = ""
    retry_queue_name: Annotated[
        str, about("Sorted set of requests that wait for a retry; default: `RETRY_QUEUE_NAME`.", "retry-sortedset")
    ] = ""
    result_queue_name: Annotated[
        str, about("Result list of queues that do not name one; default: `RESULT_QUEUE_NAME`.", "result-list")
    ] = ""
    poll_interval_ms: Annotated[
        Annotated[int, Meta(ge=0, le=60_000)] | None,
        about("Milliseconds between polls of an idle queue; 0 or unset: `POLL_INTERVAL_MS`.", "100"),
    ] = None
    batch_size: Annotated[
        Annotated[int, Meta(ge=0, le=100_000)] | None, about("Read for compatibility; it has no effect.", "64")
    ] = None
    project_id: Annotated[str, about("Google Cloud project; default: `PROJECT_ID`.", "my-project")] = ""
    result_topic_id: Annotated[
        str,
        about("Result topic of subscriptions that do not name one; default: `RESULT_TOPIC_ID`.", "async-proc-results"),
    ] = ""
    queues: Annotated[list[QueueEntry], about("Redis queues, see below; unset: only `REQUEST_QUEUE_NAME`.")] = (
        msgspec.field(default_factory=list)
    )
    topics: Annotated[list[TopicEntry], about("Push subscriptions, see below.")] = msgspec.field(default_factory=list)
    pools: Annotated[list[PoolEntry], about("Pools of slots, see below; `default` always exists.")] = msgspec.field(
        default_factory=list
    )
    request_transforms: Annotated[list[TransformEntry], about("Transforms applied to payloads, see below.")] = (
        msgspec.field(default_factory=list, name="requestTransforms")
    )
    request_merge_policy: Annotated[
        MergePolicy | None,
        about("How pools without a `merge_policy` of their own share slots among queues: `type` and `parameters`."),
    ] = None
    enable_tracing: Annotated[
        bool, about("Read for compatibility; `OTEL_EXPORTER_OTLP_ENDPOINT` enables tracing.", "false")
    ] = False
    claim_lease_ttl_seconds: Annotated[
        Annotated[int, Meta(ge=0)],
        about("Read for compatibility; leases are renewed while a request is handled (`LEASE_SECONDS`).", "0"),
    ] = 0
    claim_reclaim_interval_ms: Annotated[
        Annotated[int, Meta(ge=0)], about("Read for compatibility; `RECLAIM_SECONDS` sets the interval.", "0")
    ] = 0


MOST_QUEUES = 10_000
"""Maximum number of queues of one poller: each poll names all of them. For more queues, use several deployments."""
_MOST_FAULTS = 20
_LISTS = {"queue_name": "queues", "subscriber_id": "topics", "id": "pools"}


def partial_config_file(path: str, faults: SettingFaults) -> ConfigFile:
    """Read, merge and check the files at `path`, separated by commas.

    Lists in several files are joined; any other field may be in only one file. An empty path counts as an empty file.
    Errors are added to `faults`; an invalid field counts as unset, an unreadable file as empty.
    """
    paths = config_paths(path)
    contents: list[tuple[str, dict[str, Any]]] = []
    for one in paths:
        try:
            contents.append((one, _content(_text(one))))
        except InvalidSetting as fault:
            if len(paths) > 1 and not fault.found.startswith(one):
                fault.put_at(one)
            faults.add(fault)
    if len(paths) > 1:
        faults.place_of = Places(contents).of
    return ConfigFile() if faults.touch("CONFIG_FILE") else _config(_merged(contents, faults), faults)


def config_paths(path: str) -> list[str]:
    """The paths in the value of `CONFIG_FILE`."""
    return [one.strip() for one in path.split(",") if one.strip()]


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSetting(
            "CONFIG_FILE", found=unreadable_file(path, error), accepted="a readable UTF-8 file"
        ) from None


class Places:
    """Where several files set fields and list entries; `contents` with their paths."""

    def __init__(self, contents: Sequence[tuple[str, dict[str, Any]]]) -> None:
        self._files: dict[str, str] = {}
        self._entries: dict[str, list[tuple[str, int]]] = {}
        for path, content in contents:
            for name, value in content.items():
                self._files.setdefault(name, path)
                if isinstance(value, list):
                    self._entries.setdefault(name, []).extend((path, number) for number in range(len(value)))

    def of(self, setting: str) -> str:
        """The file and the path in it: `b.yaml: queues[0].id`. Unchanged if no file sets it."""
        name, *rest = steps_of(setting) or [""]
        entries, number = self._entries.get(name, []), whole(rest[0]) if rest else None
        if number is not None and number < len(entries):
            path, own = entries[number]
            return f"{path}: {name}[{own}]{setting.removeprefix(f'{name}[{number}]')}"
        path = "" if name in self._entries else self._files.get(name, "")
        return f"{path}: {setting}" if path else setting


def _merged(contents: Sequence[tuple[str, dict[str, Any]]], faults: SettingFaults) -> dict[str, Any]:
    """The contents of several files, merged.

    A field that two files set keeps its first value, and the error is added to `faults`.
    """
    merged: dict[str, Any] = {}
    files: dict[str, str] = {}
    for path, content in contents:
        for name, value in content.items():
            if isinstance(value, list) and isinstance(merged.get(name, []), list):
                merged[name] = [*merged.get(name, []), *value]
            elif name in merged:
                first = f"{shown_value(merged[name])} in {files[name]}"
                found = f"{first} and {shown_value(value)} in {path}"
                faults.add(InvalidSetting(str(name), found=found, accepted="one file that sets it"))
            else:
                merged[name] = value
                files[name] = path
    return merged


def _content(text: str) -> dict[str, Any]:
    from handlers.settings.yaml_text import parse_yaml  # noqa: PLC0415  # only a process with a file needs PyYAML

    content = parse_yaml(text, "CONFIG_FILE")
    if content is None:
        return {}
    if isinstance(content, list):
        content = _as_mapping(content)
    if not isinstance(content, dict):
        found = _kind(content)
        raise InvalidSetting("CONFIG_FILE", found=found, accepted="a mapping, or a list of entries")
    return {MERGE_POLICY: content} if is_merge_policy(content) else content


def _config(content: dict[str, Any], faults: SettingFaults) -> ConfigFile:
    config = _converted(_given(content), faults)
    _check_unique(config, faults)
    _check_pools(config, faults)
    _check_gate_types(config, faults)
    if config.request_merge_policy is not None:
        check_merge_policy(config.request_merge_policy, faults)
    with faults.collected():
        build_transforms(config.request_transforms, "requestTransforms")
    return config


def _converted(content: dict[str, Any], faults: SettingFaults) -> ConfigFile:
    """The content as a `ConfigFile` without its invalid fields.

    Empty if there are more than `_MOST_FAULTS` invalid fields.
    """
    for _ in range(_MOST_FAULTS):
        try:
            return msgspec.convert(content, ConfigFile)
        except msgspec.ValidationError as error:
            fault = invalid_setting(error, "CONFIG_FILE", ConfigFile, content)
        except UnicodeEncodeError:
            found = "an unpaired surrogate (\\ud800 to \\udfff)"
            fault = InvalidSetting("CONFIG_FILE", found=found, accepted="valid Unicode")
        faults.add(fault)
        if not _without(content, fault.setting):
            break
    faults.hide("CONFIG_FILE")
    return ConfigFile()


def _without(content: dict[str, Any], path: str) -> bool:
    """Drop the value at `path`, so that the next fault is found.

    A required name is replaced with a placeholder. Returns whether anything was dropped.
    """
    *steps, last = [step for step in steps_of(path) if step != "..."] or [""]
    place: Any = content
    for step in steps:
        if isinstance(place, list):
            place = place[whole(step) or 0]
        elif isinstance(place, dict) and step in place:
            place = place[step]
        else:
            return False
    if isinstance(place, list):
        names = dict.fromkeys(required_fields(ConfigFile, path), f"placeholder-{path}")
        place[whole(last) or 0] = names if known_fields(ConfigFile, path) else ""
        return True
    parent = path[: path.rindex(last)].rstrip(".[")
    if last in required_fields(ConfigFile, parent):
        place[last] = f"placeholder-{parent}"
        return True
    return place.pop(last, place) is not place


def _given(content: dict[str, Any]) -> dict[str, Any]:
    """The content without nulls and empty pool names."""
    given: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, list):
            given[name] = [_given(entry) if isinstance(entry, dict) else entry for entry in value]
        elif value is not None and (name, value) != ("worker_pool_id", ""):
            given[name] = value
    return given


def _kind(value: object) -> str:
    """The kind of a YAML value, in words."""
    kinds = {str: "text", int: "a number", float: "a number", bool: "a boolean", list: "a list", dict: "a mapping"}
    return "nothing" if value is None else kinds.get(type(value), "a date")


def _as_mapping(entries: list[Any]) -> dict[str, Any]:
    fields = entries[0] if entries and isinstance(entries[0], dict) else {}
    name = next((listed for field, listed in _LISTS.items() if field in fields), None)
    if name is None:
        accepted = "entries with queue_name, subscriber_id or id"
        first = f"an entry that is {_kind(entries[0])}" if entries else "an empty list"
        found = f"an entry with {', '.join(sorted(map(str, fields))[:5])}" if fields else first
        raise InvalidSetting("CONFIG_FILE", found=found, accepted=accepted)
    return {name: entries}


def _check_unique(config: ConfigFile, faults: SettingFaults) -> None:
    if len(config.queues) > MOST_QUEUES:
        faults.add(
            InvalidSetting("CONFIG_FILE", found=f"{len(config.queues)}", accepted=f"at most {MOST_QUEUES} queues")
        )
    names = {
        "queues.queue_name": [queue.queue_name for queue in config.queues],
        "queues.id": [queue.id for queue in config.queues if queue.id],
        "topics.subscriber_id": [topic.subscriber_id for topic in config.topics],
        "pools.id": [pool.id for pool in config.pools],
    }
    for setting, given in names.items():
        twice = sorted(name for name, count in Counter(given).items() if count > 1)
        if twice:
            faults.add(InvalidSetting(setting, found=f"{shown_value(twice[0])} twice", accepted="each name once"))


def _check_pools(config: ConfigFile, faults: SettingFaults) -> None:
    """Each pool that a queue or subscription names exists."""
    if faults.touch(*(f"pools[{number}].id" for number in range(max(1, len(config.pools))))):
        return
    pools = {pool.id for pool in config.pools} | {"default"}
    named = [(f"queues[{number}]", queue.worker_pool_id) for number, queue in enumerate(config.queues)]
    named += [(f"topics[{number}]", topic.worker_pool_id) for number, topic in enumerate(config.topics)]
    for path, pool_id in named:
        if pool_id not in pools:
            known = ", ".join(sorted(pools))
            faults.add(InvalidSetting(f"{path}.worker_pool_id", found=shown_value(pool_id), accepted=f"one of {known}"))


def _check_gate_types(config: ConfigFile, faults: SettingFaults) -> None:
    """Each entry with `gate_params` has a `gate_type`: without it there would be no gate."""
    for name in _LISTS.values():
        for number, entry in enumerate(getattr(config, name)):
            path = f"{name}[{number}].gate_type"
            if entry.gate_params and not entry.gate_type and not faults.touch(path):
                accepted = "the type of the gate that gate_params configures (or no gate_params)"
                faults.add(InvalidSetting(path, found="nothing", accepted=accepted))


MERGE_POLICY: Final = "request_merge_policy"
"""Name of the field in the configuration file."""
_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_FORM: Final = frozenset({"type", "parameters"})


class MergeParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Names of headers, labels and metadata fields; default: the environment's."""

    fairness_header: Annotated[
        str | None, about("Header that carries the tenant; empty: not sent. Default: `FAIRNESS_HEADER`.")
    ] = None
    fairness_attribute: Annotated[
        str, about("Metadata field that names the tenant. Default: `FAIRNESS_ATTRIBUTE`.")
    ] = ""
    priority_header: Annotated[str, about("Header that carries the lane's priority; unset: not sent.")] = ""
    objective_header: Annotated[
        str, about("Header that carries the inference objective. Default: `INFERENCE_OBJECTIVE_HEADER`.")
    ] = ""
    lane_objectives: Annotated[
        dict[str, str], about("Inference objective by lane; a pool's own `lane_objectives` win.")
    ] = msgspec.field(default_factory=dict)
    tier_label: Annotated[str, about("Label that holds a queue's tier. Default: `tier`.")] = ""


class MergePolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How queues share pools: `random-robin` or `tier-priority`."""

    type: Annotated[str, about("`random-robin` or `tier-priority`, see `merge_policy` of a pool.")] = "random-robin"
    parameters: Annotated[MergeParameters, about("See below.")] = msgspec.field(default_factory=MergeParameters)


def is_merge_policy(content: dict[str, Any]) -> bool:
    """Whether a file's content is only a merge policy."""
    return "type" in content and content.keys() <= _FORM


def check_merge_policy(policy: MergePolicy, faults: SettingFaults) -> None:
    """Add a fault for each invalid header name."""
    given = policy.parameters
    for field in ("fairness_header", "priority_header", "objective_header"):
        name = getattr(given, field)
        if name and not _HEADER.fullmatch(name):
            setting = f"{MERGE_POLICY}.parameters.{field}"
            faults.add(InvalidSetting(setting, found=shown_value(name), accepted="the name of a header"))


_DEFAULT_PORT: Final = 6379  # `llm-d-async` uses it for Sentinels too
_MODES: Final = ("standalone", "cluster", "sentinel")
_TUNING: Final = frozenset(
    {
        *("max_retries", "min_retry_backoff", "max_retry_backoff", "dial_timeout", "read_timeout", "write_timeout"),
        *("pool_fifo", "pool_size", "pool_timeout", "min_idle_conns", "max_idle_conns", "max_active_conns"),
        *("max_concurrent_dials", "idle_timeout", "conn_max_idle_time", "max_conn_age", "conn_max_lifetime"),
    }
)


def redis_address(url: str, mode: str, addrs: Sequence[str], master_name: str) -> str:
    """The URL for `connect`, from fields that `llm-d-async` also has.

    `mode` is `standalone`, `cluster` or `sentinel`; `addrs` are further nodes or Sentinels. Query parameters that tune
    the reference's Redis client are dropped, because they have no effect here. Raises `InvalidSetting` if the fields
    contradict each other.
    """
    if mode not in ("", *_MODES):
        raise InvalidSetting("mode", found=shown_value(mode), accepted=f"one of {', '.join(_MODES)}")
    _check_fields(mode, addrs, master_name)
    try:
        parts = urlsplit(url)
    except ValueError:  # `check_url` reports it
        return url
    given = parse_qsl(parts.query)
    ours = [(name, value) for name, value in given if name not in _TUNING]
    if len(ours) < len(given):
        parts = parts._replace(query=urlencode(ours))
        url = parts.geturl()
    if mode in ("", "standalone"):
        return url
    if parts.scheme not in ("redis", "rediss"):
        raise InvalidSetting("mode", found=f"{mode} beside {parts.scheme}://", accepted="a redis:// or rediss:// URL")
    return _of_several(parts, mode, addrs, master_name)


def _check_fields(mode: str, addrs: Sequence[str], master_name: str) -> None:
    if addrs and mode not in ("cluster", "sentinel"):
        accepted = "no addresses unless mode is cluster or sentinel"
        raise InvalidSetting("addrs", found=", ".join(map(shown_value, addrs))[:80], accepted=accepted)
    if master_name and mode != "sentinel":
        accepted = "no name unless mode is sentinel"
        raise InvalidSetting("master_name", found=shown_value(master_name), accepted=accepted)
    if mode == "sentinel" and (not master_name or "/" in master_name):
        raise InvalidSetting(
            "master_name", found=shown_value(master_name), accepted="the master's name at the Sentinels"
        )


def _of_several(parts: SplitResult, mode: str, addrs: Sequence[str], master_name: str) -> str:
    credentials, at, host = parts.netloc.rpartition("@")
    hosts = ",".join([_with_port(host), *addrs])
    query = dict(parse_qsl(parts.query))
    database = query.pop("db", "") or parts.path.strip("/")
    if mode == "cluster" and database not in ("", "0"):
        raise InvalidSetting("url", found=f"database {shown_value(database)}", accepted="database 0 with mode: cluster")
    path = f"/{master_name}/{database or 0}" if mode == "sentinel" else ""
    scheme, netloc = f"{parts.scheme}+{mode}", f"{credentials}{at}{hosts}"
    return SplitResult(scheme, netloc, path, urlencode(query), "").geturl()


def _with_port(host: str) -> str:
    return host if host.rpartition("]")[2].count(":") else f"{host}:{_DEFAULT_PORT}"
