"""Snapshots of virtual machines: what is said to QEMU through libvirt, and what is made of its answers."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import libvirt_qemu
import pytest

from agent.compute.kvm import qmp
from agent.compute.kvm.domains import not_running
from agent.compute.kvm.snapshots import KvmSnapshots, renewed, settled
from agent.compute.kvm.xml.mark import NAMESPACE, Mark, element, read_mark
from agent.compute.kvm.xml.run import to_text
from common.errors import GugusError

A, B = Path("/pool/a.qcow2"), Path("/pool/b.qcow2")
DISKS = """<domain><devices>
<disk type='file'><source file='/pool/a.qcow2'/><backingStore type='file'/><alias name='ua-disk-root'/></disk>
<disk type='file'><source file='/pool/b.qcow2'/><alias name='ua-disk-data'/></disk>
<disk type='file'><alias name='ua-cd-cd0'/></disk>
</devices></domain>"""


class Machine:
    """A domain whose QEMU answers like the real one, with two disks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.kept: dict[str, dict[str, int]] = {"node-a": {}, "node-b": {}}
        self.jobs: list[dict[str, Any]] = []
        self.errors: dict[str, str] = {}
        self.job_error = ""
        self.status = "running"
        monkeypatch.setattr(libvirt_qemu, "qemuMonitorCommand", lambda _, text, __: self._answer(json.loads(text)))

    def XMLDesc(self, flags: int) -> str:
        return DISKS

    def resume(self) -> None:
        self.asked.append(("resume", {}))
        self.status = "running"

    def setTime(self, time: object = None, flags: int = 0) -> None:
        assert time is None, "libvirt's binding takes no empty time"
        self.asked.append(("set-time", {}))

    def said(self, name: str) -> list[dict[str, Any]]:
        return [arguments for asked, arguments in self.asked if asked == name]

    def _answer(self, request: dict[str, Any]) -> str:
        name, arguments = request["execute"], request["arguments"]
        self.asked.append((name, arguments))
        if name in self.errors:
            return json.dumps({"error": {"class": "GenericError", "desc": self.errors[name]}})
        act: Callable[..., Any] = getattr(self, "_" + name.replace("-", "_"), lambda **_: {})
        return json.dumps({"return": act(**{key.replace("-", "_"): value for key, value in arguments.items()})})

    def _query_status(self) -> Any:
        return {"status": self.status}

    def _query_block(self) -> Any:
        return [
            {"qdev": "/machine/peripheral/ua-disk-root/virtio-backend", "inserted": {"node-name": "node-a"}},
            {"qdev": "ua-disk-data", "inserted": {"node-name": "node-b"}},
            {"qdev": "ua-cd-cd0"},
        ]

    def _query_named_block_nodes(self, flat: bool) -> Any:
        return [
            {"node-name": node, "image": {"snapshots": [{"name": n, "vm-state-size": s} for n, s in kept.items()]}}
            for node, kept in self.kept.items()
        ] + [{"node-name": "base", "image": {}}]

    def _transaction(self, actions: Any) -> Any:
        for action in actions:
            self.kept[action["data"]["device"]][action["data"]["name"]] = 0
        return {}

    def _blockdev_snapshot_delete_internal_sync(self, device: str, name: str) -> Any:
        del self.kept[device][name]
        return {}

    def _snapshot_save(self, job_id: str, tag: str, vmstate: str, devices: Any) -> Any:
        for node in devices:
            self.kept[node][tag] = 4096 if node == vmstate else 0
        self.jobs = [{"id": job_id, "status": "concluded", **({"error": self.job_error} if self.job_error else {})}]
        return {}

    def _snapshot_load(self, job_id: str, tag: str, vmstate: str, devices: Any) -> Any:
        self.jobs = [{"id": job_id, "status": "concluded", **({"error": self.job_error} if self.job_error else {})}]
        return {}

    def _query_jobs(self) -> Any:
        return self.jobs

    def _job_dismiss(self, id: str) -> Any:
        self.jobs = []
        return {}


