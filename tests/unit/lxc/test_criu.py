"""CRIU on a host, by programs that answer, fail and hang; and what keeps a container from going over as it runs."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from gugus.agent.v1 import container_pb2, guest_pb2, migration_pb2

from agent.compute import idmap
from agent.compute.lxc import cgroup_tree, cgroups, config, criu, portable, processes, security
from agent.compute.lxc.criu import UNKNOWN, Criu, CriuProbe

VDSO = (
    "Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds\n"
    "Error (criu/kerndat.c:1615): kerndat_vdso_fill_symtable failed when initializing kerndat.\n"
)
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a criu in the way that does this at `criu check`; each is another program to the probe."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(cgroups, "unified", lambda: True)

    def write(check: str, version: str = "3.17.1") -> None:
        (folder / "lxc-checkpoint").write_text("#!/bin/sh\n")
        text = (
            f'#!/bin/sh\necho run >> {tmp_path}/calls\n[ "$1" = check ] || {{ echo "Version: {version}"; exit 0; }}\n'
        )
        (folder / "criu").write_text(text + check)
        for program in ("criu", "lxc-checkpoint"):
            (folder / program).chmod(0o755)

    return write


async def test_a_criu_that_works_is_asked_once_a_boot_and_again_when_it_has_changed(
    install: Install, tmp_path: Path
) -> None:
    install("echo 'Looks good.'\n")
    first = CriuProbe(tmp_path / "run")
    assert first.known() == Criu(problem=UNKNOWN)
    assert await first.look() == Criu("3.17.1", "")
    assert first.known() == Criu("3.17.1", "")
    calls = (tmp_path / "calls").read_text()
    assert await CriuProbe(tmp_path / "run").look() == Criu("3.17.1", "")  # the agent was restarted
    assert (tmp_path / "calls").read_text() == calls
    install("exit 1\n", "3.19")
    assert (await first.look()).version == "3.19"
    assert (await first.look()).problem
    await first.close()


async def test_what_the_check_says_is_told_in_words(install: Install, tmp_path: Path) -> None:
    install(f"cat >&2 <<X\n{VDSO}X\nexit 1\n")
    found = await CriuProbe(tmp_path / "run").look()
    assert found.version == "3.17.1"
    assert found.problem.startswith("`criu check` fails on this kernel: vdso: Unexpected rt vDSO area bounds; ")
    assert "criu/vdso.c" not in found.problem


async def test_a_check_that_hangs_is_ended(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criu, "CHECK_TIMEOUT_S", 2.0)
    install("exec sleep 1000\n")
    assert (await CriuProbe(tmp_path / "run").look()).problem == "`criu check` did not end within 2 s"


async def test_a_host_without_criu_or_with_old_cgroups_says_so(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("exit 0\n")
    monkeypatch.setattr(cgroups, "unified", lambda: False)
    assert "version 2" in (await CriuProbe(tmp_path / "one").look()).problem
    monkeypatch.setenv("PATH", str(tmp_path))
    found = await CriuProbe(tmp_path / "two").look()
    assert found.version == ""
    assert "criu" in found.problem
    assert "not installed" in found.problem


def spec(**features: object) -> guest_pb2.GuestSpec:
    made = guest_pb2.GuestSpec(name="box", id=7, disks=[guest_pb2.GuestDisk(name="root")])
    made.container.features.CopyFrom(container_pb2.ContainerFeatures(**{"checkpoint": True, **features}))  # type: ignore[arg-type]
    return made


def reasons(found: object) -> list[str]:
    return [one.reason for one in found]  # type: ignore[attr-defined]


def test_a_container_that_was_started_for_it_has_nothing_in_the_way() -> None:
    assert list(portable.of_spec(spec(), pending=False)) == []


def test_everything_that_criu_cannot_keep_is_named() -> None:
    box = spec(checkpoint=False, nesting=True, fuse=True, mknod=True, mount_types=["ext4"])
    box.container.devices.add(path="/dev/kvm")
    box.container.mounts.add(source="/srv", target="/data")
    box.disks.add(name="data")
    found = list(portable.of_spec(box, pending=True))
    assert [one.subject for one in found] == [
        "container.features.checkpoint",
        "",
        "container.features.nesting",
        "container.features.fuse",
        "container.features.mknod",
        "container.features.mount_types",
        "container.devices[/dev/kvm]",
        "container.mounts[/data]",
        "disks[data]",
    ]
    assert "--feature checkpoint" in found[0].remedy


def test_mounts_of_other_file_systems_are_told_and_the_roots_own_are_not() -> None:
    text = (
        "120 90 7:1 /rootfs / rw,relatime shared:1 - ext4 /dev/loop1 rw\n"
        "121 120 0:67 / /dev rw - tmpfs none rw\n"
        "122 120 7:1 /rootfs/tmp/x /var/tmp rw - ext4 /dev/loop1 rw\n"
        "123 120 0:80 / /mnt/f rw - fuse.sshfs x rw\n"
        "124 120 8:1 /srv /data rw - xfs /dev/sda1 rw\n"
    )
    assert list(portable.foreign_mounts(text)) == [("fuse.sshfs", "/mnt/f"), ("xfs", "/data")]


def there(**fields: object) -> migration_pb2.ContainerSurvey:
    survey = portable.survey()
    survey.criu_version = "3.17.1"
    survey.MergeFrom(migration_pb2.ContainerSurvey(**fields))  # type: ignore[arg-type]
    return survey


def test_a_target_is_refused_for_its_criu_its_processor_and_its_kernel() -> None:
    good = Criu("3.17.1", "")
    assert list(portable.of_target(spec(), there(), good)) == []
    found = list(portable.of_target(spec(), there(), Criu("", "criu not installed")))
    assert reasons(found) == ["CRIU_MISSING"]
    assert "criu not installed" in found[0].message
    assert reasons(portable.of_target(spec(), there(), Criu("3.19", ""))) == ["CRIU_VERSIONS_DIFFER"]
    assert reasons(portable.of_target(spec(), there(cpu_features=["avx9000"]), good)) == ["CPU_INCOMPATIBLE"]
    assert reasons(portable.of_target(spec(), there(machine="s390x"), good)) == ["CPU_INCOMPATIBLE"]
    assert reasons(portable.of_target(spec(), there(kernel="999.1.0-9-amd64"), good)) == ["KERNEL_OLDER"]


def test_ids_have_to_be_the_same() -> None:
    own = idmap.own(7)
    assert own is not None
    assert list(portable.of_ids(own.base, own.base, "", [])) == []
    assert list(portable.of_ids(0, own.base, "", [])) == []
    assert list(portable.of_ids(idmap.IDMAP.base, own.base, "old kernel", [])) == []
    assert reasons(portable.of_ids(own.base, own.base + idmap.IDMAP.size, "", [own.base])) == ["IDS_TAKEN"]
    assert reasons(portable.of_ids(own.base, own.base, "old kernel", [])) == ["IDS_SHARED"]


def test_only_features_for_programs_are_compared() -> None:
    text = "processor\t: 0\nflags\t\t: fpu sse4_2 avx2 cpuid arch_perfmon pti ibrs sha_ni\nbugs\t: spectre_v1\n"
    assert portable.cpu_features(text) == ["avx2", "fpu", "sha_ni", "sse4_2"]


def test_such_a_container_has_neither_console_nor_terminals() -> None:
    def lines(*, checkpoint: bool) -> list[str]:
        box = container_pb2.ContainerSpec(features=container_pb2.ContainerFeatures(checkpoint=checkpoint))
        paths = (Path("/root"), Path("/log"), Path("/seccomp"))
        made = config.ContainerConfig("box", "box", *paths, halt_signal="SIGPWR", spec=box)
        return config.render(made, config.Host(unified_cgroups=True)).splitlines()

    assert "lxc.console.path = none" in lines(checkpoint=True)
    assert "lxc.tty.max = 0" in lines(checkpoint=True)
    assert "lxc.tty.max = 2" in lines(checkpoint=False)
    assert not any("console.path" in line for line in lines(checkpoint=False))


def test_devices_that_are_set_after_a_restore_are_those_of_a_start() -> None:
    box = container_pb2.ContainerSpec()
    text = list(security.lines(box, [], privileged=False, apparmor=False, unified=True))
    rules = [f"lxc.cgroup2.devices.{word} = {rule}" for word, rule in security.device_rules(box)]
    assert [line for line in text if "devices" in line] == rules
    assert rules[0] == "lxc.cgroup2.devices.deny = a"


def test_a_restore_under_way_is_seen_as_a_container_that_is_about_to_run() -> None:
    words = ["lxc-checkpoint", "--restore", "--name=box", "--lxcpath=/var/lib/gugus/lxc"]
    assert processes._monitored(words, "/var/lib/gugus/lxc") == "box"
    assert processes._monitored([words[0], "--stop", *words[2:]], "/var/lib/gugus/lxc") == ""  # a dump is none
    path = Path("/var/lib/gugus/lxc")
    criu = [
        "/usr/sbin/criu",
        "restore",
        "-D",
        "/x",
        "--action-script",
        "/var/lib/gugus/lxc/box/restore-hook",
        "-o",
        "y",
    ]
    assert processes._restored(criu, path) == "box"
    assert processes._restored(criu, Path("/var/lib/lxc")) == ""
    assert processes._restored(["criu", "check"], path) == ""
    assert processes._restored([], path) == ""


def test_cgroups_below_a_container_are_made_what_they_were(tmp_path: Path) -> None:
    def group(path: str, controllers: str, mode: int) -> None:
        folder = tmp_path / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup.subtree_control").write_text(controllers)
        (folder / "cgroup.procs").write_text("")
        (folder / "cgroup.procs").chmod(0o664)
        folder.chmod(mode)

    group("old", "memory pids", 0o775)
    group("old/system.slice", "memory", 0o755)
    group("old/system.slice/idle.slice", "", 0o700)
    group("new", "", 0o755)  # as CRIU has made it
    groups = cgroup_tree.record(str(tmp_path / "old"))
    assert [one["path"] for one in groups] == [".", "system.slice", "system.slice/idle.slice"]
    assert groups[0]["controllers"] == ["memory", "pids"]
    (tmp_path / "new/system.slice").mkdir()
    (tmp_path / "new/cgroup.procs").chmod(0o644)

    cgroup_tree.restore(str(tmp_path / "new"), json.loads(json.dumps(groups)))
    assert (tmp_path / "new/cgroup.subtree_control").read_text() == "+pids"  # each in a write of its own
    assert (tmp_path / "new/system.slice/idle.slice").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o775
    assert (tmp_path / "new/cgroup.procs").stat().st_mode & 0o777 == 0o664
    with pytest.raises(OSError, match="leads out"):
        cgroup_tree.restore(str(tmp_path / "new"), [{**groups[0], "path": "../old"}])


def test_errors_of_a_log_are_the_first_ones() -> None:
    log = "(00.1) Warn  (criu/x.c:1): hm\n(00.2) Error (criu/tty.c:2381): tty: Unable to find a master for /2\n"
    log += "(00.3) Error (criu/cr-dump.c:2053): Dumping FAILED.\n"
    assert criu.errors_of(log) == "tty: Unable to find a master for /2; Dumping FAILED."
    assert criu.errors_of(log, most=1) == "tty: Unable to find a master for /2"
    assert criu.errors_of("") == ""


def test_namespaces_of_some_processes_are_told_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def process(pid: int, uts: str, children: str, comm: str) -> None:
        folder = tmp_path / str(pid)
        (folder / "task" / str(pid)).mkdir(parents=True)
        (folder / "task" / str(pid) / "children").write_text(children)
        (folder / "comm").write_text(comm)
        (folder / "ns").mkdir()
        for kind in ("cgroup", "ipc", "pid", "user"):
            os.symlink(f"{kind}:[1]", folder / "ns" / kind)
        os.symlink(f"uts:[{uts}]", folder / "ns" / "uts")

    monkeypatch.setattr(portable, "PROC", tmp_path)
    process(10, "1", "11 12", "systemd\n")
    process(11, "2", "13", "systemd-logind\n")
    process(12, "1", "", "cron\n")
    process(13, "2", "", "child\n")
    (tmp_path / "10" / "mountinfo").write_text("")
    found = list(portable.of_processes(10))
    assert reasons(found) == ["NESTED_NAMESPACE"]
    assert found[0].message.startswith("systemd-logind runs in a uts namespace of its own")
