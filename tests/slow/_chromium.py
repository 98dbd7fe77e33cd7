"""Headless Chromium for the tests, driven through its DevTools pipe with nothing but the standard library."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe"
).split()
ANSWER = 60.0  # seconds: how long a browser on a busy machine may be silent before a test gives up


class Browser:
    """One page of one Chromium; what it complains of and what it asks of the network is kept."""

    def __init__(self) -> None:
        if not CHROMIUM:
            raise unittest.SkipTest("Chromium is missing")
        self.folder = tempfile.mkdtemp(prefix="run_experiments_browser_")
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={self.folder}", "about:blank"]
        commands, self.sink = os.pipe()
        self.source, answers = os.pipe()
        ends = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 10) for each in (commands, answers)]

        def take_ends() -> None:  # where Chromium looks for them
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdout=quiet, stderr=quiet, close_fds=False, preexec_fn=take_ends)
        for each in (commands, answers, *ends):
            os.close(each)
        self.session: dict[str, str] = {}
        self.number, self.loaded, self.unread = 0, False, b""
        self.complaints: list[str] = []
        self.requests: list[str] = []
        try:
            targets = self.ask("Target.getTargets")["targetInfos"]
            target = next(each["targetId"] for each in targets if each["type"] == "page")
            attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
            self.session = {"sessionId": attached["sessionId"]}
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.ask(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.session = {}
        with contextlib.suppress(OSError, AssertionError):
            self.ask("Browser.close")
        for each in (self.sink, self.source):
            os.close(each)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one DevTools command; events that come before it are kept."""
        self.number += 1
        text = json.dumps({"id": self.number, "method": method, "params": parameters, **self.session})
        os.write(self.sink, text.encode() + b"\0")
        while True:
            message = self.take()
            if message.get("id") == self.number:
                if "error" in message:
                    raise AssertionError(f"{method}: {message['error']}")
                return dict(message["result"])

    def take(self) -> dict[str, Any]:
        while b"\0" not in self.unread:
            data = os.read(self.source, 1 << 16) if select.select([self.source], [], [], ANSWER)[0] else b""
            if not data:
                raise AssertionError("the browser says nothing more")
            self.unread += data
        text, _, self.unread = self.unread.partition(b"\0")
        message = json.loads(text)
        assert isinstance(message, dict)
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.complaints.append(json.dumps(parameters)[:500])
        elif method == "Page.javascriptDialogOpening":
            raise AssertionError(f"the page opened a dialog: {parameters['message']}")
        elif method == "Page.loadEventFired":
            self.loaded = True
        return message

    def open(self, path: Path, width: int = 1200, dark: bool = False, scripts: bool = True, media: str = "") -> None:
        """Load a page from disk in a window of this width; returns once it is loaded."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.ask("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.complaints, self.requests, self.loaded = [], [], False
        self.ask("Page.navigate", url=path.resolve().as_uri())
        while not self.loaded:
            self.take()

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        told = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            raise AssertionError(f"{script}: {json.dumps(told['exceptionDetails'])[:500]}")
        return told["result"].get("value")

    def count(self, selector: str) -> int:
        return int(self.run(f"document.querySelectorAll({json.dumps(selector)}).length"))

    def texts(self, selector: str) -> list[str]:
        return list(self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(each => each.textContent)"))

    def point_at(self, selector: str, across: float = 0.5, down: float = 0.5) -> tuple[float, float]:
        """Move the mouse to a place in an element, as a reader would; returns the place."""
        code = f"(e => {{ e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect(); return [r.left + r.width * {across}, r.top + r.height * {down}] }})(document.querySelector({json.dumps(selector)}))"  # noqa: E501
        x, y = self.run(code)
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        return x, y

    def click(self, selector: str) -> None:
        x, y = self.point_at(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
