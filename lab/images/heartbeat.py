"""The heartbeat that the demo's guests write once a second, and how to judge from it who was running when.

A record is one line, `gugus-heartbeat SEQ BOOT_ID UPTIME UNIX_TIME HOSTNAME`. A writer takes SEQ from the medium each
time, so two copies of one guest show as alternating boot ids: one that comes back after another wrote is a second copy.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MAGIC = "gugus-heartbeat"
SECTOR_BYTES = 512
RING_SECTORS = 2047  # the newest records that are kept; the guest's heartbeat script has the same number
OFFSET_BYTES = 2**20  # where the area begins on the virtual machine's disk (its partition 2)
AREA_BYTES = SECTOR_BYTES * (1 + RING_SECTORS)  # sector 0 is the newest record once more
CONTAINER_FILE = "var/heartbeat"  # in the container's root file system
READ_TIMEOUT_S = 20.0
_FIELDS = 6
_NO_BOOT = "-"


class NoHeartbeat(Exception):
    """The image or root file system holds no heartbeat area, or none was ever written; the message says which."""


@dataclass(frozen=True, order=True)
class Heartbeat:
    """One record. `boot_id` differs for each start of a guest; `uptime_s` is its kernel's, `unix_time_s` wall clock."""

    seq: int
    boot_id: str
    uptime_s: float
    unix_time_s: int
    hostname: str


def parse(line: str) -> Heartbeat | None:
    """The record in this line, or None when it is not one (empty, torn, or the mark of an area never written)."""
    words = line.split()
    if len(words) != _FIELDS or words[0] != MAGIC or words[2] == _NO_BOOT:
        return None
    try:
        return Heartbeat(int(words[1]), words[2], float(words[3]), int(words[4]), words[5])
    except ValueError:
        return None


def empty_sector() -> bytes:
    """Sector 0 of an area that no guest has written yet."""
    return _sector(f"{MAGIC} 0 {_NO_BOOT} 0 0 {_NO_BOOT}")


def history_of_area(area: bytes) -> tuple[Heartbeat, ...]:
    """All records in a heartbeat area, oldest first; raises NoHeartbeat when the area is something else."""
    if not area.startswith(MAGIC.encode() + b" "):
        raise NoHeartbeat(f"no heartbeat area at byte {OFFSET_BYTES} of the disk: it is not made from the demo's image")
    sectors = (area[at : at + SECTOR_BYTES] for at in range(0, len(area), SECTOR_BYTES))
    records = (parse(sector.decode("ascii", "replace")) for sector in sectors)
    return tuple(sorted({record for record in records if record is not None}))


def writers(history: Iterable[Heartbeat]) -> tuple[str, ...]:
    """Boot ids in the order in which they wrote, one entry for each unbroken run: `(a, b)` is a clean restart."""
    runs: list[str] = []
    for record in sorted(history):
        if not runs or runs[-1] != record.boot_id:
            runs.append(record.boot_id)
    return tuple(runs)


def two_copies(history: Iterable[Heartbeat]) -> bool:
    """Whether two copies wrote at the same time: some boot id wrote again after another one had begun."""
    runs = writers(history)
    return len(runs) != len(set(runs))


def read_history(image: Path) -> tuple[Heartbeat, ...]:
    """Every kept record on a virtual machine's disk (qcow2 or raw, also a clone, also while it runs), oldest first.

    Raises NoHeartbeat for a disk without the area, CalledProcessError when qemu-img cannot read the image.
    """
    with tempfile.TemporaryDirectory(prefix="gugus-heartbeat-") as scratch:
        area = Path(scratch) / "area"
        skip, end = OFFSET_BYTES // SECTOR_BYTES, (OFFSET_BYTES + AREA_BYTES) // SECTOR_BYTES
        # qemu-img counts `count` from the start of the input, before `skip` is taken off (img_dd in QEMU 7.2).
        subprocess.run(
            ["qemu-img", "dd", "-U", "-O", "raw", f"bs={SECTOR_BYTES}", f"skip={skip}", f"count={end}",
             f"if={image}", f"of={area}"],
            check=True, capture_output=True, timeout=READ_TIMEOUT_S,
        )  # fmt: skip
        return history_of_area(area.read_bytes())


def read_heartbeat(image: Path) -> Heartbeat:
    """The newest record on a virtual machine's disk; raises NoHeartbeat, also when none was ever written."""
    return _newest(read_history(image), image)


def read_container_history(rootfs: Path) -> tuple[Heartbeat, ...]:
    """Every kept record in a container's root file system, in the order of the file (two copies may share a number)."""
    file = rootfs / CONTAINER_FILE
    try:
        lines = file.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        raise NoHeartbeat(f"{file} does not exist: the container has never run here") from None
    return tuple(record for record in map(parse, lines) if record is not None)


def read_container_heartbeat(rootfs: Path) -> Heartbeat:
    """The newest record in a container's root file system; raises NoHeartbeat when there is none."""
    return _newest(read_container_history(rootfs), rootfs)


def _newest(history: tuple[Heartbeat, ...], where: Path) -> Heartbeat:
    if not history:
        raise NoHeartbeat(f"{where}: no guest has written a heartbeat yet")
    return history[-1]


def _sector(line: str) -> bytes:
    return line.encode().ljust(SECTOR_BYTES - 1) + b"\n"
