"""Settings of a process: environment and configuration file, merged and checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from handlers.byte_budget import derived_budget, memory_limit, needed_memory
from handlers.contract.errors import InvalidSetting, SettingFaults
from handlers.contract.lenient_json import is_unicode
from handlers.contract.masked_text import MASK, shown_path, shown_value, unreadable_file, without_secrets
from handlers.contract.result import ANY, ANY_RESULT_LIST, ResultNames, read_result_names
from handlers.forward.route import DEFAULT_HEADERS, PRIORITY_HEADER, Route, Routes, is_safe_path
from handlers.gates.gate import TIER
from handlers.number_text import whole
from handlers.settings.config_file import (
    ConfigFile,
    MergeParameters,
    MergePolicy,
    PoolEntry,
    QueueEntry,
    TopicEntry,
    partial_config_file,
    redis_address,
)
from handlers.settings.environment import SECRETS, Environment, read_environment
from handlers.telemetry.logs import LogOptions
from handlers.variable_names import incomplete, is_shared, misspelt, unknown, warning

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/@\[\]]+)(:[0-9]{1,5})?")
_LAST_PORT = 65_535
_FULL_SUBSCRIPTION = re.compile(r"projects/([^/]+)/subscriptions/")
_REDIS_SCHEMES = frozenset(
    {"redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster", "unix"}
)


_SECRET_FILES: Final = ("token_file", "password_file")


class Settings(msgspec.Struct, frozen=True):
    """All settings of a process. A field in `file` wins over `env`.

    `name_warnings` are about ignored variables whose names resemble settings. `place_of` names the file of
    a field if there are several files.
    """

    env: Environment
    file: ConfigFile
    name_warnings: Sequence[str] = ()
    place_of: Callable[[str], str] = str

    def __repr__(self) -> str:
        return "Settings(…)"  # a password must not reach a log through a traceback

    @property
    def redis_url(self) -> str:
        file = self.file
        return redis_address(file.url or self.env.redis_url, file.mode, file.addrs, file.master_name)

    @property
    def retry_queue_name(self) -> str:
        """The sorted set of requests waiting for a retry."""
        return self.file.retry_queue_name or self.env.retry_queue_name

    @property
    def result_queue_name(self) -> str:
        """The result list of queues that do not name one."""
        return self.file.result_queue_name or self.env.result_queue_name

    @property
    def may_name_lists(self) -> ResultNames:
        """The result lists that a request may name besides its queue's own."""
        return read_result_names(self.env.allowed_results or ANY_RESULT_LIST)

    @property
    def may_name_topics(self) -> ResultNames:
        """The result topics that a request may name.

        By default any topic: unlike a Redis key, a topic holds nothing else, and IAM limits who may publish to it.
        """
        return read_result_names(self.env.allowed_results or ANY)

    @property
    def project_id(self) -> str:
        return self.file.project_id or self.env.project_id

    @property
    def result_topic_id(self) -> str:
        """The result topic of subscriptions that do not name one."""
        return self.file.result_topic_id or self.env.result_topic_id

    @property
    def poll_interval_seconds(self) -> float:
        return (self.file.poll_interval_ms or self.env.poll_interval_ms) / 1_000

    @property
    def least_in_flight_bytes(self) -> int:
        """The smallest byte budget with room for the largest request and response."""
        return max(2 * self.env.max_response_bytes, 4 * self.env.max_request_bytes)

    @property
    def max_in_flight_bytes(self) -> int:
        """Maximum bytes of requests and responses that this process holds."""
        return self.env.max_in_flight_bytes or derived_budget(memory_limit(), least=self.least_in_flight_bytes)

    @property
    def queues(self) -> list[QueueEntry]:
        """The file's queues, or the environment's one queue."""
        return self.file.queues or [QueueEntry(queue_name=self.env.request_queue_name)]

    @property
    def pools(self) -> list[PoolEntry]:
        """The file's pools; `default` always exists."""
        pools = self.file.pools
        if not any(pool.id == "default" for pool in pools):
            pools = [*pools, PoolEntry(id="default")]
        return [self._merging(pool) for pool in pools]

    def _merging(self, pool: PoolEntry) -> PoolEntry:
        """The pool with the file's merge policy, unless it has its own."""
        if pool.merge_policy:
            return pool
        policy = self.file.request_merge_policy or MergePolicy()
        return msgspec.structs.replace(
            pool,
            merge_policy=policy.type,
            lane_objectives=pool.lane_objectives or policy.parameters.lane_objectives,
            priority_header=pool.priority_header or bool(policy.parameters.priority_header),
        )

    @property
    def merge_parameters(self) -> MergeParameters:
        """The parameters of the file's merge policy."""
        policy = self.file.request_merge_policy
        return policy.parameters if policy else MergeParameters()

    @property
    def fairness_attribute(self) -> str:
        return self.merge_parameters.fairness_attribute or self.env.fairness_attribute

    @property
    def tier_label(self) -> str:
        return self.merge_parameters.tier_label or TIER

    def subscription(self, name: str) -> TopicEntry | None:
        """The entry of a subscription, by its short or full name.

        Without a name, it is the only entry. A short name belongs to this project. A full name of another project
        matches only an entry with exactly that name.
        """
        topics = self.file.topics
        if not name:
            return topics[0] if len(topics) == 1 else None
        exact = next((topic for topic in topics if topic.subscriber_id == name), None)
        if exact or not self.is_own_project(name) or ("/" in name and not _FULL_SUBSCRIPTION.match(name)):
            return exact
        short = name.rsplit("/", 1)[-1]
        own = [topic for topic in topics if self.is_own_project(topic.subscriber_id)]
        return next((topic for topic in own if topic.subscriber_id.rsplit("/", 1)[-1] == short), None)

    def is_own_project(self, name: str) -> bool:
        """Whether a subscription belongs to this project.

        True for short names, for full names of this project, and for all names if no project is set.
        """
        match = _FULL_SUBSCRIPTION.match(name)
        return match is None or not self.project_id or match[1] == self.project_id

    @property
    def routes(self) -> Routes:
        """The gateway routes of all queues and subscriptions; built on each call."""
        default = self._route(None)
        by_queue = {queue.queue_name: self._route(queue) for queue in self.file.queues}
        by_queue |= {topic.subscriber_id: self._route(topic) for topic in self.file.topics}
        return Routes(default=default, by_queue=by_queue)

    def _route(self, entry: QueueEntry | TopicEntry | None) -> Route:
        env, merging = self.env, self.merge_parameters
        fairness_header = env.fairness_header if merging.fairness_header is None else merging.fairness_header
        return Route(
            base_url=(entry.igw_base_url if entry else "") or env.igw_base_url,
            path=(entry.request_path_url if entry else "") or env.request_path_url,
            inference_objective=(entry.inference_objective if entry else "") or env.inference_objective,
            objective_header=(merging.objective_header or env.inference_objective_header).lower(),
            fairness_header="" if env.fairness_disabled else fairness_header.lower(),
            fairness_attribute=self.fairness_attribute,
            priority_header=(merging.priority_header or PRIORITY_HEADER).lower(),
            allowed_paths=tuple(path.strip() for path in env.allowed_endpoints.split(",") if path.strip()),
            allow_authorization=env.allow_request_authorization,
            allowed_headers=(*DEFAULT_HEADERS, *_names(env.allowed_headers.lower())),
        )

    @property
    def dispatch_tokens(self) -> tuple[str, ...]:
        """Tokens that the dispatch door accepts; the poller sends the first one."""
        if self.env.dispatch_token:
            return (self.env.dispatch_token,)
        if not self.env.dispatch_token_file:
            return ()
        return tuple(read_secret("DISPATCH_TOKEN_FILE", self.env.dispatch_token_file).split())

    @property
    def redis_password(self) -> str:
        """The Redis password, from `REDIS_PASSWORD_FILE` if that is set."""
        if self.env.redis_password_file:
            return read_secret("REDIS_PASSWORD_FILE", self.env.redis_password_file)
        return self.env.redis_password

    @property
    def log_options(self) -> LogOptions:
        env = self.env
        return LogOptions(env.log_level, env.log_format, self.project_id, hash_ids=env.log_hash_ids)

    def changed(self) -> dict[str, object]:
        """Settings that differ from their defaults, with secrets masked."""
        defaults = msgspec.structs.asdict(Environment())
        return {name: value for name, value in self.shown().items() if value != defaults[name.lower()]}

    def shown(self) -> dict[str, object]:
        """All settings by variable, with secrets masked."""
        values: dict[str, object] = {}
        for name in Environment.__struct_fields__:
            value = getattr(self.env, name)
            if name in SECRETS and value:
                value = MASK
            if name.endswith(_SECRET_FILES) and value:
                value = shown_path(value)
            values[name.upper()] = masked_url(value)
        return values


