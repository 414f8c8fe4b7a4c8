"""Both kinds of guests run, within the limits that they were given, and go without a trace."""

from pathlib import Path

from lab import demo_guests
from tests.lab.conftest import Room

CPU_LIMIT_MILLI = 500


def cgroup_value(pid: int, controller: str, v1_file: str, v2_file: str) -> str:
    """The first word of a process's cgroup file, read on the machine itself, outside of the node."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            folders = [Path(f"/sys/fs/cgroup/{name}{path}") for name in (controllers, controller)]
            return next(folder for folder in folders if folder.is_dir()).joinpath(v1_file).read_text().split()[0]
    path = Path(f"/proc/{pid}/cgroup").read_text().strip().partition("::")[2]
    return Path(f"/sys/fs/cgroup{path}/{v2_file}").read_text().split()[0]


def test_a_virtual_machine_runs_with_its_limits_and_says_its_name(room: Room) -> None:
    spec = demo_guests.vm_spec("n1", ha=False)
    spec.cpu_limit_milli = CPU_LIMIT_MILLI
    spec.first_boot.hostname = "shop"
    guest = room.create("web", spec)
    assert guest.status.node == "n1"
    xml = room.shell("n1", "virsh", "dumpxml", "web")
    assert f"<memory unit='KiB'>{demo_guests.VM_MEMORY_BYTES // 1024}</memory>" in xml
    assert "<vcpu placement='static'>1</vcpu>" in xml
    assert f"<global_quota>{100 * CPU_LIMIT_MILLI}</global_quota>" in xml
    room.operator.wait("its host name on the console", lambda: "shop ready" in room.operator.console_log("web"), 60)
    room.operator.wait("its address", lambda: room.operator.guest("web").status.addresses, 60)


def test_a_container_runs_with_its_limits_and_says_its_name(room: Room) -> None:
    spec = demo_guests.container_spec("n1", ha=False)
    spec.cpu_limit_milli = CPU_LIMIT_MILLI
    spec.first_boot.hostname = "ledger"
    guest = room.create("db", spec)
    assert guest.status.node == "n1"
    assert guest.status.mode == "unprivileged"
    pid = room.wait_running("db", "n1").pid
    assert cgroup_value(pid, "memory", "memory.limit_in_bytes", "memory.max") == str(demo_guests.CONTAINER_MEMORY_BYTES)
    assert cgroup_value(pid, "cpu", "cpu.cfs_quota_us", "cpu.max") == str(100 * CPU_LIMIT_MILLI)
    room.operator.wait("its host name on the console", lambda: "ledger ready" in room.operator.console_log("db"), 30)
    room.operator.wait("its address", lambda: room.operator.guest("db").status.addresses, 60)


def test_guests_stop_start_and_go_without_a_trace(room: Room) -> None:
    room.create("web", demo_guests.vm_spec("n2"))
    room.create("db", demo_guests.container_spec("n2"))
    guests = room.gugus.guests
    for name in ("web", "db"):
        room.wait_running(name, "n2")
        room.operator.do(guests.stop(name, force=True))
        assert not room.judge.now.of(name)
        room.operator.do(guests.start(name))
        room.wait_running(name, "n2")
    pool = room.lab.plan.shared / "pool" / "gugus"
    volumes = [room.operator.guest(name).spec.disks[0].volume for name in ("web", "db")]
    for name in ("web", "db"):
        room.operator.do(guests.delete(name, force=True))
    assert room.shell("n2", "virsh", "list", "--all", "--name").strip() == ""
    assert not [file for volume in volumes for file in pool.rglob(f"{volume}*")]
    assert "gg1" not in room.shell("n2", "ip", "-br", "link")


def test_the_choice_of_a_node_is_explained(room: Room) -> None:
    room.create("db", demo_guests.container_spec("n3"))
    said = room.operator.run(room.gugus.guests.explain("db")).decided
    assert said.node == "n3"
    assert {verdict.node for verdict in said.verdicts} == {"n1", "n2", "n3"}
    assert said.reason
