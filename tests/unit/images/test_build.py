import gzip
import io
import tarfile
from pathlib import Path

import pytest

from lab.images.build import build_container_rootfs
from lab.images.kernel import KernelMissing, closure, installed_kernel
from lab.images.tree import BUSYBOX, cpio_newc, file

needs_busybox = pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed")


def test_modules_come_with_all_they_need() -> None:
    dependencies = {"k/virtio-rng.ko": ("k/virtio.ko",), "k/virtio.ko": (), "k/other.ko": ()}
    assert closure(["virtio_rng"], dependencies) == ("k/virtio-rng.ko", "k/virtio.ko")


def test_a_missing_kernel_is_named_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(KernelMissing, match="linux-image-amd64"):
        installed_kernel(tmp_path, tmp_path)


def test_cpio_ends_with_the_trailer_and_keeps_alignment() -> None:
    archive = cpio_newc({"a/b": file(b"xyz")})
    assert archive.startswith(b"070701")
    assert b"TRAILER!!!" in archive
    assert len(archive) % 4 == 0


@needs_busybox
def test_the_container_archive_is_the_same_each_time_and_needs_no_privilege(tmp_path: Path) -> None:
    first, second = build_container_rootfs(tmp_path / "1.tar.gz"), build_container_rootfs(tmp_path / "2.tar.gz")
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(first.read_bytes()))) as archive:
        members = archive.getmembers()
    assert {(member.uid, member.gid) for member in members} == {(0, 0)}
    assert all(member.isreg() or member.isdir() or member.issym() for member in members)
    assert "sbin/init" in {member.name for member in members}