class Driver:
    """What the driver offers; runs the one machine, or none."""

    def __init__(self, machine: Machine, *, runs: bool = True) -> None:
        self.machine, self.runs = machine, runs
        self.xml = ""
        self.done: list[str] = []

    async def require(self, name: str, act: Callable[[Any], Any], **limits: float) -> Any:
        if not self.runs:
            raise not_running(name)
        return act(self.machine)

    async def run_domain(self, name: str, xml: str, generation: int, *, paused: bool = False) -> None:
        assert paused
        self.done.append("run")
        self.xml, self.runs, self.machine.status = xml, True, "prelaunch"

    async def kill(self, name: str) -> None:
        self.done.append("kill")
        self.runs = False

    async def mode(self) -> str:
        return "tcg"

    async def revert(self) -> None:
        assert not self.runs, "the disks of a machine that runs are never reverted"
        self.done.append("revert")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def driver(machine: Machine) -> Driver:
    return Driver(machine)


@pytest.fixture
def snapshots(driver: Driver) -> KvmSnapshots:
    return KvmSnapshots(cast(Any, driver), driver)


def kept_machine(generation: int = 3) -> str:
    metadata = to_text(element(Mark("u1", generation, "kvm")))
    return f"<domain type='qemu'><metadata>{metadata}</metadata><devices/></domain>"


async def pack(snapshots: KvmSnapshots, monkeypatch: pytest.MonkeyPatch, machine: Machine) -> bytes:
    monkeypatch.setattr(machine, "XMLDesc", lambda flags: kept_machine())
    packed = await snapshots.machine("web")
    monkeypatch.setattr(machine, "XMLDesc", lambda flags: DISKS)
    return packed


def test_disks_are_known_by_their_files_whatever_their_bus(machine: Machine) -> None:
    assert qmp.nodes(machine, [B, A]) == ["node-b", "node-a"]
    with pytest.raises(GugusError) as caught:
        qmp.nodes(machine, [A, Path("/pool/c.qcow2")])
    assert caught.value.reason == "DISK_NOT_ATTACHED"


async def test_disks_are_taken_in_one_transaction(snapshots: KvmSnapshots, machine: Machine) -> None:
    assert (await snapshots.take("web", "t", [A, B], memory=False)).memory_bytes == 0
    (transaction,) = machine.said("transaction")
    assert [action["data"] for action in transaction["actions"]] == [
        {"device": "node-a", "name": "t"},
        {"device": "node-b", "name": "t"},
    ]


async def test_memory_goes_into_the_first_disk(snapshots: KvmSnapshots, machine: Machine) -> None:
    taken = await snapshots.take("web", "t", [A, B], memory=True)
    assert taken.memory_bytes == 4096
    assert machine.said("snapshot-save") == [
        {"job-id": "save-t", "tag": "t", "vmstate": "node-a", "devices": ["node-a", "node-b"]}
    ]
    assert not machine.jobs


async def test_whole_snapshot_is_left_alone_and_a_part_of_one_is_taken_anew(
    snapshots: KvmSnapshots, machine: Machine
) -> None:
    machine.kept = {"node-a": {"t": 0}, "node-b": {"t": 0}}
    await snapshots.take("web", "t", [A, B], memory=False)
    assert not machine.said("transaction")
    machine.kept = {"node-a": {}, "node-b": {"t": 0}}
    await snapshots.take("web", "t", [A, B], memory=False)
    assert machine.said("blockdev-snapshot-delete-internal-sync") == [{"device": "node-b", "name": "t"}]
    assert len(machine.said("transaction")) == 1


async def test_save_that_an_earlier_agent_began_is_followed_to_its_end(
    snapshots: KvmSnapshots, machine: Machine
) -> None:
    machine.jobs = [{"id": "save-t", "status": "concluded"}]
    await snapshots.take("web", "t", [A, B], memory=True)
    assert not machine.said("snapshot-save")
    assert machine.said("job-dismiss") == [{"id": "save-t"}]


