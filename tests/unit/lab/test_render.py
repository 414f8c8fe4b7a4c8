"""What the texts of a lab say to LXC, nftables and libvirt."""

from pathlib import Path

import pytest

from lab.plan import LabPlan
from lab.render import EVERYBODY, Cut, Way, cut_table, hosts, libvirtd_conf, lxc_config
from lab.status import cut_from, lab_state

PLAN = LabPlan("ci", "real", 7, 3, Path("/var/lib/gugus-lab/ci"))


def test_a_node_has_its_address_and_its_own_disk_from_the_start() -> None:
    config = lxc_config(PLAN, PLAN.node("n2"), unified_cgroups=False).splitlines()
    assert "lxc.net.0.ipv4.address = 10.77.7.12/24" in config
    assert "lxc.rootfs.path = overlay:/:/var/lib/gugus-lab/ci/nodes/n2/disk" in config
    assert "lxc.mount.auto = proc:rw sys:rw cgroup-full:rw:force" in config


def test_a_machine_of_cgroup_v2_gets_its_own_device_rule() -> None:
    config = lxc_config(PLAN, PLAN.node("n1"), unified_cgroups=True)
    assert "lxc.cgroup2.devices.allow = a" in config
    assert "cgroup-full" not in config


def test_a_node_never_sees_dev_kvm() -> None:
    assert "kvm" not in lxc_config(PLAN, PLAN.node("n1"), unified_cgroups=False)


def test_every_node_knows_every_node() -> None:
    assert "10.77.7.13 n3\n" in hosts(PLAN)


def test_the_host_uuid_replaces_the_machines() -> None:
    text = libvirtd_conf('host_uuid = "old"\nlog_level = 3\n', "new")
    assert text == 'log_level = 3\nhost_uuid = "new"\n'


def test_without_cuts_the_table_is_only_removed() -> None:
    assert cut_table(PLAN, []) == "table bridge gugus_lab_ci\ndelete table bridge gugus_lab_ci\n"


def test_a_node_cut_from_everybody_is_dropped_both_ways_and_from_the_machine() -> None:
    table = cut_table(PLAN, [Cut("n3")])
    assert table.count('iifname "gl-ci-n3" drop') == 2  # forward, input
    assert table.count('oifname "gl-ci-n3" drop') == 2  # forward, output


def test_a_cut_between_two_leaves_the_machine_alone() -> None:
    table = cut_table(PLAN, [Cut("n1", "n2")])
    assert table.count('iifname "gl-ci-n1" oifname "gl-ci-n2" drop') == 1
    assert table.count('iifname "gl-ci-n2" oifname "gl-ci-n1" drop') == 1


@pytest.mark.parametrize(("way", "kept", "lost"), [("out", "oifname", "iifname"), ("in", "iifname", "oifname")])
def test_a_cut_of_one_way_lets_the_other_pass(way: Way, kept: str, lost: str) -> None:
    table = cut_table(PLAN, [Cut("n3", way=way)])
    assert table.count(f'{lost} "gl-ci-n3" drop') == 2
    assert f'{kept} "gl-ci-n3"' not in table
    between = cut_table(PLAN, [Cut("n1", "n2", way)])
    assert between.count(" drop") == 1
    sender, receiver = ("n1", "n2") if way == "out" else ("n2", "n1")
    assert f'iifname "gl-ci-{sender}" oifname "gl-ci-{receiver}" drop' in between
    assert not Cut("n1", "n2", way).same_path(Cut("n2", "n1"))


def test_a_cut_is_seen_from_both_ends() -> None:
    cuts = [Cut("n1", "n2")]
    assert (cut_from("n1", cuts), cut_from("n2", cuts), cut_from("n3", cuts)) == (("n2",), ("n1",), ())
    assert cut_from("n1", [*cuts, Cut("n1")]) == (EVERYBODY,)
    assert Cut("n1", "n2").same_path(Cut("n2", "n1"))


def test_a_lab_without_nodes_is_down() -> None:
    assert lab_state([]) == "down"
