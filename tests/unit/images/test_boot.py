"""Boots the built disk in QEMU without KVM, as the lab does: seed read, heartbeat on disk, ACPI power button obeyed."""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.images import KernelMissing, build_vm_image, read_heartbeat
from lab.images.heartbeat import Heartbeat, NoHeartbeat
from lab.images.kernel import installed_kernel

QEMU = "qemu-system-x86_64"
BOOT_TIMEOUT_S = 60.0
POWER_OFF_TIMEOUT_S = 10.0
TOOLS = (QEMU, "qemu-img", "genisoimage", "mformat", "mcopy", "syslinux", "zstd", "busybox")

# machine type, how its disk is attached, how the seed is attached
ATTACHMENTS = {
    "pc-seed-on-virtio": ("pc", "if=virtio", "if=virtio"),
    "pc-seed-on-ide-cdrom": ("pc", "if=virtio", "if=ide,media=cdrom"),
    "q35-seed-on-sata-cdrom": ("q35", "if=virtio", "if=ide,media=cdrom"),
    "q35-disk-on-sata": ("q35", "if=ide", "if=virtio"),
}


def unmet() -> str | None:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    try:
        installed_kernel()
    except KernelMissing as reason:
        return str(reason)
    return None


pytestmark = pytest.mark.skipif(unmet() is not None, reason=unmet() or "")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_vm_image(tmp_path_factory.mktemp("image") / "vm.qcow2")


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    (tmp_path / "meta-data").write_text("instance-id: i-1\nlocal-hostname: from-meta\n")
    (tmp_path / "user-data").write_text(
        "#cloud-config\nhostname: web-1\nssh_authorized_keys:\n  - ssh-ed25519 AAAA me\n"
    )
    out = tmp_path / "seed.iso"
    files = [str(tmp_path / name) for name in ("meta-data", "user-data")]
    subprocess.run(
        ["genisoimage", "-quiet", "-V", "cidata", "-J", "-r", "-o", str(out), *files], check=True, timeout=20
    )
    return out


@pytest.fixture(params=list(ATTACHMENTS.values()), ids=list(ATTACHMENTS))
def machine(
    request: pytest.FixtureRequest, image: Path, seed: Path, tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[bytes], Path, Path, Path]]:
    kind, disk_bus, seed_bus = request.param
    disk, serial, qmp = tmp_path / "disk.qcow2", tmp_path / "serial.log", tmp_path / "qmp"
    shutil.copy(image, disk)
    process = subprocess.Popen(
        [QEMU, "-accel", "tcg", "-machine", kind, "-m", "128", "-display", "none", "-no-reboot",
         "-serial", f"file:{serial}", "-qmp", f"unix:{qmp},server=on,wait=off",
         "-drive", f"file={disk},format=qcow2,{disk_bus}", "-drive", f"file={seed},format=raw,readonly=on,{seed_bus}",
         "-netdev", "user,id=net0,restrict=on", "-device", "virtio-net-pci,netdev=net0"],
    )  # fmt: skip
    try:
        yield process, disk, serial, qmp
    finally:
        process.kill()
        process.wait(timeout=POWER_OFF_TIMEOUT_S)


def wait_for_heartbeat(disk: Path, deadline: float) -> Heartbeat:
    while True:
        try:
            return read_heartbeat(disk)
        except NoHeartbeat:
            assert time.monotonic() < deadline, "no heartbeat was written"
            time.sleep(0.5)


def press_power_button(qmp: Path) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(POWER_OFF_TIMEOUT_S)
        connection.connect(str(qmp))
        stream = connection.makefile("rw")
        stream.readline()
        for command in ("qmp_capabilities", "system_powerdown"):
            stream.write(json.dumps({"execute": command}) + "\n")
            stream.flush()
            stream.readline()


def test_the_disk_boots_with_its_seed_beats_and_obeys_the_power_button(
    machine: tuple[subprocess.Popen[bytes], Path, Path, Path],
) -> None:
    process, disk, serial, qmp = machine
    beat = wait_for_heartbeat(disk, time.monotonic() + BOOT_TIMEOUT_S)
    assert beat.hostname == "web-1"
    assert "gugus-guest: web-1 ready after " in serial.read_text(errors="replace")

    pressed = time.monotonic()
    press_power_button(qmp)
    assert process.wait(timeout=POWER_OFF_TIMEOUT_S) == 0
    print(f"powered off after {time.monotonic() - pressed:.1f} s")
    assert read_heartbeat(disk).seq >= beat.seq