@pytest.mark.parametrize(
    ("words", "reason"), [("Error while writing: No space left on device", "NO_SPACE"), ("Bad day", "SNAPSHOT_FAILED")]
)
async def test_failed_save_leaves_nothing_and_says_why(
    snapshots: KvmSnapshots, machine: Machine, words: str, reason: str
) -> None:
    machine.job_error = words
    with pytest.raises(GugusError) as caught:
        await snapshots.take("web", "t", [A, B], memory=True)
    assert caught.value.reason == reason
    assert words in caught.value.message
    assert machine.kept == {"node-a": {}, "node-b": {}}


async def test_snapshot_is_deleted_from_the_disks_that_have_it(snapshots: KvmSnapshots, machine: Machine) -> None:
    machine.kept = {"node-a": {"s": 0}, "node-b": {"t": 0, "s": 0}}
    await snapshots.delete("web", "t", [A, B])
    assert machine.kept == {"node-a": {"s": 0}, "node-b": {"s": 0}}
    machine.errors["blockdev-snapshot-delete-internal-sync"] = "no"
    with pytest.raises(GugusError) as caught:
        await snapshots.delete("web", "s", [A, B])
    assert caught.value.reason == "SNAPSHOT_FAILED"


async def test_what_keeps_qemu_from_being_saved_is_told(
    snapshots: KvmSnapshots, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_query_migrate", lambda: {"blocked-reasons": ["VFIO device."]}, raising=False)
    assert await snapshots.memory_obstacles("web") == ["VFIO device"]


async def test_machine_starts_with_its_memory_under_the_new_grant(
    snapshots: KvmSnapshots, driver: Driver, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = await pack(snapshots, monkeypatch, machine)
    driver.runs = False
    await snapshots.start_from("web", 9, "t", [A, B], packed, driver.revert)
    assert driver.done == ["revert", "run"]
    found = ET.fromstring(driver.xml).find(f"metadata/{{{NAMESPACE}}}guest")
    assert found is not None
    mark = read_mark(to_text(found))
    assert (mark.uid, mark.generation, mark.mode) == ("u1", 9, "tcg")
    assert [name for name, _ in machine.asked if name in ("snapshot-load", "resume", "set-time")] == [
        "snapshot-load",
        "resume",
        "set-time",
    ]


async def test_machine_that_runs_already_is_left_alone_and_one_half_started_begins_anew(
    snapshots: KvmSnapshots, driver: Driver, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = await pack(snapshots, monkeypatch, machine)
    await snapshots.start_from("web", 9, "t", [A, B], packed, driver.revert)
    assert not driver.done
    machine.status = "paused"  # by somebody, later
    await snapshots.start_from("web", 9, "t", [A, B], packed, driver.revert)
    assert not driver.done
    machine.status = "prelaunch"
    await snapshots.start_from("web", 9, "t", [A, B], packed, driver.revert)
    assert driver.done == ["kill", "revert", "run"]


async def test_machine_whose_memory_does_not_load_does_not_run(
    snapshots: KvmSnapshots, driver: Driver, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = await pack(snapshots, monkeypatch, machine)
    driver.runs, machine.job_error = False, "section footer mismatch"
    with pytest.raises(GugusError) as caught:
        await snapshots.start_from("web", 9, "t", [A, B], packed, driver.revert)
    assert caught.value.reason == "SNAPSHOT_FAILED"
    assert driver.done == ["revert", "run", "kill"]
    assert not machine.said("resume")


async def test_damaged_machine_starts_nothing(snapshots: KvmSnapshots, driver: Driver) -> None:
    driver.runs = False
    with pytest.raises(GugusError) as caught:
        await snapshots.start_from("web", 9, "t", [A, B], b"not zlib", driver.revert)
    assert caught.value.reason == "SNAPSHOT_FAILED"
    assert not driver.done


def test_what_libvirt_found_is_not_kept() -> None:
    assert "backingStore" not in settled(DISKS)
    assert "ua-disk-root" in settled(DISKS)
    with pytest.raises(GugusError):
        renewed("<domain/>", 1, "tcg")
