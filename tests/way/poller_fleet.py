"""Pollers with their own handlers, and a gateway, as processes."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Self

from tests.servers.forked import COMMAND, ForkedChild, running_gateway

_OUTAGES = ("no answer in time", "the server closed the connection", "no connection to ", "no node of the cluster")
_PAGES = re.compile(r'"metrics_port":(\d+)')


class PollerFleet:
    """Two pollers with these settings, and the gateway; a context manager."""

    def __init__(self, variables: Mapping[str, str], *, token_seconds: float = 0.0) -> None:
        self._parts = ExitStack()
        latency = ("--time-to-first-token", "0.1", "--time-per-token", str(token_seconds))
        url = self._parts.enter_context(running_gateway(*latency))
        settings = {
            "IGW_BASE_URL": url,
            "LEASE_SECONDS": "6",
            "HEARTBEAT_SECONDS": "1",
            "RECLAIM_SECONDS": "0.5",
            "WORKERS": "8",
            "METRICS_PORT": "0",
            "LOG_FORMAT": "json",
            **variables,
        }
        self.pollers = [self._parts.enter_context(ForkedChild("poller", [COMMAND, "poll"], settings)) for _ in range(2)]
        self.pages = [poller.wait_for(_page_of, 60) for poller in self.pollers]

    def are_ready(self) -> bool:
        """Whether all pollers are ready."""
        return all(_is_ready(port) for port in self.pages)

    def refused_calls(self) -> list[str]:
        """The logged errors of calls that Redis refused. Lost connections are left out: a busy machine has them too."""
        lines = "".join(poller.output() for poller in self.pollers).splitlines()
        errors = [json.loads(line)["error"] for line in lines if "Redis unavailable" in line]
        return [error for error in errors if not error.startswith(_OUTAGES)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._parts.close()


def _page_of(output: str) -> str | None:
    found = _PAGES.search(output)
    return found[1] if found else None


def _is_ready(port: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=60) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
