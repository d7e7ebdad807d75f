"""One way to connect: URL, password, TLS, timeouts; standalone, Sentinel, Cluster. And what the server says.

The library retries nothing by itself: our scripts are repeatable, and their callers wait with jitter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from handlers.contract.errors import InvalidSetting

STORE_FAILURES: Final = (RedisError, OSError, TimeoutError)
"""What a call to Redis may raise while it is down, restarting, failing over, read-only or full."""

Store: TypeAlias = Redis | RedisCluster

_SENTINEL: Final = "+sentinel"
_CLUSTER: Final = "+cluster"


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """Where Redis is and who we are; `url` as in the settings, with `+sentinel` and `+cluster` forms.

    `redis+sentinel://host:port,host:port/master/db`, `redis+cluster://host:port,host:port`. `password` is
    asked at every new connection, so a secret may rotate; it wins over the URL's own.
    """

    url: str
    username: str = ""
    password: Callable[[], str] | None = None
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    timeout_seconds: float = 5.0
    connect_timeout_seconds: float = 2.0
    max_connections: int = 32

    def __repr__(self) -> str:
        return "RedisOptions(…)"  # the URL may hold a password

    @property
    def is_cluster(self) -> bool:
        """Whether keys must be chosen by slot."""
        return urlsplit(self.url).scheme.endswith(_CLUSTER)


def connect(options: RedisOptions) -> Store:
    """A client; it connects with the first call. Raises `InvalidSetting` for a URL that cannot be one."""
    try:
        parts = urlsplit(options.url)
        arguments = _arguments(options, is_tls=parts.scheme.startswith("rediss"))
        if parts.scheme.endswith(_SENTINEL):
            return _through_sentinel(options, arguments)
        if parts.scheme.endswith(_CLUSTER):
            nodes = [ClusterNode(host, port) for host, port in _nodes(options.url, 6379)]
            return RedisCluster(startup_nodes=nodes, **arguments)
        return Redis.from_url(options.url, max_connections=options.max_connections, **arguments)
    except ValueError:
        # The library's own message may repeat the URL, and with it a password.
        accepted = "redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://"
        raise InvalidSetting("REDIS_URL", found="a URL that cannot be used", accepted=accepted) from None


def _arguments(options: RedisOptions, *, is_tls: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "socket_timeout": options.timeout_seconds,
        "socket_connect_timeout": options.connect_timeout_seconds,
        "socket_keepalive": True,
        "health_check_interval": 0,
        "retry": Retry(NoBackoff(), 0),
    }
    parts = urlsplit(options.url)
    username = options.username or unquote(parts.username or "")
    password = options.password() if options.password else ""
    if username:
        arguments["username"] = username
    if password or parts.password:
        arguments["password"] = password or unquote(parts.password or "")
    if is_tls:
        given = {
            "ssl_ca_certs": options.ca_file,
            "ssl_certfile": options.cert_file,
            "ssl_keyfile": options.key_file,
        }
        arguments |= {name: value for name, value in given.items() if value}
        if parts.scheme != "rediss":
            arguments["ssl"] = True
    return arguments


def _through_sentinel(options: RedisOptions, arguments: dict[str, Any]) -> Redis:
    parts = urlsplit(options.url)
    path = [part for part in parts.path.split("/") if part]
    if not path:
        raise ValueError("no name of a master")
    database = int(path[1]) if len(path) > 1 else 0
    query = parse_qs(parts.query)
    sentinel_arguments = {
        name: value for name, value in arguments.items() if name not in ("username", "password")
    }
    if "sentinel_password" in query:
        sentinel_arguments["password"] = query["sentinel_password"][0]
    nodes = _nodes(options.url, 26379)
    sentinel = Sentinel(nodes, sentinel_kwargs=sentinel_arguments, **arguments)  # type: ignore[no-untyped-call]  # the library's
    master: Redis = sentinel.master_for(path[0], db=database, max_connections=options.max_connections)
    return master


def _nodes(url: str, default_port: int) -> list[tuple[str, int]]:
    hosts = urlsplit(url).netloc.rpartition("@")[2].split(",")
    pairs = [host.rpartition(":") if ":" in host else (host, "", "") for host in hosts if host]
    return [(name, int(port) if port else default_port) for name, _, port in pairs]


async def durability_warnings(redis: Store) -> list[str]:
    """What would let the server lose acknowledged requests, as sentences; empty if nothing is found.

    Servers that do not tell (a managed one, an ACL) give a sentence too: we do not guess.
    """
    try:
        persistence = await redis.info("persistence")
        policy = (await redis.config_get("maxmemory-policy")).get("maxmemory-policy", "")
    except RedisError as error:
        return [f"Redis does not tell whether it keeps what it acknowledged ({type(error).__name__})"]
    warnings = []
    if not int(persistence.get("aof_enabled", 0)):
        warnings.append("Redis has no append-only file: a crash of the server loses acknowledged requests")
    if policy not in ("noeviction", ""):
        warnings.append(f"Redis evicts keys when it is full (maxmemory-policy {policy}): set noeviction")
    return warnings


async def server_time(redis: Store) -> float:
    """The server's Unix seconds."""
    seconds, microseconds = await redis.time()
    return float(seconds) + float(microseconds) / 1_000_000


def flat(pairs: Sequence[Sequence[Any]]) -> list[Any]:
    """The values of all pairs (or longer rows) in one list, as a script's ARGV wants them."""
    return [value for row in pairs for value in row]