def load_settings(variables: Mapping[str, str]) -> Settings:
    """Read environment and file, and check them without opening a connection.

    Raises `InvalidSetting`, which names the variable or field, its value, and the accepted values, with all other
    faults attached.
    """
    faults = SettingFaults()
    settings = read_settings(variables, faults)
    faults.raise_all()
    return settings


def read_settings(variables: Mapping[str, str], faults: SettingFaults) -> Settings:
    """Read and check environment and file; add all faults to `faults`.

    Invalid values count as unset, so that later checks do not report consequences of the same fault.
    """
    readable = _readable(variables, faults)
    warnings = _check_names(readable, faults)
    env = read_environment(readable, faults)
    file = ConfigFile() if faults.touch("CONFIG_FILE") else partial_config_file(env.config_file, faults)
    settings = Settings(env=env, file=file, name_warnings=warnings, place_of=faults.place_of)
    _check_urls(settings, faults)
    _check_redis(settings, faults)
    _check_bases(settings, faults)
    _check_distinct(settings, faults)
    _check_paths(settings, faults)
    _check_numbers(settings, faults)
    return without_faulty(settings, faults)


def without_faulty(settings: Settings, faults: SettingFaults) -> Settings:
    """The settings with faulty variables at their defaults.

    A faulty Redis address resets all fields of the address.
    """
    if not faults.found:
        return settings
    env, file = settings.env, settings.file
    defaults = msgspec.structs.asdict(Environment())
    faulty = {name: default for name, default in defaults.items() if faults.touch(name.upper())}
    if faults.touch(*_REDIS_FIELDS):
        file = msgspec.structs.replace(file, url="", mode="", addrs=[], master_name="")
    return msgspec.structs.replace(settings, env=msgspec.structs.replace(env, **faulty), file=file)


