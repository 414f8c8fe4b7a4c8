"""QMP through libvirt: commands that libvirt has no word for, and the names that QEMU gives to a domain's disks.

All of it blocks and runs in libvirt's call pool. See https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html.
"""

import json
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import libvirt_qemu

from common.errors import GugusError, internal, resource_exhausted

FAILED = "QMP_FAILED"
"""Reason of what QEMU answered with an error of its own."""

JOB_POLL_S = 0.02
"""While QEMU saves or loads memory its monitor does not answer, so the second look finds the job ended as a rule."""

_NO_SPACE = ("No space left on device", "Disk quota exceeded")


def command(domain: Any, name: str, /, **arguments: object) -> Any:
    """Give QEMU a command and return what it answers. Underscores in arguments stand for dashes.

    Raises GugusError QMP_FAILED or NO_SPACE with QEMU's words, and libvirtError.
    """
    request = {"execute": name, "arguments": {key.replace("_", "-"): value for key, value in arguments.items()}}
    answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain, json.dumps(request), 0))
    if "error" in answer:
        raise failed(name, answer["error"].get("desc", ""))
    return answer["return"]


def run_job(domain: Any, name: str, job_id: str, /, **arguments: object) -> float:
    """Run one of the commands that make a job, to the job's end; return the seconds it took.

    A job of this id that an earlier caller left is followed to its end instead. Raises as `command`.
    """
    began_s = time.monotonic()
    if _job(domain, job_id) is None:
        command(domain, name, job_id=job_id, **arguments)
    while (job := _job(domain, job_id)) is not None and job["status"] != "concluded":
        time.sleep(JOB_POLL_S)
    took_s = time.monotonic() - began_s
    if job is None:
        raise failed(name, "its job vanished")
    command(domain, "job-dismiss", id=job_id)
    if error := job.get("error", ""):
        raise failed(name, error)
    return took_s


def nodes(domain: Any, files: Sequence[Path]) -> list[str]:
    """Return QEMU's block nodes of a domain's disks, by their files. Raises GugusError DISK_NOT_ATTACHED, libvirtError."""
    aliases = dict[str, str]()
    for disk in ET.fromstring(domain.XMLDesc(0)).iterfind("devices/disk"):  # noqa: S314  (libvirt's own output)
        source, alias = disk.find("source"), disk.find("alias")
        if source is not None and alias is not None:
            aliases[source.get("file") or source.get("dev") or ""] = alias.get("name", "")
    roots = dict[str, str]()
    for device in command(domain, "query-block"):
        for part in filter(None, device.get("qdev", "").split("/")):
            roots[part] = device.get("inserted", {}).get("node-name", "")
    found = [roots.get(aliases.get(str(file), ""), "") for file in files]
    if missing := [str(file) for file, node in zip(files, found, strict=True) if not node]:
        raise internal("DISK_NOT_ATTACHED", f"the running guest does not use {', '.join(missing)}.")
    return found


def snapshots(domain: Any, wanted: Sequence[str]) -> list[Mapping[str, int]]:
    """Return what internal snapshots block nodes have: name to the size of the memory in it, in bytes."""
    known = {
        node["node-name"]: {s["name"]: int(s["vm-state-size"]) for s in node["image"].get("snapshots", ())}
        for node in command(domain, "query-named-block-nodes", flat=True)
    }
    return [known.get(node, {}) for node in wanted]


def failed(what: str, why: str) -> GugusError:
    """Return the error for a command that QEMU refused."""
    if any(text in why for text in _NO_SPACE):
        return resource_exhausted("NO_SPACE", f"QEMU, {what}: {why}.", remedy="Make room in the pool, then try again.")
    return internal(FAILED, f"QEMU, {what}: {why.rstrip('.') or 'no reason given'}.")


def _job(domain: Any, job_id: str) -> Mapping[str, Any] | None:
    return next((job for job in command(domain, "query-jobs") if job["id"] == job_id), None)
