"""A real Chromium, spoken to over a pipe in the DevTools protocol, so that nothing is needed but the browser.

Source: https://chromedevtools.github.io/devtools-protocol/; with `--remote-debugging-pipe` messages are JSON that ends
with a zero byte, read from descriptor 3 and written to 4.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium")
# As in a container, as root, and without asking Google for anything.
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--remote-debugging-pipe",
)  # fmt: skip
LONGEST_S = 60  # of one call
Message = dict[str, Any]


class Tab:
    """One tab, and every event that it sent."""

    def __init__(self, to: int, of: int) -> None:
        self._to, self._of = to, of
        self._buffer, self._number, self._session = b"", 0, ""
        self.events: list[Message] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Message:
        """What the browser answers; events that come before it are kept."""
        self._number += 1
        message: Message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, (method, answer)
        result: Message = answer["result"]
        return result

    def _next(self) -> Message:
        deadline = time.monotonic() + LONGEST_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._of], [], [], deadline - time.monotonic())
            assert ready, "Chromium does not answer"
            got = os.read(self._of, 1 << 20)
            assert got, "Chromium has ended"
            self._buffer += got
        message, _, self._buffer = self._buffer.partition(b"\0")
        read: Message = json.loads(message)
        return read

    def open(self, page: Path, width: int, *, dark: bool = False) -> None:
        """Loads a file in a window so wide."""
        self.events.clear()
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.resize(width)
        self.call("Page.navigate", url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def resize(self, width: int, height: int = 900) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self, file: Path) -> None:
        """The whole page, not only what the window shows."""
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        file.write_bytes(base64.b64decode(picture))

    def pdf(self, file: Path) -> None:
        """As it is printed."""
        file.write_bytes(base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"]))

    def press(self, key: str, code: int) -> None:
        """A key, down and up; Enter is a letter too, without which no button hears of it."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    @property
    def requests(self) -> list[str]:
        """Addresses that the page asked for."""
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]

    @property
    def complaints(self) -> list[Message]:
        """Exceptions, dialogs, and what the browser logged: a violated policy is told there."""
        kinds = (
            "Runtime.exceptionThrown",
            "Log.entryAdded",
            "Page.javascriptDialogOpening",
            "Runtime.consoleAPICalled",
        )
        return [event for event in self.events if event["method"] in kinds]


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Tab]:
    """A tab of a browser with a profile of its own in `folder`; it ends with the block."""
    assert PROGRAM is not None
    (ours_out, ours), (theirs, theirs_out) = os.pipe(), os.pipe()  # read end, write end of each

    def descriptors() -> None:
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (ours_out, theirs_out)]  # neither is overwritten so
        os.dup2(ends[0], 3)
        os.dup2(ends[1], 4)

    command = [PROGRAM, *FLAGS, f"--user-data-dir={folder}"]
    with (folder / "chromium.log").open("w") as log:
        browser = subprocess.Popen(
            command, preexec_fn=descriptors, pass_fds=(3, 4), stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )  # fmt: skip
    os.close(ours_out)
    os.close(theirs_out)
    try:
        yield Tab(ours, theirs)
    finally:
        browser.terminate()
        browser.wait(LONGEST_S)
        os.close(ours)
        os.close(theirs)
