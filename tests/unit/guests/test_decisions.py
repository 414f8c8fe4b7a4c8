"""Quotas, boot order, ends, and the CPU that all hosts have in common."""

from collections.abc import Sequence

import pytest
from gugus.agent.v1.guest_pb2 import (
    GUEST_END_CRASH,
    GUEST_END_HOST,
    GUEST_END_POWEROFF,
    GUEST_END_REBOOT,
    GUEST_END_UNSPECIFIED,
    GuestEnd,
)
from gugus.agent.v1.machine_pb2 import CpuSpec, MemorySpec, VirtualMachineSpec
from gugus.agent.v1.resources_pb2 import END_POLICY_RESTART, END_POLICY_STOP, Policies
from gugus.cluster.v1.guest_pb2 import (
    BOOT_POLICY_ALWAYS,
    BOOT_POLICY_NEVER,
    BOOT_POLICY_UNSPECIFIED,
    GUEST_PHASE_CREATING,
    GUEST_PHASE_ERROR,
    GUEST_PHASE_RUNNING,
    GUEST_PHASE_STARTING,
    POWER_HIBERNATED,
    POWER_OFF,
    POWER_ON,
    POWER_PAUSED,
    BootPolicy,
    BootSpec,
    Guest,
    GuestSpec,
    HaSpec,
    Power,
)
from gugus.cluster.v1.project_pb2 import Project, ProjectSpec, ProjectUse

from common.errors import GugusError
from manager.guests.boot_order import booted, power_after_boot, waits_for
from manager.guests.cpu_baseline import HostCpu, choose_hardware, cluster_cpu, hosts_of, limits, pinned_machine
from manager.guests.endings import stays_down
from manager.guests.quota import Use, quota_faults, refuse_beyond_quota, use_of, used
from tests.unit.guests.world import GIB, guest, known, node, vm

# Quotas


def project(**limits: int) -> Project:
    made = Project(spec=ProjectSpec(limits=ProjectUse(**limits)))
    made.meta.name = "shop"
    return made


def member(name: str = "web", **fields: object) -> Guest:
    made = Guest(spec=vm(project="shop", **fields))
    made.meta.name = name
    made.spec.disks[0].size_bytes = 2 * GIB
    return made


def test_guest_counts_with_what_it_may_grow_to() -> None:
    grows = VirtualMachineSpec(cpu=CpuSpec(max_cpus=8), memory=MemorySpec(max_bytes=4 * GIB))
    one = member(virtual_machine=grows)
    one.status.unused_disks.add(size_bytes=GIB)
    assert use_of(one) == Use(8, 4 * GIB, 3 * GIB, 1)
    assert used("shop", [one, member()]) == Use(12, 5 * GIB, 5 * GIB, 2)
    assert used("other", [one]) == Use()


def test_each_limit_that_is_exceeded_is_told_with_its_numbers() -> None:
    faults = quota_faults(project(cpus=7, memory_bytes=4 * GIB, guests=1), [member()], use_of(member()))
    assert [fault.reason for fault in faults] == ["QUOTA_EXCEEDED"] * 2
    assert "cpus: 4 of 7 used in project shop, 4 more asked, 3 left" in faults[0].message
    assert faults[0].violations[0].field == "spec.cpus"
    assert "cpus" not in faults[0].violations[0].message, "its field says so already"
    assert "guests: 1 of 1 used" in faults[1].message


def test_change_counts_with_its_difference() -> None:
    before, after = member(), member(cpus=6)
    refuse_beyond_quota(project(cpus=6), [before], before, after)
    with pytest.raises(GugusError) as caught:
        refuse_beyond_quota(project(cpus=5), [before], before, after)
    assert caught.value.reason == "QUOTA_EXCEEDED"
    refuse_beyond_quota(None, [before], before, after)


def test_what_does_not_grow_is_not_refused_by_a_limit_that_was_lowered() -> None:
    refuse_beyond_quota(project(cpus=1, guests=1), [member()], member(), member(notes="x"))


def test_guest_that_comes_from_another_project_counts_whole() -> None:
    before = member()
    before.spec.project = "other"
    with pytest.raises(GugusError):
        refuse_beyond_quota(project(cpus=3), [], before, member())


# Boot


def placed(name: str, order: int = 0, **status: object) -> Guest:
    made = Guest(spec=GuestSpec(power=POWER_ON, boot=BootSpec(order=order)))
    made.meta.name = name
    made.status.node, made.status.boot_id, made.status.phase = "n1", "boot-2", GUEST_PHASE_STARTING
    made.status.booting = True
    for field, value in status.items():
        setattr(made.status, field, value)
    return made


