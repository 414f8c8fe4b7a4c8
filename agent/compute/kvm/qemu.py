"""QEMU's processes: found and told apart without libvirtd, for the kill that must always work.

A process counts as a guest's only if it is a QEMU whose command line names the guest, and which libvirt's own status
file, or our record of its start, or the definition's UUID proves to be ours. Other people's domains are never touched.
Once found it is noted: a QEMU that is dying loses its command line before its last thread, and libvirt its files.
"""

from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from agent.compute.kvm.xml.mark import NAMESPACE
from agent.compute.processes import PROC, ProcessRecord, RecordStore, command_line, is_alive, record_of

LIBVIRT_RUN = Path("/run/libvirt/qemu")
"""Where libvirtd has a domain's pid (NAME.pid) and its status (NAME.xml), which holds its metadata."""


def process_of(
    name: str, records: RecordStore, uid: str = "", running: Mapping[str, Collection[int]] | None = None
) -> ProcessRecord | None:
    """Return the process of a guest, None when it has none. Raises OSError when that cannot be told.

    `running` is what `processes` returned, if it was asked.
    """
    record = records.load(name)
    if record is not None and is_alive(record):
        return record
    candidates = [*_pid_file(name), *(running or {}).get(name, ())]
    for pid in candidates:
        found = record_of(pid)
        arguments = command_line(pid)
        if found is not None and guest_of(arguments) == name and _is_ours(name, arguments, uid):
            records.note(name, found)
            return found
    return None


def processes() -> dict[str, list[int]]:
    """Return the pids of all QEMU processes of this host by the guest that each runs. Raises OSError."""
    found: dict[str, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (name := guest_of(command_line(int(entry.name)))):
            found.setdefault(name, []).append(int(entry.name))
    return found


def guest_of(arguments: list[str]) -> str:
    """Return the guest that a command line runs; "" when it is not a QEMU that libvirt started."""
    if not arguments or "qemu" not in Path(arguments[0]).name or "-name" not in arguments[:-1]:
        return ""
    first = arguments[arguments.index("-name") + 1].split(",")[0]
    return first.removeprefix("guest=") if first.startswith("guest=") else ""


def _pid_file(name: str) -> list[int]:
    with suppress(FileNotFoundError, ValueError):
        return [int((LIBVIRT_RUN / f"{name}.pid").read_text())]
    return []


def _is_ours(name: str, arguments: list[str], uid: str) -> bool:
    if uid and "-uuid" in arguments[:-1] and arguments[arguments.index("-uuid") + 1] == uid:
        return True
    with suppress(FileNotFoundError):
        return NAMESPACE in (LIBVIRT_RUN / f"{name}.xml").read_text(errors="replace")
    return False
