"""The gRPC channel to Pub/Sub with Google's asyncio clients.

The clients come from google-cloud-pubsub, whose import takes 0.3 s. So `PubSubChannel.open` imports it, in a thread: a
process that does not use Pub/Sub does not load it, and the event loop is not blocked.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import msgspec

from handlers.contract.errors import InvalidSetting
from handlers.contract.masked_text import shown_value
from handlers.pubsub.errors import NO_ANSWER, NoAnswerInTime, PubSubFailed

if TYPE_CHECKING:
    from google.api_core.exceptions import GoogleAPICallError
    from google.pubsub_v1 import PublisherAsyncClient, SubscriberAsyncClient


GOOGLE_ENDPOINT: Final = "pubsub.googleapis.com"

_MAX_REASON_LENGTH: Final = 300
_CREDENTIALS: Final = (
    "expected a credentials file named by GOOGLE_APPLICATION_CREDENTIALS, "
    "`gcloud auth application-default login` or a workload identity"
)
_OPTIONS: Final = (
    ("grpc.max_send_message_length", -1),  # unlimited: the size of a publish is checked before it is sent
    ("grpc.max_receive_message_length", -1),  # unlimited: a pull may return 1,000 results
    # Reconnect within 5 s after an outage; gRPC's default grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # Detect a vanished peer while calls are in flight.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)
_EMULATOR_OPTIONS: Final = (("grpc.enable_http_proxy", 0),)
"""Options for the emulator. It is local, so `https_proxy` must not apply."""

T = TypeVar("T")


class PubSubOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The project and the server.

    An `emulator_host` (`host:port`) is used instead of Google's service and needs no credentials. `endpoint` may be
    regional (`europe-west1-pubsub.googleapis.com`).
    """

    project_id: str
    emulator_host: str = ""
    endpoint: str = GOOGLE_ENDPOINT


class Clients(msgspec.Struct, frozen=True):
    """Google's clients over one channel."""

    publisher: PublisherAsyncClient
    subscriber: SubscriberAsyncClient
    channel: Any


class PubSubChannel:
    """Opens the channel at the first call and keeps it until `close`. Belongs to one event loop."""

    def __init__(self, options: PubSubOptions) -> None:
        self.options = options
        self._clients: Clients | None = None
        self._opening: asyncio.Future[Clients] | None = None
        self.in_use = 0
        """Calls in flight."""

    async def open(self) -> Clients:
        """The clients.

        The first call imports the library and finds the credentials, in a thread. Raises `PubSubFailed` without
        credentials; the next call searches again.
        """
        if self._clients is not None:
            return self._clients
        if self._opening is None:
            self._opening = asyncio.ensure_future(self._open())
            self._opening.add_done_callback(self._opened)
        # Shielded, because a timeout of one caller must not cancel the opening for the others.
        return await asyncio.shield(self._opening)

    async def call(self, resource: str, call: Callable[[Clients], Awaitable[T]], timeout_seconds: float) -> T:
        """Await `call`, a call of one of the clients.

        Errors name `resource` (a full name). Raises `PubSubFailed` if the call is refused, `NoAnswerInTime` if there is
        no answer within `timeout_seconds`.
        """
        from google.api_core.exceptions import DeadlineExceeded, GoogleAPICallError

        self.in_use += 1
        try:
            async with asyncio.timeout(timeout_seconds):
                return await call(self._clients or await self.open())
        except (TimeoutError, DeadlineExceeded):
            raise NoAnswerInTime(resource, timeout_seconds) from None
        except GoogleAPICallError as error:
            raise PubSubFailed(resource, status=status_of(error), reason=_reason(error)) from error
        finally:
            self.in_use -= 1

    async def close(self) -> None:
        """Close the channel. Calls in flight fail; later calls open a new channel."""
        if self._opening is not None:
            await asyncio.wait({self._opening})
        clients, self._clients = self._clients, None
        if clients is not None:
            await clients.channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    def _opened(self, opening: asyncio.Future[Clients]) -> None:
        self._opening = None
        if not opening.cancelled() and opening.exception() is None:
            self._clients = opening.result()

    async def _open(self) -> Clients:
        credentials = await asyncio.to_thread(_load, needs_credentials=not self.options.emulator_host)
        return _clients(self.options, credentials)


