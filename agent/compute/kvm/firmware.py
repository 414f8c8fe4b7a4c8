"""UEFI firmware and TPM state of a virtual machine: both lie in its machine folder, beside its first disk.

libvirt puts the state of a TPM into a folder of its own that has no setting; so the machine's folder is mounted there
while the guest runs, and its content goes wherever the disk goes.
"""

import asyncio
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gugus.agent.v1 import machine_pb2

from agent.compute.definitions import Definition
from agent.compute.kvm.xml.run import Firmware
from common.errors import GugusError, precondition
from common.process import run

OVMF = Path("/usr/share/OVMF")
CODE, CODE_SECURE = "OVMF_CODE_4M.fd", "OVMF_CODE_4M.secboot.fd"
VARIABLES, VARIABLES_SECURE = "OVMF_VARS_4M.fd", "OVMF_VARS_4M.ms.fd"
"""Debian's builds (package ovmf); with Secure Boot, those that have Microsoft's keys enrolled."""

VARIABLES_FILE = "uefi-variables.fd"
TPM_FOLDER = "tpm"
LIBVIRT_TPM = Path("/var/lib/libvirt/swtpm")
"""Where libvirt has the state of a domain's TPM, in a folder named by its UUID (qemu_tpm.c)."""

SWTPM = "swtpm"
FOLDER_MODE = 0o711
MOUNT_TIMEOUT_S = 10.0
MOUNTS = Path("/proc/self/mountinfo")
_POINT = 4
"""Field of the mount point, from 0 (proc(5))."""

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Abilities:
    """What of it this host has."""

    uefi: bool
    secure_boot: bool
    tpm: bool


def abilities(ovmf: Path = OVMF) -> Abilities:
    """Tell what is installed."""
    return Abilities(
        uefi=(ovmf / CODE).exists() and (ovmf / VARIABLES).exists(),
        secure_boot=(ovmf / CODE_SECURE).exists() and (ovmf / VARIABLES_SECURE).exists(),
        tpm=shutil.which(SWTPM) is not None,
    )


def find(definition: Definition, ovmf: Path = OVMF) -> Firmware | None:
    """Return the UEFI files of a run; None for a BIOS. Raises FIRMWARE_MISSING, TPM_MISSING."""
    wanted, there = definition.spec.virtual_machine, abilities(ovmf)
    if wanted.tpm and not there.tpm:
        raise _missing("TPM_MISSING", "a TPM", "swtpm and swtpm-tools")
    if wanted.firmware.kind != machine_pb2.FIRMWARE_KIND_UEFI or definition.files.state is None:
        return None
    secure = wanted.firmware.secure_boot
    if not (there.secure_boot if secure else there.uefi):
        raise _missing("FIRMWARE_MISSING", "UEFI", "ovmf")
    return Firmware(
        code=ovmf / (CODE_SECURE if secure else CODE),
        template=ovmf / (VARIABLES_SECURE if secure else VARIABLES),
        variables=definition.files.state / VARIABLES_FILE,
        secure=secure,
    )


def needs_folder(definition: Definition) -> bool:
    """Whether a machine has state of its own beside its disks."""
    machine = definition.spec.virtual_machine
    return machine.tpm or machine.firmware.kind == machine_pb2.FIRMWARE_KIND_UEFI


def make_folder(definition: Definition) -> None:
    """Make the folder of a machine's own state, which QEMU's user may pass through. Raises OSError."""
    if definition.files.state is not None and needs_folder(definition):
        definition.files.state.mkdir(exist_ok=True)
        definition.files.state.chmod(FOLDER_MODE)


