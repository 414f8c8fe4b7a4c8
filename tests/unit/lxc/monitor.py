"""A process in the part of liblxc's monitor: its name in /proc, its inits, and a reboot whenever an init gets SIGHUP."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.compute.processes import ProcessRecord, record_of

_INIT = """
import os, signal, sys
signal.signal(signal.SIGHUP, lambda *_: os._exit(0))
os.write(int(sys.argv[1]), b"!")
while True:
    signal.pause()
"""
_SCRIPT = f"""
import ctypes, os
NEWPID = 0x20000000  # sched.h, CLONE_NEWPID
open("/proc/self/comm", "w").write(os.environ["COMM"])
libc, own = ctypes.CDLL(None), os.open("/proc/self/ns/pid", os.O_RDONLY)
rebooted = True
while rebooted:
    assert libc.unshare(NEWPID) == 0
    ready, says_so = os.pipe()
    init = os.fork()
    if init == 0:
        os.set_inheritable(says_so, True)
        os.execv(os.environ["PYTHON"], ["init", "-c", {_INIT!r}, str(says_so)])
    libc.setns(own, NEWPID)
    os.read(ready, 1)
    print(init, flush=True)
    rebooted = os.waitpid(init, 0)[1] == 0
"""


class Monitor:
    """A running one. `inits` are those that it has had."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.inits: list[ProcessRecord] = []
        record = record_of(process.pid)
        assert record is not None
        self.record = record

    def await_init(self) -> ProcessRecord:
        """Wait for the next init that it starts."""
        assert self.process.stdout is not None
        record = record_of(int(self.process.stdout.readline()))
        assert record is not None
        self.inits.append(record)
        return record


@contextmanager
def monitoring(lxc_path: Path, name: str = "c1", comm: str = "lxc-start") -> Iterator[Monitor]:
    """Start one, with its first init. comm: what the kernel calls it."""
    python = os.path.realpath(sys.executable)
    process = subprocess.Popen(
        [f"[lxc monitor] {lxc_path} {name}"],
        executable=python,
        env={**os.environ, "PYTHON": python, "COMM": comm, "PYTHONHOME": sys.base_prefix},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(_SCRIPT)
    process.stdin.close()
    monitor = Monitor(process)
    try:
        monitor.await_init()
        yield monitor
    finally:
        process.kill()
        process.wait()
        for init in monitor.inits:
            if record_of(init.pid) == init:
                os.kill(init.pid, 9)
