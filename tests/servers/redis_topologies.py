"""Real clusters and Sentinels on one machine.

By default a server that stands still on a busy machine is not replaced. Tests of failovers use `QUICK_MS`.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from handlers.demo.servers import Child, free_port
from tests.servers.tls_front import SERVERS_ADDRESS, TlsFront
from tests.waiting import wait_until

_READY = ("Ready to accept connections", "Sentinel ID is")
_SLOTS = 16_384
_MASTERS = 3
CALM_MS, QUICK_MS = 60_000, 3_000
"""After how long a silent server counts as failed."""
_DEBUG_MS = ("INFO-PERIOD", 500, "PUBLISH-PERIOD", 200, "TILT-TRIGGER", 60_000)
"""How often a Sentinel asks for roles (default 10 s) and announces itself (2 s).

It demotes a master that came back after four of the latter. If it stands still for longer than the third (2 s), it
starts no failover for 30 s.
"""
_START_SECONDS = 60.0


class Server:
    """One server with its own options; `kill` is a SIGKILL. With `tls`, a PEM file, `port` accepts TLS only."""

    def __init__(self, program: str, *options: str, port: int = 0, sentinel: str = "", tls: Path | None = None) -> None:
        self.own_port = port or free_port()
        self._front = TlsFront(self.own_port, tls) if tls else None
        self.port = self._front.port if self._front else self.own_port
        self._folder = tempfile.TemporaryDirectory(prefix="async-processor-")
        if sentinel:  # it writes into its file what it learns
            path = Path(self._folder.name) / "sentinel.conf"
            lines = [f"port {self.own_port}", "bind 127.0.0.1", f"dir {self._folder.name}", sentinel]
            if tls:
                lines += [f"bind-source-addr {SERVERS_ADDRESS}", "sentinel announce-ip 127.0.0.1"]
            path.write_text("\n".join(lines))
            self._command = [program, str(path), "--sentinel"]
        else:
            fixed = ["--port", str(self.own_port), "--bind", "127.0.0.1", "--save", ""]
            self._command = [program, *fixed, "--dir", self._folder.name, *options]
            if tls:
                port_names = ("--replica-announce-port", "--cluster-announce-port")
                self._command += [part for name in port_names for part in (name, str(self.port))]
        self.start()

    def start(self) -> None:
        """Start it, or start it again with its files."""
        self._child = Child("redis", self._command)
        self._child.wait_for(lambda output: next((word for word in _READY if word in output), None))

    @property
    def url(self) -> str:
        """The URL without TLS, user or password."""
        return f"redis://127.0.0.1:{self.own_port}"

    @property
    def folder(self) -> str:
        """Where its files are."""
        return self._folder.name

    def client(self, **arguments: Any) -> Any:
        """A connection of the test's own to this server alone, without TLS."""
        return Redis(host="127.0.0.1", port=self.own_port, socket_timeout=60, socket_connect_timeout=60, **arguments)

    def answers_for(self, key: str) -> bool:
        """Whether it is running and is the key's master now."""
        client = self.client()
        try:
            client.execute_command("EXISTS", key)
        except (RedisError, OSError):
            return False
        return True

    @property
    def is_dead(self) -> bool:
        """Whether its process has ended."""
        return self._child.process.poll() is not None

    def kill(self) -> None:
        """Kill it at once, like a machine that is switched off."""
        self._child.process.kill()
        self._child.process.wait()
        self._child.stop()

    def stop(self) -> None:
        """End it and remove its files."""
        if self._front:
            self._front.stop()
        self._child.stop()
        self._folder.cleanup()


class _Servers:
    """Servers that end together."""

    def __init__(self) -> None:
        self.servers: list[Server] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for server in reversed(self.servers):
            server.stop()


class Cluster(_Servers):
    """Three masters, optionally with a replica each."""

    def __init__(
        self, program: str, *, replicas: int = 0, tls: Path | None = None, node_timeout_ms: int = CALM_MS
    ) -> None:
        super().__init__()
        self._scheme = "rediss+cluster" if tls else "redis+cluster"
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(node_timeout_ms))
        more = (
            "--appendonly",
            "yes",
            "--cluster-replica-validity-factor",
            "0",
            "--repl-diskless-sync-delay",
            "0",
        )
        self._start = partial(Server, program, *options, *more, tls=tls)
        for _ in range(_MASTERS * (1 + replicas)):
            self.servers.append(self._start(port=_port_with_bus()))
        self._join(replicas)

    @property
    def url(self) -> str:
        """The URL for `REDIS_URL`."""
        return f"{self._scheme}://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    def master_of(self, key: str) -> Server | None:
        """The server that is the key's master now, or None."""
        return next((server for server in self.servers if server.answers_for(key)), None)

    def add(self) -> Server:
        """Add a node without slots, known to all others."""
        added = self._start(port=_port_with_bus())
        self.servers.append(added)
        for server in self.servers[:-1]:
            _meet(added.client(), server)
        count, clients = len(self.servers), [server.client() for server in self.servers]
        _wait(lambda: all(_known(client) == count for client in clients), "the new node to be known")
        _wait(lambda: all(_is_whole(client) for client in clients), "the cluster as the new node sees it")
        return added

    def _join(self, replicas: int) -> None:
        count, clients = len(self.servers), [server.client() for server in self.servers]
        for number, client in enumerate(clients):
            if number < _MASTERS:
                first, last = number * _SLOTS // _MASTERS, (number + 1) * _SLOTS // _MASTERS - 1
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            for server in self.servers[:number]:  # each introduced to each other: gossip would take seconds
                _meet(client, server)
        _wait(lambda: all(_known(client) == count for client in clients), "the nodes to meet")
        for number, client in enumerate(clients[_MASTERS:]):
            master = clients[number % _MASTERS].execute_command("CLUSTER MYID")
            _wait(partial(_follow, client, master), "the master to be known")
        _wait(lambda: all(_is_whole(client) for client in clients), "the cluster")
        _wait(lambda: all(_online(client) == replicas for client in clients[:_MASTERS]), "the replicas")


