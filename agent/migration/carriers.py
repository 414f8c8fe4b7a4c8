"""Volumes of guests that do not run, or run in containers: sent by programs that know how, through streams of the tunnel.

Disks: `qemu-img convert` here, `qemu-nbd` there; what is empty is not sent, and a chain of backing files becomes one file.
Folders: rsync here, an rsync daemon for one connection there, which is confined to the volume and takes no command.
"""

import asyncio
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from agent.compute.hypervisor import Progress
from agent.migration.arrivals import Serve
from agent.migration.departure import connect_unix, roomy
from agent.migration.pump import Broken, Moved, Stop, pump
from common.errors import precondition
from common.process import STDERR_TAIL_CHARS

START_TIMEOUT_S = 5.0
END_TIMEOUT_S = 60.0
"""A program that has been sent everything writes back what it holds; a slow disk takes its time."""

EXPORT = "volume"
RSYNC = ("rsync", "--archive", "--hard-links", "--acls", "--xattrs", "--sparse", "--numeric-ids", "--delete")
"""Owners as numbers, hard links, ACLs and attributes (capabilities of programs) as they are; what is gone here goes there."""

RSYNC_VANISHED = 24
"""rsync's exit code when files vanished while it read them: expected of a container that runs."""

_PERCENT = re.compile(rb"\(?([0-9]+)(?:\.[0-9]+)?(?:/100)?%\)?")


def receive_disk(path: Path, volume_format: str) -> Serve:
    """Return what serves a stream that fills a disk. volume_format: "qcow2" or "raw"."""

    def serve(tls: ssl.SSLSocket, stop: Stop, moved: Moved) -> None:
        with tempfile.TemporaryDirectory(prefix="gugus-nbd-") as folder:
            sock = Path(folder) / "s"
            argv = ["qemu-nbd", "--socket", str(sock), "--format", volume_format, "--export-name", EXPORT]
            argv += ["--discard", "unmap", "--detect-zeroes", "unmap", str(path)]
            with _running(argv, subprocess.DEVNULL) as process:
                _wait_for(sock, process)
                with connect_unix(sock) as plain:
                    pump(plain, tls, stop, moved)
                _end_well(process)

    return serve


def receive_tree(path: Path) -> Serve:
    """Return what serves a stream that fills a folder."""

    def serve(tls: ssl.SSLSocket, stop: Stop, moved: Moved) -> None:
        with tempfile.TemporaryDirectory(prefix="gugus-rsync-") as folder:
            config = Path(folder) / "rsyncd.conf"
            config.write_text(_daemon(path))
            near, far = socket.socketpair()
            roomy(near)
            argv = ["rsync", "--server", "--daemon", f"--config={config}", "."]
            with near, _running(argv, far.fileno()) as process:
                far.close()
                pump(near, tls, stop, moved)
                near.close()
                _end_well(process)

    return serve


def receive_new_tree(path: Path) -> Serve:
    """Make a folder, and return what serves a stream that fills it. Raises OSError."""
    path.mkdir(exist_ok=True)
    return receive_tree(path)


async def send_disk(path: Path, volume_format: str, door: Path, progress: Progress) -> None:
    """Send a disk through a door. Raises COPY_FAILED."""
    argv = ["qemu-img", "convert", "-p", "-n", "-f", volume_format, "-O", "raw", str(path)]
    await _send([*argv, f"nbd+unix:///{EXPORT}?socket={door}"], progress, (0,))


async def send_tree(path: Path, door: Path, progress: Progress, *, running: bool) -> None:
    """Send a folder, or what has changed in it since. running: files may change meanwhile. Raises COPY_FAILED."""
    helper = f"{sys.executable} -m agent.migration.stdio {door}"
    argv = [*RSYNC, "--no-inc-recursive", "--info=progress2", f"--rsh={helper}", f"{path}/", f"target::{EXPORT}/"]
    await _send(argv, progress, (0, RSYNC_VANISHED) if running else (0,))


def sync(path: Path) -> None:
    """Have everything on the file system of a path written. Blocks. Raises OSError."""
    done = subprocess.run(["sync", "--file-system", str(path)], capture_output=True, timeout=END_TIMEOUT_S, check=False)
    if done.returncode:
        raise OSError(f"{path} is not written back: {done.stderr.decode(errors='replace').strip()}")


async def _send(argv: Sequence[str], progress: Progress, good: Sequence[int]) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "LC_ALL": "C"}
    with tempfile.TemporaryFile() as errors:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
            env=environment,
        )
        try:
            await _follow(process, progress)
            code = await process.wait()
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.shield(process.wait())
            raise
        if code not in good:
            raise _failed(argv[0], code, errors)


async def _follow(process: asyncio.subprocess.Process, progress: Progress) -> None:
    told = -1
    if process.stdout is None:
        raise RuntimeError("no pipe")
    while piece := await process.stdout.read(4096):
        found = _PERCENT.findall(piece)
        if found and (percent := min(100, int(found[-1]))) != told:
            told = percent
            progress(percent, "copying")


def _failed(program: str, code: int, errors: IO[bytes]) -> Exception:
    errors.seek(0)
    words = errors.read().decode(errors="replace").strip()[-STDERR_TAIL_CHARS:]
    return precondition(
        "COPY_FAILED",
        f"{program} failed with exit code {code}: {words or 'no message'}",
        remedy="The guest stays where it is. Is there room on the target, and is the network up?",
    )


def _daemon(path: Path) -> str:
    """Return the configuration of a daemon that serves one folder: confined to it, as root, for files have many owners."""
    return (
        f"[{EXPORT}]\npath = {path}\nread only = no\nwrite only = yes\nlist = no\nuse chroot = yes\nuid = 0\ngid = 0\n"
        "log file = /dev/null\nnumeric ids = yes\nmunge symlinks = no\nmax connections = 1\n"
    )


@contextmanager
def _running(argv: Sequence[str], channel: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program with its input and output joined to a channel; what is still there at the end is killed."""
    process = subprocess.Popen(argv, stdin=channel, stdout=channel, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(sock: Path, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while not sock.exists():
        if process.poll() is not None or time.monotonic() > end:
            raise Broken("qemu-nbd does not start")
        time.sleep(0.005)


def _end_well(process: "subprocess.Popen[bytes]") -> None:
    try:
        code = process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise Broken("the program that writes does not end") from None
    if code:
        raise Broken(f"the program that writes failed with exit code {code}")
