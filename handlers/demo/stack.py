"""Start the whole stack: Valkey, gateway, handler, poller, and Pub/Sub if found.

Each part is a process that runs the same command as in a cluster; only the gateway is simulated.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

import msgspec

from handlers.demo.pubsub_emulator import (
    DEMO_PROJECT,
    RESULT_TOPIC,
    EmulatorCommand,
    NoEmulator,
    PubSubEmulator,
    create_layout,
    find_emulator,
)
from handlers.demo.servers import Child, free_port
from handlers.demo.valkey import Valkey, find_valkey
from handlers.settings.environment import Environment

_READY: Final = '"event":"ready"'
_PORT = re.compile(r'"port":(\d+)')
_LISTENING = re.compile(r"listening on (http://\S+)")
_POLLING = re.compile(r'"event":"polling".*"metrics_port":(\d+)')


class StackOptions(msgspec.Struct, frozen=True):
    """Options of a stack.

    `gateway_arguments` go to the simulated gateway, `variables` to handler and poller. Ports of 0 are chosen. With
    `has_pubsub` False, Pub/Sub is left out even if its emulator is found. `child` starts gateway, handlers and poller,
    without the settings of this process's environment if `is_isolated`.
    """

    redis_port: int = 0
    gateway_port: int = 0
    has_pubsub: bool = True
    gateway_arguments: Sequence[str] = ()
    variables: Mapping[str, str] = msgspec.field(default_factory=dict)
    on_started: Callable[[str, str], None] = lambda _name, _address: None
    child: type[Child] = Child
    is_isolated: bool = False


class Stack:
    """Context manager of a running stack. Its parts stop in reverse order."""

    def __init__(self, options: StackOptions) -> None:
        """Start all parts and wait until each is ready. Raises the failing part's error."""
        self._options = options
        self._parts = ExitStack()
        self.pubsub: EmulatorCommand | NoEmulator = NoEmulator("Pub/Sub was left out")
        self.emulator_host = ""
        self.children: dict[str, Child] = {}
        try:
            self._start()
        except BaseException:
            self._parts.close()
            raise

    def _start(self) -> None:
        options = self._options
        valkey = self._parts.enter_context(Valkey(find_valkey(), options.redis_port))
        self.redis_url = valkey.url
        options.on_started("valkey", self.redis_url)
        self.gateway_url = self._start_gateway()
        options.on_started("simulated gateway", self.gateway_url)
        self.handler_url = self._start_handler("dispatch", {})
        options.on_started("handler, dispatch door", self.handler_url)
        poller = self._start_child("poller", ["poll"], {"HANDLER_URL": self.handler_url, "METRICS_PORT": "0"})
        port = poller.wait_for(lambda output: _first_group(_POLLING, output))
        self.poller_pages_url = f"http://127.0.0.1:{port}"
        options.on_started("poller", f"{self.redis_url} → {self.handler_url}")
        if options.has_pubsub:
            self.pubsub = find_emulator()
            if isinstance(self.pubsub, EmulatorCommand):
                self._start_pubsub(self.pubsub)

    def _start_gateway(self) -> str:
        command = [sys.executable, "-m", "handlers.demo.gateway", "--host", "127.0.0.1"]
        command += ["--port", str(self._options.gateway_port), *self._options.gateway_arguments]
        gateway = self._parts.enter_context(self._options.child("simulated gateway", command))
        self.children["gateway"] = gateway
        return gateway.wait_for(lambda output: _first_group(_LISTENING, output))

    def _start_handler(self, target: str, variables: Mapping[str, str]) -> str:
        given = {"PORT": "0", "HOST": "127.0.0.1", **variables}
        handler = self._start_child(target, ["serve", "--target", target], given)
        port = handler.wait_for(ready_port)
        return f"http://127.0.0.1:{port}"

    def _start_pubsub(self, found: EmulatorCommand) -> None:
        emulator = self._parts.enter_context(PubSubEmulator(found))
        self.emulator_host = emulator.host
        self._options.on_started("pub/sub emulator", emulator.host)
        # The subscription contains the door's URL, and the door needs its topic, so the port is chosen first.
        port = free_port()
        create_layout(emulator.host, f"http://127.0.0.1:{port}/push")
        push_url = self._start_handler(
            "pubsub_push",
            {
                "PORT": str(port),
                "PUBSUB_EMULATOR_HOST": emulator.host,
                "PROJECT_ID": DEMO_PROJECT,
                "RESULT_TOPIC_ID": RESULT_TOPIC,
                "PUSH_AUTH": "none",  # the emulator sends no token
                "MIN_REDELIVERY_SECONDS": "1",
            },
        )
        self._options.on_started("handler, push door", push_url)

    def _start_child(self, name: str, arguments: Sequence[str], variables: Mapping[str, str]) -> Child:
        isolated = Environment.__struct_fields__ if self._options.is_isolated else ()
        common = {name.upper(): "" for name in isolated}
        common |= {"IGW_BASE_URL": self.gateway_url, "REDIS_URL": self.redis_url, "LOG_FORMAT": "json"}
        command = [str(Path(sys.executable).parent / "async-processor"), *arguments]
        child = self._options.child(name, command, {**common, **self._options.variables, **variables})
        self.children[name] = child
        return self._parts.enter_context(child)

    def stop(self) -> None:
        self._parts.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()


def ready_port(output: str) -> str | None:
    """The port in the line that reports a ready handler."""
    line = next((line for line in output.splitlines() if _READY in line), None)
    return _first_group(_PORT, line) if line else None


def _first_group(pattern: re.Pattern[str], output: str) -> str | None:
    match = pattern.search(output)
    return next(group for group in match.groups() if group) if match else None
