"""What this host's agent last promised, as the watchdog and a restarted agent read it: lease end and HA processes.

It lives in the run folder (tmpfs): after a reboot nothing of it holds. A file is replaced as a whole, without sync,
for it must survive the process, not the host. This module imports nothing big: the watchdog needs it.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.compute.processes import ProcessRecord

FILE_NAME = "lease.json"
STATUS_FILE_NAME = "watchdog.json"
FILE_MODE = 0o600
MAX_BYTES = 192 * 1024
"""Longest record: some 3,000 HA guests; below the default limit of a datagram (net.core.wmem_default, 208 KiB)."""


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """When the lease ends (CLOCK_BOOTTIME, 0 = none is held) and which HA guests may be running.

    processes: guest name -> its process. starting: guests whose start is under way or of unknown outcome.
    """

    deadline_ns: int = 0
    processes: Mapping[str, ProcessRecord] = field(default_factory=dict)
    starting: tuple[str, ...] = ()

    @property
    def guarded(self) -> bool:
        """Whether any HA guest may be running, so that the host must not outlive the lease."""
        return bool(self.processes or self.starting)

    def to_bytes(self) -> bytes:
        """Encode as JSON."""
        value = {
            "deadline_ns": self.deadline_ns,
            "processes": {name: [p.pid, p.start_ticks] for name, p in self.processes.items()},
            "starting": list(self.starting),
        }
        return json.dumps(value, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "LeaseRecord":
        """Decode. Raises ValueError for anything that `to_bytes` does not make."""
        try:
            value = json.loads(data)
            processes = {str(n): ProcessRecord(int(pid), int(ticks)) for n, (pid, ticks) in value["processes"].items()}
            return cls(int(value["deadline_ns"]), processes, tuple(str(n) for n in value["starting"]))
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"not a lease record: {error!r}") from error


def write(run_dir: Path, record: LeaseRecord) -> None:
    """Replace the record. Raises OSError."""
    replace_file(run_dir / FILE_NAME, record.to_bytes())


def read(run_dir: Path) -> LeaseRecord | None:
    """Return the record of this boot; None when there is none. Raises OSError, or ValueError when it is damaged."""
    try:
        return LeaseRecord.from_bytes((run_dir / FILE_NAME).read_bytes())
    except FileNotFoundError:
        return None


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file as a whole so that readers never see half of it; not synced, for tmpfs."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
    os.replace(temporary, path)
