"""The hardware of a real machine: changed while it runs, pending where that cannot be, with every kind of firmware."""

from collections.abc import Callable

from gugus.agent.v1.guest_pb2 import GUEST_STATE_PAUSED, GUEST_STATE_RUNNING
from gugus.agent.v1.machine_pb2 import FIRMWARE_KIND_UEFI
from gugus.agent.v1.resources_pb2 import DISK_BUS_SCSI, END_POLICY_STOP
from gugus.agent.v1.task_pb2 import TASK_STATE_SUCCEEDED
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_STOPPED, Guest, GuestSpec

from lab import demo_guests
from tests.lab.conftest import Room
from tests.lab.test_25_snapshots import boots, types

MIB = 1 << 20
DISC = "tools"
SECONDS = 30.0


def change(room: Room, name: str, alter: Callable[[GuestSpec], None]) -> Guest:
    """Change a guest's spec, wait until its node has it, and return the guest."""

    task = room.operator.run(room.gugus.guests.change(name, alter))
    assert task is not None
    assert room.operator.run(room.gugus.tasks.wait(task)).state == TASK_STATE_SUCCEEDED, task
    return room.operator.guest(name)


def pending(guest: Guest) -> dict[str, str]:
    return {change.field: change.wanted for change in guest.status.pending}


def virsh(room: Room, *words: str) -> str:
    return room.shell("n1", "virsh", "-c", "qemu:///system", *words)


def make_disc(room: Room) -> None:
    """Import an ISO image, unless it is there."""
    if DISC in {image.volume.name for image in room.operator.run(room.gugus.pools.images(pool=demo_guests.POOL))}:
        return
    path = f"/srv/shared/images/{DISC}.iso"
    room.shell("n1", "genisoimage", "-quiet", "-volid", "TOOLS", "-output", path, "/etc/hostname")
    room.operator.do(room.gugus.pools.import_image(demo_guests.POOL, DISC, path))


def test_hardware_changes_while_the_machine_runs(room: Room) -> None:
    make_disc(room)
    spec = demo_guests.vm_spec("n1", ha=False)
    machine = spec.virtual_machine
    machine.cpu.max_cpus, machine.memory.max_bytes = 2, 512 * MIB
    machine.cdroms.add(name="cd0", pool=demo_guests.POOL, image=DISC)
    machine.display.model = "std"
    room.create("web", spec)
    boots(room, "web")
    pid = room.shell("n1", "pgrep", "-f", "guest=web,")

    def grow(wanted: GuestSpec) -> None:
        wanted.cpus, wanted.memory_bytes, wanted.cpu_limit_milli = 2, 256 * MIB, 1500
        wanted.disks.add(name="data", pool=demo_guests.POOL, size_bytes=16 * MIB)
        wanted.disks[-1].settings.limits.write_iops = 500
        wanted.nics.add(name="eth1", network=demo_guests.NETWORK)
        wanted.nics[-1].settings.rate_bytes_per_s = 1_000_000
        wanted.virtual_machine.cdroms[0].ClearField("pool")
        wanted.virtual_machine.cdroms[0].ClearField("image")

    assert pending(change(room, "web", grow)) == {}
    types(room, "web", "word=D; echo ${word}ISK-$(cat /sys/block/vdc/size)", f"DISK-{16 * MIB // 512}")
    types(room, "web", "word=N; echo ${word}ICS-$(ls /sys/class/net | grep -c -v lo)", "NICS-2")
    assert virsh(room, "vcpucount", "web", "--live", "--current").strip() == "2"
    assert "262144" in virsh(room, "dommemstat", "web") or "Max memory:     262144 KiB" in virsh(room, "dominfo", "web")
    assert " tbf " in room.shell("n1", "tc", "qdisc", "show")
    assert "-" in next(line for line in virsh(room, "domblklist", "web").splitlines() if " sda" in line), "ejected"

    def rebuild(wanted: GuestSpec) -> None:
        wanted.disks[0].settings.bus = DISK_BUS_SCSI
        wanted.virtual_machine.cpu.model = "qemu64"
        wanted.virtual_machine.cdroms[0].pool, wanted.virtual_machine.cdroms[0].image = demo_guests.POOL, DISC
        wanted.disks[1].size_bytes = 32 * MIB
        del wanted.nics[1:]

    waits = change(room, "web", rebuild)
    assert pending(waits) == {"disks[disk0].settings.bus": "DISK_BUS_SCSI", "virtual_machine.cpu.model": "qemu64"}
    assert all(each.reason for each in waits.status.pending)
    types(room, "web", "word=S; echo ${word}IZE-$(cat /sys/block/vdc/size)", f"SIZE-{32 * MIB // 512}")
    assert DISC in virsh(room, "domblklist", "web")
    room.shell("n1", "systemctl", "restart", "gugus-agent.service")
    room.wait_online("n1")
    assert pending(room.operator.guest("web")) == pending(waits), "the node's agent knows it still"
    assert room.shell("n1", "pgrep", "-f", "guest=web,") == pid, "all of it on the same machine"

    room.operator.do(room.gugus.guests.suspend("web"))
    assert room.operator.guest("web").status.observed == GUEST_STATE_PAUSED
    assert "paused" in virsh(room, "domstate", "web")
    room.operator.do(room.gugus.guests.resume("web"))
    assert room.operator.guest("web").status.observed == GUEST_STATE_RUNNING

    room.operator.do(room.gugus.guests.stop("web", timeout_s=10))
    room.operator.do(room.gugus.guests.start("web"))
    again = room.operator.guest("web")
    assert pending(again) == {}
    assert "sda" in virsh(room, "domblklist", "web")
    assert "qemu64" in virsh(room, "dumpxml", "web")