def test_boot_is_noticed_once_and_not_of_a_guest_that_has_just_come() -> None:
    assert booted(placed("a", boot_id="boot-1"), "boot-2")
    assert not booted(placed("a"), "boot-2")
    assert not booted(placed("a", boot_id=""), "boot-2")
    assert not booted(placed("a", boot_id="boot-1", phase=GUEST_PHASE_CREATING), "boot-2")


@pytest.mark.parametrize(
    ("policy", "power", "after"),
    [
        (BOOT_POLICY_UNSPECIFIED, POWER_ON, POWER_ON),
        (BOOT_POLICY_UNSPECIFIED, POWER_OFF, POWER_OFF),
        (BOOT_POLICY_NEVER, POWER_ON, POWER_OFF),
        (BOOT_POLICY_NEVER, POWER_PAUSED, POWER_OFF),
        (BOOT_POLICY_NEVER, POWER_HIBERNATED, POWER_HIBERNATED),
        (BOOT_POLICY_ALWAYS, POWER_OFF, POWER_ON),
        (BOOT_POLICY_ALWAYS, POWER_HIBERNATED, POWER_ON),
        (BOOT_POLICY_ALWAYS, POWER_PAUSED, POWER_PAUSED),
    ],
)
def test_boot_policy(policy: BootPolicy.ValueType, power: Power.ValueType, after: Power.ValueType) -> None:
    one = Guest(spec=GuestSpec(power=power, boot=BootSpec(policy=policy)))
    assert power_after_boot(one) == after


def test_template_is_not_started_by_a_boot() -> None:
    one = Guest(spec=GuestSpec(power=POWER_OFF, template=True, boot=BootSpec(policy=BOOT_POLICY_ALWAYS)))
    assert power_after_boot(one) == POWER_OFF


def wait(one: Guest, others: Sequence[Guest], **running_for_s: float) -> str:
    return waits_for(one, [one, *others], "boot-2", running_for_s)


def test_lower_orders_start_first_and_those_without_one_last() -> None:
    db, web, rest = placed("db", 1), placed("web", 2), placed("rest")
    assert wait(db, [web, rest]) == ""
    assert "db" in wait(web, [db, rest])
    assert "db" in wait(rest, [db, web])
    db.status.phase, db.status.booting = GUEST_PHASE_RUNNING, False
    assert wait(web, [db, rest], db=0.0) == ""
    assert "web" in wait(rest, [db, web], db=0.0)


def test_guests_of_one_order_start_together() -> None:
    assert wait(placed("a", 1), [placed("b", 1)]) == ""


def test_next_order_waits_for_the_delay_of_the_one_before() -> None:
    db, web = placed("db", 1, phase=GUEST_PHASE_RUNNING, booting=False), placed("web", 2)
    db.spec.boot.delay_s = 30
    assert "30 s" in wait(web, [db], db=29.0)
    assert wait(web, [db], db=30.0) == ""


def test_guest_that_nobody_looked_at_since_the_boot_is_waited_for_if_it_is_to_start() -> None:
    db, web = placed("db", 1, boot_id="boot-1", phase=GUEST_PHASE_RUNNING, booting=False), placed("web", 2)
    assert "db" in wait(web, [db])
    db.spec.boot.policy = BOOT_POLICY_NEVER
    assert wait(web, [db]) == ""


@pytest.mark.parametrize("what", ["failed", "elsewhere", "off", "deleting", "locked", "template", "never booted here"])
def test_nobody_waits_for_a_guest_that(what: str) -> None:
    db, web = placed("db", 1), placed("web", 2)
    match what:
        case "failed":
            db.status.failures, db.status.phase = 1, GUEST_PHASE_ERROR
        case "elsewhere":
            db.status.node = "n2"
        case "off":
            db.spec.power, db.status.booting = POWER_OFF, False
        case "deleting":
            db.meta.deleting = True
        case "locked":
            db.status.lock.task = "t"
        case "template":
            db.spec.template = True
        case _:
            db.status.booting = False
    assert wait(web, [db]) == ""


def test_guest_that_is_started_by_hand_waits_for_nobody() -> None:
    assert wait(placed("web", 2, booting=False), [placed("db", 1)]) == ""


# Ends


