"""Connect to Redis: URL, password, TLS, timeouts; standalone, Sentinel or Cluster.

The library's retries are off: our scripts are repeatable, and their callers retry with jitter.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from sys import getsizeof
from typing import Any, Final, TypeAlias, cast
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis
import msgspec
from redis import __version__ as LIBRARY_VERSION  # noqa: N812  # a constant
from redis._parsers.hiredis import _AsyncHiredisParser
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import AbstractConnection, ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.driver_info import DriverInfo
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,  # noqa: A004  # the library's, a RedisError
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from handlers.contract.errors import AsyncProcessorError, InvalidSetting
from handlers.number_text import counted
from handlers.redis_store.faults import NO_FIRST_REPLY, NO_TLS, explained

STORE_FAILURES: Final = (RedisError, RedisClusterException, OSError, TimeoutError)
"""Exceptions of a call to Redis while it is down, restarting, failing over, read-only or full."""


STORE_REFUSALS: Final = (ResponseError,)
"""Failures of one command: a key of another type, a missing right."""


class NotReplicated(RedisError):
    """Fewer replicas than required have confirmed a write of the master."""

    def __init__(self, wanted: int, found: int | None = None) -> None:
        has = "too few" if found is None else str(found)
        super().__init__(f"{has} of {counted(wanted, 'replica')} confirmed the write")


Store: TypeAlias = Redis | RedisCluster

_DRIVER: Final = DriverInfo(lib_version=LIBRARY_VERSION)
"""The version that connections report in `CLIENT LIST`. By default the library reads it from disk for each of them."""
_SENTINEL: Final = "+sentinel"
_CLUSTER: Final = "+cluster"


class RedisOptions(msgspec.Struct, frozen=True):
    """Address, credentials and time limits of a Redis connection.

    `url` is `REDIS_URL`; its two special forms are `redis+cluster://host:port,host:port` and
    `redis+sentinel://host:port,host:port/master/db` (with `?sentinel_username=…&sentinel_password=…` if the Sentinels
    require a login). `password` is called for every new connection, so that a secret may rotate; it and `username`
    override the URL's. A call fails after `timeout_seconds` without a byte, so a long reply does not fail. A lease must
    be longer than a few such failures. At most `max_connections` are open (in a cluster: to each node); further
    calls wait up to `timeout_seconds` for one.
    """

    url: str
    username: str = ""
    password: Callable[[], str] | None = None
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    timeout_seconds: float = 2.0
    connect_timeout_seconds: float = 10.0
    max_connections: int = 32

    def __repr__(self) -> str:
        return "RedisOptions(…)"  # the URL may hold a password

    @property
    def is_cluster(self) -> bool:
        return urlsplit(self.url).scheme.endswith(_CLUSTER)


def connect(options: RedisOptions) -> Store:
    """Return a client, which connects with its first call. Raises `InvalidSetting` for an invalid URL."""
    try:
        parts = urlsplit(options.url)
        arguments = _arguments(options, is_tls=parts.scheme.startswith("rediss"))
        if parts.scheme.endswith(_SENTINEL):
            return _through_sentinel(options, arguments)
        if parts.scheme.endswith(_CLUSTER):
            nodes = [ClusterNode(host, port) for host, port in _nodes(options.url, 6379)]
            return _WaitingCluster(nodes, options, arguments)
        pool = WaitingPool.from_url(
            _without_credentials(options.url),
            max_connections=options.max_connections,
            timeout=options.timeout_seconds,
            **arguments,
        )
        limit_silence(pool)
        # Opens no connection, but raises for unknown parameters of the URL.
        pool.make_connection()  # type: ignore[no-untyped-call]  # the library's
        return Redis.from_pool(pool)
    except (ValueError, TypeError):
        # The library's own message may repeat the URL, and with it a password.
        accepted = "redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://"
        raise InvalidSetting("REDIS_URL", found="an invalid URL", accepted=accepted) from None


def _arguments(options: RedisOptions, *, is_tls: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "socket_timeout": options.timeout_seconds,
        "socket_connect_timeout": options.connect_timeout_seconds,
        "health_check_interval": 0,
        "retry": Retry(NoBackoff(), 0),
        "driver_info": _DRIVER,
    }
    if urlsplit(options.url).scheme != "unix":  # Unix sockets have no keepalive
        arguments["socket_keepalive"] = True
    if credentials := _credentials(options):
        arguments["credential_provider"] = credentials
    if is_tls:
        given = {
            "ssl_ca_certs": options.ca_file,
            "ssl_certfile": options.cert_file,
            "ssl_keyfile": options.key_file,
        }
        arguments |= {name: value for name, value in given.items() if value}
        if urlsplit(options.url).scheme != "rediss":
            arguments["ssl"] = True
    return arguments


class _Credentials(CredentialProvider):
    """Reads the password for each connection. Sends nothing if user and password are empty."""

    def __init__(self, username: str, password: Callable[[], str]) -> None:
        self._username = username
        self._password = password

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """(user, password), (password,) without a user, or an empty tuple."""
        try:
            password = self._password()
        except (AsyncProcessorError, OSError, ValueError) as error:
            # A secret file is missing for a moment while it is replaced: report it like a refused login, which is
            # retried.
            raise AuthenticationError(f"the password cannot be read: {error}") from error
        if self._username:
            return self._username, password
        return (password,) if password else ()  # type: ignore[return-value]  # as the library takes it

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        """As `get_credentials`. It may block, since it reads at most a small file."""
        return self.get_credentials()


def _credentials(options: RedisOptions) -> _Credentials | None:
    """The options' user and password, or the URL's. None if neither is set."""
    parts = urlsplit(options.url)
    username = options.username or unquote(parts.username or "")
    of_url = unquote(parts.password or "")
    given = options.password
    if not (username or of_url or given):
        return None
    return _Credentials(username, lambda: (given() if given else "") or of_url)


def _without_credentials(url: str) -> str:
    """The URL without credentials. In the library they would override the credential provider."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _through_sentinel(options: RedisOptions, arguments: dict[str, Any]) -> Redis:
    parts = urlsplit(options.url)
    path = [part for part in parts.path.split("/") if part]
    if not path:
        raise ValueError("the URL does not name a master")
    database = int(path[1]) if len(path) > 1 else 0  # type: ignore[misc]  # the caller reports it
    query = parse_qs(parts.query)
    # The Sentinels are separate servers, with their own password or none.
    sentinel_arguments = {name: value for name, value in arguments.items() if name != "credential_provider"}
    sentinel_arguments |= {
        name: query[f"sentinel_{name}"][0] for name in ("username", "password") if f"sentinel_{name}" in query
    }
    nodes = _nodes(options.url, 26379)
    sentinel = Sentinels(nodes, sentinel_kwargs=sentinel_arguments, **arguments)  # type: ignore[no-untyped-call]  # the library's
    master: Redis = sentinel.master_for(
        path[0],
        redis_class=SentinelsMaster,
        connection_pool_class=WaitingSentinelPool,
        db=database,
        max_connections=options.max_connections,
        timeout=options.timeout_seconds,
    )
    for redis in (master, *sentinel.sentinels):
        limit_silence(redis.connection_pool)
    return master


