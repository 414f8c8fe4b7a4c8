"""What was decided from a state that is over reaches no node, however long the way between the decision and the call is."""

import pytest
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RECOVERING, GUEST_PHASE_RUNNING, Guest
from gugus.cluster.v1.node_pb2 import NODE_STATE_FENCED, Node

from client.sdk import Gugus
from common.errors import GugusError
from manager.controllers.guest_retries import Retries
from manager.controllers.guest_steps import GuestSteps
from manager.controllers.guest_tasks import GuestTasks
from manager.store import Conflict
from tests.unit.manager.cluster import Cluster, guest_spec
from tests.unit.manager.hypervisor import Hypervisor


def given_anew(guest: Guest) -> Guest:
    """What recovery does, in one step."""
    guest.meta.generation += 1
    return guest


async def test_a_start_decided_before_the_guest_was_given_anew_is_not_sent(
    cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node answers the definition late; meanwhile the guest is recovered, and the start that was to follow is void."""
    define, grants = GuestSteps._define, list[int]()
    start = hypervisor.start

    async def slowly(self: GuestSteps, guest: Guest, node: Node) -> object:
        answer = await define(self, guest, node)
        if guest.meta.generation == 1:
            await cluster.store.update(Guest, "web", given_anew)
        return answer

    async def noted(name: str, generation: int) -> None:
        grants.append(generation)
        await start(name, generation)

    monkeypatch.setattr(GuestSteps, "_define", slowly)
    monkeypatch.setattr(hypervisor, "start", noted)
    await gugus.guests.create("web", guest_spec())
    await cluster.eventually(lambda: (g := cluster.peek(Guest, "web")) and g.status.phase == GUEST_PHASE_RUNNING)
    assert grants == [2]


@pytest.mark.parametrize("what", ["given anew", "recovering", "being deleted", "gone"])
async def test_a_command_about_a_guest_is_void_once_the_guest_is(cluster: Cluster, gugus: Gugus, what: str) -> None:
    manager = cluster.managers["n1"]
    assert manager._work is not None
    steps = GuestSteps(manager._context, GuestTasks(cluster.store), Retries())
    await gugus.guests.create("web", guest_spec())
    await cluster.eventually(lambda: (g := cluster.peek(Guest, "web")) and g.status.phase == GUEST_PHASE_RUNNING)
    decided, node = cluster.peek(Guest, "web"), cluster.peek(Node, "n1")
    assert decided is not None
    assert node is not None
    match what:
        case "given anew":
            decided.meta.generation -= 1
        case "recovering":
            decided.status.phase = GUEST_PHASE_RECOVERING
        case "being deleted":
            decided.meta.deleting = True
        case _:
            decided.meta.uid = "another"

    async def never(*_: object) -> None:
        raise AssertionError("the node was called")

    with pytest.raises(Conflict):
        await steps.tell(decided, node, never)


async def test_a_command_to_a_node_looks_at_the_node_as_it_is_now(cluster: Cluster) -> None:
    context = cluster.managers["n1"]._context
    before = cluster.peek(Node, "n1")
    assert before is not None
    lost = cluster.peek(Node, "n1")
    assert lost is not None
    lost.status.state = NODE_STATE_FENCED
    peek = context.store.peek

    async def never(*_: object) -> None:
        raise AssertionError("the node was called")

    context.store.peek = lambda kind, name: lost if kind is Node else peek(kind, name)  # type: ignore[method-assign,assignment,return-value]
    try:
        with pytest.raises(GugusError) as caught:
            await context.tell(before, never)
    finally:
        context.store.peek = peek  # type: ignore[method-assign]
    assert caught.value.reason == "NODE_NOT_ONLINE"