@pytest.mark.parametrize(
    ("ended", "ha", "policies", "down"),
    [
        (GUEST_END_POWEROFF, False, Policies(), True),
        (GUEST_END_POWEROFF, True, Policies(), False),
        (GUEST_END_POWEROFF, False, Policies(on_shutdown=END_POLICY_RESTART), False),
        (GUEST_END_POWEROFF, True, Policies(on_shutdown=END_POLICY_STOP), True),
        (GUEST_END_REBOOT, False, Policies(), False),
        (GUEST_END_REBOOT, False, Policies(on_reboot=END_POLICY_STOP), True),
        (GUEST_END_CRASH, False, Policies(), False),
        (GUEST_END_CRASH, True, Policies(on_crash=END_POLICY_STOP), True),
        (GUEST_END_UNSPECIFIED, False, Policies(), False),
        (GUEST_END_UNSPECIFIED, False, Policies(on_crash=END_POLICY_STOP), True),
        (
            GUEST_END_HOST,
            False,
            Policies(on_shutdown=END_POLICY_STOP, on_crash=END_POLICY_STOP, on_reboot=END_POLICY_STOP),
            False,
        ),
    ],
)
def test_end_policy(ended: GuestEnd.ValueType, ha: bool, policies: Policies, down: bool) -> None:
    assert stays_down(GuestSpec(ha=HaSpec(enabled=ha), policies=policies), ended) is down


# CPU and machine type


def host(*models: str, features: str = "", machines: str = "") -> HostCpu:
    return HostCpu(frozenset(models), frozenset(features.split()), frozenset(machines.split()))


@pytest.mark.parametrize(
    ("hosts", "model"),
    [
        ([host("Nehalem", "Haswell-noTSX-IBRS", "Haswell-IBRS"), host("Nehalem", "Haswell-noTSX-IBRS")], "Haswell-noTSX-IBRS"),
        ([host("qemu64", "EPYC", "EPYC-Rome", "Opteron_G3")], "EPYC-Rome"),
        ([host("qemu64", "Haswell"), host("qemu64", "EPYC")], "qemu64"),
        ([host("qemu64", "Haswell", "a-new-one")], "Haswell"),
        ([host("Haswell"), host()], "Haswell"),
        ([host("Haswell"), host("EPYC")], ""),
        ([], ""),
    ],
)  # fmt: skip
def test_cluster_cpu_is_the_best_that_all_hosts_have(hosts: list[HostCpu], model: str) -> None:
    assert cluster_cpu(hosts).model == model


def test_nodes_that_limit_the_common_cpu_are_told_with_those_like_them() -> None:
    """An old host that is off for good counts until it is removed, and so do two that are alike."""
    old, twin, new, newer = node("old"), node("twin"), node("new"), node("newer")
    for one in (old, twin):
        one.status.facts.hypervisors[0].cpu_models[:] = ["qemu64"]
        one.status.facts.hypervisors[0].cpu_features[:] = ["aes"]
    for one in (new, newer):
        one.status.facts.hypervisors[0].cpu_features[:] = ["aes", "avx"]
    nodes = [old, twin, new, newer]
    assert cluster_cpu(hosts_of(nodes)).model == "qemu64"
    found = limits(nodes)
    assert set(found) == {"old", "twin"}
    assert found["old"].model == cluster_cpu(hosts_of([new, newer])).model != "qemu64"
    assert list(found["old"].features) == ["aes", "avx"]
    assert limits([new, newer]) == {}


def test_cluster_cpu_has_the_features_that_all_hosts_have_and_that_can_migrate() -> None:
    hosts = [host("Nehalem", features="aes avx invtsc pcid"), host("Nehalem", features="avx invtsc aes")]
    assert list(cluster_cpu(hosts).features) == ["aes", "avx"]


@pytest.mark.parametrize(
    ("wanted", "pinned"),
    [
        ("", "pc-q35-7.2"),
        ("q35", "pc-q35-7.2"),
        ("pc", "pc-i440fx-7.0"),
        ("pc-q35-6.1", "pc-q35-6.1"),
    ],
)
def test_machine_type_is_the_newest_of_its_family_that_all_hosts_have(wanted: str, pinned: str) -> None:
    hosts = [
        host(machines="pc-q35-10.0 pc-q35-7.2 pc-q35-7.1 pc-i440fx-7.2 pc-i440fx-7.0 microvm"),
        host(machines="pc-q35-7.2 pc-q35-7.1 pc-i440fx-7.0 q35"),
        host(),
    ]
    assert pinned_machine(wanted, hosts) == pinned
    assert pinned_machine(wanted, []) == wanted


def test_hardware_is_chosen_at_a_start() -> None:
    web = guest(vm(), known())
    choose_hardware(web, [node("n1"), node("n2")])
    assert web.status.cluster_cpu.model == "Haswell"
    web.spec.virtual_machine.cpu.model = "host"
    choose_hardware(web, [node("n1")])
    assert not web.status.HasField("cluster_cpu")


def test_host_that_is_being_removed_holds_nobody_back() -> None:
    old = node("n3")
    del old.status.facts.hypervisors[0].cpu_models[:]
    old.status.facts.hypervisors[0].cpu_models.append("qemu64")
    assert cluster_cpu(hosts_of([node("n1"), old])).model == "qemu64"
    old.meta.deleting = True
    assert cluster_cpu(hosts_of([node("n1"), old])).model == "Haswell"
