"""Chromium without a window, spoken to over a pipe (its DevTools protocol): no driver, no port, no package.

`Browser` starts it; a `Tab` is a page of its own, without cookies of others. What pages write to their console as
errors, and exceptions in their scripts, are in `Tab.errors`.
"""

from __future__ import annotations

import atexit
import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from jaxllm.config import ConfigError
from jaxllm.evaluation.world import WorldBroken

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
TIMEOUT_S = 60.0
LEAVE_S = 0.1  # in which a page that is left says so
# Chromium reads commands from descriptor 3, answers on 4, and ends when 3 is closed. Its profile goes with it, also
# where this process is killed: what waits for it is in a session of its own.
LAUNCH = """\
import os, shutil, subprocess, sys
a, b, profile = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
os.dup2(a, 3), os.dup2(b, 4)
child = subprocess.Popen(sys.argv[4:], pass_fds=(3, 4))
for end in (a, b, 3, 4):
    os.close(end)
child.wait()
shutil.rmtree(profile, ignore_errors=True)
"""


class BrowserGone(WorldBroken):
    """The browser ended or does not answer."""


def find_browser() -> str | None:
    """Path of a Chromium; `CHROMIUM` names another than those on the PATH."""
    return os.environ.get("CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """A headless Chromium, for one thread at a time."""

    def __init__(self) -> None:
        """Start it.

        Raises:
          ConfigError: there is none.
        """
        path = find_browser()
        if path is None:
            raise ConfigError("there is no Chromium on this machine; run launch/setup.sh --browser, or name one in the "
                              "environment variable CHROMIUM")
        self._profile = tempfile.mkdtemp(prefix="jaxllm-browser-")
        theirs_in, mine_out = os.pipe()
        mine_in, theirs_out = os.pipe()
        given = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out)]
        root = ["--no-sandbox"] if hasattr(os, "getuid") and os.getuid() == 0 else []
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", LAUNCH, *map(str, given), self._profile, path,
             "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={self._profile}", "--no-first-run",
             "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-extensions",
             "--no-default-browser-check", "--hide-scrollbars", *root, "about:blank"],
            pass_fds=given, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True)
        for end in (theirs_in, theirs_out, *given):
            os.close(end)
        self._out, self._in, self._held, self._number = mine_out, mine_in, bytearray(), 0
        self.tabs: dict[str, Tab] = {}
        atexit.register(self.close)

    def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """A command and its answer; events that come before it go to their tabs.

        Raises:
          BrowserGone: there is no answer.
        """
        self._number += 1
        number, message = self._number, {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        try:
            data = json.dumps(message).encode() + b"\0"
            while data:
                data = data[os.write(self._out, data):]
        except OSError:
            raise BrowserGone(f"the browser ended before {method}") from None
        until = time.monotonic() + TIMEOUT_S
        while True:
            found = self.receive(until)
            if found is None:
                raise BrowserGone(f"the browser does not answer {method}")
            if found.get("id") == number:
                if "error" in found:
                    raise BrowserGone(f"the browser refused {method}: {found['error'].get('message')}")
                return found.get("result", {})

    def receive(self, until: float) -> dict[str, Any] | None:
        """The next message, None for none in time; one of a tab's is put down there too."""
        while b"\0" not in self._held:
            if not select.select([self._in], [], [], max(until - time.monotonic(), 0.0))[0]:
                return None
            part = os.read(self._in, 1 << 20)
            if not part:
                raise BrowserGone("the browser ended")
            self._held += part
        data, _, rest = bytes(self._held).partition(b"\0")
        self._held = bytearray(rest)
        message = json.loads(data)
        tab = self.tabs.get(message.get("sessionId", ""))
        if tab is not None and "method" in message:
            tab.hear(message["method"], message["params"])
        return message

    def tab(self, width: int = 1280, height: int = 900) -> Tab:
        """A new page of its own."""
        context = self.send("Target.createBrowserContext")["browserContextId"]
        target = self.send("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = self.tabs[session] = Tab(self, session, context)
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable", session)
        tab.resize(width, height)
        return tab

    def close(self) -> None:
        """End it."""
        atexit.unregister(self.close)
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for end in (self._out, self._in):
            try:
                os.close(end)
            except OSError:
                pass
        self._out = self._in = -1
        shutil.rmtree(self._profile, ignore_errors=True)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None


class Tab:
    """A page.

    Attributes:
      errors: of its console and scripts, in words.
    """

    def __init__(self, browser: Browser, session: str, context: str) -> None:
        """Made by `Browser.tab`."""
        self._browser, self._session, self._context = browser, session, context
        self.errors: list[str] = []
        self._loaded = self._begun = 0

    def hear(self, method: str, params: dict[str, Any]) -> None:
        """An event."""
        if method == "Page.loadEventFired":
            self._loaded += 1
        elif method in ("Page.frameRequestedNavigation", "Page.frameStartedLoading"):
            self._begun += 1
        elif method == "Runtime.exceptionThrown":
            about = params["exceptionDetails"]
            self.errors.append(str((about.get("exception") or {}).get("description") or about.get("text")))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}".strip())

    def _wait(self, loads: int) -> None:
        until = time.monotonic() + TIMEOUT_S
        while self._loaded < loads:
            if self._browser.receive(until) is None:
                raise BrowserGone("a page does not load")

    def go(self, url: str) -> None:
        """Open a page, and wait until it is loaded."""
        before = self._loaded
        found = self._browser.send("Page.navigate", self._session, url=url)
        if found.get("errorText"):
            raise BrowserGone(f"{url}: {found['errorText']}")
        self._wait(before + 1)

    def evaluate(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression.

        Raises:
          BrowserGone: it raised.
        """
        found = self._browser.send("Runtime.evaluate", self._session, expression=expression, returnByValue=True,
                                   awaitPromise=True, userGesture=True)
        if "exceptionDetails" in found:
            raise BrowserGone(f"the page raised: {found['exceptionDetails'].get('exception', {}).get('description')}")
        return found["result"].get("value")

    def act(self, function: str, *arguments: Any) -> Any:
        """Call a JavaScript function that may leave the page; wait for the next one if it does."""
        begun, loaded = self._begun, self._loaded
        found = self.evaluate(f"({function})({', '.join(json.dumps(a) for a in arguments)})")
        until = time.monotonic() + LEAVE_S
        while self._begun == begun and self._browser.receive(until) is not None:
            pass
        if self._begun > begun:
            self._wait(loaded + 1)
        return found

    def resize(self, width: int, height: int) -> None:
        """Another size of the viewport."""
        self._browser.send("Emulation.setDeviceMetricsOverride", self._session, width=width, height=height,
                           deviceScaleFactor=1, mobile=False)

    def screenshot(self, whole: bool = False) -> bytes:
        """The viewport, or the whole page, as PNG."""
        found = self._browser.send("Page.captureScreenshot", self._session, format="png", captureBeyondViewport=whole)
        return base64.b64decode(found["data"])

    def close(self) -> None:
        """Close it, with all that it kept."""
        self._browser.tabs.pop(self._session, None)
        if self._browser.alive:
            self._browser.send("Target.disposeBrowserContext", browserContextId=self._context)


_shared: list[Browser] = []
_lock = threading.Lock()


def shared_browser() -> Browser:
    """This process's browser, started when it is first asked for, and anew once it is gone."""
    with _lock:
        if _shared and not _shared[0].alive:
            _shared.pop().close()
        if not _shared:
            _shared.append(Browser())
        return _shared[0]
