"""A headless Chromium, driven by the DevTools protocol: pages of this folder in it, keys pressed as a person presses them.

Pages come from any origin that a test wants: the browser asks for them, and is answered from here before it goes to the network. WebSockets
do go there, with the page's origin, and TLS is verified: the browser trusts the cluster's authority as a user has it trust one, by NSS.
"""

import asyncio
import base64
import itertools
import json
import mimetypes
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

PROGRAM = "/usr/lib/chromium/chromium-headless-shell"
"""Not the script of that name on the path, which stays the browser's parent and would be killed instead of it."""

START_SECONDS = 30.0
ANSWER_SECONDS = 30.0
LOOK_SECONDS = 0.1

HERE = Path(__file__).parent
INSTALLED = HERE.parents[2] / "build" / "browser" / "node_modules"
LIBRARIES = {"novnc": INSTALLED / "@novnc" / "novnc", "xterm": INSTALLED / "@xterm" / "xterm"}
"""Folders beside the pages, as they ask for them, and where `make test` has installed what is in them."""

_OPTIONS = (
    "--no-sandbox",  # it runs as root, and opens only pages of this folder
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-breakpad",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-features=LocalNetworkAccessChecks",  # a page that is answered from here has no address, and passes for one of the internet
    "--no-first-run",
    "--no-proxy-server",
    "--remote-debugging-port=0",
)


def why_not() -> str:
    """Say why there is no browser to test with; empty when there is one."""
    needed = (PROGRAM, shutil.which("certutil"), *LIBRARIES.values())
    there = all(file and Path(file).exists() for file in needed)
    return "" if there else "`make test` installs Chromium, noVNC and xterm.js as root"


class Page:
    """One page in the browser."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._session = ""
        self._works: set[asyncio.Task[None]] = set()

    async def open(self, url: str) -> None:
        """Show a page of this folder as if it came from that address, and wait until it is loaded."""
        self._session = ""  # that of the page before
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        await self.call("Fetch.enable")
        await self.call("Page.navigate", url=url)

    async def value(self, expression: str) -> Any:
        """Return what an expression is worth in the page."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, expression: str, seconds: float = ANSWER_SECONDS) -> Any:
        """Wait until an expression is true in the page, and return what it is worth. Raises TimeoutError that tells what was seen."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    with suppress(AssertionError):  # the page's own code has not run yet
                        if found := await self.value(expression):
                            return found
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError as error:
            seen = await self.value("JSON.stringify(window.seen) + document.body.innerText")
            raise TimeoutError(f"in vain: {expression}; the page has seen {seen}") from error

    async def type(self, text: str) -> None:
        """Press and release the keys of a text; \\n is the Enter key. Shift is none of them: to a machine's keyboard, `>` is a dot."""
        for sign in text:
            key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13} if sign == "\n" else {"key": sign}
            typed = "\r" if sign == "\n" else sign
            await self.call("Input.dispatchKeyEvent", type="keyDown", text=typed, **key)
            await self.call("Input.dispatchKeyEvent", type="keyUp", **key)

    async def picture(self) -> bytes:
        """Return the page as a PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot"))["data"])

    async def call(self, method: str, **parameters: Any) -> Any:
        """Call the browser and return its answer."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._answers[number] = waiting = asyncio.get_running_loop().create_future()
        await self._socket.send(json.dumps(message))
        async with asyncio.timeout(ANSWER_SECONDS):
            answer = await waiting
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    async def listen(self) -> None:
        """Take in answers, and serve what the page asks for, until the browser goes."""
        with suppress(ConnectionClosed):
            async for text in self._socket:
                message = json.loads(text)
                if waiting := self._answers.pop(message.get("id", 0), None):
                    waiting.set_result(message)
                elif message.get("method") == "Fetch.requestPaused":
                    work = asyncio.create_task(self._serve(message["params"]))
                    self._works.add(work)
                    work.add_done_callback(self._works.discard)

    async def _serve(self, paused: dict[str, Any]) -> None:
        folder, _, rest = urlsplit(paused["request"]["url"]).path.lstrip("/").partition("/")
        file = LIBRARIES[folder] / rest if folder in LIBRARIES else HERE / folder
        if not file.is_file():
            await self.call("Fetch.fulfillRequest", requestId=paused["requestId"], responseCode=404)
            return
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        await self.call(
            "Fetch.fulfillRequest",
            requestId=paused["requestId"],
            responseCode=200,
            responseHeaders=[{"name": "Content-Type", "value": kind}],
            body=base64.b64encode(file.read_bytes()).decode(),
        )


@asynccontextmanager
async def chromium(home: Path, authority: Path) -> AsyncIterator[Page]:
    """Run a browser that trusts an authority (PEM); home: an empty folder for it. It ends with this process, however that ends."""
    trust(home, authority)
    profile = home / "profile"
    command = ["setpriv", "--pdeathsig", "KILL", PROGRAM, *_OPTIONS, f"--user-data-dir={profile}", "about:blank"]
    with (home / "chromium.log").open("wb") as log:
        environment = {**os.environ, "HOME": str(home)}
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=log, stderr=log)
    try:
        async with connect(await _address(profile, process), max_size=None, compression=None, proxy=None) as socket:
            page = Page(socket)
            listening = asyncio.create_task(page.listen())
            yield page
            listening.cancel()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def trust(home: Path, authority: Path) -> None:
    """Have browsers of a home folder trust an authority, as docs/guests.md tells users."""
    base = home / ".pki" / "nssdb"
    base.mkdir(parents=True)
    for words in (["-N", "--empty-password"], ["-A", "-n", "gugus", "-t", "C,,", "-i", str(authority)]):
        subprocess.run(["certutil", "-d", f"sql:{base}", *words], check=True, capture_output=True)


async def _address(profile: Path, process: asyncio.subprocess.Process) -> str:
    """Return where the browser listens for us. Chromium writes it into a file of its profile."""
    file = profile / "DevToolsActivePort"
    async with asyncio.timeout(START_SECONDS):
        while not (file.exists() and len(lines := file.read_text().splitlines()) == 2):
            assert process.returncode is None, f"{PROGRAM} ended: {(profile.parent / 'chromium.log').read_text()}"
            await asyncio.sleep(LOOK_SECONDS)
    return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