class _WaitingCluster(RedisCluster):
    """A cluster client whose callers wait while all connections are busy.

    The library's client raises then, and also if a slot has moved to a node that it has not discovered yet.
    """

    def __init__(self, nodes: list[ClusterNode], options: RedisOptions, arguments: dict[str, Any]) -> None:
        super().__init__(startup_nodes=nodes, max_connections=options.max_connections, **arguments)
        for node in self.startup_nodes:
            limit_silence(node)
        # Nodes that are discovered later are created with these arguments.
        self.connection_kwargs["connection_class"] = progressive(self.connection_kwargs["connection_class"])
        self.connection_kwargs["parser_class"] = ProgressParser
        self._room = asyncio.Semaphore(options.max_connections)
        self._timeout_seconds = options.timeout_seconds

    @contextlib.asynccontextmanager
    async def room(self) -> AsyncIterator[None]:
        """Wait for room for one command or pipeline. Raises `TimeoutError`."""
        async with asyncio.timeout(self._timeout_seconds):
            await self._room.acquire()
        try:
            yield
        finally:
            self._room.release()

    def get_node(
        self, host: str | None = None, port: int | None = None, node_name: str | None = None
    ) -> ClusterNode | None:
        """The node by address or name; an unknown `node_name` (host:port) is added."""
        found = super().get_node(host, port, node_name)
        if found or not node_name:
            return found
        new_host, _, new_port = node_name.rpartition(":")
        manager = self.nodes_manager
        added = ClusterNode(new_host, new_port, "primary", **manager.connection_kwargs)
        manager.set_nodes(manager.nodes_cache, {added.name: added})
        return manager.get_node(node_name=added.name)

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        async with self.room():
            return await super().execute_command(*args, **kwargs)


