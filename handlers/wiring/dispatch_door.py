"""Build the dispatch door: its token, and the fields and sink of sources other than the poller."""

from __future__ import annotations

import re
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from handlers.contract.errors import InvalidSetting, SettingFaults
from handlers.contract.events import Event
from handlers.contract.lenient_json import MALFORMED, shape_of
from handlers.contract.masked_text import shown_value
from handlers.doors.auth.bearer import DispatchToken, DispatchTokenOptions
from handlers.doors.cloudevents.dispatch import DispatchDoor, EventSink, SinkOptions
from handlers.doors.cloudevents.foreign_event import HEADER_PREFIX, EventFields
from handlers.doors.http_endpoint import Authenticator
from handlers.forward.gateway import Gateway
from handlers.number_text import counted
from handlers.settings.settings import Settings
from handlers.telemetry.logs import Logger
from handlers.transport.transport import TransportOptions
from handlers.wiring.forward_stack import Handle, Parts, event_stack, recorded_handle

_MAX_ANSWER_BYTES = 65_536
_EXTENSION = re.compile(r"[a-z0-9]+")
_ATTRIBUTES = frozenset({"id", "source", "type", "specversion", "datacontenttype", "requestid"})


class _Overrides(msgspec.Struct):
    extensions: dict[str, str] = msgspec.field(default_factory=dict)


def dispatch_door(settings: Settings, parts: Parts) -> tuple[Handle, Authenticator | None]:
    """The dispatch door, and the check of its senders' token. Raises `InvalidSetting`."""
    env = settings.env
    authenticator = None
    if env.dispatch_token or env.dispatch_token_file:
        path = Path(env.dispatch_token_file) if env.dispatch_token_file else None
        authenticator = DispatchToken(DispatchTokenOptions(path=path, tokens=(env.dispatch_token,)))
    elif env.dispatch_auth != "none":
        parts.log.warning("dispatch authentication is disabled", fix="set DISPATCH_TOKEN_FILE, or DISPATCH_AUTH=none")
    fields, sink = event_fields(settings), event_sink(settings, parts.log, parts.closers)
    door = DispatchDoor(
        max_request_bytes=env.max_request_bytes,
        fields=fields,
        sink=sink,
        # Without a token, other sources could also send events of the poller's type.
        trusts_pollers=authenticator is not None or (fields is None and sink is None),
    )
    forward = event_stack(settings, parts)

    def queue_name(event: Event) -> str:
        return event.extensions.get("queue", "")  # empty for an event of another source

    return recorded_handle(door, queue_name, forward, parts), authenticator


def check_event_sources(settings: Settings) -> None:
    """Raise `InvalidSetting` with all invalid `EVENT_…` and `K_…` variables."""
    faults = SettingFaults()
    for check in (event_fields, _sink_parts):
        with faults.collected():
            check(settings)
    faults.raise_all()


def event_fields(settings: Settings) -> EventFields | None:
    """How other sources' events become requests; None if they already are."""
    env = settings.env
    for setting, value in {
        "EVENT_ID_FROM": env.event_id_from,
        "EVENT_TENANT_FROM": env.event_tenant_from,
        "EVENT_DEADLINE_FROM": env.event_deadline_from,
    }.items():
        name = value.removeprefix(HEADER_PREFIX)
        if value and not (name.isascii() and name.replace("-", "").replace("_", "").isalnum()):
            accepted = "a CloudEvent attribute such as `subject`, or `header:x-request-id`"
            raise InvalidSetting(setting, found=shown_value(value), accepted=accepted)
    fields = EventFields(
        id_from=env.event_id_from,
        tenant_from=env.event_tenant_from,
        deadline_from=env.event_deadline_from,
        deadline_seconds=env.event_deadline_seconds,
        is_payload=env.event_data == "payload",
        tenant_field=settings.fairness_attribute,
    )
    return None if fields.is_empty else fields


def event_sink(settings: Settings, log: Logger, closers: list[Callable[[], Awaitable[object]]]) -> EventSink | None:
    """The sink for results of other sources' events, or None.

    Without a sink, results are the replies to the events.
    """
    env = settings.env
    if not env.k_sink:
        return None
    tls, overrides = _sink_parts(settings)
    client = Gateway(
        TransportOptions(env.connect_timeout_seconds, max_response_bytes=_MAX_ANSWER_BYTES, ssl_context=tls)
    )
    closers.append(client.aclose)
    return EventSink(client, SinkOptions(env.k_sink, overrides), log)


def _sink_parts(settings: Settings) -> tuple[ssl.SSLContext | None, dict[str, str]]:
    """TLS and overrides of the sink. Raises `InvalidSetting`."""
    env = settings.env
    if env.k_sink and not env.k_sink.startswith(("http://", "https://")):
        raise InvalidSetting("K_SINK", found=shown_value(env.k_sink), accepted="an http:// or https:// URL")
    return _tls(env.k_ca_certs), _overrides(env.k_ce_overrides)


def _overrides(text: str) -> dict[str, str]:
    accepted = '{"extensions": {"name": "value"}}'
    try:
        extensions = msgspec.json.decode(text, type=_Overrides).extensions if text else {}
    except MALFORMED as error:
        found = shape_of(text.encode(), error)
        raise InvalidSetting("K_CE_OVERRIDES", found=found, accepted=accepted) from None
    for name in extensions:
        if not _EXTENSION.fullmatch(name) or name in _ATTRIBUTES:
            accepted = "extensions named with lower-case letters and digits, and no standard attribute"
            raise InvalidSetting("K_CE_OVERRIDES", found=shown_value(name), accepted=accepted)
    return extensions


def _tls(certificates: str) -> ssl.SSLContext | None:
    if not certificates:
        return None
    try:
        return ssl.create_default_context(cadata=certificates)
    except ssl.SSLError:
        found = f"{counted(len(certificates), 'character')} without a certificate"
        raise InvalidSetting("K_CA_CERTS", found=found, accepted="PEM certificates") from None
