"""qemu-img, the tool for disk images: what a file is, new images, clones, copies, snapshots.

Formats are always given, never guessed by QEMU: a guest may write another format's header into its raw disk. Images are opened
under QEMU's locks; `shared` (-U) is only for reading what cannot change (headers, snapshots) while a guest has the file.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from agent.storage.long_command import run_long
from common.process import run

TIMEOUT_S = 60.0
"""For making and reading headers; no data is copied by these."""

SNAPSHOT_TIMEOUT_S = 600.0
"""A snapshot touches the reference counts of the whole image."""

_UNTRUSTED_LIMITS = ("prlimit", "--as=1073741824", "--cpu=30", "--")
"""A header may be made to cost time and memory; 1 GiB and 30 s are OpenStack's limits for the same (oslo.utils, imageutils)."""

_PERCENT = re.compile(rb"\(([0-9]+)\.[0-9]+/100%\)")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot in a qcow2 image: its name, when it was made (Unix seconds), bytes of a machine's memory in it."""

    name: str
    created: int
    state_bytes: int


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What qemu-img says of an image: `format` in its words, sizes in bytes, the other files that it refers to."""

    format: str
    virtual_bytes: int
    backing: str = ""
    data_file: str = ""
    encrypted: bool = False
    extents: tuple[str, ...] = ()
    snapshots: tuple[Snapshot, ...] = field(default=())


async def info(path: Path, image_format: str, *, shared: bool = True, untrusted: bool = False) -> ImageInfo:
    """Read an image's header. Without `shared` it fails while somebody writes to the image. Raises CommandFailed."""
    limits = _UNTRUSTED_LIMITS if untrusted else ()
    argv = [
        *limits,
        "qemu-img",
        "info",
        *(["-U"] if shared else []),
        "--output=json",
        "-f",
        image_format,
        "--",
        str(path),
    ]
    value = json.loads((await run(argv, timeout_s=TIMEOUT_S)).stdout)
    specific = value.get("format-specific", {}).get("data", {})
    return ImageInfo(
        format=value["format"],
        virtual_bytes=value["virtual-size"],
        backing=value.get("backing-filename", ""),
        data_file=specific.get("data-file", ""),
        encrypted=bool(value.get("encrypted")),
        extents=tuple(extent.get("filename", "") for extent in specific.get("extents", ())),
        snapshots=tuple(
            Snapshot(item["name"], item["date-sec"], item["vm-state-size"]) for item in value.get("snapshots", ())
        ),
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


async def resize(path: Path, image_format: str, size_bytes: int) -> None:
    """Change the size that a guest sees; never less."""
    argv = ["qemu-img", "resize", "-q", "-f", image_format, "--", str(path), str(size_bytes)]
    await run(argv, timeout_s=SNAPSHOT_TIMEOUT_S)


async def convert(
    source: Path,
    source_format: str,
    target: Path,
    target_format: str,
    progress: Callable[[int], None],
    *,
    snapshot: str = "",
    bytes_per_s: int = 0,
) -> None:
    """Copy an image into a new one that needs no other file, at most so many bytes a second (0: no limit).

    `progress` is told the percent done.
    """
    argv = ["qemu-img", "convert", "-p", "-f", source_format, "-O", target_format]
    if snapshot:  # its content cannot change, so a guest may have the image
        argv += ["-U", "-l", f"snapshot.name={snapshot}"]
    if bytes_per_s:
        argv += ["-r", str(bytes_per_s)]
    await run_long([*argv, "--", str(source), str(target)], _telling(progress))


async def drop_backing(path: Path, progress: Callable[[int], None]) -> None:
    """Copy all that a qcow2 image reads from others into itself. Cut short, it is as before, and may be done again."""
    await run_long(["qemu-img", "rebase", "-p", "-f", "qcow2", "-b", "", "--", str(path)], _telling(progress))


async def snapshot(path: Path, action: str, name: str) -> None:
    """Make ("-c"), go back to ("-a") or delete ("-d") a snapshot in a qcow2 image."""
    options = f"driver=qcow2,file.driver=file,file.filename={str(path).replace(',', ',,')}"
    argv = ["qemu-img", "snapshot", "-q", action, name, "--image-opts", options]
    await run(argv, timeout_s=SNAPSHOT_TIMEOUT_S)


def _telling(progress: Callable[[int], None]) -> Callable[[bytes], None]:
    def tell(output: bytes) -> None:
        if found := _PERCENT.findall(output):
            progress(int(found[-1]))

    return tell