def _nodes(url: str, default_port: int) -> list[tuple[str, int]]:
    hosts = urlsplit(url).netloc.rpartition("@")[2].split(",")
    return [_node(host, default_port) for host in hosts if host]


def _node(host: str, default_port: int) -> tuple[str, int]:
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):  # an IPv6 address is in brackets
        name, port = host, str(default_port)
    return name.strip("[]"), int(port)  # type: ignore[misc]  # the caller reports it


def connections_in_use(redis: Store) -> int:
    """Connections that carry a command now; 0 for a cluster client."""
    count = getattr(getattr(redis, "connection_pool", None), "get_connection_count", None)
    if count is None:
        return 0
    _idle, (used, _attributes) = count()
    return int(used)


async def durability_warnings(redis: Store) -> list[str]:
    """Reasons why the server may lose acknowledged requests. Empty if none is found.

    A server that does not report its configuration (managed Redis, an ACL) is a reason too. Raises one of
    `STORE_FAILURES`.
    """
    try:
        persistence = await redis.info("persistence")
        policy = (await redis.config_get("maxmemory-policy")).get("maxmemory-policy", "")
    except ResponseError as error:
        return [f"Redis does not report whether it persists acknowledged writes ({type(error).__name__})"]
    warnings = []
    if not int(persistence.get("aof_enabled", 0)):
        warnings.append("Redis has no append-only file: a crash of the server loses acknowledged requests")
    if policy not in ("noeviction", ""):
        warnings.append(f"Redis evicts keys when it is full (maxmemory-policy {policy}): set noeviction")
    return warnings


async def evicting_policy(redis: Store) -> str:
    """The eviction policy, if it drops whole queues; else empty.

    A full server does so with `allkeys-…`. Empty too if the server does not report its policy. Raises one of
    `STORE_FAILURES`.
    """
    try:
        policy = str((await redis.config_get("maxmemory-policy")).get("maxmemory-policy", ""))
    except ResponseError:
        return ""
    return policy if policy.startswith("allkeys") else ""


async def executed(redis: Store, pipeline: Any, *, raise_on_error: bool = True) -> list[Any]:
    """Run a pipeline and return its answers. Raises one of `STORE_FAILURES`.

    Without `raise_on_error`, a failed command's error is its answer.

    In a cluster it discovers the slots again after a failed pipeline. The library does so only after a failed command,
    so pipelines would be sent to a crashed master indefinitely.
    """
    answers: list[Any]
    if not isinstance(redis, _WaitingCluster):
        answers = await pipeline.execute(raise_on_error=raise_on_error)
        return answers
    try:
        async with redis.room():
            answers = await pipeline.execute(raise_on_error=raise_on_error)
    except STORE_FAILURES:
        with contextlib.suppress(*STORE_FAILURES):
            await redis.nodes_manager.initialize()
        raise
    return answers


async def server_time(redis: Store) -> float:
    """The server's time in Unix seconds."""
    seconds, microseconds = await redis.time()
    return float(seconds) + float(microseconds) / 1_000_000


def flat(pairs: Sequence[Sequence[Any]]) -> list[Any]:
    """All rows' values in one list, for a script's ARGV."""
    return [value for row in pairs for value in row]


PIECE_BYTES: Final = 262_144
"""Bytes of a command that are sent under one time limit."""


