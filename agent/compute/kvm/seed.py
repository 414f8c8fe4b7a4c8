"""NoCloud seed: the small read-only disk from which cloud-init takes a guest's name, keys and network.

See https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html. The image is replaced as a whole.
"""

import asyncio
import hashlib
import json
import os
import tempfile
from pathlib import Path

import yaml
from gugus.agent.v1 import guest_pb2

from common.files import sync_folder
from common.process import run

LABEL = "cidata"
GENISOIMAGE_TIMEOUT_S = 20.0
DIGEST_CHARS = 16
FOLDER_MODE = 0o711
SEED_MODE = 0o600
"""First-boot settings may hold secrets; libvirt hands the file to QEMU's user."""


def files(spec: guest_pb2.GuestSpec) -> dict[str, str]:
    """Return the seed's files by name. The instance id is the guest's uid: another guest is another instance."""
    hostname = spec.first_boot.hostname or spec.name
    default = {"hostname": hostname, "ssh_authorized_keys": list(spec.first_boot.ssh_authorized_keys)}
    interfaces = {
        nic.name: {"match": {"macaddress": nic.mac}, "set-name": nic.name, "dhcp4": True} for nic in spec.nics
    }
    return {
        "meta-data": _yaml({"instance-id": spec.uid or spec.name, "local-hostname": hostname}),
        "user-data": spec.first_boot.user_data or "#cloud-config\n" + _yaml(default),
        "network-config": _yaml({"version": 2, "ethernets": interfaces}),
    }


async def ensure(spec: guest_pb2.GuestSpec, folder: Path) -> Path:
    """Return the seed image of a guest in its own `folder`, made if it is not there yet.

    It is named after its content, so one that is there is right. Raises CommandFailed, OSError.
    """
    contents = files(spec)
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


def _yaml(value: object) -> str:
    return yaml.safe_dump(value, sort_keys=False, default_flow_style=False)