class Sentinels(_Servers):
    """A master, its replica, and three Sentinels, under the name `queues`."""

    name = "queues"

    def __init__(
        self,
        program: str,
        *options: str,
        password: str = "",
        sentinel_password: str = "",
        tls: Path | None = None,
        down_after_ms: int = CALM_MS,
    ) -> None:
        super().__init__()
        self._tls = tls
        self._down_after_ms = down_after_ms
        self._program = program
        self._password = password
        self._sentinel_password = sentinel_password
        secret = ("--requirepass", password, "--masterauth", password) if password else ()
        common = ("--appendonly", "yes", "--repl-diskless-sync-delay", "0", *secret, *options)
        self.master = self._add(*common)
        plain = ("--bind-source-addr", SERVERS_ADDRESS) if tls else ()
        self.replica = self._add(*common, *plain, "--replicaof", f"127.0.0.1 {self.master.port}")
        client = self.master.client(password=password or None)
        _wait(lambda: _online(client) == 1, "the replica")
        self.sentinels = [self._sentinel() for _ in range(3)]
        _wait(lambda: all(self._is_ready(server) for server in self.sentinels), "the Sentinels to agree")

    def url(self, user: str = "", path: str = "/queues/0") -> str:
        """The URL for `REDIS_URL`."""
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self.sentinels)
        secret = f":{self._password}@" if self._password and not user else user
        query = f"?sentinel_password={self._sentinel_password}" if self._sentinel_password else ""
        scheme = "rediss+sentinel" if self._tls else "redis+sentinel"
        return f"{scheme}://{secret}{hosts}{path}{query}"

    def _add(self, *options: str) -> Server:
        server = Server(self._program, *options, tls=self._tls)
        self.servers.append(server)
        return server

    def _sentinel(self) -> Server:
        lines = [
            f"sentinel monitor {self.name} 127.0.0.1 {self.master.port} 2",
            f"sentinel down-after-milliseconds {self.name} {self._down_after_ms}",
            f"sentinel failover-timeout {self.name} 6000",
        ]
        if self._password:
            lines.append(f"sentinel auth-pass {self.name} {self._password}")
        if self._sentinel_password:
            lines += [
                f"requirepass {self._sentinel_password}",
                f"sentinel sentinel-pass {self._sentinel_password}",
            ]
        server = Server(self._program, sentinel="\n".join(lines) + "\n", tls=self._tls)
        client = server.client(password=self._sentinel_password or None)
        client.execute_command("SENTINEL", "DEBUG", *_DEBUG_MS)
        self.servers.append(server)
        return server

    def _is_ready(self, server: Server) -> bool:
        client = server.client(password=self._sentinel_password or None)
        found = [client.execute_command("SENTINEL", word, self.name) for word in ("SENTINELS", "REPLICAS")]
        return [len(answer) for answer in found] == [2, 1]


def _wait(predicate: Callable[[], object], what: str) -> None:
    wait_until(predicate, what)


def _meet(client: Any, server: Server) -> None:
    """Introduce a server under the port that it announces; its bus port is 10,000 above its own."""
    client.execute_command("CLUSTER", "MEET", "127.0.0.1", server.port, server.own_port + 10_000)


def _known(client: Any) -> int:
    return int(client.execute_command("CLUSTER INFO")["cluster_known_nodes"])


def _is_whole(client: Any) -> bool:
    return bool(client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")


def _follow(client: Any, master: object) -> bool:
    try:
        client.execute_command("CLUSTER", "REPLICATE", master)
    except ResponseError:
        return False
    return True


def _online(client: Any) -> int:
    info = client.info("replication")
    replicas = [info[f"slave{n}"] for n in range(int(info["connected_slaves"]))]
    return sum(replica["state"] == "online" for replica in replicas)


def _port_with_bus() -> int:
    """A free port whose bus port (10,000 above) exists and is free."""
    while True:
        port = free_port()
        if port > 22_000:
            continue  # its bus port would be one of those that outgoing connections take
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10_000))
            return port
