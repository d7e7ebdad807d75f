"""Find and run Google's Pub/Sub emulator, for the demo and the tests.

It is a Java program in the Cloud SDK. A restart loses its data, and it accepts requests without a token.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import shutil
from pathlib import Path
from typing import Final

import msgspec

from handlers.demo.servers import Child, free_port
from handlers.pubsub.admin import LayoutOptions, layout, set_up
from handlers.pubsub.channel import PubSubChannel, PubSubOptions

_PLACES: Final = (
    "/usr/lib/google-cloud-sdk",
    "/usr/local/google-cloud-sdk",
    "/usr/share/google-cloud-sdk",
    "/opt/google-cloud-sdk",
    "/opt/homebrew/share/google-cloud-sdk",
    "/snap/google-cloud-cli/current",
)
_HOW_TO_GET: Final = (
    "install it with `gcloud components install pubsub-emulator` or "
    "`apt-get install google-cloud-cli-pubsub-emulator`, or name its jar"
)


class EmulatorCommand(msgspec.Struct, frozen=True):
    """The command that starts the emulator, without `--host` and `--port`."""

    command: tuple[str, ...]


class NoEmulator(msgspec.Struct, frozen=True):
    """Why the emulator cannot be started here, and how to install it."""

    reason: str


def find_emulator(jar: str = "", *, search_path: str | None = None) -> EmulatorCommand | NoEmulator:
    """Find the emulator: at `jar`, on PATH or in a Cloud SDK.

    A given `search_path` replaces PATH. A Cloud SDK is the folder around `gcloud`, or in a usual place. No program is
    executed.
    """
    java = shutil.which("java", path=search_path)
    if java is None:
        return NoEmulator("the Pub/Sub emulator needs `java`, which is not on PATH")
    if jar:
        if not Path(jar).is_file():
            return NoEmulator(f"the Pub/Sub emulator's jar: no file at {jar}")
        return _with_java(java, Path(jar))
    if launcher := shutil.which("cloud-pubsub-emulator", path=search_path):
        return EmulatorCommand((launcher,))
    places = _sdk_folders(search_path)
    for folder in places:
        jars = sorted((folder / "platform" / "pubsub-emulator" / "lib").glob("cloud-pubsub-emulator*.jar"))
        if jars:
            return _with_java(java, jars[-1])
    searched = ", ".join(str(folder) for folder in places if folder.is_dir())
    where = f"in no Cloud SDK ({searched})" if searched else "and there is no Cloud SDK at its usual places"
    return NoEmulator(f"the Pub/Sub emulator is not on PATH {where}; {_HOW_TO_GET}")


def _sdk_folders(search_path: str | None) -> list[Path]:
    gcloud = shutil.which("gcloud", path=search_path)
    around = [Path(gcloud).resolve().parent.parent] if gcloud else []
    return list(dict.fromkeys([*around, *map(Path, _PLACES), Path.home() / "google-cloud-sdk"]))


def _with_java(java: str, jar: Path) -> EmulatorCommand:
    # With the serial collector and only the first compiler, it starts in 1 s and uses at most one core.
    return EmulatorCommand((java, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx512m", "-jar", str(jar)))


class PubSubEmulator(Child):
    """Context manager of an emulator on a free loopback port."""

    def __init__(self, found: EmulatorCommand, *, timeout_seconds: float = 90.0) -> None:
        """Start the emulator and wait until it answers. Raises `ChildFailed`."""
        self.port = free_port()
        super().__init__("pubsub emulator", [*found.command, "--host=127.0.0.1", f"--port={self.port}"])
        try:
            self.wait_for(lambda _output: "" if self._answers() else None, timeout_seconds)
        except BaseException:
            self.stop()
            raise

    @property
    def host(self) -> str:
        """`host:port`, for `PUBSUB_EMULATOR_HOST`."""
        return f"127.0.0.1:{self.port}"

    def _answers(self) -> bool:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=1.0)) as client:
            try:
                client.request("GET", "/")
                return client.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                return False


DEMO_PROJECT: Final = "demo-project"
REQUEST_TOPIC: Final = "async-proc-requests"
RESULT_TOPIC: Final = "async-proc-results"
RESULT_SUBSCRIPTION: Final = "async-proc-results-sub"


def create_layout(emulator_host: str, push_url: str) -> None:
    """Create topics and subscriptions on the emulator, unless they exist."""
    asyncio.run(_create_layout(emulator_host, push_url))


async def _create_layout(emulator_host: str, push_url: str) -> None:
    wanted = layout(
        LayoutOptions(
            project_id=DEMO_PROJECT,
            push_endpoint=push_url,
            request_topic=REQUEST_TOPIC,
            result_topic=RESULT_TOPIC,
            result_subscription=RESULT_SUBSCRIPTION,
            # With a backoff of a second or more, the emulator (0.8.20) loses nacked messages. An HTTP server that
            # answered half of 40 pushes with 503 never got 1 to 12 of them again in 6 of 7 runs, with any ack deadline
            # (10, 20, 600 s); without a backoff, it got all in 5 runs.
            minimum_backoff_seconds=0,
            maximum_backoff_seconds=0,
            max_delivery_attempts=100,  # without a backoff, a busy gateway uses up more attempts
            result_ack_deadline_seconds=10,
        )
    )
    async with PubSubChannel(PubSubOptions(project_id=DEMO_PROJECT, emulator_host=emulator_host)) as channel:
        async for _ in set_up(channel, wanted):
            pass
