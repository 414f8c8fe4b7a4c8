"""What of a container changes while it runs, what is refused, and what older agents wrote is still understood."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from gugus.agent.v1 import boot_pb2, container_pb2, guest_pb2, resources_pb2, volume_pb2

from agent.compute import idmap
from agent.compute.hypervisor import AttachedDisk, AttachedNic
from agent.compute.lxc import changes, checks
from agent.compute.lxc.launch import Files, how_it_ended
from agent.compute.lxc.runs import Definitions, Runs
from common.errors import GugusError

Change = Callable[[guest_pb2.GuestSpec], None]
FILESYSTEM = volume_pb2.VOLUME_FORMAT_FILESYSTEM


def spec() -> guest_pb2.GuestSpec:
    return guest_pb2.GuestSpec(
        name="c1",
        id=100,
        cpus=1,
        memory_bytes=1 << 26,
        disks=[
            guest_pb2.GuestDisk(name="root"),
            guest_pb2.GuestDisk(name="data", settings=resources_pb2.DiskSettings(mount_path="/d")),
        ],
        nics=[guest_pb2.GuestNic(name="eth0", network="lan", mac="52:54:00:00:00:01")],
        container=container_pb2.ContainerSpec(),
    )


def after(change: Change) -> guest_pb2.GuestSpec:
    wanted = spec()
    change(wanted)
    return wanted


def more_cpus(wanted: guest_pb2.GuestSpec) -> None:
    wanted.cpus = 4
    wanted.resources.pids = 5


def another_nic(wanted: guest_pb2.GuestSpec) -> None:
    wanted.nics.insert(0, guest_pb2.GuestNic(name="eth1", network="lan", mac="52:54:00:00:00:02"))
    wanted.nics[1].settings.rate_bytes_per_s = 5


def without_disk(wanted: guest_pb2.GuestSpec) -> None:
    del wanted.disks[1]


def another_root(wanted: guest_pb2.GuestSpec) -> None:
    wanted.disks[0].name = "other"


def of_machines_only(wanted: guest_pb2.GuestSpec) -> None:
    wanted.disks[0].settings.io_thread = True
    wanted.nics[0].settings.queues = 4
    wanted.ha = True
    wanted.virtual_machine.machine = "q35"


@pytest.mark.parametrize(
    ("change", "live", "waits"),
    [
        (more_cpus, ["cpus", "resources.pids"], []),
        (another_nic, ["nics[eth0].settings.rate_bytes_per_s", "nics[eth1]"], []),
        (without_disk, ["disks[data]"], []),
        (another_root, [], ["disks[root]", "disks[other]"]),
        (of_machines_only, [], []),
        (lambda wanted: wanted.container.init.append("/bin/x"), [], ["container.init"]),
    ],
)
def test_changes_are_sorted_by_what_can_be_done_live(change: Change, live: list[str], waits: list[str]) -> None:
    wanted = after(change)
    plan = changes.plan(spec(), wanted)
    done = [*plan.disks_go, *plan.disks_come, *plan.nics, *plan.limits]
    if change is another_root:
        assert [each.field for each in (*plan.rest, *plan.disks_come)] == waits
        return
    assert sorted(each.field for each in done) == live
    assert [each.field for each in plan.rest] == waits
    taken = changes.taken_over(spec(), wanted, done)
    assert [each.field for each in changes.open_differences(taken, wanted)] == waits
    assert [nic.name for nic in taken.nics] == [nic.name for nic in wanted.nics]


def test_what_did_not_work_is_not_taken_over() -> None:
    wanted = after(more_cpus)
    plan = changes.plan(spec(), wanted)
    taken = changes.taken_over(spec(), wanted, [each for each in plan.limits if each.field == "cpus"])
    assert (taken.cpus, taken.resources.pids) == (4, 0)
    assert [each.field for each in changes.open_differences(taken, wanted)] == ["resources.pids"]


def test_a_reboot_is_left_to_the_monitor_only_when_it_knows_all() -> None:
    assert changes.reboots_in_place(spec(), after(of_machines_only))
    assert not changes.reboots_in_place(spec(), after(more_cpus))
    stopping = after(lambda wanted: setattr(wanted.policies, "on_reboot", resources_pb2.END_POLICY_STOP))
    assert not changes.reboots_in_place(spec(), stopping)


def bad_boot(wanted: guest_pb2.GuestSpec) -> None:
    address = boot_pb2.NicAddress(nic="eth7", ipv4="10.0.0.5", ipv6_gateway="10.0.0.1")
    wanted.first_boot.CopyFrom(
        boot_pb2.FirstBoot(user="Root!", password_hash="a:b", timezone="../etc", dns_servers=["x"], addresses=[address])
    )


def bad_container(wanted: guest_pb2.GuestSpec) -> None:
    given = wanted.container
    given.ttys, given.features.mknod = 9, True
    given.features.mount_types.append("ext4, umount")
    given.drop_capabilities.append("everything")
    given.environment["A B"] = "1"
    given.init.append("relative")
    given.mounts.add(source="/srv/../etc", target="/proc/x")
    given.devices.add(path="/etc/passwd", mode=0o7777)


def bad_resources(wanted: guest_pb2.GuestSpec) -> None:
    wanted.cpus, wanted.memory_bytes = 0, 0
    wanted.resources.cpuset, wanted.resources.cpu_weight, wanted.resources.memory_reserved_bytes = "0..3", 20_000, 1
    wanted.disks[1].settings.mount_path = "/"
    wanted.disks[0].settings.limits.read_burst_iops = 5
    wanted.nics[0].settings.mtu = 5


@pytest.mark.parametrize(("change", "faults"), [(bad_boot, 7), (bad_container, 10), (bad_resources, 8)])
def test_all_faults_are_told_at_once_with_their_fields(change: Change, faults: int) -> None:
    wanted = after(change)
    disks = [AttachedDisk(disk, Path("/x"), FILESYSTEM) for disk in wanted.disks]
    nics = [AttachedNic(nic, "br0") for nic in wanted.nics]
    with pytest.raises(GugusError) as caught:
        checks.check(wanted, disks, nics)
    fields = [violation.field for violation in caught.value.violations]
    assert len(fields) == faults, fields
    assert all(fields)


def test_a_good_container_is_taken() -> None:
    wanted = spec()
    checks.check(wanted, [AttachedDisk(disk, Path("/x"), FILESYSTEM) for disk in wanted.disks], [])


def test_only_folders_that_the_host_allows_are_mounted(tmp_path: Path) -> None:
    allowed, other = tmp_path / "allowed", tmp_path / "other"
    for folder in (allowed / "a", other):
        folder.mkdir(parents=True)
    (allowed / "link").symlink_to(other)

    def problems(source: Path) -> list[str]:
        mount = container_pb2.BindMount(source=str(source), target="/x")
        return checks.host_problems(container_pb2.ContainerSpec(mounts=[mount]), [allowed])

    assert problems(allowed / "a") == []
    assert problems(allowed) == []
    assert "may not be mounted" in problems(other)[0]
    assert "may not be mounted" in problems(allowed / "link")[0]
    assert "does not exist" in problems(allowed / "none")[0]


def test_ranges_of_ids_never_overlap_and_stay_where_all_programs_understand_them() -> None:
    ranges = [idmap.own(guest) for guest in (1, 100, 15_999, 16_000, 123_456)]
    assert all(
        found is not None and idmap.IDMAP.base < found.base < idmap.ALL.base + idmap.ALL.size for found in ranges
    )
    assert idmap.ALL.base + idmap.ALL.size < 2**31
    first, second = idmap.own(100), idmap.own(100 + idmap.OWN_RANGES)
    assert first is not None
    assert first == second
    moved = idmap.own(100 + idmap.OWN_RANGES, {first.base})
    assert moved is not None
    assert moved.base == first.base + first.size
    assert first.mount_lines() == f"0 0 {idmap.IDMAP.base}\n{idmap.IDMAP.base} {first.base} 65536\n".encode()


def test_definitions_and_runs_of_older_agents_are_read(tmp_path: Path) -> None:
    guest = {"name": "c1", "disks": [{"name": "root"}], "nics": [{"name": "eth0"}]}
    disk = {"path": "/srv/c1", "format": FILESYSTEM}
    definition = {"spec": guest, "disk": disk, "read_only": False, "bridges": ["br0"]}
    (tmp_path / "c1.json").write_text(json.dumps(definition))
    (tmp_path / "c2.json").write_text("{")
    found = Definitions(tmp_path).load_all()
    assert set(found) == {"c1"}
    assert (found["c1"].disks[0].path, found["c1"].nics[0].bridge) == (Path("/srv/c1"), "br0")

    runs = tmp_path / "runs"
    runs.mkdir()
    cgroups = {"cpu": "", "memory": "", "folders": []}
    old = {
        "generation": 3,
        "mode": "privileged",
        "halt_signal": "SIGPWR",
        "monitor": None,
        "init": None,
        "cgroups": cgroups,
    }
    (runs / "c1.json").write_text(json.dumps({**old, "asked": "", "crashed": True, "ended": True, "reason": "x"}))
    run = Runs(runs).load("c1")
    assert run is not None
    assert (run.generation, run.end, run.interfaces) == (3, "crash", {})


LINE = "lxc-start c1 2026 DEBUG start - ../src/lxc/start.c:__lxc_start:2168 - "


@pytest.mark.parametrize(
    ("log", "application", "end"),
    [
        (f'{LINE}Interrupt(2) - Container "c1" is halting', False, "poweroff"),
        (f'{LINE}Hangup(1) - Container "c1" is rebooting', False, "reboot"),
        (f'{LINE}Killed(9) - Container "c1" init exited', False, "crash"),
        (
            f'{LINE}Hangup(1) - Container "c1" is rebooting\n{LINE}Interrupt(2) - Container "c1" is halting',
            False,
            "poweroff",
        ),
        (f"{LINE}Child <7> ended on error (3)", True, "crash"),
        ("", True, "poweroff"),
        ("", False, "crash"),
    ],
)
def test_how_a_run_ended_is_read_from_the_log(tmp_path: Path, log: str, application: bool, end: str) -> None:
    files = Files(tmp_path, "c1")
    files.folder.mkdir()
    files.log.write_text(log + "\n")
    assert how_it_ended(files, application=application)[0] == end