async def settle_tpm(definition: Definition) -> None:
    """Bring the TPM's state of a machine that came from another host to where it belongs, while its CPUs stand still.

    It came in the migration's stream. Until now it is in libvirt's own folder: the one beside the disk may be shared, and was
    locked by the source's swtpm. swtpm opens its files by their names for each write, so from now on it writes to the latter.
    Raises CommandFailed, OSError.
    """
    if definition.files.state is None or not definition.spec.virtual_machine.tpm:
        return
    source, target = definition.files.state / TPM_FOLDER, LIBVIRT_TPM / definition.spec.uid
    await asyncio.to_thread(_folders, source, target)
    if await asyncio.to_thread(_is_mounted, target):
        return
    await _take_along(target, source)
    await run(["mount", "--bind", str(source), str(target)], timeout_s=MOUNT_TIMEOUT_S)


async def clear_tpm(uid: str) -> None:
    """Remove what is left in libvirt's own folder of a TPM that is not in use here. Raises OSError."""
    if not uid:
        return
    await unmount_tpm(uid)
    target = LIBVIRT_TPM / uid
    for folder in (target, _moved(target)):
        if await asyncio.to_thread(folder.exists) and not await asyncio.to_thread(_is_mounted, folder):
            await asyncio.to_thread(shutil.rmtree, folder)


async def _take_along(found: Path, wanted: Path) -> None:
    """Make a folder what another one is, if that has anything, and empty the latter; may be repeated from any line."""
    if await asyncio.to_thread(_is_empty, found):
        return
    new = wanted.with_name(f"{wanted.name}.new")
    await asyncio.to_thread(shutil.rmtree, new, ignore_errors=True)
    await run(["cp", "--archive", "--no-target-directory", str(found), str(new)], timeout_s=MOUNT_TIMEOUT_S)
    await run(["sync", *map(str, new.rglob("*"))], timeout_s=MOUNT_TIMEOUT_S)

    def exchange() -> None:
        shutil.rmtree(wanted, ignore_errors=True)
        new.rename(wanted)
        shutil.rmtree(_moved(found), ignore_errors=True)
        found.rename(_moved(found))
        _folders(wanted, found)
        shutil.rmtree(_moved(found))

    await asyncio.to_thread(exchange)


def _moved(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.moved")


async def mount_tpm(definition: Definition) -> None:
    """Put the TPM's state where libvirt looks for it, before a start. Raises CommandFailed, OSError."""
    if definition.files.state is None or not definition.spec.virtual_machine.tpm:
        return
    source, target = definition.files.state / TPM_FOLDER, LIBVIRT_TPM / definition.spec.uid
    await asyncio.to_thread(_folders, source, target)
    if await asyncio.to_thread(_same, source, target):
        return
    await unmount_tpm(definition.spec.uid)
    await asyncio.to_thread(_folders, source, target)
    if await asyncio.to_thread(_is_empty, source):
        await _take_along(target, source)  # it came here by a migration, and this host died before it was settled
    await run(["mount", "--bind", str(source), str(target)], timeout_s=MOUNT_TIMEOUT_S)


async def unmount_tpm(uid: str) -> None:
    """Take it away, after the end of a guest. Nothing happens when it is not there."""
    target = LIBVIRT_TPM / uid
    if not uid:
        return
    if await asyncio.to_thread(_is_mounted, target):
        with suppress(GugusError):  # still in use: the next start finds it
            await run(["umount", str(target)], timeout_s=MOUNT_TIMEOUT_S)
    with suppress(OSError):
        target.rmdir()


def _is_empty(folder: Path) -> bool:
    return not any(folder.iterdir())


def _same(one: Path, other: Path) -> bool:
    return one.samefile(other)


def _is_mounted(target: Path) -> bool:
    """Whether something is mounted there; os.path.ismount does not see folders that are of the same file system."""
    lines = MOUNTS.read_text().splitlines()
    return any(_OCTAL.sub(lambda m: chr(int(m[1], 8)), line.split()[_POINT]) == str(target) for line in lines)


def _folders(source: Path, target: Path) -> None:
    source.mkdir(exist_ok=True)
    source.chmod(FOLDER_MODE)
    target.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)


def _missing(reason: str, what: str, packages: str) -> GugusError:
    return precondition(
        reason, f"this node has no {what} for guests.", remedy=f"Install the Debian packages {packages}."
    )
