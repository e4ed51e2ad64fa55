"""A headless Chromium for tests: one page, driven over its DevTools protocol."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_START_S = 60.0
_ANSWER_S = 60.0


def find_chromium() -> str | None:
    """Path of an installed Chromium or Chrome."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Chromium:
    """Use as a context manager.

    Args:
        folder: For its profile; must not be in use.
    """

    def __init__(self, folder: Path) -> None:
        self._profile = folder / "profile"
        self._ids = itertools.count(1)
        self._open = ExitStack()
        self.problems: list[str] = []
        """Errors, warnings and uncaught exceptions of the page's console, and refused requests."""
        self.requests: list[str] = []
        """URLs the page asked for, itself included."""

    def __enter__(self) -> Chromium:
        binary = find_chromium()
        assert binary is not None
        self._process = subprocess.Popen(
            [
                binary,
                "--headless=new",
                "--no-sandbox",  # tests may run as root
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
                "--no-first-run",
                "--disable-background-networking",
                "--remote-debugging-port=0",
                f"--user-data-dir={self._profile}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._open.callback(self._end)  # also where the connection fails on a busy machine
        with ExitStack() as undo:
            undo.callback(self._open.close)
            self._attach()
            undo.pop_all()
        return self

    def _attach(self) -> None:
        port, path = self._endpoint()
        url = f"ws://127.0.0.1:{port}{path}"
        self._socket = self._open.enter_context(
            connect(url, max_size=None, proxy=None, open_timeout=_ANSWER_S)
        )
        targets = self._call("Target.getTargets", session=None)["targetInfos"]
        target = next(each["targetId"] for each in targets if each["type"] == "page")
        attached = self._call("Target.attachToTarget", session=None, targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _endpoint(self) -> tuple[str, str]:
        file, give_up = self._profile / "DevToolsActivePort", time.monotonic() + _START_S
        while time.monotonic() < give_up:
            assert self._process.poll() is None, "Chromium ended at once"
            lines = file.read_text().split() if file.exists() else []
            if len(lines) == 2:
                return lines[0], lines[1]
            time.sleep(0.05)
        raise TimeoutError("Chromium did not open its DevTools port")

    def open(self, page: Path) -> None:
        """Load a report and wait until its trajectories are there, or it says why not."""
        self.problems.clear()
        self.requests.clear()
        self._call("Page.navigate", url=page.as_uri())
        self.wait_for(
            "document.readyState === 'complete' && "
            "document.getElementById('browser-status')?.textContent !== 'Loading…'"
        )

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression, promises awaited."""
        result = self._call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until an expression is true."""
        give_up = time.monotonic() + _ANSWER_S
        while not self.evaluate(expression):
            assert time.monotonic() < give_up, f"never true: {expression}"
            time.sleep(0.02)

    def emulate(self, *, width: int, height: int, scheme: str = "light", media: str = "") -> None:
        """Set the size of the window, light or dark, and ``print`` or the screen."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._call("Emulation.setEmulatedMedia", media=media, features=features)

    def screenshot(self, file: Path, *, whole: bool = True) -> None:
        """Save what is seen, or the whole page, as PNG."""
        shot = self._call("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(shot["data"]))

    def _call(self, method: str, session: str | None = "", **parameters: Any) -> Any:
        number = next(self._ids)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(timeout=_ANSWER_S))
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        """What the page complains of, and what it asks for."""
        method, told = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(told["exceptionDetails"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.problems.append(told["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and told["type"] in (
            "error",
            "warning",
            "assert",
        ):
            self.problems.append(json.dumps(told["args"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
