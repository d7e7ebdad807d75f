"""The optional JSON or YAML file with several queues, topics and pools, under the reference's own names.

A file is a mapping with the fields of `ConfigFile`, a bare list of queues, topics or pools, or a merge policy. A field
that is not known here stops the start: a misspelt gate would otherwise be an open one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from msgspec import Meta

from handlers.contract.errors import InvalidSetting
from handlers.forward.transforms.registry import TransformEntry, build_transforms
from handlers.settings.environment import invalid_setting
from handlers.settings.merge_policy import MERGE_POLICY, MergePolicy, check_merge_policy, is_merge_policy

Name = Annotated[str, Meta(min_length=1, max_length=512)]


class QueueEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One Redis queue. Empty strings and None fall back to the process's settings.

    Ours: `result_per_request`, a result list for each request, and `idempotent_seconds`.
    """

    queue_name: Name
    id: str = ""
    igw_base_url: str = ""
    request_path_url: str = ""
    inference_objective: str = ""
    result_queue_name: str = ""
    result_ttl_seconds: Annotated[int, Meta(ge=0)] | None = None
    result_per_request: bool | None = None
    idempotent_seconds: Annotated[int, Meta(ge=0)] | None = None
    worker_pool_id: str = "default"
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    gate_type: str = ""
    gate_params: dict[str, Any] = msgspec.field(default_factory=dict)


class TopicEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One Pub/Sub subscription, by its short or full name."""

    subscriber_id: Name
    id: str = ""
    igw_base_url: str = ""
    request_path_url: str = ""
    inference_objective: str = ""
    result_topic_id: str = ""
    result_queue_name: str = ""
    worker_pool_id: str = "default"
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    gate_type: str = ""
    gate_params: dict[str, Any] = msgspec.field(default_factory=dict)
    ack_deadline_seconds: Annotated[float, Meta(ge=10, le=600)] | None = None
    min_redelivery_seconds: Annotated[float, Meta(ge=0, le=600)] | None = None


class PoolEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One pool of slots that queues share, and how it shares them (see `handlers/poller/priority.py`).

    Without a `merge_policy` it is the file's `request_merge_policy`, else `random-robin`.
    `shared`: the slots are those of all pollers together, not of each. Unset: where a gate publishes a budget.
    """

    id: Name
    workers: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    merge_policy: str = ""
    ageing_seconds: Annotated[float, Meta(gt=0)] | None = None
    lane_objectives: dict[str, str] = msgspec.field(default_factory=dict)
    priority_header: bool = False
    shared: bool | None = None
    gate_type: str = ""
    gate_params: dict[str, Any] = msgspec.field(default_factory=dict)


class ConfigFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file; what it names wins over the environment.

    `mode`, `addrs` and `master_name` say which kind of Redis is at the URL (see `topology`). The last three fields are
    the reference's and change nothing here: our claims are renewed while they are worked on, and the scan has a setting
    of its own.
    """

    url: str = ""
    mode: str = ""
    addrs: list[str] = msgspec.field(default_factory=list)
    master_name: str = ""
    retry_queue_name: str = ""
    result_queue_name: str = ""
    poll_interval_ms: Annotated[int, Meta(ge=0, le=60_000)] | None = None
    batch_size: Annotated[int, Meta(ge=0, le=100_000)] | None = None
    project_id: str = ""
    result_topic_id: str = ""
    queues: list[QueueEntry] = msgspec.field(default_factory=list)
    topics: list[TopicEntry] = msgspec.field(default_factory=list)
    pools: list[PoolEntry] = msgspec.field(default_factory=list)
    request_transforms: list[TransformEntry] = msgspec.field(default_factory=list, name="requestTransforms")
    request_merge_policy: MergePolicy | None = None
    enable_tracing: bool = False
    claim_lease_ttl_seconds: Annotated[int, Meta(ge=0)] = 0
    claim_reclaim_interval_ms: Annotated[int, Meta(ge=0)] = 0


_LISTS = {"queue_name": "queues", "subscriber_id": "topics", "id": "pools"}


def read_config_file(path: str) -> ConfigFile:
    """Read and check the file, or several with commas between, as one; an empty path is an empty file.

    Raises `InvalidSetting`. Several files may share lists but nothing else: each other field stands in one of them.
    """
    contents = [_content(_text(one)) for one in config_paths(path)]
    return _config(_merged(contents))


def config_paths(path: str) -> list[str]:
    """The files that `CONFIG_FILE` names."""
    return [one.strip() for one in path.split(",") if one.strip()]


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSetting(
            "CONFIG_FILE", found=f"{path}: {error}", accepted="a readable UTF-8 file"
        ) from None


def _merged(contents: list[dict[str, Any]]) -> dict[str, Any]:
    """One mapping of several files' own."""
    merged: dict[str, Any] = {}
    for content in contents:
        for name, value in content.items():
            if isinstance(value, list) and isinstance(merged.get(name, []), list):
                merged[name] = [*merged.get(name, []), *value]
            elif name in merged:
                raise InvalidSetting(str(name), found="in two files", accepted="in one of them")
            else:
                merged[name] = value
    return merged


