"""What the tests of pools share: specs, commands, the error of a call, what lies in a pool."""

import subprocess
from collections.abc import Awaitable
from pathlib import Path

import pytest
from gugus.agent.v1 import volume_pb2

from agent.storage.pool import CopyRequest, StoragePool, VolumeRequest
from common.errors import GugusError

QCOW2, RAW = volume_pb2.VOLUME_FORMAT_QCOW2, volume_pb2.VOLUME_FORMAT_RAW
FILESYSTEM, ARCHIVE = volume_pb2.VOLUME_FORMAT_FILESYSTEM, volume_pb2.VOLUME_FORMAT_ARCHIVE
MIB = 1024 * 1024


def dir_spec(path: Path, *, name: str = "local", shared: bool = False) -> volume_pb2.PoolSpec:
    return volume_pb2.PoolSpec(name=name, dir=volume_pb2.DirPool(path=str(path), shared=shared))


def nothing(percent: int, message: str) -> None:
    """Progress that nobody reads."""


def command(*argv: object) -> bytes:
    return subprocess.run([str(word) for word in argv], check=True, capture_output=True).stdout


def leftovers(root: Path) -> list[str]:
    """Return all files of a pool but its marker."""
    top = root / "gugus"
    return sorted(str(path.relative_to(top)) for path in top.rglob("*") if path.is_file() and path.name != "pool.json")


async def failure(awaitable: Awaitable[object]) -> GugusError:
    with pytest.raises(GugusError) as caught:
        await awaitable
    return caught.value


async def disk(pool: StoragePool, name: str = "web", size: int = 8 * MIB, fmt: int = QCOW2) -> Path:
    """Make an empty disk."""
    await pool.create_volume(VolumeRequest(name=name, format=fmt, size_bytes=size))  # type: ignore[arg-type]
    return await pool.path_of(name)


async def tree(pool: StoragePool, name: str = "db", text: str = "one", size: int = 0) -> Path:
    """Make a root file system with the file etc/version."""
    await pool.create_volume(VolumeRequest(name=name, format=FILESYSTEM, privileged=True, size_bytes=size))
    root = await pool.path_of(name)
    (root / "etc").mkdir()
    (root / "etc/version").write_text(text)
    return root


def copying(pool: StoragePool, name: str, volume: str, **more: object) -> CopyRequest:
    return CopyRequest(name=name, source=pool, source_volume=volume, **more)  # type: ignore[arg-type]


def write(path: Path, pattern: int, fmt: str = "qcow2", offset: int = 0) -> None:
    """Write 64 KiB of a pattern into a disk."""
    command("qemu-io", "-f", fmt, "-c", f"write -P {pattern} {offset} 64k", path)


def holds(path: Path, pattern: int, fmt: str = "qcow2", offset: int = 0) -> bool:
    """Whether a disk has that pattern there."""
    out = subprocess.run(
        ["qemu-io", "-f", fmt, "-r", "-U", "-c", f"read -P {pattern} {offset} 64k", str(path)],
        capture_output=True,
        check=False,
        text=True,
    )
    return "verification failed" not in out.stdout and out.returncode == 0
