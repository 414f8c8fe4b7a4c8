"""NoCloud seed: the small read-only disk from which cloud-init takes a guest's name, keys and network (`common.nocloud`).

The image is replaced as a whole.
"""

import asyncio
import hashlib
import json
import os
import tempfile
from pathlib import Path

from gugus.agent.v1 import guest_pb2

from common import nocloud
from common.files import sync_folder
from common.process import run

LABEL = "cidata"
GENISOIMAGE_TIMEOUT_S = 20.0
DIGEST_CHARS = 16
FOLDER_MODE = 0o711
SEED_MODE = 0o600
"""First-boot settings may hold secrets; libvirt hands the file to QEMU's user."""


async def ensure(spec: guest_pb2.GuestSpec, folder: Path) -> Path:
    """Return the seed image of a guest in its own `folder`, made if it is not there yet.

    It is named after its content, so one that is there is right. Raises CommandFailed, OSError.
    """
    contents = nocloud.files(spec)
    digest = hashlib.sha256(json.dumps(contents).encode()).hexdigest()
    target = folder / f"{digest[:DIGEST_CHARS]}.iso"
    if not await asyncio.to_thread(target.exists):
        await asyncio.to_thread(folder.mkdir, FOLDER_MODE, True, True)
        await _build(contents, target)
    return target


async def _build(contents: dict[str, str], target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".seed-", dir=target.parent) as folder:
        sources = await asyncio.to_thread(_write, Path(folder), contents)
        image = Path(folder) / "seed.iso"
        argv = ["genisoimage", "-quiet", "-output", str(image), "-volid", LABEL, "-joliet", "-rock"]
        await run([*argv, *map(str, sources)], timeout_s=GENISOIMAGE_TIMEOUT_S)
        await asyncio.to_thread(_replace, image, target)


def _write(folder: Path, contents: dict[str, str]) -> list[Path]:
    for name, content in contents.items():
        (folder / name).write_text(content)
    return [folder / name for name in contents]


def _replace(image: Path, target: Path) -> None:
    image.chmod(SEED_MODE)
    fd = os.open(image, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    image.replace(target)
    sync_folder(target.parent)
