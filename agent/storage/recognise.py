"""What a foreign file is, by its first and last bytes: QEMU is told the format, it never guesses, and opens nothing suspicious.

A disk image that refers to other files of the host (a backing file, a data file, an extent) would open them to guests: it is
refused by its header, before any program reads it as an image.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

from gugus.agent.v1 import volume_pb2

from agent.storage import archive, ova, qemu_img
from agent.storage.files import FileWork
from agent.storage.transfer import UPLOAD_SCHEME
from common.errors import GugusError, precondition
from common.process import CommandFailed

ARCHIVE = volume_pb2.VOLUME_FORMAT_ARCHIVE
SECTOR_BYTES = 512
MOST_BYTES = 1 << 46
"""64 TiB, beyond which a disk's size is a mistake or a trap."""

_HEAD_BYTES = 34 * 1024
_BOOT_SIGNATURE = b"\x55\xaa"
_GPT_SIGNATURE = b"EFI PART"
_ISO_SIGNATURE, _ISO_OFFSET = b"CD001", 32769
_EXT_SIGNATURE, _EXT_OFFSET = b"\x53\xef", 1080
_LVM_SIGNATURE, _XFS_SIGNATURE = b"LABELONE", b"XFSB"
_VDI_SIGNATURE, _VDI_OFFSET = b"\x7f\x10\xda\xbe", 0x40
_VHD_SIGNATURE, _VHDX_SIGNATURE = b"conectix", b"vhdxfile"
_QCOW_SIGNATURE, _VMDK_SIGNATURE, _VMDK_TEXT = b"QFI\xfb", b"KDMV", b"# Disk DescriptorFile"
_QCOW2_DATA_FILE = 0x4
"""Incompatible feature bit 2: the data is in another file (QEMU, docs/interop/qcow2.txt)."""

_FLATTEN = "Make it independent: qemu-img convert -O qcow2 {source} NEW."


@dataclass(frozen=True, slots=True)
class Found:
    """What a file is. format: of the volume that it becomes; qemu: QEMU's name of its own format; iso: for CD-ROM drives.

    program: what decompresses an archive.
    """

    format: volume_pb2.VolumeFormat.ValueType
    qemu: str = ""
    iso: bool = False
    is_ova: bool = False
    program: str = ""

    @property
    def converts(self) -> bool:
        """Whether it is a disk of a format that volumes do not have."""
        return self.qemu not in ("", "qcow2", "raw")


async def recognise(files: FileWork, path: Path, source: str) -> Found:
    """Tell what a foreign file is, which came from `source`. Raises NOT_AN_IMAGE."""
    head, tail = await files.look(_ends, path)
    program = await files.look(archive.compression, path)
    if program == "" and await files.look(ova.is_ova, path):
        return Found(volume_pb2.VOLUME_FORMAT_QCOW2, is_ova=True)
    if program is not None:
        if problem := await archive.check(path, program):
            raise not_an_image(source, problem, "Give a tar archive, plain or compressed, or an OVA.")
        return Found(ARCHIVE, program=program)
    return await _disk(path, source, head, tail)


async def disk(files: FileWork, path: Path, source: str) -> Found:
    """Tell what kind of disk image a file is, and nothing else. Raises NOT_AN_IMAGE."""
    return await _disk(path, source, *await files.look(_ends, path))


async def _disk(path: Path, source: str, head: bytes, tail: bytes) -> Found:
    qemu = _format_of(head, tail)
    if problem := _reference_in(qemu, head):
        raise not_an_image(source, problem, _FLATTEN.format(source=source))
    iso = qemu == "raw" and head[_ISO_OFFSET:].startswith(_ISO_SIGNATURE)
    if qemu == "raw" and b"<Envelope" in head[:2048]:
        what = "it is the description of a machine (OVF), without the disks"
        raise not_an_image(
            source, what, "Pack it with its disks: tar --format=ustar -cf NEW.ova DESCRIPTION.ovf DISKS."
        )
    if qemu == "raw" and not iso and not _looks_like_disk(head):
        what = (
            "it is no tar archive and has no header of qcow2, vmdk, vdi, vhd or vhdx, no boot sector, partition table, "
            "ISO 9660 or other file system"
        )
        raise not_an_image(source, what, "Give a disk image, an OVA, or a tar archive of a root file system.")
    await _check(path, qemu, source)
    raw = qemu == "raw"
    return Found(volume_pb2.VOLUME_FORMAT_RAW if raw else volume_pb2.VOLUME_FORMAT_QCOW2, qemu=qemu, iso=iso)