class ProgressParser(_AsyncHiredisParser):
    """Restarts the time limit of a read with every part that arrives.

    Raises `ConnectionError` with `NO_FIRST_REPLY` if the server closes the connection before anything has arrived.
    """

    __slots__ = ("_connection", "_has_read")

    def on_connect(self, connection: Any) -> None:
        """Remember the connection, which holds the time limit of the current read."""
        super().on_connect(connection)  # type: ignore[no-untyped-call]  # the library's
        self._connection = connection
        self._has_read = False

    async def read_from_socket(self) -> bool:
        try:
            has_read = bool(await super().read_from_socket())  # type: ignore[no-untyped-call]  # as above
        except (ConnectionError, ConnectionResetError) as error:
            if self._has_read:
                raise
            raise ConnectionError(NO_FIRST_REPLY) from error
        self._has_read = True
        limit, seconds = self._connection._active_read_timeout, self._connection.socket_timeout
        if limit is not None and seconds is not None:
            limit.reschedule(asyncio.get_running_loop().time() + seconds)
        return has_read


class _ProgressiveSend(AbstractConnection):
    """Sends a command in pieces, each with its own time limit.

    A script's arguments are encoded in C, which takes a seventh of the library's time. Only a command that fits one
    piece is, since that copies it.

    Raises `ConnectionError` if another task has closed the connection. The discovery of a cluster's nodes closes
    connections that are in use; the library then raises `AttributeError` or `RuntimeError`.

    The library's own write uses `asyncio.wait_for`. Until Python 3.12 that swallows a cancellation if the write ends at
    the same time, and it starts a task for each command.
    """

    async def _connect(self) -> None:
        try:
            await super()._connect()  # type: ignore[safe-super, no-untyped-call]  # the mixed-in class has it
        except TimeoutError:
            if isinstance(self, SSLConnection) and await _is_plain(self.host, self.port):
                raise ConnectionError(NO_TLS) from None
            raise

    def pack_command(self, *args: Any) -> list[bytes]:
        if args[0] == "EVALSHA" and sum(map(getsizeof, args)) <= PIECE_BYTES:
            return [hiredis.pack_command(args)]
        return super().pack_command(*args)

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        if isinstance(command, str):
            command = command.encode()
        try:
            if not self.is_connected:
                await self.connect_check_health(check_health=False)
            if check_health:
                await self.check_health()  # type: ignore[no-untyped-call]  # the library's
            for piece in pieces([command] if isinstance(command, bytes) else command):
                async with asyncio.timeout(self.socket_timeout):
                    self._writer.writelines(piece)  # type: ignore[union-attr]  # None is refused below
                    await self._writer.drain()  # type: ignore[union-attr]  # as above
        except TimeoutError:
            await self.disconnect(nowait=True)
            raise RedisTimeoutError("Timeout writing to socket") from None
        except OSError as error:
            await self.disconnect(nowait=True)
            raise ConnectionError(f"Error while writing to socket: {error}") from error
        except (AttributeError, RuntimeError) as error:
            await self._refuse_if_closed(error)
            raise
        except BaseException:  # nothing may follow a command that is perhaps half written
            await self.disconnect(nowait=True)
            raise

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except (AttributeError, RuntimeError) as error:
            await self._refuse_if_closed(error)
            raise

    async def disconnect(self, *args: Any, **options: Any) -> None:
        """Close the connection. Never fails: a peer that does not confirm the end of TLS is cut off after the limit."""
        writer = self._writer
        try:
            await super().disconnect(*args, **options)
        except RedisTimeoutError:
            if writer is not None:
                writer.transport.abort()

    async def _refuse_if_closed(self, error: Exception) -> None:
        was_closed = self._writer is None or self._writer.is_closing()
        await self.disconnect(nowait=True)
        if was_closed:
            raise ConnectionError("the connection was closed during the call") from error


_PROBE_SECONDS: Final = 1.0


async def _is_plain(host: str, port: int) -> bool:
    """Whether the server speaks Redis without TLS."""
    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(b"PING\r\n")
                return (await reader.read(1)) in (b"+", b"-")
            finally:
                writer.close()
    except OSError:
        return False


