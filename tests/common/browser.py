"""A headless Chromium that tests look at pages with, spoken to over its DevTools pipe."""

import base64
import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
PATIENCE = 60.0


class Page:
    """A tab, with everything it complained of and every address it asked for.

    Attributes: complaints: errors and warnings of the console, uncaught exceptions; requests: addresses.
    """

    def __init__(self, connection: "_Connection"):
        self._connection = connection
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._loaded = False
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = None
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._send(f"{domain}.enable")

    def open(self, path: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Show a file in a window of that size, and wait until it is drawn."""
        self._send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._send("Emulation.setEmulatedMedia", features=[scheme])
        self._loaded = False
        self._send("Page.navigate", url=path.resolve().as_uri())
        while not self._loaded:
            self._hear(self._connection.receive())
        self.settle()

    def settle(self) -> None:
        """Wait until two frames have been drawn."""
        frames = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))"
        self._send("Runtime.evaluate", expression=frames, awaitPromise=True)

    def evaluate(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression."""
        answer = self._send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """Click with the mouse in the middle of the first element that a CSS selector finds."""
        x, y = self._middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self._send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.settle()

    def hover(self, selector: str, across: float = 0.5) -> None:
        """Move the mouse to a share of an element's width, at half its height."""
        x, y = self._middle(selector, across)
        self._send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.settle()

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """Write what is shown, or the whole page, as PNG."""
        answer = self._send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _middle(self, selector: str, across: float = 0.5) -> tuple[float, float]:
        found = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"{found}.scrollIntoView({{block: 'center'}})")
        box = self.evaluate(f"{found}.getBoundingClientRect().toJSON()")
        return box["x"] + across * box["width"], box["y"] + box["height"] / 2

    def _send(self, method: str, **parameters) -> dict:
        number = self._connection.send(method, parameters, getattr(self, "_session", None))
        while True:
            message = self._connection.receive()
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self._hear(message)

    def _hear(self, message: dict) -> None:
        method, details = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(details["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and details["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(details["args"]))
        elif method == "Log.entryAdded" and details["entry"]["level"] in ("error", "warning"):
            self.complaints.append(details["entry"]["text"])


class _Connection:
    """DevTools messages, JSON with a zero byte behind each, on a browser's file descriptors 3 and 4."""

    def __init__(self, write: int, read: int):
        self._write, self._read = write, read
        os.set_blocking(read, False)
        self._number, self._heard = 0, b""

    def send(self, method: str, parameters: dict, session: str | None) -> int:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        return self._number

    def receive(self) -> dict:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self._heard:
            assert time.monotonic() < until, "the browser says nothing"
            try:
                part = os.read(self._read, 1 << 20)
            except BlockingIOError:
                time.sleep(0.005)
                continue
            assert part, "the browser has ended"
            self._heard += part
        message, self._heard = self._heard.split(b"\0", 1)
        return json.loads(message)


@contextlib.contextmanager
def browser(program: str) -> Iterator[Page]:
    """A tab of a fresh Chromium, which ends with the block."""
    commands_out, commands_in = os.pipe()
    answers_out, answers_in = os.pipe()

    def place_pipes() -> None:
        # Free numbers first, in case one of the pipes is 3 or 4 already.
        commands, answers = os.dup(commands_out), os.dup(answers_in)
        os.dup2(commands, 3)
        os.dup2(answers, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(3, 4, commands_out, answers_in),
            preexec_fn=place_pipes,
            # It leaves folders of its own there when it is killed.
            env={**os.environ, "TMPDIR": profile},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands_out)
        os.close(answers_in)
        try:
            yield Page(_Connection(commands_in, answers_out))
        finally:
            process.kill()
            process.wait()
            os.close(commands_in)
            os.close(answers_out)