def unused_gates(settings: Settings) -> dict[str, str]:
    """Warnings about gates of unused pools, by path of the type."""
    used = {entry.worker_pool_id for entry in settings.queues}
    used |= {entry.worker_pool_id for entry in settings.file.topics}
    return {
        settings.place_of(
            f"pools[{number}].gate_type"
        ): f"no queue or subscription uses the pool {pool.id!r}: this gate limits nothing"
        for number, pool in enumerate(settings.file.pools)
        if pool.gate_type and pool.id not in used
    }


UNUSED_GATE_FIX: Final = "set worker_pool_id of a queue or subscription to this pool, or remove the gate"


def setting_warnings(settings: Settings) -> list[str]:
    """Warnings about valid settings, for the log of a process that starts."""
    unused = [f"{path}: {text}; {UNUSED_GATE_FIX}" for path, text in unused_gates(settings).items()]
    return [*memory_warnings(settings), *unused, *settings.name_warnings]


def memory_warnings(settings: Settings) -> list[str]:
    """Warnings: at most one, if the byte budget exceeds the memory limit."""
    limit, needed = memory_limit(), needed_memory(settings.max_in_flight_bytes)
    if limit is None or needed <= limit:
        return []
    return [
        f"MAX_IN_FLIGHT_BYTES ({settings.max_in_flight_bytes}) may need {needed >> 20} MiB of memory, but the limit is "
        f"{limit >> 20} MiB: raise the limit, or lower MAX_REQUEST_BYTES or MAX_RESPONSE_BYTES"
    ]


_KNOWN: Final = frozenset(name.upper() for name in Environment.__struct_fields__)
_OTHERS: Final = frozenset({"REQUEST_TOPIC_ID", "REQUEST_TOPIC_NAME", "RESULT_SUBSCRIPTION_ID"})
"""Variables of the producers' commands. They resemble settings but are not misspelt ones."""


def _readable(variables: Mapping[str, str], faults: SettingFaults) -> dict[str, str]:
    """The variables, except settings that are not UTF-8, which become faults.

    The variables of OpenTelemetry's SDK (`OTEL_…`) count as settings, because it cannot encode other bytes.
    """
    ours = _KNOWN | _OTHERS
    readable = dict(variables)
    for name in sorted(variables):
        if (name in ours or name.startswith("OTEL_")) and not is_unicode(variables[name]):
            del readable[name]
            faults.add(InvalidSetting(name, found="bytes that are not UTF-8", accepted="text in UTF-8"))
    return readable


def _check_names(variables: Mapping[str, str], faults: SettingFaults) -> tuple[str, ...]:
    """Refuse variables whose name looks like a misspelt setting. Returns warnings about less similar ones."""
    warnings = []
    for name in unknown(variables, _KNOWN | _OTHERS):
        close = misspelt(name, _KNOWN)
        if not close and not is_shared(name):
            close = incomplete(name, _KNOWN - variables.keys())
        if close:
            accepted = f"a known variable (did you mean {close}?)"
            meant = "" if close in variables else close
            faults.add(InvalidSetting(name, found="an unknown variable", accepted=accepted, meant=meant))
        elif text := warning(name, _KNOWN):
            warnings.append(text)
    return tuple(warnings)


