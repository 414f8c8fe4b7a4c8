"""The demo's virtual machine disk: partition table, FAT boot partition with syslinux, heartbeat partition, qcow2.

Needs no root and no loop device: mtools and syslinux write into the file. Partition 2 (heartbeat) lies first, at 1 MiB.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from lab.images import heartbeat
from lab.images.tree import FIXED_TIME_S, TOOL_TIMEOUT_S

DISK_BYTES = 64 * 2**20
BOOT_OFFSET_BYTES = heartbeat.OFFSET_BYTES + heartbeat.AREA_BYTES
MBR = Path("/usr/lib/syslinux/mbr/mbr.bin")  # Debian's syslinux-common
_SECTOR_BYTES = 512
_MBR_CODE_BYTES = 440  # the boot code's room before the disk signature
_DISK_SIGNATURE = b"GGUS"  # four bytes, fixed for determinism
_FAT16_LBA, _DATA, _LINUX = 0x0E, 0xDA, 0x83  # partition types: FAT16 by LBA; data without a file system; Linux
_FAT_SERIAL = "47554755"

# quiet: a serial line under TCG costs more than the boot. tsc and mitigations: each saves a calibration or a slow path.
COMMAND_LINE = (
    "console=ttyS0 quiet loglevel=3 panic=5 net.ifnames=0 nokaslr mitigations=off no_timer_check "
    "cryptomgr.notests tsc=reliable random.trust_cpu=on"
)
SYSLINUX_CFG = (
    f"DEFAULT gugus\nPROMPT 0\nTIMEOUT 0\nLABEL gugus\nLINUX vmlinuz\nINITRD initrd.img\nAPPEND {COMMAND_LINE}\n"
)


FIRST_BYTES = 2**20
"""Where the first partition begins, as all partitioning tools have it today."""


def table(boot_bytes: int, disk_bytes: int) -> bytes:
    """The first sector of a disk with a boot partition (active, FAT16) and a Linux partition in the rest."""
    rest = FIRST_BYTES + boot_bytes
    boot = _partition(0x80, _FAT16_LBA, FIRST_BYTES, boot_bytes)
    return _sector(boot, _partition(0x00, _LINUX, rest, disk_bytes - rest))


def partition_table() -> bytes:
    """The first sector: syslinux' boot code, partition 1 (active, FAT16) and partition 2 (heartbeat)."""
    boot = _partition(0x80, _FAT16_LBA, BOOT_OFFSET_BYTES, DISK_BYTES - BOOT_OFFSET_BYTES)
    beat = _partition(0x00, _DATA, heartbeat.OFFSET_BYTES, heartbeat.AREA_BYTES)
    return _sector(boot, beat)


def write_disk(out: Path, kernel: bytes, initramfs: bytes) -> None:
    """Write the bootable qcow2 image; raises OSError or CalledProcessError when a tool is missing or fails."""
    with tempfile.TemporaryDirectory(prefix="gugus-image-", dir=out.parent) as scratch:
        raw = Path(scratch) / "disk.raw"
        with raw.open("wb") as disk:
            disk.truncate(DISK_BYTES)
            disk.write(partition_table())
            disk.seek(heartbeat.OFFSET_BYTES)
            disk.write(heartbeat.empty_sector())
        contents = {"vmlinuz": kernel, "initrd.img": initramfs, "syslinux.cfg": SYSLINUX_CFG.encode()}
        make_boot_partition(raw, BOOT_OFFSET_BYTES, DISK_BYTES - BOOT_OFFSET_BYTES, contents, Path(scratch))
        _run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(out))


def make_boot_partition(
    raw: Path, offset_bytes: int, size_bytes: int, contents: Mapping[str, bytes], scratch: Path
) -> None:
    """Make a FAT16 file system with syslinux and these files in a part of a disk."""
    drive = f"{raw}@@{offset_bytes}"
    sectors, hidden = size_bytes // _SECTOR_BYTES, offset_bytes // _SECTOR_BYTES
    _run(
        "mformat", "-i", drive, "-T", str(sectors), "-h", "64", "-s", "32", "-H", str(hidden),
        "-N", _FAT_SERIAL, "-v", "GUGUS", "::",
    )  # fmt: skip
    for name, data in contents.items():
        path = scratch / name
        path.write_bytes(data)
        os.utime(path, (FIXED_TIME_S, FIXED_TIME_S))
        _run("mcopy", "-m", "-i", drive, str(path), f"::{name}")
    _run("syslinux", "--install", "--offset", str(offset_bytes), str(raw))


def _sector(first: bytes, second: bytes) -> bytes:
    """The first sector of a disk: syslinux' boot code and two partitions."""
    code = MBR.read_bytes().ljust(_MBR_CODE_BYTES, b"\0")
    return code + _DISK_SIGNATURE + bytes(2) + first + second + bytes(32) + b"\x55\xaa"


def _partition(flags: int, kind: int, offset_bytes: int, size_bytes: int) -> bytes:
    """One entry of the partition table; CHS fields say "see the LBA", as every tool writes them today."""
    chs = b"\xfe\xff\xff"
    start, count = offset_bytes // _SECTOR_BYTES, size_bytes // _SECTOR_BYTES
    return bytes([flags]) + chs + bytes([kind]) + chs + start.to_bytes(4, "little") + count.to_bytes(4, "little")


def _run(*command: str) -> None:
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(FIXED_TIME_S), "TZ": "UTC", "MTOOLS_SKIP_CHECK": "1"}
    subprocess.run(command, check=True, capture_output=True, timeout=TOOL_TIMEOUT_S, env=environment)
