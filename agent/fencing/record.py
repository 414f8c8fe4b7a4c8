"""What this host's agent last promised, as the watchdog and a restarted agent read it: lease end and HA processes.

It lives in the run folder (tmpfs): after a reboot nothing of it holds, and should the folder be on a disk, the boot's id
in the record says so. A file is replaced as a whole, without sync, for it must survive the process, not the host. This
module imports nothing big: the watchdog needs it.
"""

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.compute.processes import ProcessRecord

FILE_NAME = "lease.json"
STATUS_FILE_NAME = "watchdog.json"
KERNEL_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
FILE_MODE = 0o600
MAX_BYTES = 192 * 1024
"""Longest record: some 2,000 HA guests; below the default limit of a datagram (net.core.wmem_default, 208 KiB)."""


@functools.cache
def kernel_boot_id() -> str:
    """Return the id that the kernel gave to this boot. Raises OSError."""
    return KERNEL_BOOT_ID.read_text().strip()


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """When the lease ends (CLOCK_BOOTTIME, 0 = none is held) and which HA guests may be running.

    processes: guest name -> its process. starting: guests that may run as no process of these: their start is under
    way or of unknown outcome. monitors: guest name -> the process that may start another one in place of the guest's
    (a container's monitor). unidentified: those of `starting` of which no start is under way; they run, as a process that
    is not known. boot: of which boot of the kernel this tells; "" in records of older versions.
    """

    deadline_ns: int = 0
    processes: Mapping[str, ProcessRecord] = field(default_factory=dict)
    starting: tuple[str, ...] = ()
    monitors: Mapping[str, ProcessRecord] = field(default_factory=dict)
    unidentified: tuple[str, ...] = ()
    boot: str = field(default_factory=kernel_boot_id)

    @property
    def guarded(self) -> bool:
        """Whether any HA guest may be running, so that the host must not outlive the lease."""
        return bool(self.processes or self.starting)

    def to_bytes(self) -> bytes:
        """Encode as JSON."""
        value = {
            "deadline_ns": self.deadline_ns,
            "processes": _to_json(self.processes),
            "starting": list(self.starting),
            "monitors": _to_json(self.monitors),
            "unidentified": list(self.unidentified),
            "boot": self.boot,
        }
        return json.dumps(value, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "LeaseRecord":
        """Decode. Raises ValueError for anything that `to_bytes`, of this version or an older one, does not make."""
        try:
            value = json.loads(data)
            return cls(
                int(value["deadline_ns"]),
                _from_json(value["processes"]),
                tuple(str(n) for n in value["starting"]),
                _from_json(value.get("monitors", {})),
                tuple(str(n) for n in value.get("unidentified", ())),
                str(value.get("boot", "")),
            )
        except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"not a lease record: {error!r}") from error


def write(run_dir: Path, record: LeaseRecord) -> None:
    """Replace the record. Raises OSError."""
    replace_file(run_dir / FILE_NAME, record.to_bytes())


def read(run_dir: Path) -> LeaseRecord | None:
    """Return the record of this boot; None when there is none. Raises OSError, or ValueError when it is damaged."""
    try:
        record = LeaseRecord.from_bytes((run_dir / FILE_NAME).read_bytes())
    except FileNotFoundError:
        return None
    return record if record.boot in ("", kernel_boot_id()) else None


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file as a whole so that readers never see half of it; not synced, for tmpfs."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
    os.replace(temporary, path)


def _to_json(processes: Mapping[str, ProcessRecord]) -> dict[str, list[int]]:
    return {name: [process.pid, process.start_ticks] for name, process in processes.items()}


def _from_json(value: Any) -> dict[str, ProcessRecord]:
    return {str(name): ProcessRecord(int(pid), int(ticks)) for name, (pid, ticks) in value.items()}
