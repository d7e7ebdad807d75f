"""TLS in front of a server that was built without it."""

from __future__ import annotations

import contextlib
import select
import socket
import socketserver
import ssl
import threading
from pathlib import Path
from typing import Self

from tests.servers.certificates import serving

SERVERS_ADDRESS = "127.0.0.2"
"""Source address of connections between servers, which speak no TLS."""


class TlsFront:
    """Accepts TLS alone on a free port, asks for a client certificate, and passes everything on to a local port.

    Like Redis with `tls-port` and `tls-auth-clients yes`. Only a server that connects from `SERVERS_ADDRESS`, such as
    a Sentinel, may speak without TLS: it reaches its master at the address that it also gives to clients.
    """

    def __init__(self, port: int, pem: Path) -> None:
        context = serving(pem)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(pem)
        passed_on = self._passed_on = set[socket.socket]()

        class Connection(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with (
                    contextlib.suppress(OSError),  # refused certificates, and ends of either side
                    socket.create_connection(("127.0.0.1", port)) as inside,
                ):
                    passed_on.add(inside)
                    try:
                        if self.client_address[0] == SERVERS_ADDRESS:
                            _relay(self.request, inside)
                        else:
                            with context.wrap_socket(self.request, server_side=True) as outside:
                                _relay(outside, inside)
                    finally:
                        passed_on.discard(inside)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Connection)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def stop(self) -> None:
        """End all connections."""
        self._server.shutdown()
        self._thread.join()
        for inside in tuple(self._passed_on):
            with contextlib.suppress(OSError):
                inside.shutdown(socket.SHUT_RDWR)
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()


def _relay(outside: socket.socket, inside: socket.socket) -> None:
    """Pass bytes on in both directions, in one thread as OpenSSL needs it, until either side ends."""
    while True:
        has_decrypted = isinstance(outside, ssl.SSLSocket) and outside.pending()
        ready = [outside] if has_decrypted else select.select([outside, inside], [], [])[0]
        for source in ready:
            data = source.recv(65_536)
            if not data:
                return
            (inside if source is outside else outside).sendall(data)