def pieces(parts: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Split `parts` into lists of at most `PIECE_BYTES` bytes."""
    piece: list[bytes] = []
    size = 0
    for part in parts:
        view = memoryview(part)
        while size + len(view) > PIECE_BYTES:
            taken, view = view[: PIECE_BYTES - size], view[PIECE_BYTES - size :]
            yield [*piece, taken]  # type: ignore[list-item]  # a view of bytes is written as bytes are
            piece, size = [], 0
        if len(view):
            piece.append(view if len(view) != len(part) else part)  # type: ignore[arg-type]  # as above
            size += len(view)
    if piece:
        yield piece


def progressive(connection_class: type[AbstractConnection]) -> type[AbstractConnection]:
    """A subclass of `connection_class` that sends in pieces (see `_ProgressiveSend`)."""
    return type(f"Progressive{connection_class.__name__}", (_ProgressiveSend, connection_class), {})


def limit_silence(pool: ConnectionPool | ClusterNode) -> None:
    """Limit the time without data, not the duration of calls, for `pool`."""
    pool.connection_class = progressive(pool.connection_class)
    pool.connection_kwargs["parser_class"] = ProgressParser


class WaitingPool(BlockingConnectionPool):
    """Connections to a server; callers wait if all are busy.

    It takes a free connection without the library's locks and events, which would cost half of a small call's CPU.
    """

    _waiting = 0

    async def get_connection(self, *_arguments: Any, **_options: Any) -> Any:
        """A connection that is ready to send."""
        if self._waiting or not self.can_get_connection():
            self._waiting += 1
            try:
                return await super().get_connection()  # type: ignore[no-untyped-call]  # the library's
            finally:
                self._waiting -= 1
        connection = self.get_available_connection()  # type: ignore[no-untyped-call]  # as above
        try:
            await self.ensure_connection(connection)
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def release(self, connection: AbstractConnection) -> None:
        """Take back a connection and wake one waiting caller."""
        self._in_use_connections.remove(connection)
        if connection.should_reconnect():  # type: ignore[no-untyped-call]  # as above
            await connection.disconnect()
        self._available_connections.append(connection)
        async with self._condition:
            self._condition.notify()


class Sentinels(Sentinel):
    """Sentinel discovery that reports failures. The library's stops at a server that is not a Sentinel."""

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Host and port of the master. Raises `MasterNotFoundError` with the Sentinels' failures."""
        has_answered, failed = False, dict[str, Exception]()
        for number, sentinel in enumerate(self.sentinels):
            try:
                masters = cast("dict[str, Any]", await sentinel.sentinel_masters())
            except (RedisError, OSError) as error:
                failed[type(error).__name__] = error
                continue
            has_answered = True
            state = masters.get(service_name)
            if state and self.check_master_state(state, service_name):
                # The next discovery starts with this Sentinel.
                self.sentinels[0], self.sentinels[number] = sentinel, self.sentinels[0]
                return state["ip"], state["port"]
        raise MasterNotFoundError(_why(service_name, failed, has_answered=has_answered))


def _why(name: str, failed: dict[str, Exception], *, has_answered: bool) -> str:
    if has_answered:
        return f"the Sentinels report no reachable master {name!r}: compare the URL's path with `sentinel monitor`"
    if any(isinstance(error, AuthenticationError) for error in failed.values()):
        return "the Sentinels refuse the login: put ?sentinel_username=…&sentinel_password=… into the URL"
    reasons = "; ".join(dict.fromkeys(explained(error) for error in failed.values()))
    return f"no Sentinel in the URL reports a master: {reasons}"


class WaitingSentinelPool(SentinelConnectionPool, WaitingPool):
    """Connections to a Sentinel's master; callers wait if all are busy."""


class SentinelsMaster(Redis):
    """The current master; `aclose` also closes the connections to the Sentinels."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)
        for sentinel in getattr(self.connection_pool, "sentinel_manager").sentinels:  # noqa: B009  # untyped
            await sentinel.aclose()
