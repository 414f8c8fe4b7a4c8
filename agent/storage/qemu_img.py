"""qemu-img, the tool for disk images: what a file is, new images, clones.

A file that comes from outside is looked at before anything else opens it, and one that refers to other files of the
host (backing or data file) is refused: through it a guest could read them.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from common.errors import GugusError, precondition
from common.process import CommandFailed, run

TIMEOUT_S = 60.0
"""For making and reading headers; no data is copied by these."""

SECTOR_BYTES = 512

_BOOT_SIGNATURE = b"\x55\xaa"
_GPT_SIGNATURE = b"EFI PART"
_ISO_SIGNATURE, _ISO_OFFSET = b"CD001", 32769
_EXT_SIGNATURE, _EXT_OFFSET = b"\x53\xef", 1080


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What qemu-img says of an image: `format` in its words, sizes in bytes, the other files that it refers to."""

    format: str
    virtual_bytes: int
    backing: str = ""
    data_file: str = ""


async def info(path: Path, image_format: str = "") -> ImageInfo:
    """Read an image's header, with the format given or recognised. Raises CommandFailed."""
    chosen = ["-f", image_format] if image_format else []
    done = await run(["qemu-img", "info", "-U", "--output=json", *chosen, "--", str(path)], timeout_s=TIMEOUT_S)
    value = json.loads(done.stdout)
    specific = value.get("format-specific", {}).get("data", {})
    return ImageInfo(
        format=value["format"],
        virtual_bytes=value["virtual-size"],
        backing=value.get("backing-filename", ""),
        data_file=specific.get("data-file", ""),
    )


async def create(path: Path, image_format: str, size_bytes: int) -> None:
    """Make an empty image."""
    await run(["qemu-img", "create", "-q", "-f", image_format, "--", str(path), str(size_bytes)], timeout_s=TIMEOUT_S)


async def clone(path: Path, image: Path, image_format: str, size_bytes: int) -> None:
    """Make a qcow2 image at `path` that reads from `image`; until `set_backing` by its absolute path."""
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", image_format, "-b", str(image), "--", str(path)]
    await run([*argv, str(size_bytes)], timeout_s=TIMEOUT_S)


async def set_backing(path: Path, backing: str, backing_format: str) -> None:
    """Write another path of the same backing file into a header, unchecked: it holds from where `path` will be."""
    argv = ["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-F", backing_format, "-b", backing, "--", str(path)]
    await run(argv, timeout_s=TIMEOUT_S)


async def recognise_image(path: Path, head: bytes, source: str) -> ImageInfo:
    """Tell what kind of disk image a foreign file is, which begins with `head`: qcow2 or raw. Raises NOT_AN_IMAGE.

    Any file is a raw image to qemu-img, so a raw one must show what disks have: a boot sector, a partition table, or an
    ISO 9660 or ext file system. qcow2 images that refer to other files are refused.
    """
    try:
        known = await info(path)
    except CommandFailed as error:
        raise not_an_image(source, f"qemu-img cannot read it ({error.stderr_tail or error.message})") from error
    if known.format not in ("qcow2", "raw"):
        raise not_an_image(
            source, f"its format is {known.format}", f"Convert it: qemu-img convert -O qcow2 {source} NEW."
        )
    if known.backing or known.data_file:
        other = known.backing or known.data_file
        remedy = f"Flatten it: qemu-img convert -O qcow2 {source} NEW."
        raise not_an_image(
            source, f'it reads from another file ("{other}"), which would open that file to guests', remedy
        )
    if known.format == "raw" and not _looks_like_disk(head):
        what = "it is no tar archive and has no qcow2 header, boot sector, partition table, ISO 9660 or ext file system"
        raise not_an_image(source, what, "Give a qcow2 or raw disk image, or a tar archive of a root file system.")
    return known


def not_an_image(source: str, why: str, remedy: str = "") -> GugusError:
    """Return the error for a file that cannot become a volume."""
    return precondition("NOT_AN_IMAGE", f'"{source}" is no image: {why}.', remedy=remedy, subject=source)


def head_of(path: Path) -> bytes:
    """Return the part of a file that shows whether it is a disk. Blocks. Raises OSError."""
    with path.open("rb") as file:
        return file.read(_ISO_OFFSET + len(_ISO_SIGNATURE))


def _looks_like_disk(head: bytes) -> bool:
    return (
        head[SECTOR_BYTES - 2 : SECTOR_BYTES] == _BOOT_SIGNATURE
        or head[SECTOR_BYTES : SECTOR_BYTES + len(_GPT_SIGNATURE)] == _GPT_SIGNATURE
        or head[_ISO_OFFSET:] == _ISO_SIGNATURE
        or head[_EXT_OFFSET : _EXT_OFFSET + len(_EXT_SIGNATURE)] == _EXT_SIGNATURE
    )
