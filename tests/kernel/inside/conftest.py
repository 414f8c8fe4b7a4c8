"""A disk for containers, as a host has one."""

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, timeout=60)


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    """A file system that can translate ids: tmpfs cannot, on this kernel. Containers may reach it."""
    with tempfile.TemporaryDirectory(prefix="gugus-disk-", dir="/var/tmp") as name:
        image, place = Path(name) / "image", Path(name) / "disk"
        Path(name).chmod(0o755)
        place.mkdir()
        run("truncate", "--size=200M", str(image))
        run("mkfs.ext4", "-q", str(image))
        run("modprobe", "loop")
        run("mount", "-o", "loop", str(image), str(place))
        yield place
        run("umount", "--lazy", str(place))
