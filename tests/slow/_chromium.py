"""Headless Chromium for the tests, driven through its DevTools socket with nothing but the standard library."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import unittest
from pathlib import Path
from typing import Any, Optional
from urllib.parse import urlsplit

from tests.support import wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --hide-scrollbars --remote-debugging-port=0"
).split()
ANSWER = 60.0  # seconds: how long a browser on a busy machine may be silent before a test gives up


class WebSocket:
    """A client of a WebSocket server on this machine: text messages only."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self.socket = socket.create_connection((place.hostname or "", place.port or 80), ANSWER)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [f"GET {place.path} HTTP/1.1", f"Host: {place.netloc}", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", ""]
        self.socket.sendall("\r\n".join(lines).encode())
        self.file = self.socket.makefile("rb")
        answer = self.file.readline()
        if b" 101 " not in answer:
            raise AssertionError(f"no WebSocket: {answer!r}")
        while self.file.readline().strip():
            pass

    def send(self, text: str) -> None:
        data, mask = text.encode(), os.urandom(4)
        length = struct.pack("!BBQ", 0x81, 0x80 | 127, len(data))
        self.socket.sendall(length + mask + bytes(each ^ mask[at % 4] for at, each in enumerate(data)))

    def receive(self) -> str:
        whole = b""
        while True:
            first, second = self.file.read(2)
            length = second & 127
            if length == 126:
                (length,) = struct.unpack("!H", self.file.read(2))
            elif length == 127:
                (length,) = struct.unpack("!Q", self.file.read(8))
            data = self.file.read(length)
            if first & 15 in (0, 1):
                whole += data
                if first & 128:
                    return whole.decode()
            elif first & 15 == 8:
                raise AssertionError("the browser closed the connection")

    def close(self) -> None:
        self.file.close()
        self.socket.close()


class Browser:
    """One page of one Chromium; what it complains of and what it asks of the network is kept."""

    def __init__(self) -> None:
        if not CHROMIUM:
            raise unittest.SkipTest("Chromium is missing")
        self.folder = tempfile.mkdtemp(prefix="run_experiments_browser_")
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={self.folder}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.socket: Optional[WebSocket] = None
        self.number, self.loaded = 0, False
        self.complaints: list[str] = []
        self.requests: list[str] = []
        try:
            note = Path(self.folder, "DevToolsActivePort")
            wait_for(lambda: note.exists() and note.read_text().count("\n"), "Chromium's port")
            port, path = note.read_text().split("\n")[:2]
            self.socket = WebSocket(f"ws://127.0.0.1:{port}{path}")
            targets = self.ask("Target.getTargets")["targetInfos"]
            target = next(each["targetId"] for each in targets if each["type"] == "page")
            self.socket.close()
            self.socket = WebSocket(f"ws://127.0.0.1:{port}/devtools/page/{target}")
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.ask(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        with contextlib.suppress(OSError, AssertionError, ValueError):
            self.ask("Browser.close")
        if self.socket:
            self.socket.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one DevTools command; events that come before it are kept."""
        assert self.socket
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = self.take()
            if message.get("id") == self.number:
                if "error" in message:
                    raise AssertionError(f"{method}: {message['error']}")
                return dict(message["result"])

    def take(self) -> dict[str, Any]:
        assert self.socket
        message = json.loads(self.socket.receive())
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