async def _check(path: Path, qemu: str, source: str) -> None:
    """Let QEMU read the header, within limits, and look at what it understood."""
    try:
        known = await qemu_img.info(path, qemu, untrusted=True)
    except CommandFailed as error:
        raise not_an_image(source, f"qemu-img cannot read it ({error.stderr_tail or error.message})") from error
    others = [known.backing, known.data_file, *(name for name in known.extents if name != str(path))]
    if other := next(filter(None, others), ""):
        words = f'it reads from another file ("{other}"), which would open that file to guests'
        raise not_an_image(source, words, _FLATTEN.format(source=source))
    if known.encrypted:
        raise not_an_image(source, "it is encrypted", "Decrypt it first with qemu-img convert.")
    if not 0 < known.virtual_bytes <= MOST_BYTES:
        raise not_an_image(source, f"it says that its size is {known.virtual_bytes} bytes")


def not_an_image(source: str, why: str, remedy: str = "") -> GugusError:
    """Return the error for a file that cannot become a volume."""
    return precondition("NOT_AN_IMAGE", f"{_shown(source)} is no image: {why}.", remedy=remedy, subject=source)


def _shown(source: str) -> str:
    """Return how people know a source: an upload has but an id."""
    if not source.startswith(UPLOAD_SCHEME):
        return f'"{source}"'
    _, blank, part = source.partition(" ")
    return f"the uploaded file{blank}{part}"


def mismatch(source: str, expected: str, found: str) -> GugusError:
    """Return the error for a source that has another checksum than it should."""
    return precondition(
        "CHECKSUM_MISMATCH",
        f"{_shown(source)} has the SHA-256 {found}, expected {expected}.",
        remedy="The source has changed or was damaged on its way. Check which checksum is right.",
        subject=source,
    )


def _ends(path: Path) -> tuple[bytes, bytes]:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        file.seek(max(0, path.stat().st_size - SECTOR_BYTES))
        return head, file.read(SECTOR_BYTES)


def _format_of(head: bytes, tail: bytes) -> str:
    """Return QEMU's name of a format; "raw" for what has no header of any."""
    if head.startswith(_QCOW_SIGNATURE):
        return "qcow2"
    if head.startswith((_VMDK_SIGNATURE, _VMDK_TEXT)):
        return "vmdk"
    if head[_VDI_OFFSET:].startswith(_VDI_SIGNATURE):
        return "vdi"
    if head.startswith(_VHDX_SIGNATURE):
        return "vhdx"
    return "vpc" if head.startswith(_VHD_SIGNATURE) or tail.startswith(_VHD_SIGNATURE) else "raw"


def _reference_in(qemu: str, head: bytes) -> str:
    """Tell what in a header refers to other files; "" when nothing does."""
    if qemu == "qcow2":
        version, backing = struct.unpack(">IQ", head[4:16].ljust(12, b"\0"))
        features = struct.unpack(">Q", head[72:80].ljust(8, b"\0"))[0] if version >= 3 else 0
        if backing:
            return "it reads from a backing file, which would open a file of this host to guests"
        if features & _QCOW2_DATA_FILE:
            return "its data is in another file, which would open a file of this host to guests"
    if qemu == "vmdk" and (head.startswith(_VMDK_TEXT) or not struct.unpack("<Q", head[12:20].ljust(8, b"\0"))[0]):
        return "it only describes where its data is, and names files of this host"
    return ""


def _looks_like_disk(head: bytes) -> bool:
    return (
        head[SECTOR_BYTES - 2 : SECTOR_BYTES] == _BOOT_SIGNATURE
        or head[SECTOR_BYTES:].startswith((_GPT_SIGNATURE, _LVM_SIGNATURE))
        or head[4096:].startswith(_GPT_SIGNATURE)
        or head.startswith(_XFS_SIGNATURE)
        or head[_EXT_OFFSET:].startswith(_EXT_SIGNATURE)
    )
