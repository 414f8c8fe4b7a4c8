"""`gugus guest`: options become fields of the spec, changes send the whole spec, many guests end in a summary."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from gugus.agent.v1.machine_pb2 import FIRMWARE_KIND_UEFI
from gugus.agent.v1.resources_pb2 import DISK_BUS_SCSI, NIC_MODEL_E1000
from gugus.cluster.v1 import guest_pb2
from typer.main import get_command
from typer.testing import CliRunner

import client.cli
from client.cli import app, failure
from client.cli.guest_app import GROUPS, Guest
from client.cli.guest_app import app as guest_app
from tests.unit.client.conftest import Gugus
from tests.unit.client.fake import Cluster

GUEST_MODULES = {file.stem for file in Path(client.cli.__file__).parent.glob("guest*.py")}

VM = ["--kind", "vm", "--disk", "size=2GiB,pool=local,image=tiny,bus=scsi,iothread"]


def _made(gugus: Gugus, cluster: Cluster, *options: str, kind: list[str] = VM) -> guest_pb2.GuestSpec:
    result = gugus("guest", "create", "web", *kind, *options)
    assert result.exit_code == 0, result.stderr
    request = cluster.state.requests[-1]
    assert isinstance(request, guest_pb2.CreateGuestRequest)
    return request.spec


def _changed(gugus: Gugus, cluster: Cluster, *command: str) -> guest_pb2.UpdateGuestRequest:
    result = gugus("guest", *command)
    assert result.exit_code == 0, result.stderr
    request = cluster.state.requests[-1]
    assert isinstance(request, guest_pb2.UpdateGuestRequest)
    return request


def test_options_of_machines_become_fields(cluster: Cluster, gugus: Gugus) -> None:
    spec = _made(
        gugus, cluster,
        *("--cpus", "4", "--memory", "2GiB", "--cpu-model", "host", "--machine", "q35", "--uefi", "--secure-boot", "--tpm"),
        *("--nic", "network=lan,model=e1000,rate=10MiB/s", "--network", "dmz", "--cdrom", "local/iso", "--tag", "a", "--tag", "b"),
        *("--notes", "hello: world", "--protect", "--boot-order", "3", "--boot-delay", "10s", "--project", "shop", "--weight", "200"),
        *("--cpuset", "0-3", "--balloon", "1GiB", "--boot-from", "cd0,disk0", "--no-rng", "--usb", "1-2.3", "--user", "me"),
        *("--ip", "eth0=10.0.0.5/24,10.0.0.1", "--ip", "fd00::5/64", "--dns", "10.0.0.1", "--package", "nginx", "--id", "123"),
        *("--set", "virtual_machine.cpu.pins[0]=1", "--on-crash", "stop", "--pci", "0000:01:00.0,pcie", "--smbios", "serial=X"),
    )  # fmt: skip
    machine, boot = spec.virtual_machine, spec.first_boot
    assert (spec.cpus, spec.memory_bytes, spec.id, list(spec.tags)) == (4, 2 << 30, 123, ["a", "b"])
    assert (spec.notes, spec.protected, spec.project, spec.boot.order, spec.boot.delay_s) == (
        "hello: world",
        True,
        "shop",
        3,
        10,
    )
    assert (spec.resources.cpu_weight, spec.resources.cpuset, spec.resources.memory_reserved_bytes) == (
        200,
        "0-3",
        1 << 30,
    )
    assert (machine.machine, machine.cpu.model, machine.firmware.kind) == ("q35", "host", FIRMWARE_KIND_UEFI)
    assert (machine.firmware.secure_boot, machine.tpm, machine.no_rng, dict(machine.cpu.pins)) == (
        True,
        True,
        True,
        {0: "1"},
    )
    assert [(nic.network, nic.settings.model, nic.settings.rate_bytes_per_s) for nic in spec.nics] == [
        ("dmz", 0, 0),
        ("lan", NIC_MODEL_E1000, 10 << 20),
    ]
    assert [(drive.pool, drive.image, drive.boot_order) for drive in machine.cdroms] == [("local", "iso", 1)]
    disk = spec.disks[0]
    assert (disk.pool, disk.image, disk.size_bytes, disk.settings.bus) == ("local", "tiny", 2 << 30, DISK_BUS_SCSI)
    assert (disk.settings.io_thread, disk.settings.boot_order) == (True, 2)
    assert (machine.usb_devices[0].port, machine.pci_devices[0].pcie, dict(machine.smbios)) == (
        "1-2.3",
        True,
        {"serial": "X"},
    )
    (address,) = boot.addresses
    assert (address.ipv4, address.ipv4_gateway, address.ipv6) == ("10.0.0.5/24", "10.0.0.1", "fd00::5/64")
    assert (boot.user, list(boot.dns_servers), list(boot.packages)) == ("me", ["10.0.0.1"], ["nginx"])


def test_options_of_containers_and_files(cluster: Cluster, gugus: Gugus, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("#cloud-config\n")
    (tmp_path / "key.pub").write_text("ssh-ed25519 AAAA me\n")
    spec = _made(
        gugus, cluster,
        *("--feature", "nesting", "--feature", "fuse,keyctl=no", "--mount", "/srv:/data:ro", "--mount", "source=/a,target=/b"),
        *("--device", "path=/dev/fuse,mode=0666", "--env", "A=b=c", "--swap", "64MiB", "--pids", "100", "--init", "/bin/app"),
        *("--user-data", str(tmp_path / "data"), "--ssh-key", str(tmp_path / "key.pub"), "--no-start"),
        kind=["--kind", "container", "--pool", "local", "--image", "box"],
    )  # fmt: skip
    box = spec.container
    assert (box.features.nesting, box.features.fuse, box.features.keyctl) == (True, True, False)
    assert [(m.source, m.target, m.read_only) for m in box.mounts] == [("/srv", "/data", True), ("/a", "/b", False)]
    assert (box.devices[0].path, box.devices[0].mode, dict(box.environment)) == ("/dev/fuse", 0o666, {"A": "b=c"})
    assert (spec.resources.swap_bytes, spec.resources.pids, list(box.init)) == (64 << 20, 100, ["/bin/app"])
    assert (spec.first_boot.user_data, list(spec.first_boot.ssh_authorized_keys)) == (
        "#cloud-config\n",
        ["ssh-ed25519 AAAA me"],
    )
    assert spec.power == guest_pb2.POWER_OFF


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--feature", "nesting"], "--feature: is of containers only"),
        (["--huge-pages", "3m"], '--huge-pages: "3m" is not one of default, 2m, 1g'),
        (["--cdrom", "iso"], "--cdrom: \"iso\" is not POOL/IMAGE"),
        (["--nic", "model=e1000"], "names no network"),
        (["--boot-from", "sda"], '"sda" is not one of disk0'),
        (["--ip", "10.0.0.5"], "is not [NIC=]ADDRESS/PREFIX"),
        (["--set", "cpu=2"], '"cpu" is no field there'),
        (["--smbios", "x"], "--smbios: \"x\" is not NAME=VALUE"),
        (["--user-data", "/nowhere"], "/nowhere cannot be read"),
    ],
)  # fmt: skip
def test_a_wrong_option_says_what_is_right(gugus: Gugus, options: list[str], said: str) -> None:
    result = gugus("guest", "create", "web", *VM, *options)
    assert (result.exit_code, said in result.stderr) == (failure.USAGE, True), result.stderr


def test_all_wrong_options_are_named_at_once(gugus: Gugus) -> None:
    result = gugus("guest", "create", "web", *VM, "--memory", "1MB", "--weight", "much", "--set", "cpu=2")
    for option in ("--memory: ", "--weight: ", "--set: "):
        assert f"  {option}" in result.stderr


def test_set_changes_what_is_named_and_keeps_the_rest(cluster: Cluster, gugus: Gugus) -> None:
    _made(gugus, cluster, "--notes", "kept")
    request = _changed(
        gugus, cluster, "set", "web", "--memory", "4GiB", "--ha", "--set", "disks[disk0].settings.cache=none"
    )
    assert (request.spec.memory_bytes, request.spec.ha.enabled, request.spec.notes) == (4 << 30, True, "kept")
    assert (request.spec.disks[0].volume, request.spec_number, request.set_labels) == ("web-disk0", 1, False)
    result = gugus("guest", "set", "web", "--memory", "4GiB")
    assert "guest web is so already." in result.stderr
    assert gugus("guest", "set", "web").exit_code == failure.USAGE


def test_what_tells_disks_apart_and_makes_holes_of_zeros(cluster: Cluster, gugus: Gugus) -> None:
    disk = "size=1GiB,pool=local,bus=scsi,serial=A1,wwn=5000c50015ea71ac,detect-zeroes"
    settings = _made(gugus, cluster, kind=["--kind", "vm", "--disk", disk]).disks[0].settings
    assert (settings.serial, settings.wwn, settings.detect_zeroes) == ("A1", "5000c50015ea71ac", True)


def test_cpus_of_the_host_that_each_guest_may_use_are_listed(cluster: Cluster, gugus: Gugus) -> None:
    _made(gugus, cluster, "--cpuset", "0-3")
    listed = json.loads(gugus("guest", "list", "-o", "json").stdout)
    assert [guest["spec"]["resources"]["cpuset"] for guest in listed] == ["0-3"]


def test_what_cloud_init_finds_is_shown_without_the_password(cluster: Cluster, gugus: Gugus, tmp_path: Path) -> None:
    hash_file = tmp_path / "hash"
    hash_file.write_text("$6$salt$verysecret")
    _made(gugus, cluster, "--network", "lan", "--user", "ada", "--hostname", "shop", "--password-hash", str(hash_file))
    cluster.state.guests["web"].spec.nics[0].mac = "52:54:00:00:00:09"
    shown = gugus("guest", "first-boot", "web").stdout
    titles = [line for line in shown.splitlines() if line.startswith("# ")]
    assert titles == ["# meta-data", "# user-data", "# network-config"]
    assert all(words in shown for words in ("local-hostname: shop", "name: ada", "52:54:00:00:00:09"))
    assert "verysecret" not in shown
    assert gugus("guest", "first-boot", "web", "user-data").stdout.startswith("#cloud-config\n")
    assert json.loads(gugus("guest", "first-boot", "web", "meta-data", "-o", "json").stdout).keys() == {"meta-data"}
    unknown = gugus("guest", "first-boot", "web", "password")
    assert unknown.exit_code != 0
    assert "user-data" in unknown.stderr
    gugus("guest", "create", "db", "--kind", "container", "--pool", "local", "--image", "tiny")
    assert "is a container" in gugus("guest", "first-boot", "db").stderr


def test_what_waits_for_a_restart_is_told(cluster: Cluster, gugus: Gugus) -> None:
    _made(gugus, cluster)
    result = gugus("guest", "set", "web", "--sockets", "2")
    assert (
        "after its next start (`gugus guest reboot web`):\n  virtual_machine.cpu.sockets: 0 -> 2 (not hotplugged)"
        in result.stderr
    )
    assert "virtual_machine.cpu.sockets: 0 -> 2 (not hotplugged)" in gugus("guest", "show", "web").stdout


def test_a_guest_s_page_says_what_it_uses_and_speaks_of_changes_as_people_do(cluster: Cluster, gugus: Gugus) -> None:
    _made(gugus, cluster)
    status = cluster.state.guests["web"].status
    status.pending.add(field="memory_bytes", present="134217728", wanted="167772160", reason="it cannot grow")
    status.pending.add(field="disks[disk0].settings.bus", present="DISK_BUS_VIRTIO", wanted="DISK_BUS_SCSI")
    status.pending.add(field="virtual_machine.cpu.model", present="", wanted="qemu64")
    status.lock.task, status.lock.reason = "t9", "snapshot"
    page = gugus("guest", "show", "web").stdout
    for line in (
        "memory_bytes: 128MiB -> 160MiB (it cannot grow)",
        "disks[disk0].settings.bus: virtio -> scsi",
        "virtual_machine.cpu.model: default -> qemu64",
        "snapshot (task t9)",
        "2.5 s",
        "64MiB, balloon at 32MiB",
        "disk0: 1KiB read, 2KiB written",
        "eth0: 10B in, 20B out",
    ):
        assert line in page, line


def test_a_change_is_made_upon_what_somebody_else_changed_meanwhile(cluster: Cluster, gugus: Gugus) -> None:
    _made(gugus, cluster)
    cluster.state.quicker.append(lambda guest: setattr(guest.spec, "cpus", 7))
    request = _changed(gugus, cluster, "set", "web", "--notes", "mine")
    assert (request.spec.cpus, request.spec.notes, request.spec_number) == (7, "mine", 2)


def test_disks_interfaces_discs_and_tags_come_and_go(cluster: Cluster, gugus: Gugus) -> None:
    _made(gugus, cluster, "--network", "lan")
    request = _changed(gugus, cluster, "disk", "add", "web", "size=1GiB,pool=local,name=data")
    assert [disk.name for disk in request.spec.disks] == ["disk0", "data"]
    assert _changed(gugus, cluster, "disk", "resize", "web", "data", "+1GiB").spec.disks[1].size_bytes == 2 << 30
    request = _changed(gugus, cluster, "disk", "remove", "web", "data")
    assert ([disk.name for disk in request.spec.disks], request.delete_removed_disks) == (["disk0"], False)
    assert [nic.network for nic in _changed(gugus, cluster, "nic", "add", "web", "dmz").spec.nics] == ["lan", "dmz"]
    assert _changed(gugus, cluster, "nic", "link", "web", "eth0", "--down").spec.nics[0].settings.link_down
    assert [nic.network for nic in _changed(gugus, cluster, "nic", "remove", "web", "eth0").spec.nics] == ["dmz"]
    drive = _changed(gugus, cluster, "cdrom", "insert", "web", "local/iso").spec.virtual_machine.cdroms[0]
    assert (drive.name, drive.pool, drive.image) == ("cd0", "local", "iso")
    assert not _changed(gugus, cluster, "cdrom", "eject", "web").spec.virtual_machine.cdroms[0].image
    assert _changed(gugus, cluster, "set", "web", "--node", "n1").spec.pinned_node == "n1"
    assert _changed(gugus, cluster, "set", "web", "--set", "pinned_node=").spec.pinned_node == ""
    assert list(_changed(gugus, cluster, "tag", "add", "web", "a", "b").spec.tags) == ["a", "b"]
    assert list(_changed(gugus, cluster, "tag", "remove", "web", "a").spec.tags) == ["b"]
    assert _changed(gugus, cluster, "protect", "web").spec.protected
    assert gugus("guest", "disk", "resize", "web", "disk0", "0").exit_code == failure.USAGE
    missing = gugus("guest", "disk", "remove", "web", "dtaa")
    assert (missing.exit_code, "It has disk0." in missing.stderr) == (failure.NOT_FOUND, True)


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (["suspend", "web"], "suspend-guest"),
        (["resume", "web"], "resume-guest"),
        (["reboot", "web", "--timeout", "5s"], "reboot-guest"),
        (["reset", "web"], "reset-guest"),
        (["hibernate", "web", "--pool", "local"], "hibernate-guest"),
        (["rename", "web", "shop"], "rename-guest"),
        (["stop", "web", "--force"], "stop-guest"),
        (["delete", "web", "--yes", "--keep-disks"], "delete-guest"),
    ],
)
def test_a_guest_s_life(cluster: Cluster, gugus: Gugus, command: list[str], kind: str) -> None:
    _made(gugus, cluster)
    result = gugus("guest", *command, "-o", "json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["kind"] == kind


def test_a_guest_is_waited_for_by_what_it_does(cluster: Cluster, gugus: Gugus) -> None:
    _made(gugus, cluster)
    assert "guest web is running." in gugus("guest", "wait", "web", "--for", "running").stderr
    late = gugus("--timeout", "1s", "guest", "wait", "web")
    assert (late.exit_code, "guest web is not stopped after 1 s." in late.stderr) == (failure.UNAVAILABLE, True)
    cluster.state.guests["web"].status.phase = guest_pb2.GUEST_PHASE_STOPPED
    assert gugus("guest", "wait", "web").exit_code == 0


def _many(cluster: Cluster, gugus: Gugus) -> None:
    for name, options in (("b", ["--boot-order", "1"]), ("a", []), ("doomed", ["--tag", "x"])):
        gugus("guest", "create", name, *VM, *options, "--tag", "web", "--no-wait")
    cluster.state.requests.clear()


def test_many_are_started_in_order_and_summed_up(cluster: Cluster, gugus: Gugus) -> None:
    _many(cluster, gugus)
    result = gugus("guest", "start", "--tag", "web", "--parallel", "1")
    assert [request.name for request in cluster.state.requests] == ["b", "a", "doomed"]
    assert result.exit_code == failure.FAILED
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["GUEST", "RESULT", "TASK", "REASON"]
    assert [line[:2] for line in lines[1:]] == [["b", "done"], ["a", "done"], ["doomed", "failed"]]
    assert "pool local is full. Delete something." in result.stdout
    assert "2 done, 1 failed." in result.stderr


def test_many_are_stopped_the_other_way_and_programs_get_objects(cluster: Cluster, gugus: Gugus) -> None:
    _many(cluster, gugus)
    result = gugus("guest", "stop", "a", "b", "--parallel", "1", "-o", "json")
    assert [request.name for request in cluster.state.requests] == ["a", "b"]
    assert result.exit_code == 0
    assert [(item["name"], item["result"], item["error"]) for item in json.loads(result.stdout)] == [
        ("a", "done", None),
        ("b", "done", None),
    ]


def test_a_selection_that_is_empty_or_unclear_does_nothing(cluster: Cluster, gugus: Gugus) -> None:
    _many(cluster, gugus)
    assert "no guests are selected." in gugus("guest", "suspend", "--tag", "none").stderr
    assert gugus("guest", "resume").exit_code == failure.USAGE
    assert gugus("guest", "reboot", "a", "--all").exit_code == failure.USAGE
    assert gugus("guest", "start", "a", "nobody").exit_code == failure.NOT_FOUND
    assert cluster.state.requests == []


def test_a_guest_is_edited_as_a_document(
    cluster: Cluster, gugus: Gugus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _made(gugus, cluster, "--notes", "old", "--label", "tier=web")
    editor = tmp_path / "editor.py"
    editor.write_text(
        "import pathlib, sys\nfile = pathlib.Path(sys.argv[1])\ntext = file.read_text()\n"
        "assert 'tier: web' in text and 'volume' not in text\n"
        "file.write_text(text.replace('  notes: old\\n', '').replace('memory: 512MiB', 'memory: 1GiB'))\n"
    )
    monkeypatch.setenv("VISUAL", f"{sys.executable} {editor}")
    request = _changed(gugus, cluster, "edit", "web")
    assert (request.spec.notes, request.spec.memory_bytes, dict(request.labels)) == ("", 1 << 30, {"tier": "web"})
    assert request.spec.disks[0].volume == "web-disk0"
    monkeypatch.setenv("VISUAL", "true")
    assert "nothing was changed." in gugus("guest", "edit", "web").stderr


def test_projects_are_made_shown_changed_and_deleted(cluster: Cluster, gugus: Gugus) -> None:
    assert gugus("project", "create", "shop", "--cpus", "8", "--memory", "16GiB").exit_code == 0
    assert gugus("project", "list").stdout.splitlines()[1].split("  ")[:2] == ["shop", "3 of 8"]
    assert gugus("project", "set", "shop", "--cpus", "0", "--guests", "5").exit_code == 0
    limits = cluster.state.projects["shop"].spec.limits
    assert (limits.cpus, limits.memory_bytes, limits.guests) == (0, 16 << 30, 5)
    assert "3" in gugus("project", "show", "shop").stdout
    assert gugus("project", "set", "shop").exit_code == failure.USAGE
    near = gugus("project", "show", "shpo")
    assert (near.exit_code, 'Did you mean "shop"?' in near.stderr) == (failure.NOT_FOUND, True)
    assert gugus("project", "delete", "shop", "--yes").exit_code == 0


def _commands(command: Any, words: list[str]) -> list[list[str]]:
    if not hasattr(command, "commands"):
        return [words]
    return [path for name in command.commands for path in _commands(command.get_command(None, name), [*words, name])]


def test_every_command_of_guests_that_a_module_has_is_listed() -> None:
    parts = Guest.parts
    for module in {module for modules in parts.values() for module in modules} | GUEST_MODULES:
        import_module(f"client.cli.{module}")
    real = {str(command.name or getattr(command.callback, "__name__", "")) for command in guest_app.registered_commands}
    groups = {str(group.name) for group in guest_app.registered_groups} | set(GROUPS)
    assert sorted(parts) == sorted(real | groups)


def test_every_command_s_help_can_be_shown() -> None:
    paths = _commands(get_command(app), [])
    assert ["guest", "snapshot", "create"] in paths
    for words in paths:
        result = CliRunner().invoke(app, [*words, "--help"])
        assert result.exit_code == 0, (words, result.exception)