def _check_distinct(settings: Settings, faults: SettingFaults) -> None:
    """Refuse equal names of request queues, retry set and result lists."""
    file = settings.file
    retry = "retry_queue_name" if file.retry_queue_name else "RETRY_QUEUE_NAME"
    result = "result_queue_name" if file.result_queue_name else "RESULT_QUEUE_NAME"
    taken: dict[str, str] = {}
    for number, queue in enumerate(settings.queues):
        setting = f"queues[{number}].queue_name" if file.queues else "REQUEST_QUEUE_NAME"
        if not faults.touch(setting, *([] if file.queues else ["queues"])):
            taken.setdefault(queue.queue_name, setting)
    others = [(retry, settings.retry_queue_name), (result, settings.result_queue_name)]
    others += [
        (f"queues[{number}].result_queue_name", queue.result_queue_name) for number, queue in enumerate(settings.queues)
    ]
    for setting, name in others:
        if faults.touch(setting, setting.lower()):
            continue
        if name in taken:
            accepted = f"a name other than {faults.place_of(taken[name])}"
            faults.add(InvalidSetting(setting, found=shown_value(name), accepted=accepted))
        elif setting == retry:
            taken[name] = setting


def _check_bases(settings: Settings, faults: SettingFaults) -> None:
    """Refuse a base URL whose end the path repeats.

    Requests would go to `/v1/v1/…`.
    """
    routes = settings.routes
    entries: list[tuple[str, QueueEntry | TopicEntry | None]] = [("", None), *_entries(settings)]
    for where, entry in entries:
        base = f"{where}.igw_base_url" if entry and entry.igw_base_url else "IGW_BASE_URL"
        path = f"{where}.request_path_url" if entry and entry.request_path_url else "REQUEST_PATH_URL"
        if faults.touch(base, path, *([f"{where}.igw_base_url", f"{where}.request_path_url"] if entry else [])):
            continue
        route = routes.default if entry is None else routes.of(_entry_name(entry))
        if shared := _overlap(urlsplit(route.base_url).path, route.path):
            accepted = f"a base URL without {shared}, since the path {route.path} starts with it"
            faults.add(InvalidSetting(base, found=shown_value(route.base_url), accepted=accepted))


def _overlap(base: str, path: str) -> str:
    """The end of `base`, in whole steps, with which `path` begins."""
    steps = base.rstrip("/").split("/")[1:]
    ends = ["/" + "/".join(steps[number:]) for number in range(len(steps))]
    return next((end for end in ends if f"{path}/".startswith(f"{end}/")), "")


def _entries(settings: Settings) -> list[tuple[str, QueueEntry | TopicEntry]]:
    """Queues and subscriptions of the file, with their paths."""
    file = settings.file
    return [
        *((f"queues[{number}]", queue) for number, queue in enumerate(file.queues)),
        *((f"topics[{number}]", topic) for number, topic in enumerate(file.topics)),
    ]


def _entry_name(entry: QueueEntry | TopicEntry) -> str:
    return entry.queue_name if isinstance(entry, QueueEntry) else entry.subscriber_id


def _check_urls(settings: Settings, faults: SettingFaults) -> None:
    env = settings.env
    urls = [("IGW_BASE_URL", env.igw_base_url), ("HANDLER_URL", env.handler_url)]
    urls += [(f"{where}.igw_base_url", entry.igw_base_url) for where, entry in _entries(settings)]
    if env.prometheus_url:
        with faults.collected():
            check_url("PROMETHEUS_URL", env.prometheus_url, frozenset({"http", "https"}))
    for setting, url in urls:
        if url or setting == "IGW_BASE_URL":
            with faults.collected():
                check_url(setting, url, frozenset({"http", "https"}))
                _check_one_credential(setting, url, env)


_REDIS_FIELDS: Final = ("url", "mode", "addrs", "master_name")
"""Fields of the file that together are the address of Redis."""


def _check_redis(settings: Settings, faults: SettingFaults) -> None:
    file, env = settings.file, settings.env
    setting, url = ("url", file.url) if file.url else ("REDIS_URL", env.redis_url)
    with faults.collected():
        check_url(setting, url, _REDIS_SCHEMES)
    for number, address in enumerate(file.addrs):
        if not _is_host(address):
            faults.add(InvalidSetting(f"addrs[{number}]", found=shown_value(address), accepted="host:port"))
    if not faults.touch(*_REDIS_FIELDS[1:]):
        with faults.collected():
            redis_address(
                Environment().redis_url if faults.touch(setting) else url, file.mode, file.addrs, file.master_name
            )
    if env.dedupe_redis_url:
        with faults.collected():
            check_url("DEDUPE_REDIS_URL", env.dedupe_redis_url, _REDIS_SCHEMES)