def parse_config_file(text: str) -> ConfigFile:
    """The checked content of a file's text (YAML, of which JSON is a part)."""
    return _config(_content(text))


def _content(text: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none, nesting without end
        at = getattr(error, "problem_mark", None)
        where = f" at line {at.line + 1}" if at else ""
        raise InvalidSetting(
            "CONFIG_FILE", found=f"no JSON or YAML{where}", accepted="JSON or YAML"
        ) from None
    if content is None:
        return {}
    if isinstance(content, list):
        content = _as_mapping(content)
    if not isinstance(content, dict):
        raise InvalidSetting("CONFIG_FILE", found="no mapping", accepted="a mapping, or a list of entries")
    return {MERGE_POLICY: content} if is_merge_policy(content) else content


def _config(content: dict[str, Any]) -> ConfigFile:
    try:
        config = msgspec.convert(_given(content), ConfigFile)
    except UnicodeEncodeError:
        found = "half a character (\\ud800 to \\udfff)"
        raise InvalidSetting("CONFIG_FILE", found=found, accepted="whole characters") from None
    except msgspec.ValidationError as error:
        raise invalid_setting(error, "CONFIG_FILE", ConfigFile) from None
    _check_unique(config)
    if config.request_merge_policy is not None:
        check_merge_policy(config.request_merge_policy)
    build_transforms(config.request_transforms, "requestTransforms")
    return config


def _given(content: dict[str, Any]) -> dict[str, Any]:
    """Without what is null, in the file or in an entry of its lists; an empty pool is the default one."""
    given: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, list):
            given[name] = [_given(entry) if isinstance(entry, dict) else entry for entry in value]
        elif value is not None and (name, value) != ("worker_pool_id", ""):
            given[name] = value
    return given


def _as_mapping(entries: list[Any]) -> dict[str, Any]:
    fields = entries[0] if entries and isinstance(entries[0], dict) else {}
    name = next((listed for field, listed in _LISTS.items() if field in fields), None)
    if name is None:
        accepted = "entries with queue_name, subscriber_id or id"
        raise InvalidSetting("CONFIG_FILE", found="a list of something else", accepted=accepted)
    return {name: entries}


def _check_unique(config: ConfigFile) -> None:
    names = {
        "queues.queue_name": [queue.queue_name for queue in config.queues],
        "queues.id": [queue.id for queue in config.queues if queue.id],
        "topics.subscriber_id": [topic.subscriber_id for topic in config.topics],
        "pools.id": [pool.id for pool in config.pools],
    }
    for setting, given in names.items():
        twice = sorted({name for name in given if given.count(name) > 1})
        if twice:
            raise InvalidSetting(setting, found=f"{twice[0]!r} twice", accepted="each name once")
    pools = {pool.id for pool in config.pools} | {"default"}
    named = [(f"queues[{number}]", queue.worker_pool_id) for number, queue in enumerate(config.queues)]
    named += [(f"topics[{number}]", topic.worker_pool_id) for number, topic in enumerate(config.topics)]
    for path, pool_id in named:
        if pool_id not in pools:
            known = ", ".join(sorted(pools))
            raise InvalidSetting(f"{path}.worker_pool_id", found=repr(pool_id), accepted=f"one of {known}")
