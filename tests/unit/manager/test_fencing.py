"""Fence devices on a whole cluster in one process: real managers and agents, real programs that cut the power of files."""

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from gugus.agent.v1.task_pb2 import TASK_STATE_SUCCEEDED
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, Guest
from gugus.cluster.v1.node_pb2 import (
    FENCE_AFTER_OFF,
    NODE_STATE_FENCED,
    NODE_STATE_ONLINE,
    NODE_STATE_SUSPECT,
    FenceDevice,
    FenceSecrets,
    Node,
    NodeState,
)
from gugus.cluster.v1.task_pb2 import Task

from client.sdk import Gugus
from client.tasks import check
from common.config import ManagerConfig
from common.errors import GugusError
from common.leases import DEFAULT_NODE_LEASE_MS, NS_PER_MS
from manager.services.event import HIDDEN
from tests.unit.manager.cluster import Cluster, guest_spec
from tests.unit.manager.power import AGENT, Power
from tests.unit.manager.storage import Storage

NOWHERE = "224.0.0.1"
"""An address that no connection can be made to on any machine: it is a group (RFC 5771)."""

SECRET = "open sesame"


class Powered(Cluster):
    """A cluster with a switchboard."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.power = Power(folder / "agents", "n1", "n2")

    def manager_config(self, name: str) -> ManagerConfig:
        return dataclasses.replace(super().manager_config(name), fence_agents_dir=self.power.folder)

    def node(self, name: str = "n2") -> Node:
        node = self.peek(Node, name)
        assert node is not None
        return node

    def is_in(self, state: NodeState.ValueType) -> bool:
        """Whether n2 is in a state."""
        return bool(self.acting) and self.node().status.state == state

    def told(self, reason: str) -> list[str]:
        """Return what events of a reason say."""
        return [event.message for event in self.events() if event.reason == reason] if self.acting else []

    async def guest_on_n2(self, gugus: Gugus) -> None:
        """Have a guest under HA run on n2."""
        spec = guest_spec()
        spec.ha.enabled = True
        await gugus.nodes.cordon("n1")
        check(await gugus.tasks.wait(await gugus.guests.create("web", spec)))
        await self.eventually(lambda: self.guest().status.phase == GUEST_PHASE_RUNNING)
        await gugus.nodes.cordon("n1", False)
        assert self.guest().status.node == "n2"

    def guest(self) -> Guest:
        guest = self.peek(Guest, "web")
        assert guest is not None
        return guest

    def runs_on_n1(self) -> bool:
        """Whether the guest was started on n1."""
        return (
            bool(self.acting) and self.guest().status.node == "n1" and self.guest().status.phase == GUEST_PHASE_RUNNING
        )

    async def silence(self, *, reached: bool = False) -> None:
        """Let n2 not speak any more and, unless it is to be, not be reached either."""

        def nowhere(node: Node) -> Node:
            node.spec.address = NOWHERE
            return node

        if not reached:
            await self.store.update(Node, "n2", nowhere)
        await self.stop_agent("n2")


@pytest.fixture
async def cluster(tmp_path: Path, storage: Storage) -> AsyncIterator[Powered]:
    async with Powered(tmp_path) as cluster:
        cluster.start_manager()
        await cluster.eventually(lambda: cluster.peek(Node, "n1"))
        cluster.start_agent("n1")
        await cluster.online()
        await cluster.add_node("n2")
        yield cluster


def device() -> FenceDevice:
    return FenceDevice(name="ipmi", agent=AGENT, parameters={"plug": "n2"}, timeout_s=2)


def pdu() -> FenceDevice:
    return FenceDevice(name="pdu", agent=AGENT, parameters={"plug": "pdu"}, level=2, timeout_s=2)


async def test_silent_host_is_fenced_by_its_device_long_before_its_lease_ends(cluster: Powered, gugus: Gugus) -> None:
    await cluster.guest_on_n2(gugus)
    await gugus.nodes.set_fence_device("n2", device(), {"password": SECRET})
    await cluster.silence()
    heard_ns = cluster._context.beats.of("n2").heard_ns or 0
    await cluster.eventually(cluster.runs_on_n1)
    assert cluster._context.acting.now_ns() - heard_ns < DEFAULT_NODE_LEASE_MS * NS_PER_MS
    assert any("read back from ipmi" in text for text in cluster.told("NODE_FENCED"))
    await cluster.eventually(lambda: cluster.told("FENCE_POWER_ON"))
    assert cluster.power.actions("n2") == ["off", "status", "on"]
    assert cluster.power.of("n2") == "on"
    assert not cluster.node().status.fence.fired
    assert all(line.endswith("[]") for line in cluster.power.log()), "parameters are no arguments"


async def test_host_that_another_reaches_keeps_its_power_and_its_lease_decides(cluster: Powered, gugus: Gugus) -> None:
    await cluster.guest_on_n2(gugus)
    await gugus.nodes.set_fence_device("n2", device())
    await cluster.silence(reached=True)
    await cluster.eventually(cluster.runs_on_n1)
    assert cluster.power.log() == []
    assert any("n1 reached it, so it has power" in text for text in cluster.told("NODE_FENCING"))
    assert any("lease, kill budget and margin" in text for text in cluster.told("NODE_FENCED"))


async def test_device_that_lies_about_off_or_hangs_is_no_proof_and_the_next_level_is_tried(
    cluster: Powered, gugus: Gugus
) -> None:
    await cluster.guest_on_n2(gugus)
    cluster.power.switch("pdu", "on")
    cluster.power.mood("n2", "idles")
    await gugus.nodes.set_fence_device("n2", device())
    await gugus.nodes.set_fence_device("n2", pdu())
    await cluster.silence()
    await cluster.eventually(cluster.runs_on_n1)
    assert any("ipmi: status says that the power is on" in text for text in cluster.told("FENCE_DEVICE_FAILED"))
    assert any("read back from pdu" in text for text in cluster.told("NODE_FENCED"))


async def test_devices_that_fail_leave_it_to_the_lease_and_keep_their_secrets(cluster: Powered, gugus: Gugus) -> None:
    await cluster.guest_on_n2(gugus)
    cluster.power.mood("n2", "fails")
    await gugus.nodes.set_fence_device("n2", device(), {"password": SECRET})
    await cluster.silence()
    await cluster.eventually(cluster.runs_on_n1)
    failures = cluster.told("FENCE_DEVICE_FAILED")
    assert any("no route to host" in text for text in failures)
    assert all(SECRET not in event.message for event in cluster.events())
    assert any("lease, kill budget and margin" in text for text in cluster.told("NODE_FENCED"))


async def test_power_that_was_cut_is_given_back_by_the_next_manager(cluster: Powered, gugus: Gugus) -> None:
    await cluster.guest_on_n2(gugus)
    await gugus.nodes.set_fence_device("n2", device())
    await cluster.silence()
    await cluster.eventually(lambda: "off" in cluster.power.actions("n2"))
    cluster.power.mood("n2", "hangs")
    await cluster.eventually(lambda: cluster.is_in(NODE_STATE_FENCED) or len(cluster.power.actions("n2")) > 1)
    await cluster.stop_manager()
    cluster.power.mood("n2", "")
    cluster.start_manager()
    await cluster.eventually(lambda: cluster.told("FENCE_POWER_ON"))
    assert cluster.power.of("n2") == "on"


async def test_healthy_node_is_fenced_on_request_and_comes_back(cluster: Powered, gugus: Gugus) -> None:
    await cluster.guest_on_n2(gugus)
    await gugus.nodes.set_fence_device("n2", device())
    task = await gugus.nodes.fence("n2", request_id="once")
    assert (await gugus.nodes.fence("n2", request_id="once")).meta.name == task.meta.name
    assert (await gugus.nodes.fence("n2")).meta.name == task.meta.name, "it is being fenced already"
    done = check(await gugus.tasks.wait(task))
    assert done.state == TASK_STATE_SUCCEEDED
    assert any(line.text.startswith("proven: ") for line in done.log)
    assert cluster.power.actions("n2")[:2] == ["off", "status"]
    await cluster.eventually(lambda: cluster.is_in(NODE_STATE_ONLINE))
    await cluster.eventually(lambda: cluster.guest().status.phase == GUEST_PHASE_RUNNING)
    assert cluster.guest().status.recoveries == 1
    assert not cluster.node().status.fence.ByteSize()
    assert [message for message in cluster.told("NODE_FENCE_ASKED") if "operator" in message]


async def test_node_without_devices_is_fenced_on_request_by_its_own_word(cluster: Powered, gugus: Gugus) -> None:
    await cluster.guest_on_n2(gugus)
    check(await gugus.tasks.wait(await gugus.nodes.fence("n2")))
    assert any("all HA guests there are dead" in text for text in cluster.told("NODE_FENCED"))
    await cluster.eventually(lambda: cluster.is_in(NODE_STATE_ONLINE))


async def test_host_stays_off_where_that_is_wanted(cluster: Powered, gugus: Gugus) -> None:
    await gugus.nodes.set_fence_device("n2", device())
    await cluster.silence()
    check(await gugus.tasks.wait(await gugus.nodes.fence("n2", after=FENCE_AFTER_OFF)))
    await cluster.beats(3, "n1")
    assert cluster.power.actions("n2") == ["off", "status"]
    with pytest.raises(GugusError, match="fenced already") as refused:
        await gugus.nodes.fence("n2")
    assert refused.value.reason == "NODE_FENCED"


async def test_word_of_a_person_counts_only_for_a_silent_host_and_the_boot_they_saw(
    cluster: Powered, gugus: Gugus
) -> None:
    await cluster.guest_on_n2(gugus)
    seen = await gugus.nodes.get("n2")
    await refused(gugus, seen, "n3", "INVALID_ARGUMENT")
    await refused(gugus, seen, "n2", "NODE_IS_HEARD")
    await cluster.silence()
    await cluster.eventually(lambda: cluster.is_in(NODE_STATE_SUSPECT))
    before = Node()
    before.CopyFrom(seen)
    before.status.boot_id = "another"
    await refused(gugus, before, "n2", "NODE_CHANGED")
    await gugus.nodes.confirm_off(seen, "n2")
    await cluster.eventually(lambda: cluster.is_in(NODE_STATE_FENCED))
    assert any("operator" in text and "confirmed that it is off" in text for text in cluster.told("NODE_FENCED"))
    assert cluster.told("NODE_OFF_CONFIRMED")
    await cluster.eventually(cluster.runs_on_n1)
    again = await gugus.nodes.confirm_off(seen, "n2")
    assert again.status.state == NODE_STATE_FENCED, "it may be repeated"


async def refused(gugus: Gugus, node: Node, typed: str, reason: str) -> None:
    with pytest.raises(GugusError) as error:
        await gugus.nodes.confirm_off(node, typed)
    assert error.value.reason == reason


async def test_parameters_are_checked_against_the_program_all_at_once(cluster: Powered, gugus: Gugus) -> None:
    wrong = FenceDevice(
        name="ipmi",
        agent=AGENT,
        parameters={"prot": "1", "ipport": "x", "password": SECRET, "debug_file": "/etc/shadow", "port": "n2"},
    )
    with pytest.raises(GugusError) as error:
        await gugus.nodes.set_fence_device("n2", wrong)
    found = {violation.field: violation.message for violation in error.value.violations}
    assert "did you mean ipport" in found["parameters.prot"] or "no parameter" in found["parameters.prot"]
    assert "no number" in found["parameters.ipport"]
    assert "is a secret" in found["parameters.password"]
    assert "not allowed" in found["parameters.debug_file"]
    assert "use plug" in found["parameters.port"]
    assert "is missing" in found["parameters.plug"]
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    ("agent", "reason"),
    [("fence_nothing", "FENCE_AGENT_MISSING"), ("fence_scsi", "INVALID_ARGUMENT"), ("../bin/sh", "INVALID_ARGUMENT")],
)
async def test_programs_that_cannot_cut_power_are_refused(
    cluster: Powered, gugus: Gugus, agent: str, reason: str
) -> None:
    with pytest.raises(GugusError) as error:
        await gugus.nodes.set_fence_device("n2", FenceDevice(name="ipmi", agent=agent))
    assert error.value.reason == reason


async def test_secrets_never_leave_the_managers_and_go_with_their_device(cluster: Powered, gugus: Gugus) -> None:
    answer = await gugus.nodes.set_fence_device("n2", device(), {"password": SECRET})
    assert list(answer.spec.fence.devices[0].secret_names) == ["password"]
    seen = [answer, await gugus.nodes.get("n2"), *await gugus.nodes.list()]
    assert all(SECRET not in str(message) for message in seen)
    assert "fence_secrets" in HIDDEN
    stored = cluster.peek(FenceSecrets, "n2")
    assert stored is not None
    assert stored.devices["ipmi"].parameters["password"] == SECRET
    await gugus.nodes.remove_fence_device("n2", "ipmi")
    stored = cluster.peek(FenceSecrets, "n2")
    assert stored is not None
    assert not stored.devices
    assert not (await gugus.nodes.remove_fence_device("n2", "ipmi")).spec.fence.devices


async def test_test_of_devices_switches_nothing_and_finds_what_is_wrong(cluster: Powered, gugus: Gugus) -> None:
    with pytest.raises(GugusError, match="has no fence devices"):
        await gugus.nodes.test_fence("n2")
    await gugus.nodes.set_fence_device("n2", device())
    await gugus.nodes.set_fence_device("n2", pdu())
    cluster.power.switch("pdu", "off")
    answer = await gugus.nodes.test_fence("n2")
    first, second = answer.devices
    assert (first.ok, first.power, first.level) == (True, "on", 1)
    assert not second.ok
    assert "switches another host" in second.problem
    assert answer.asked_from == "n1"
    cluster.power.mood("n2", "hangs")
    assert "did not answer within 2 s" in (await gugus.nodes.test_fence("n2", "ipmi")).devices[0].problem
    assert set(cluster.power.actions("n2") + cluster.power.actions("pdu")) == {"status"}


async def test_task_of_a_node_that_is_removed_meanwhile_ends(cluster: Powered, gugus: Gugus) -> None:
    await cluster.silence()
    task = await gugus.nodes.fence("n2")
    check(await gugus.tasks.wait(task))
    await gugus.nodes.remove("n2")
    assert cluster.peek(Task, task.meta.name)
