"""A real browser for tests: Debian's Chromium without a window, by the WebDriver protocol."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from http.client import HTTPConnection
from typing import Any, Final

import pytest
import trio

KEYS: Final = {
    "Enter": "\ue007",
    "Escape": "\ue00c",
    "Down": "\ue015",
    "Up": "\ue013",
    "End": "\ue010",
    "Home": "\ue011",
    "PageDown": "\ue00f",
    "Tab": "\ue004",
}
PATIENCE: Final = 20.0


def needed() -> None:
    """Skip a test where there is no Chromium, unless there must be one."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        if os.environ.get("TRIO_SD_REQUIRE_SERVERS") == "1":
            pytest.fail("there is no chromium with chromedriver")
        pytest.skip("needs chromium and chromedriver (apt install chromium chromium-driver)")


class Browser:
    """One page of a browser."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._session = ""

    async def begin(self, width: int = 1600, height: int = 1000) -> None:
        """Open the browser."""
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        options = {"args": [*arguments, f"--window-size={width},{height}"]}
        logging = {"browser": "ALL"}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": logging}
        answer = await self._call("POST", "", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/{answer['sessionId']}"

    async def end(self) -> None:
        """Close the browser."""
        if self._session:
            await self._call("DELETE", "")

    async def go(self, url: str) -> None:
        """Open a page, and wait until it has loaded."""
        await self._call("POST", "/url", {"url": url})

    async def run(self, script: str) -> Any:
        """Return what an expression of the page's own language is."""
        return await self._call("POST", "/execute/sync", {"script": f"return ({script})", "args": []})

    async def until(self, script: str) -> Any:
        """Return the value of an expression as soon as it is true."""
        with trio.move_on_after(PATIENCE):
            while True:
                if found := await self.run(script):
                    return found
                await trio.sleep(0.03)
        raise AssertionError(f"never true: {script}")

    async def press(self, *keys: str) -> None:
        """Press keys one after the other; of a longer text, each of its characters."""
        typed = [char for key in keys for char in ([KEYS[key]] if key in KEYS else key)]
        actions = [{"type": kind, "value": key} for key in typed for kind in ("keyDown", "keyUp")]
        await self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    async def tell(self, command: str, **parameters: object) -> Any:
        """Give a command of the DevTools protocol."""
        return await self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    async def complaints(self) -> list[str]:
        """Return what the browser has complained about since this was last asked."""
        return [entry["message"] for entry in await self._call("POST", "/se/log", {"type": "browser"})]

    async def screenshot(self, path: str) -> None:
        """Keep what the page looks like."""
        await trio.Path(path).write_bytes(base64.b64decode(await self._call("GET", "/screenshot")))

    async def _call(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Any:
        work = partial(self._request, method, f"/session{self._session}{path}", body)
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True)

    def _request(self, method: str, path: str, body: Mapping[str, object] | None) -> Any:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = json.loads(connection.getresponse().read())["value"]
        finally:
            connection.close()
        if isinstance(answer, dict) and "error" in answer:
            raise AssertionError(f"{answer['error']}: {answer['message']}")
        return answer


@asynccontextmanager
async def open_browser(width: int = 1600, height: int = 1000) -> AsyncIterator[Browser]:
    """Run a browser until the end of the block."""
    command = ["chromedriver", "--port=0", "--log-level=SEVERE"]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(partial(trio.run_process, command, stdout=subprocess.PIPE, check=False))
        browser = Browser(await _port(process.stdout))
        try:
            await browser.begin(width, height)
            yield browser
        finally:
            with trio.move_on_after(5, shield=True):
                await browser.end()
            nursery.cancel_scope.cancel()


async def _port(output: trio.abc.ReceiveStream) -> int:
    text = b""
    while (match := re.search(rb"started successfully on port (\d+)", text)) is None:
        more = await output.receive_some()
        if not more:
            raise AssertionError(f"chromedriver has not started: {text.decode()}")
        text += more
    return int(match[1])
