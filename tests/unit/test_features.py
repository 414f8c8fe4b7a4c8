"""docs/features.md: no row is empty, each "yes" names tests that exist, each "no" has a reason, and nothing of qm and pct is missing."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "features.md"

QM = """
agent cleanup clone cloudinit config create delsnapshot destroy disk guest help import importovf list listsnapshot
migrate monitor mtunnel nbdstop pending reboot remote-migrate rescan reset resize resume rollback sendkey set showcmd
shutdown snapshot start status stop suspend template terminal unlink unlock vncproxy wait
"""
QM_CREATE = """
acpi affinity agent allow-ksm amd-sev intel-tdx arch archive args audio0 autostart balloon bios boot bootdisk bwlimit
cdrom cicustom cipassword citype ciupgrade ciuser cores cpu cpulimit cpuunits description efidisk0 force freeze
ha-managed hookscript hostpci[n] hotplug hugepages ide[n] import-working-storage ipconfig[n] ivshmem keephugepages
keyboard kvm live-restore localtime lock machine memory migrate_downtime migrate_speed name nameserver net[n] numa
numa[n] onboot ostype parallel[n] pool protection reboot rng0 sata[n] scsi[n] scsihw searchdomain serial[n] shares
smbios1 smp sockets spice_enhancements sshkeys start startdate startup storage tablet tags tdf template tpmstate0
unique unused[n] usb[n] vcpus vga virtio[n] virtiofs[n] vmgenid vmstatestorage watchdog
"""
PCT = """
clone config console cpusets create delsnapshot destroy df enter exec fsck fstrim help list listsnapshot migrate mount
move-volume pending pull push reboot remote-migrate rescan resize restore resume rollback set shutdown snapshot start
status stop suspend template unlock unmount
"""
PCT_CREATE = """
arch bwlimit cmode console cores cpulimit cpuunits debug description dev[n] entrypoint env features force ha-managed
hookscript hostname ignore-unpack-errors lock memory mp[n] nameserver net[n] onboot ostype password pool protection
restore rootfs searchdomain ssh-public-keys start startup storage swap tags template timezone tty unique unprivileged
unused[n]
"""
"""From qm(1) and pct(1) of Proxmox VE 9."""

WORDS_ALONE = {
    "test_libvirts_schema_accepts_it", "test_cpus_are_as_wanted", "test_disks_are_attached_as_wanted", "test_what_is_booted_first",
    "test_options_of_machines_become_fields", "test_options_of_containers_and_files", "test_parts_are_written_in_a_word",
}  # fmt: skip
"""Tests of how something is said to the command line or to libvirt, not of what comes of it."""

_TEST = re.compile(r"\[[^\]]+\]\(\.\./(tests/[\w/]+\.py)\)::(\w+)")


def _rows() -> list[tuple[str, ...]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    rows = [tuple(cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]) for line in lines]
    return [row for row in rows if row[0] != "Proxmox VE" and set(row[0]) != {"-"}]


ROWS = _rows()


@cache
def _tests_of(file: Path) -> frozenset[str]:
    nodes = ast.walk(ast.parse(file.read_text()))
    return frozenset(node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_each_row_says_how_or_why_not(row: tuple[str, ...]) -> None:
    theirs, ours, state, shown = row
    assert theirs
    if state == "yes":
        assert ours
        tests = _TEST.findall(shown)
        assert tests, "no test shows it"
        for file, name in tests:
            assert (ROOT / file).is_file(), f"{file} does not exist"
            assert name in _tests_of(ROOT / file), f"{file} has no {name}"
        assert {name for _, name in tests} - WORDS_ALONE or "tried up to" in ours, "no test shows what comes of it"
    else:
        assert re.fullmatch(r"no: .{20,}", state), "a reason that a user would accept"
        assert not shown


@pytest.mark.parametrize(("program", "words"), [("qm", QM), ("pct", PCT)])
def test_every_sub_command_has_a_row(program: str, words: str) -> None:
    text = " ".join(row[0] for row in ROWS)
    missing = [word for word in words.split() if not re.search(rf"\b{program} {re.escape(word)}(?![\w-])", text)]
    assert missing == []


@pytest.mark.parametrize(("program", "words"), [("qm", QM_CREATE), ("pct", PCT_CREATE)])
def test_every_option_of_create_has_a_row(program: str, words: str) -> None:
    text = " ".join(row[0] for row in ROWS if row[0].startswith(f"{program} create"))
    missing = [word for word in words.split() if not re.search(rf"--{re.escape(word)}(?![\w[-])", text)]
    assert missing == []
