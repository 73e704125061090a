"""A headless Chromium that a test drives over its DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium")
KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Escape": 27, "Tab": 9}


class Page:
    """A page of the browser; `problems` holds what its console complained of, `requests` what it asked for."""

    def __init__(self, connection: ClientConnection, session: str) -> None:
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._connection, self._session, self._numbers = connection, session, itertools.count(1)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; what the page tells meanwhile is kept."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters, "sessionId": self._session}
        self._connection.send(json.dumps(message))
        while True:
            found = json.loads(self._connection.recv(timeout=60))
            self._note(found.get("method"), found.get("params", {}))
            if found.get("id") == number:
                assert "error" not in found, found["error"]
                return found["result"]

    def _note(self, method: str | None, parameters: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.problems.append(json.dumps(parameters["args"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.problems.append(json.dumps(parameters["entry"]))
        elif method == "Network.requestWillBeSent" and not parameters["request"]["url"].startswith("data:"):
            self.requests.append(parameters["request"]["url"])

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression, awaited."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, expression: str, *, seconds: float = 60.0) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(expression):
            assert time.monotonic() < end, f"{expression} did not become true; the page said {self.problems}"
            time.sleep(0.02)

    def open(self, url: str, *, ready: str) -> float:
        """Open an address, wait until an expression is true, and return the seconds that it took."""
        self.call("Page.navigate", url="about:blank")  # what was true of the page before is not
        self.wait_for("document.URL == 'about:blank'")
        self.problems.clear()
        self.requests.clear()
        begin = time.perf_counter()
        self.call("Page.navigate", url=url)
        self.wait_for(ready)
        return time.perf_counter() - begin

    def resize(self, width: int, height: int = 900) -> None:
        """Set the size of the window, pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press and let go a key."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key],
                modifiers=8 * shift,
            )  # fmt: skip

    def click(self, x: float, y: float, *, times: int = 1) -> None:
        """Click the left button, so many times in a row."""
        for nth in range(1, times + 1):
            for kind in ("mousePressed", "mouseReleased"):
                self._mouse(kind, x, y, button="left", clickCount=nth)

    def drag(self, x: float, y: float, to_x: float, to_y: float, *, rest: float = 0.0) -> None:
        """Press the mouse at one place, rest (s), and let it go at another, in steps; the same place clicks."""
        self._mouse("mouseMoved", x, y)
        self._mouse("mousePressed", x, y, button="left", clickCount=1)
        time.sleep(rest)
        if (x, y) != (to_x, to_y):
            for step in (0.25, 0.5, 0.75, 1.0):
                self._mouse("mouseMoved", x + step * (to_x - x), y + step * (to_y - y), button="left", buttons=1)
        self._mouse("mouseReleased", to_x, to_y, button="left", clickCount=1)

    def is_wider_than_the_window(self) -> bool:
        """Tell whether one has to scroll sideways."""
        return bool(self.evaluate("document.documentElement.scrollWidth > window.innerWidth"))

    def print(self) -> bytes:
        """Return the page as a PDF of A4."""
        found = self.call("Page.printToPDF", printBackground=True, paperWidth=8.27, paperHeight=11.69)
        return base64.b64decode(found["data"])

    def _mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)


@contextlib.contextmanager
def browsing(folder: Path) -> Iterator[Page]:
    """Start a browser whose profile is in `folder`; provides an empty page."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
               "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        where = folder / "DevToolsActivePort"
        end = time.monotonic() + 60
        while not (where.is_file() and len(where.read_text().split()) == 2):
            assert process.poll() is None, "Chromium ended"
            assert time.monotonic() < end, "Chromium did not start"
            time.sleep(0.05)
        port, path = where.read_text().split()
        with connect(f"ws://127.0.0.1:{port}{path}", max_size=None) as connection:
            yield Page(connection, _attach(connection))
    finally:
        process.terminate()
        process.wait(timeout=30)


def _attach(connection: ClientConnection) -> str:
    """Return the session of a new page."""
    found: dict[str, Any] = {}
    for number, method, parameters in (
        (-1, "Target.createTarget", {"url": "about:blank"}),
        (-2, "Target.attachToTarget", {"flatten": True}),
    ):
        given = parameters | ({"targetId": found["targetId"]} if found else {})
        connection.send(json.dumps({"id": number, "method": method, "params": given}))
        while (message := json.loads(connection.recv(timeout=60))).get("id") != number:
            pass
        found = message["result"]
    return str(found["sessionId"])
