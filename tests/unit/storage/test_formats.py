"""Imports of foreign files: every format becomes a volume, and none opens another file of the host."""

import io
import shutil
import struct
import tarfile
from pathlib import Path

import pytest
from gugus.agent.v1 import volume_pb2

from agent.storage import ova, recognise
from agent.storage.dir import DirPool
from tests.unit.storage.helpers import MIB, QCOW2, RAW, command, dir_spec, failure, holds, leftovers, nothing

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")

OVF = """<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
  <References>{files}</References>
  <DiskSection><Info>disks</Info>{disks}</DiskSection>
</Envelope>"""


def ovf(*names: str) -> bytes:
    files = "".join(f'<File ovf:id="file{i}" ovf:href="{name}"/>' for i, name in enumerate(names))
    disks = "".join(f'<Disk ovf:diskId="disk{i}" ovf:fileRef="file{i}"/>' for i in range(len(names)))
    return OVF.format(files=files, disks=disks).encode()


def pack(path: Path, *members: tuple[str, bytes | Path]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            if isinstance(content, Path):
                tar.add(content, name)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
async def pool(tmp_path: Path) -> DirPool:
    made = DirPool(dir_spec(tmp_path / "pool"))
    await made.activate()
    return made


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw disk with a boot sector and a pattern."""
    path = tmp_path / "disk.raw"
    path.write_bytes(b"\0" * 510 + b"\x55\xaa" + b"\x07" * 65536 + b"\0" * (4 * MIB - 66048))
    return path


def as_format(raw: Path, fmt: str, *options: str) -> Path:
    path = raw.with_name(f"disk.{fmt}")
    command("qemu-img", "convert", "-f", "raw", "-O", fmt, *options, raw, path)
    return path


@pytest.mark.parametrize(
    ("fmt", "options"),
    [
        ("qcow2", ()),
        ("vmdk", ()),
        ("vmdk", ("-o", "subformat=streamOptimized")),
        ("vdi", ()),
        ("vhdx", ()),
        ("vpc", ()),
        ("vpc", ("-o", "subformat=fixed")),
    ],
)
async def test_foreign_formats_become_qcow2(pool: DirPool, raw: Path, fmt: str, options: tuple[str, ...]) -> None:
    told: list[int] = []
    image = await pool.import_volume("x", str(as_format(raw, fmt, *options)), "", lambda done, _: told.append(done))
    assert (image.format, image.kind) == (QCOW2, volume_pb2.VOLUME_KIND_IMAGE)
    assert image.size_bytes >= 4 * MIB
    assert holds(await pool.path_of("x"), 7, offset=512)
    assert told == sorted(told)


async def test_an_iso_image_is_told_as_one(pool: DirPool, tmp_path: Path) -> None:
    path = tmp_path / "cd.iso"
    path.write_bytes(b"\0" * 32769 + b"CD001" + b"\0" * 4096)
    image = await pool.import_volume("cd", str(path), "", nothing)
    assert (image.format, image.kind) == (RAW, volume_pb2.VOLUME_KIND_ISO)


async def test_the_disks_of_an_ova_are_taken(pool: DirPool, raw: Path, tmp_path: Path) -> None:
    disk = as_format(raw, "vmdk", "-o", "subformat=streamOptimized")
    path = pack(tmp_path / "vm.ova", ("vm.ovf", ovf("a.vmdk", "b.vmdk")), ("b.vmdk", disk), ("a.vmdk", disk))
    await pool.import_volume("vm", str(path), "", nothing)
    volumes = {volume.name: volume for volume in await pool.list_volumes()}
    assert set(volumes) == {"vm", "vm-2"}
    assert volumes["vm-2"].part_of == "vm"
    assert holds(await pool.path_of("vm-2"), 7, offset=512)
    assert await pool.import_volume("vm", str(path), "", nothing) == volumes["vm"]


async def test_an_ova_comes_as_a_whole_or_not_at_all(pool: DirPool, raw: Path, tmp_path: Path) -> None:
    disk = as_format(raw, "vmdk", "-o", "subformat=streamOptimized")
    path = pack(
        tmp_path / "vm.ova", ("vm.ovf", ovf("a.vmdk", "b.vmdk", "c.vmdk")), *((f"{n}.vmdk", disk) for n in "abc")
    )
    await pool.import_volume("vm-2", str(raw), "", nothing)
    error = await failure(pool.import_volume("vm", str(path), "", nothing))
    assert error.reason == "VOLUME_ALREADY_EXISTS"
    assert leftovers(tmp_path / "pool") == ["images/vm-2.raw", "volumes/vm-2.json"]


async def test_nothing_in_an_ova_leads_out_of_it(pool: DirPool, raw: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.vmdk"
    link.symlink_to("/etc/shadow")
    disk = as_format(raw, "vmdk")
    entities = b'<!DOCTYPE x [<!ENTITY a "b">]>' + ovf("a.vmdk")
    wrong = {
        "up.ova": (("vm.ovf", ovf("../a.vmdk")), ("../a.vmdk", disk)),
        "absolute.ova": (("vm.ovf", ovf("/etc/shadow")),),
        "url.ova": (("vm.ovf", ovf("https://example.org/a")),),
        "link.ova": (("vm.ovf", ovf("link.vmdk")), ("link.vmdk", link)),
        "missing.ova": (("vm.ovf", ovf("a.vmdk")),),
        "none.ova": (("vm.ovf", ovf()),),
        "entities.ova": (("vm.ovf", entities), ("a.vmdk", disk)),
        "text.ova": (("vm.ovf", ovf("a.vmdk")), ("a.vmdk", b"no disk" * 1000)),
    }
    for name, members in wrong.items():
        error = await failure(pool.import_volume("vm", str(pack(tmp_path / name, *members)), "", nothing))
        assert error.reason == "NOT_AN_IMAGE", name
    assert leftovers(tmp_path / "pool") == []


def traps(tmp_path: Path, raw: Path) -> dict[str, Path]:
    """Images that would read /etc/shadow."""
    made = {name: tmp_path / name for name in ("backing", "data", "descriptor", "capacity", "parent")}
    command("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "/etc/shadow", "-F", "raw", made["backing"], "1M")
    command("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path}/outside", made["data"], "1M")
    text = b'# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\nRW 2048 FLAT "/etc/shadow" 0\n'
    made["descriptor"].write_bytes(text.ljust(4096, b"\0"))
    made["capacity"].write_bytes((b"KDMV" + struct.pack("<II", 1, 3) + bytes(500) + text).ljust(8192, b"\0"))
    base = as_format(raw, "vmdk")
    command("qemu-img", "create", "-q", "-f", "vmdk", "-b", base, "-F", "vmdk", made["parent"])
    return made


async def test_an_image_that_reads_other_files_is_refused(pool: DirPool, raw: Path, tmp_path: Path) -> None:
    for name, path in traps(tmp_path, raw).items():
        error = await failure(pool.import_volume("x", str(path), "", nothing))
        assert error.reason == "NOT_AN_IMAGE", name
    assert leftovers(tmp_path / "pool") == []


async def test_a_description_without_its_disks_says_how_to_pack_it(pool: DirPool, tmp_path: Path) -> None:
    path = tmp_path / "vm.ovf"
    path.write_bytes(ovf("a.vmdk"))
    error = await failure(pool.import_volume("x", str(path), "", nothing))
    assert error.reason == "NOT_AN_IMAGE"
    assert "tar" in error.remedy


async def test_a_damaged_foreign_disk_is_refused(pool: DirPool, raw: Path, tmp_path: Path) -> None:
    path = as_format(raw, "vmdk", "-o", "subformat=streamOptimized")
    path.write_bytes(path.read_bytes()[:2048])
    error = await failure(pool.import_volume("x", str(path), "", nothing))
    assert error.reason == "NOT_AN_IMAGE"
    assert leftovers(tmp_path / "pool") == []


def test_a_description_is_read_by_what_it_says() -> None:
    assert ova.disks_of(ovf("b.vmdk", "a.vmdk")) == ["b.vmdk", "a.vmdk"]
    with pytest.raises(ova.BadOva, match="no XML"):
        ova.disks_of(b"<Envelope>")
    compressed = ovf("a.vmdk").replace(b"ovf:href", b'ovf:compression="gzip" ovf:href')
    with pytest.raises(ova.BadOva, match="compressed"):
        ova.disks_of(compressed)


def test_an_upload_is_called_what_people_call_it() -> None:
    assert recognise.not_an_image("upload:5-c", "it is empty").message == "the uploaded file is no image: it is empty."
    assert recognise.mismatch("upload:5-c (disk 2)", "a", "b").message.startswith("the uploaded file (disk 2) has")
    assert recognise.not_an_image("/a b.iso", "it is empty").message.startswith('"/a b.iso" is no image')
