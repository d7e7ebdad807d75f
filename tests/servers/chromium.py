"""A real headless Chromium, driven over its own DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import aiohttp

from tests.servers.presence import not_found

_LISTENING: Final = re.compile(rb"DevTools listening on (ws://\S+)")
_START_SECONDS: Final = 60
_CALL_SECONDS: Final = 60


class Page:
    """One tab. `requested` are the URLs that it asked for, in order."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, session_id: str) -> None:
        self._socket = socket
        self._session_id = session_id
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._events: dict[str, asyncio.Event] = {}
        self.requested: list[str] = []
        self.complaints: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for one in self._socket:
            message = json.loads(one.data)
            if waiting := self._answers.pop(message.get("id", -1), None):
                waiting.set_result(message)
            self._notice(message.get("method", ""), message.get("params", {}))

    def _notice(self, method: str, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])
        if method == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])
        if event := self._events.get(method):
            event.set()

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call the protocol. Raises `AssertionError` with the browser's error."""
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        frame = {"id": number, "sessionId": self._session_id, "method": method, "params": params}
        waiting = self._answers[number]
        await self._socket.send_json(frame)
        async with asyncio.timeout(_CALL_SECONDS):
            message = await waiting
        assert "error" not in message, message
        found: dict[str, Any] = message["result"]
        return found

    async def open(self, url: str) -> None:
        """Open a URL and wait until everything has loaded."""
        await self._loaded(self.call("Page.navigate", url=url))

    async def _loaded(self, action: Any) -> None:
        event = self._events["Page.loadEventFired"] = asyncio.Event()
        await action
        async with asyncio.timeout(_CALL_SECONDS):
            await event.wait()

    async def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        message = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in message, message
        return message["result"].get("value")

    async def submit(self, script: str) -> None:
        """Run a script that opens another page, and wait for it."""
        await self._loaded(self.run(script))

    async def press(self, key: str, *, leads_away: bool = False) -> None:
        """One key of the keyboard, such as `Tab` or `Enter`."""
        codes = {"Tab": 9, "Enter": 13}
        common = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        text = {"text": "\r"} if key == "Enter" else {}

        async def both() -> None:
            await self.call("Input.dispatchKeyEvent", type="keyDown", **common, **text)
            await self.call("Input.dispatchKeyEvent", type="keyUp", **common)

        await (self._loaded(both()) if leads_away else both())

    async def type(self, text: str) -> None:
        """Type text into the focused element."""
        await self.call("Input.insertText", text=text)

    async def resize(self, width: int, height: int, *, is_dark: bool = False) -> None:
        """Set the size of the screen and the light or dark scheme."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def shoot(self, path: Path) -> None:
        """Take a screenshot."""
        message = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(message["data"]))

    async def close(self) -> None:
        """Close the connection."""
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading


@contextlib.asynccontextmanager
async def running_chromium() -> AsyncIterator[Page]:
    """A tab of a new browser without a user profile."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        not_found("chromium")
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as folder:
        arguments = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
        )
        process = await asyncio.create_subprocess_exec(
            program,
            *arguments,
            "--remote-debugging-port=0",
            "--no-first-run",
            f"--user-data-dir={folder}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with aiohttp.ClientSession() as session:
                url = await _address(process)
                async with session.ws_connect(url, max_msg_size=0) as socket:
                    page = await _first_page(socket)
                    yield page
                    await page.close()
        finally:
            process.terminate()
            await process.wait()


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    async with asyncio.timeout(_START_SECONDS):
        while line := await process.stderr.readline():
            if found := _LISTENING.search(line):
                return found[1].decode()
    raise AssertionError("chromium did not come up")


async def _first_page(socket: aiohttp.ClientWebSocketResponse) -> Page:
    await socket.send_json({"id": 1, "method": "Target.createTarget", "params": {"url": "about:blank"}})
    target = await _answer(socket, 1)
    attach = {"targetId": target["targetId"], "flatten": True}
    await socket.send_json({"id": 2, "method": "Target.attachToTarget", "params": attach})
    page = Page(socket, (await _answer(socket, 2))["sessionId"])
    for domain in ("Page", "Network", "Log", "Runtime"):
        await page.call(f"{domain}.enable")
    return page


async def _answer(socket: aiohttp.ClientWebSocketResponse, number: int) -> dict[str, Any]:
    async with asyncio.timeout(_CALL_SECONDS):
        while True:
            message = await socket.receive_json()
            if message.get("id") == number:
                found: dict[str, Any] = message["result"]
                return found
