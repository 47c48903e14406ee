"""Chromium without a window, driven over a pipe by its DevTools protocol: real clicks, keys and screenshots.

Two file descriptors are all it takes (`--remote-debugging-pipe`): no driver, no port, no package.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


def program() -> str | None:
    """Where the browser is; None if there is none."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class Browser:
    """One page. `requests`: every address it asked for; `errors`: what its console complained about."""

    def __init__(self, profile: Path):
        found = program()
        assert found, "no browser"
        options = (
            "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run",
            "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking",
            "--hide-scrollbars",
            # as root, as in CI's containers, Chromium's own sandbox cannot start; the page is ours
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
        )  # fmt: skip
        to_browser, self.writing = os.pipe()
        self.reading, from_browser = os.pipe()
        # it reads from descriptor 3 and writes to 4, whatever they are called here
        command = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        self.process = subprocess.Popen(
            ["bash", "-c", command, found, *options, "about:blank"],
            pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self.unread, self.number, self.session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.errors: list[str] = []
        target = next(t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.writing)  # it ends when its pipe does
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.reading)

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command, and its result."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self.unread:
            part = os.read(self.reading, 1 << 16)
            assert part, "the browser has ended"
            self.unread += part
        line, self.unread = self.unread.split(b"\0", 1)
        message = dict(json.loads(line))
        parameters = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(parameters["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.errors.append(str(parameters["entry"]["text"]))
        elif message.get("method") == "Runtime.consoleAPICalled":
            self.errors.append(str(parameters["args"]))
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, page: Path, width: int = 1280, height: int = 900, *, dark: bool = False) -> None:
        mobile = width < 600
        scale = 2 if mobile else 1
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._message()

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, or of the promise that it is."""
        found = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script: str, seconds: float = 10) -> None:
        """Waits for a condition that the page reaches by itself."""
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"never came true: {script}"

    def middle(self, selector: str) -> tuple[float, float]:
        """Where the first element that matches is, scrolled into view."""
        find = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{find}.scrollIntoView({{block: 'center'}})")
        # its scroll event comes with the next frame, and whatever listens to it is to be done before anything moves
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        box = self.run(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({find}.getBoundingClientRect())")
        return box[0], box[1]

    def point(self, selector: str) -> None:
        for x, y in ((1, 1), self.middle(selector)):
            self("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str) -> None:
        x, y = self.middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        self("Input.insertText", text=text)

    def press(self, key: str) -> None:
        codes = {"Enter": 13, "Escape": 27, "Tab": 9}
        text = {"text": "\r"} if key == "Enter" else {}
        how = dict(key=key, code=key, windowsVirtualKeyCode=codes[key])
        self("Input.dispatchKeyEvent", type="keyDown", **how, **text)
        self("Input.dispatchKeyEvent", type="keyUp", **how)

    def screenshot(self, path: Path, *, whole: bool = True) -> Path:
        png = self("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(png))
        return path