def status_of(error: GoogleAPICallError) -> int:
    """The HTTP status for a gRPC error, as in `google.api_core`; else 500."""
    return int(error.code or 500)


def _reason(error: GoogleAPICallError) -> str:
    return f"{status_of(error)} {(error.message or '')[:_MAX_REASON_LENGTH]}".strip()


def _load(*, needs_credentials: bool) -> Any:
    """Import the library and return the credentials of this process.

    Call it in a thread: google-auth asks the metadata server over blocking HTTP.
    """
    import google.pubsub_v1  # later imports of it on the event loop then cost nothing

    if not needs_credentials:
        return None
    import google.auth
    from google.auth.exceptions import GoogleAuthError
    from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport

    try:
        credentials, _ = google.auth.default(scopes=PublisherGrpcAsyncIOTransport.AUTH_SCOPES)
    except (GoogleAuthError, OSError, ValueError) as error:
        found = (str(error).splitlines() or [""])[0][:_MAX_REASON_LENGTH]
        reason = f"no Google credentials: {_CREDENTIALS}, got {type(error).__name__}: {found}"
        raise PubSubFailed("Google credentials", status=NO_ANSWER, reason=reason) from error
    return credentials


def _clients(options: PubSubOptions, credentials: Any) -> Clients:
    """Both clients over one new channel of the running event loop."""
    from google.pubsub_v1 import PublisherAsyncClient, SubscriberAsyncClient
    from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport
    from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcAsyncIOTransport
    from grpc import aio

    if options.emulator_host:
        channel = aio.insecure_channel(options.emulator_host, options=(*_OPTIONS, *_EMULATOR_OPTIONS))
    else:
        host = options.endpoint.removeprefix("https://").rstrip("/")
        channel = PublisherGrpcAsyncIOTransport.create_channel(
            host if ":" in host else f"{host}:443", credentials=credentials, options=_OPTIONS
        )
    return Clients(
        PublisherAsyncClient(transport=PublisherGrpcAsyncIOTransport(channel=channel)),
        SubscriberAsyncClient(transport=SubscriberGrpcAsyncIOTransport(channel=channel)),
        channel,
    )


_ID: Final = re.compile(r"(?!goog)[A-Za-z][A-Za-z0-9._~+%-]{2,254}")
_PROJECT: Final = re.compile(r"[a-z][a-z0-9:.-]*[a-z0-9]")
_ACCEPTED_ID: Final = "3 to 255 letters, digits or ._~+%-, a letter first, not starting with goog"


def topic_path(project_id: str, topic: str) -> str:
    """The full name of `topic`. Raises `InvalidSetting` for an invalid name."""
    return _path(project_id, "topics", topic)


def subscription_path(project_id: str, subscription: str) -> str:
    """The full name of `subscription`. Raises `InvalidSetting` for an invalid name."""
    return _path(project_id, "subscriptions", subscription)


def short_name(path: str) -> str:
    """The last part of a full name, or the short name itself."""
    return path.rpartition("/")[2]


def _path(project_id: str, kind: str, name: str) -> str:
    setting = kind.removesuffix("s")
    if "/" in name:
        parts = name.split("/")
        if len(parts) != 4 or parts[0] != "projects" or parts[2] != kind:
            raise InvalidSetting(setting, found=shown_value(name), accepted=f"NAME or projects/PROJECT/{kind}/NAME")
        project_id, name = parts[1], parts[3]
    if not _PROJECT.fullmatch(project_id):
        found = shown_value(project_id) if project_id else "none"
        raise InvalidSetting("project_id", found=found, accepted="the id of a Google Cloud project")
    if not _ID.fullmatch(name):
        raise InvalidSetting(setting, found=shown_value(name), accepted=_ACCEPTED_ID)
    return f"projects/{project_id}/{kind}/{name}"