def test_a_machine_with_uefi_secure_boot_and_a_tpm(room: Room) -> None:
    spec = demo_guests.vm_spec("n1", ha=False)
    spec.memory_bytes = 256 * MIB
    spec.policies.on_reboot = END_POLICY_STOP
    spec.virtual_machine.firmware.kind, spec.virtual_machine.firmware.secure_boot = FIRMWARE_KIND_UEFI, True
    spec.virtual_machine.tpm = True
    spec.virtual_machine.watchdog.model = "i6300esb"
    made = room.create("web", spec)
    assert made.spec.virtual_machine.machine.startswith("pc-q35-"), "it is pinned"
    room.operator.wait("the firmware to speak", lambda: "BdsDxe" in room.operator.console_log("web"), SECONDS)
    xml = virsh(room, "dumpxml", "web")
    assert "uefi-variables.fd" in xml
    volume = made.spec.disks[0].volume
    kept = room.shell("n1", "find", "/srv/shared/pool", "-path", f"*{volume}*", "-type", "f")
    assert "uefi-variables.fd" in kept
    assert "tpm2-00.permall" in kept, "its TPM lives beside its disk"
    room.operator.do(room.gugus.guests.stop("web", timeout_s=1))
    room.operator.wait("it to be down", lambda: room.operator.guest("web").status.phase == GUEST_PHASE_STOPPED, SECONDS)
    assert made.meta.uid not in room.shell("n1", "cat", "/proc/mounts")


def test_a_guest_that_ends_itself_is_told_by_how(room: Room) -> None:
    spec = demo_guests.vm_spec("n1", ha=False)
    spec.policies.on_reboot = END_POLICY_STOP
    room.create("web", spec)
    boots(room, "web")
    types(room, "web", "")
    types(room, "web", "reboot -f")
    room.operator.wait("it to be down", lambda: room.operator.guest("web").status.phase == GUEST_PHASE_STOPPED, SECONDS)
    assert room.shell("n1", "cat", "/var/lib/gugus/agent/kvm/ends/web.json").find('"end": 2') > 0