def _check_paths(settings: Settings, faults: SettingFaults) -> None:
    paths = [(f"{where}.request_path_url", entry.request_path_url) for where, entry in _entries(settings)]
    paths.append(("REQUEST_PATH_URL", settings.env.request_path_url))
    paths += [("ALLOWED_ENDPOINTS", path) for path in _names(settings.env.allowed_endpoints)]
    for setting, path in paths:
        if path and not is_safe_path(path, ("/",)):
            faults.add(InvalidSetting(setting, found=shown_value(path), accepted="a plain path like /v1/completions"))


def _check_numbers(settings: Settings, faults: SettingFaults) -> None:
    """Refuse numbers that contradict each other."""
    env = settings.env
    sizes = ("MAX_IN_FLIGHT_BYTES", "MAX_REQUEST_BYTES", "MAX_RESPONSE_BYTES")
    if 0 < env.max_in_flight_bytes < settings.least_in_flight_bytes and not faults.touch(*sizes):
        accepted = f"0, or at least {settings.least_in_flight_bytes} for MAX_REQUEST_BYTES and MAX_RESPONSE_BYTES"
        faults.add(InvalidSetting("MAX_IN_FLIGHT_BYTES", found=f"{env.max_in_flight_bytes}", accepted=accepted))
    is_late = env.heartbeat_seconds * 2 > env.lease_seconds
    if is_late and not faults.touch("HEARTBEAT_SECONDS", "LEASE_SECONDS"):
        accepted = f"at most half of LEASE_SECONDS ({env.lease_seconds:g})"
        faults.add(InvalidSetting("HEARTBEAT_SECONDS", found=f"{env.heartbeat_seconds:g}", accepted=accepted))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _check_one_credential(setting: str, url: str, env: Environment) -> None:
    """Refuse a second source of the `Authorization` header besides the URL."""
    if "@" not in urlsplit(url).netloc:
        return
    others = {
        "GATEWAY_TOKEN_FILE": bool(env.gateway_token_file),
        "ALLOW_REQUEST_AUTHORIZATION": env.allow_request_authorization,
        "DISPATCH_TOKEN": bool(env.dispatch_token or env.dispatch_token_file),
    }
    rivals = ("DISPATCH_TOKEN",) if setting == "HANDLER_URL" else tuple(others)[:2]
    for rival in rivals:
        if others[rival]:
            found = f"a user or password in the URL together with {rival}"
            raise InvalidSetting(setting, found=found, accepted="one of the two; the other must be unset")


def check_url(setting: str, url: str, schemes: frozenset[str]) -> None:
    """Raise `InvalidSetting` unless the URL has one of `schemes` and a host."""
    accepted = f"{' or '.join(f'{s}://' for s in sorted(schemes))} with a host"
    try:
        parts = urlsplit(url)
    except ValueError:  # brackets around something that is not an IPv6 address
        raise InvalidSetting(setting, found=shown_value(url), accepted=accepted) from None
    hosts = parts.netloc.rpartition("@")[2].split(",")  # Sentinel and Cluster URLs name several
    are_hosts = all(_is_host(host) for host in hosts)
    is_complete = are_hosts or (parts.scheme == "unix" and not parts.netloc and bool(parts.path))
    is_plain = url.isprintable() and " " not in url  # `urlsplit` drops line breaks, a connection does not
    is_base = parts.scheme not in ("http", "https") or not parts.query  # paths are joined to it
    if parts.scheme not in schemes or not is_complete or parts.fragment or not (is_base and is_plain):
        raise InvalidSetting(setting, found=shown_value(url), accepted=accepted)


def _is_host(host: str) -> bool:
    match = _HOST.fullmatch(host)
    return match is not None and (whole((match[2] or ":0")[1:]) or 0) <= _LAST_PORT


def masked_url(value: object) -> object:
    """The value without credentials, if it is text."""
    return without_secrets(value) if isinstance(value, str) else value


def read_secret(setting: str, path: str) -> str:
    """The content of a mounted secret, without surrounding whitespace. Raises `InvalidSetting`."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSetting(
            setting, found=unreadable_file(path, error, is_secret=True), accepted="a readable file"
        ) from None
