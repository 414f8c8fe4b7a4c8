"""A background process of a lab that outlives the command that started it.

Invariant: it lives exactly while the lock on its file is held; the kernel lets the lock go at its death, so a process
id that was given to another process is never taken for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab import machine
from lab.plan import LabError

#: Seconds from the start of the process until it holds its lock.
START_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Supervisor:
    """The process that runs ``module`` for one lab (and, with ``part``, for one node of it).

    ``environment``: what it gets beside the starter's own, each "NAME=value".
    """

    module: str
    lab: str
    state: Path
    part: str = ""
    environment: tuple[str, ...] = ()

    @property
    def file(self) -> Path:
        """Holds the process id; locked while the process lives."""
        return self.state / f"{self.module.rpartition('.')[2]}{self.part and '-' + self.part}.pid"

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        try:
            with self.file.open("r+") as file:
                return not machine.try_lock(file)
        except FileNotFoundError:
            return False

    @property
    def pid(self) -> int | None:
        """Its process id while it lives."""
        if not self.running:
            return None
        text = self.file.read_text().strip()
        return int(text) if text else None

    def start(self) -> None:
        """Start the process if it does not run, and wait until it does; raises LabError with the end of its log."""
        if self.running:
            return
        log = self.file.with_suffix(".log")
        command = [sys.executable, "-m", self.module, "--lab", self.lab, "--state", str(self.state)]
        command += ["--part", self.part] if self.part else []
        # setsid --fork: PID 1 becomes the parent, so that nobody keeps a zombie of it.
        detached = ["setsid", "--fork", "env", *self.environment, *command]
        with log.open("a") as output:
            machine.run_detached(detached, output, folder=Path(__file__).resolve().parents[1])
        if not machine.wait_for(lambda: self.running and self.pid is not None, START_SECONDS):
            raise LabError(f"{self.module} did not start: {log.read_text(errors='replace')[-2000:]}")

    def stop(self, seconds: float = 10.0) -> None:
        """End the process if it runs."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            pid = self.pid
            if pid is None:
                break
            machine.send_signal(pid, number)
            if machine.wait_for(lambda: not self.running, seconds):
                break
        else:
            raise LabError(f"{self.module} (process {self.pid}) survives SIGKILL")
        self.file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """In the process itself: be the one that runs; raises LabError when another is."""
        with self.file.open("a+") as file:
            if not machine.try_lock(file):
                raise LabError(f"{self.module} of lab {self.lab} runs already ({self.file})")
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield
