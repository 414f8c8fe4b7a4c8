"""Accelerator: whether KVM really runs guests here, found out by running one.

That /dev/kvm opens proves nothing. The probe boots a sector (probe.s) on the CPU that guests would get, which enters
long mode with paging and waits for a timer interrupt; a KVM that works does this in a quarter of a second, one that
emulates every instruction takes many times that, and some die over the host's CPU model.
"""

import asyncio
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from common.errors import GugusError
from common.files import read_json, write_json
from common.process import CommandFailed, run

KVM_DEVICE = Path("/dev/kvm")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
EMULATOR = f"qemu-system-{platform.machine()}"

PROBE_TIMEOUT_S = 3.0
"""Measured: 0.28 s under TCG, which is slower than any KVM that is of use; over 4 s under one that emulates."""

TRIES = 2
"""A probe that takes too long is tried again, for the host may just have been busy."""

VERSION_TIMEOUT_S = 10.0

_EXIT_OK = 33
"""Exit code when the sector writes 0x10 to isa-debug-exit: (0x10 << 1) | 1 (QEMU, hw/misc/debugexit.c)."""

_SECTOR_BYTES = 512
_SECTOR = bytes.fromhex(
    "fa31c08ed88ec08ed0bc007cfcbf0010b90028f3abc70600100320c70600200330c70600308300c70600528e7cc70602520800c7060452008e"
    "0f0116a87c0f011eae7cb011e620b020e621b004e621b001e621b0fee6210f20e00c200f22e066b8001000000f22d866b9800000c00f320d00"
    "010f300f20c0660d010000800f22c0ea867c080031c08ed0fbf4ebfdb010e6f4f4ebfd0f1f00000000000000000000000000009a20000f0098"
    "7c00000f020050"
)
"""probe.s, assembled: as probe.s -o p.o && ld -Ttext 0x7c00 --oformat binary p.o."""


@dataclass(frozen=True, slots=True)
class Accelerator:
    """How guests are run: `mode` "kvm" or "tcg" (none: ""), libvirt's domain type for it, and why, in words."""

    mode: str
    domain_type: str
    reason: str


def sector() -> bytes:
    """Return the boot sector of the probe."""
    return _SECTOR.ljust(_SECTOR_BYTES - 2, b"\0") + b"\x55\xaa"


async def find(cache: Path) -> Accelerator:
    """Find out how guests run here. The probe's result holds for this boot and this QEMU and is kept in `cache`."""
    try:
        version = (await run([EMULATOR, "--version"], timeout_s=VERSION_TIMEOUT_S)).text.splitlines()[0]
    except CommandFailed:
        return Accelerator("", "", f"{EMULATOR} does not run here (Debian package qemu-system-x86).")
    if problem := await asyncio.to_thread(_device_problem):
        return _tcg(problem)
    key = f"{await asyncio.to_thread(BOOT_ID.read_text)} {platform.release()} {version}".replace("\n", "")
    try:
        known = await asyncio.to_thread(read_json, cache)
        if known["key"] == key:
            return Accelerator(known["mode"], known["domain_type"], known["reason"])
    except (OSError, ValueError, KeyError, TypeError):  # never probed, or a file that cannot be used: probe
        known = None
    found = await probe()
    value = {"key": key, "mode": found.mode, "domain_type": found.domain_type, "reason": found.reason}
    await asyncio.to_thread(write_json, cache, value)
    return found


async def probe() -> Accelerator:
    """Run the probe, whatever was found before."""
    problem = ""
    for _ in range(TRIES):
        began_s = time.monotonic()
        problem, conclusive = await _try()
        if not problem:
            took_ms = round((time.monotonic() - began_s) * 1000)
            return Accelerator("kvm", "kvm", f"A probe guest ran on /dev/kvm in {took_ms} ms.")
        if conclusive:
            break
    return _tcg(f"/dev/kvm opens, but a guest does not run on it: {problem}")


async def _try() -> tuple[str, bool]:
    """Run the probe once; return what is wrong, "" if nothing, and whether trying again is pointless."""
    with TemporaryDirectory(prefix="gugus-probe-") as folder:
        image = Path(folder) / "sector.img"
        await asyncio.to_thread(image.write_bytes, sector())
        argv = [EMULATOR, "-accel", "kvm", "-machine", "pc", "-cpu", "host", "-m", "64", "-display", "none"]
        argv += ["-nodefaults", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
        argv += ["-drive", f"file={image},format=raw,if=ide,snapshot=off"]
        try:
            done = await run(argv, timeout_s=PROBE_TIMEOUT_S, check=False)
        except GugusError as error:
            if isinstance(error, CommandFailed) and error.timed_out:
                return f"it did not get to its first timer interrupt within {PROBE_TIMEOUT_S:g} s", False
            return str(error), True
    if done.returncode == _EXIT_OK:
        return "", True
    words = done.stderr.decode(errors="replace").strip().splitlines()
    first = next((line for line in words if "error" in line.lower()), words[-1] if words else "no message")
    return f"QEMU ended with code {done.returncode} ({first.removeprefix(EMULATOR + ': ')})", True


def _device_problem() -> str:
    if not KVM_DEVICE.exists():
        return "/dev/kvm does not exist (no hardware virtualization, off in the firmware, or no kernel module)"
    try:
        os.close(os.open(KVM_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/kvm cannot be opened: {error.strerror}"
    return ""


def _tcg(problem: str) -> Accelerator:
    return Accelerator("tcg", "qemu", f"{problem}; guests are emulated, which is slow.")
