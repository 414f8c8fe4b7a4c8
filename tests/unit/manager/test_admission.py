"""Admission control: what leaves too little room to survive a loss is told, or refused, and names who would find no place."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from gugus.cluster.v1.cluster_pb2 import SPARE_POLICY_REFUSE, SPARE_POLICY_WARN, ClusterSettings, SparePolicy
from gugus.cluster.v1.guest_pb2 import Guest, GuestSpec, HaSpec
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.task_pb2 import Task

from client.sdk import Gugus
from client.tasks import check
from common.errors import GugusError
from manager import damping
from manager.controllers import alarms
from tests.unit.manager.cluster import Cluster, guest_spec
from tests.unit.manager.storage import Storage


class Pair(Cluster):
    """Two nodes that are equally large."""

    @property
    def room(self) -> int:
        """Bytes of memory for guests of the smaller node."""
        nodes = [self.peek(Node, name) or Node() for name in ("n1", "n2")]
        return min(node.status.facts.memory_allocatable_bytes for node in nodes)

    def sized(self, share: float, *, ha: bool = True) -> GuestSpec:
        """Return the spec of a guest that takes a share of a node."""
        spec = guest_spec()
        spec.memory_bytes = int(self.room * share) >> 20 << 20
        spec.ha.enabled = ha
        return spec

    def told(self, reason: str) -> list[str]:
        return [event.message for event in self.events() if event.reason == reason]


async def ask_for(gugus: Gugus, policy: SparePolicy.ValueType) -> None:
    wished = ClusterSettings()
    wished.spare.nodes, wished.spare.policy = 1, policy
    await gugus.cluster.update_settings(wished, ["spare.nodes", "spare.policy"])


async def make(gugus: Gugus, name: str, spec: GuestSpec) -> Task:
    return check(await gugus.tasks.wait(await gugus.guests.create(name, spec)))


@pytest.fixture
async def cluster(tmp_path: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pair]:
    """Two nodes with nothing on them; what lasts for an instant is told."""
    monkeypatch.setattr(alarms, "PERIOD_S", 0.05)
    for name in ("HOLD_S", "RETURN_S", "QUIET_S"):
        monkeypatch.setattr(damping, name, 0.1)
    async with Pair(tmp_path) as pair:
        pair.start_manager()
        await pair.eventually(lambda: pair.peek(Node, "n1"))
        pair.start_agent("n1")
        await pair.online()
        await pair.add_node("n2")
        yield pair


@pytest.fixture
async def pair(cluster: Pair, gugus: Gugus) -> Pair:
    """They have told of the pool that guests are in."""
    await cluster.eventually(lambda: all("shared" in node.status.facts.pools for node in cluster.store.peek_all(Node)))
    return cluster


async def test_warned_of_in_the_task_in_events_and_for_as_long_as_it_lasts(pair: Pair, gugus: Gugus) -> None:
    await ask_for(gugus, SPARE_POLICY_WARN)
    safe = await make(gugus, "a", pair.sized(0.6))
    assert not any("warning" in line.text for line in safe.log)
    task = await make(gugus, "b", pair.sized(0.6))
    (warning,) = [line.text for line in task.log if "warning" in line.text]
    assert "if n1 were lost" in warning
    assert "if n2 were lost" in warning
    assert "b: too little room" in pair.told("SPARE_ROOM_SHORT")[0]
    (finding,) = [f for f in (await gugus.cluster.status()).findings if f.reason == "SPARE_ROOM_SHORT"]
    assert "if n1 were lost" in finding.sentence
    assert "if n2 were lost" in finding.sentence
    assert "spare.nodes=0" in finding.remedy
    await pair.eventually(lambda: any("settings ask for" in text for text in pair.told("SPARE_ROOM_SHORT")[1:]))
    await ask_for(gugus, SPARE_POLICY_REFUSE)  # what is so already, and what takes no more, is no reason to refuse
    await gugus.guests.set_ha("a", HaSpec(enabled=True, priority=5))
    spec = (await gugus.guests.get("b")).spec
    spec.memory_bytes = pair.sized(0.55).memory_bytes
    check(await gugus.tasks.wait(await gugus.guests.update("b", spec)))
    check(await gugus.tasks.wait(await gugus.guests.delete("b", force=True)))
    await pair.eventually(lambda: pair.told("SPARE_ROOM_SHORT_ENDED"))
    assert not [f for f in (await gugus.cluster.status()).findings if f.reason == "SPARE_ROOM_SHORT"]


async def test_what_is_new_larger_or_put_under_ha_is_refused_and_named(pair: Pair, gugus: Gugus) -> None:
    await ask_for(gugus, SPARE_POLICY_REFUSE)
    await make(gugus, "a", pair.sized(0.6))
    with pytest.raises(GugusError, match="would find no place") as raised:
        await gugus.guests.create("b", pair.sized(0.6))
    assert raised.value.reason == "SPARE_ROOM"
    assert "the loss of any node" in raised.value.message
    assert "spare.policy=warn" in raised.value.remedy
    with pytest.raises(GugusError, match="a would find no place"):  # it takes the room that is kept for another
        await gugus.guests.create("b", pair.sized(0.6, ha=False))
    await make(gugus, "b", pair.sized(0.3))
    spec = (await gugus.guests.get("b")).spec
    spec.memory_bytes = pair.sized(0.45).memory_bytes
    with pytest.raises(GugusError, match="too little room"):
        await gugus.guests.update("b", spec)
    await ask_for(gugus, SPARE_POLICY_WARN)
    await make(gugus, "c", pair.sized(0.2, ha=False))
    await ask_for(gugus, SPARE_POLICY_REFUSE)
    with pytest.raises(GugusError) as raised:
        await gugus.guests.set_ha("c", HaSpec(enabled=True))
    assert raised.value.reason == "SPARE_ROOM"
    assert not (await gugus.guests.get("c")).spec.ha.enabled
    check(await gugus.tasks.wait(await gugus.guests.stop("c")))
    check(await gugus.tasks.wait(await gugus.guests.start("c")))  # its room was its own all along


async def test_many_at_once_do_not_slip_in(pair: Pair, gugus: Gugus) -> None:
    await ask_for(gugus, SPARE_POLICY_REFUSE)
    refused, tasks = list[GugusError](), list[Task]()
    for name in ("a", "b", "c", "d", "e"):
        try:
            tasks.append(await gugus.guests.create(name, pair.sized(0.3)))
        except GugusError as error:
            refused.append(error)
    assert len(tasks) == 3
    assert {error.reason for error in refused} == {"SPARE_ROOM"}
    for task in tasks:
        check(await gugus.tasks.wait(task))


async def test_a_node_leaves_only_by_force_but_for_maintenance(pair: Pair, gugus: Gugus) -> None:
    await ask_for(gugus, SPARE_POLICY_REFUSE)
    await make(gugus, "a", pair.sized(0.4))
    check(await gugus.tasks.wait(await gugus.guests.stop("a")))  # simulated guests cannot move while they run
    (there,) = {guest.status.node for guest in pair.store.peek_all(Guest)}
    with pytest.raises(GugusError, match="a would find no place") as raised:
        await gugus.nodes.drain(there)
    assert raised.value.reason == "SPARE_ROOM"
    assert "--force" in raised.value.remedy
    assert not (await gugus.nodes.get(there)).spec.cordoned
    on = check(await gugus.tasks.wait(await gugus.nodes.drain(there, maintenance=True)))
    assert "warning" in on.log[0].text
    check(await gugus.tasks.wait(await gugus.nodes.restore(there, leave=True)))
    await gugus.nodes.drain(there, force=True)
    assert (await gugus.nodes.get(there)).spec.cordoned


async def test_a_node_that_keeps_room_is_taken_before_a_better_one(pair: Pair, gugus: Gugus) -> None:
    await pair.add_node("n3")
    await pair.eventually(lambda: "shared" in (pair.peek(Node, "n3") or Node()).status.facts.pools)
    await ask_for(gugus, SPARE_POLICY_REFUSE)
    for name, share, wish in (("a", 0.7, "n1"), ("b", 0.35, "n2"), ("c", 0.4, "n3")):
        spec = pair.sized(share)
        spec.preferred_node = wish
        await make(gugus, name, spec)
    assert [(await gugus.guests.get(name)).status.node for name in ("a", "b", "c")] == ["n1", "n2", "n2"]
    decided = (await gugus.guests.explain("c")).decided
    assert decided.node == "n2"
    assert decided.reason == "n2 is taken although n3 scores better: there, if n1 were lost, a would find no place."
    assert decided.verdicts[0].node == "n3"
    assert not [f for f in (await gugus.cluster.status()).findings if f.reason == "SPARE_ROOM_SHORT"]
