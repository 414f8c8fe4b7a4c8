"""Guests from the call to the process: what is asked for becomes true, and a task has ended when it is."""

import asyncio
import json
from pathlib import Path

import pytest
from gugus.agent.v1.guest_pb2 import GUEST_STATE_RUNNING, GUEST_STATE_STOPPED, StopGuestRequest
from gugus.agent.v1.guest_pb2 import Guest as AgentGuest
from gugus.cluster.v1.cluster_pb2 import Cluster as ClusterObject
from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_RUNNING,
    GUEST_PHASE_STARTING,
    GUEST_PHASE_STOPPED,
    GUEST_PHASE_STOPPING,
    POWER_OFF,
    Guest,
)
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.task_pb2 import Task

from agent.services.guest import GuestService
from client.sdk import Gugus
from client.tasks import TaskFailed, check
from common.errors import GugusError, not_found, resource_exhausted
from manager.beats import Beats
from manager.controllers import guests as guests_controller
from manager.controllers.guests import SLOTS, GuestController
from tests.unit.manager.cluster import IMAGE, Cluster, guest_spec
from tests.unit.manager.hypervisor import Hypervisor
from tests.unit.manager.storage import Storage


async def done(gugus: Gugus, task: Task) -> Task:
    """Return a task that ended well. Raises TaskFailed."""
    return check(await gugus.tasks.wait(task))


async def failed(gugus: Gugus, task: Task) -> str:
    """Return the reason of a task that failed."""
    with pytest.raises(TaskFailed) as caught:
        await done(gugus, task)
    assert caught.value.message
    return caught.value.reason


async def create(gugus: Gugus, name: str = "web") -> Guest:
    await done(gugus, await gugus.guests.create(name, guest_spec()))
    return await gugus.guests.get(name)


def runs(cluster: Cluster, name: str = "web") -> bool:
    return cluster.record("n1", name).exists()


def phase(cluster: Cluster, name: str = "web") -> object:
    guest = cluster.store.peek(Guest, name)
    return guest and guest.status.phase


async def test_created_guest_runs_on_a_node_with_a_disk_of_its_own(
    cluster: Cluster, gugus: Gugus, storage: Storage
) -> None:
    guest = await create(gugus)
    assert runs(cluster)
    assert (guest.status.phase, guest.status.node, guest.meta.generation) == (GUEST_PHASE_RUNNING, "n1", 1)
    assert storage.names() == {IMAGE, guest.spec.disks[0].volume}
    assert json.loads(cluster.record("n1", "web").read_text())["generation"] == guest.meta.generation


async def test_each_task_about_a_guest_has_ended_when_its_wish_is_true(
    cluster: Cluster, gugus: Gugus, storage: Storage
) -> None:
    await done(gugus, await gugus.guests.create("web", guest_spec(POWER_OFF)))
    assert not runs(cluster)
    assert phase(cluster) == GUEST_PHASE_STOPPED
    await done(gugus, await gugus.guests.start("web"))
    assert runs(cluster)
    await done(gugus, await gugus.guests.stop("web"))
    assert not runs(cluster)
    assert phase(cluster) == GUEST_PHASE_STOPPED
    await done(gugus, await gugus.guests.delete("web"))
    assert phase(cluster) is None
    assert storage.names() == {IMAGE}
    assert not cluster.agents["n1"].state.guests


async def test_wish_that_is_true_already_is_a_task_that_ends(cluster: Cluster, gugus: Gugus) -> None:
    await create(gugus)
    await done(gugus, await gugus.guests.start("web"))
    await done(gugus, await gugus.guests.stop("web"))
    await done(gugus, await gugus.guests.stop("web"))
    assert not runs(cluster)


async def test_guest_that_runs_is_deleted_by_force_only(cluster: Cluster, gugus: Gugus, storage: Storage) -> None:
    await create(gugus)
    with pytest.raises(GugusError) as caught:
        await gugus.guests.delete("web")
    assert caught.value.reason == "GUEST_RUNNING"
    await done(gugus, await gugus.guests.delete("web", force=True))
    assert not runs(cluster)
    assert storage.names() == {IMAGE}


async def test_start_that_is_overtaken_by_a_stop_says_so(
    cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor
) -> None:
    await done(gugus, await gugus.guests.create("web", guest_spec(POWER_OFF)))
    hypervisor.may_start.clear()
    start = await gugus.guests.start("web")
    await cluster.eventually(lambda: "start web" in hypervisor.asked)
    stop = await gugus.guests.stop("web")
    hypervisor.may_start.set()
    assert await failed(gugus, start) == "SUPERSEDED"
    await done(gugus, stop)
    assert not runs(cluster)


async def test_stop_that_is_overtaken_by_a_start_says_so(
    cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor
) -> None:
    await create(gugus)
    hypervisor.obeys = False
    stop = await gugus.guests.stop("web", timeout_s=0.5)
    await cluster.eventually(lambda: phase(cluster) == GUEST_PHASE_STOPPING)
    start = await gugus.guests.start("web")
    assert await failed(gugus, stop) == "SUPERSEDED"
    await done(gugus, start)
    assert runs(cluster)


async def test_tasks_of_a_guest_that_is_deleted_meanwhile_end(
    cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor
) -> None:
    hypervisor.may_start.clear()
    creation = await gugus.guests.create("web", guest_spec())
    await cluster.eventually(lambda: "start web" in hypervisor.asked)
    deletion = await gugus.guests.delete("web", force=True)
    hypervisor.may_start.set()
    assert await failed(gugus, creation) == "SUPERSEDED"
    await done(gugus, deletion)
    assert not runs(cluster)


@pytest.mark.parametrize("fault", [resource_exhausted("NO_SPACE", "the pool is full."), not_found("volume", IMAGE)])
async def test_creation_that_fails_is_taken_back_whole_and_can_be_repeated(
    cluster: Cluster, gugus: Gugus, storage: Storage, fault: GugusError
) -> None:
    storage.faults[IMAGE] = fault
    assert await failed(gugus, await gugus.guests.create("web", guest_spec())) == fault.reason
    await cluster.eventually(lambda: phase(cluster) is None)
    del storage.faults[IMAGE]
    await create(gugus)
    assert runs(cluster)


async def test_creation_whose_second_disk_fails_leaves_not_even_the_first(
    cluster: Cluster, gugus: Gugus, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = guest_spec()
    spec.disks.add(pool="shared", size_bytes=1 << 20)
    storage.faults[""] = resource_exhausted("NO_SPACE", "the pool is full.")  # disks without an image
    assert await failed(gugus, await gugus.guests.create("web", spec)) == "NO_SPACE"
    await cluster.eventually(lambda: phase(cluster) is None)
    assert len(storage.made) == 2, "the image and the first disk were made"
    assert storage.names() == {IMAGE}


async def test_guest_that_ends_by_itself_is_started_again_later_each_time(
    cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor
) -> None:
    await create(gugus)
    for ends in (1, 2, 3):
        await cluster.eventually(lambda: cluster.reported("web") == GUEST_STATE_RUNNING)
        await hypervisor.end("web")
        await cluster.eventually(lambda ends=ends: len(downs(cluster)) == ends)  # type: ignore[misc]
    assert phase(cluster) == GUEST_PHASE_STARTING
    assert [message.rpartition(" again ")[2] for message in downs(cluster)] == ["now", "in 1 s", "in 2 s"]


async def test_guest_that_ends_before_a_beat_told_that_it_runs_is_started_again(
    cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(gugus)
    await done(gugus, await gugus.guests.stop("web"))
    await cluster.eventually(lambda: cluster.reported("web") == GUEST_STATE_STOPPED)
    with monkeypatch.context() as patch:
        patch.setattr(Beats, "heard", lambda *beat: None)  # beats are late
        await done(gugus, await gugus.guests.start("web"))
        await asyncio.sleep(0.2)  # the controller looks once more and sees it running
        await hypervisor.end("web")
        await asyncio.sleep(0.2)
    await cluster.eventually(lambda: runs(cluster))


async def test_guest_that_ends_by_itself_and_is_not_wanted_any_more_stays_down(
    cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor
) -> None:
    await create(gugus)
    await hypervisor.end("web")
    await done(gugus, await gugus.guests.stop("web"))
    started = hypervisor.asked.count("start web")
    await cluster.beats(3)
    assert hypervisor.asked.count("start web") == started
    assert not runs(cluster)


def downs(cluster: Cluster) -> list[str]:
    """What was told of guests that ended by themselves."""
    return [event.message for event in cluster.events() if event.reason == "GUEST_DOWN"]


async def test_agent_that_restarts_adopts_its_guests(cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor) -> None:
    await create(gugus)
    record = cluster.record("n1", "web").read_text()
    await cluster.stop_agent()
    cluster.start_agent("n1", hypervisor)
    await cluster.beats(2)
    assert cluster.record("n1", "web").read_text() == record
    assert phase(cluster) == GUEST_PHASE_RUNNING
    assert hypervisor.asked == ["start web"]
    assert not downs(cluster)
    await done(gugus, await gugus.guests.stop("web"))
    assert not runs(cluster)


async def test_stop_by_force_ends_a_graceful_one_that_is_under_way(
    cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor
) -> None:
    await create(gugus)
    hypervisor.obeys = False
    patient = await gugus.guests.stop("web", timeout_s=3600)
    await cluster.eventually(lambda: "shutdown web" in hypervisor.asked)
    await done(gugus, await gugus.guests.stop("web", force=True))
    await done(gugus, patient)
    assert not runs(cluster)


async def test_guest_that_does_not_obey_is_killed_when_its_time_is_over(
    cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor
) -> None:
    await create(gugus)
    hypervisor.obeys = False
    await done(gugus, await gugus.guests.stop("web", timeout_s=0.2))
    assert hypervisor.asked == ["start web", "shutdown web", "kill web"]
    assert not runs(cluster)


async def test_killed_guest_s_stop_says_that_it_did_not_shut_down(
    cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor
) -> None:
    await create(gugus)
    hypervisor.obeys = False
    ended = await done(gugus, await gugus.guests.stop("web", timeout_s=0.2))
    text = "did not shut down within 0.2 s (shutdown_timeout); killed"
    assert [event.message for event in cluster.events() if event.reason == "GUEST_KILLED"] == [f"web {text}"]
    assert text in {line.text for line in ended.log}
    assert ended.log[-1].text == f"stopped on n1: {text}"
    hypervisor.obeys = True
    await done(gugus, await gugus.guests.start("web"))
    obedient = await done(gugus, await gugus.guests.stop("web"))
    assert not any("killed" in line.text for line in obedient.log)
    assert obedient.log[-1].text == "stopped on n1: it shut itself down"


async def test_a_stop_that_takes_its_whole_time_is_no_kill_unless_the_agent_says_so(
    cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shuts down in time, but the answer comes late: what took long was the way, not the guest."""
    await create(gugus)
    slow = GuestService.StopGuest

    async def late(service: GuestService, request: StopGuestRequest, context: object) -> AgentGuest:
        answer = await slow(service, request, context)
        await asyncio.sleep(0.4)
        return answer

    monkeypatch.setattr(GuestService, "StopGuest", late)
    ended = await done(gugus, await gugus.guests.stop("web", timeout_s=0.3))
    assert ended.log[-1].text == "stopped on n1: it shut itself down"
    await done(gugus, await gugus.guests.start("web"))
    forced = await done(gugus, await gugus.guests.stop("web", force=True))
    assert forced.log[-1].text == "stopped on n1: killed"


async def test_start_that_fails_is_told_and_tried_again_until_it_succeeds(
    cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(gugus)
    await done(gugus, await gugus.guests.stop("web"))

    async def broken(name: str, generation: int) -> None:
        raise resource_exhausted("NO_MEMORY", "the host has no memory left.")

    with monkeypatch.context() as patch:
        patch.setattr(hypervisor, "start", broken)
        assert await failed(gugus, await gugus.guests.start("web")) == "NO_MEMORY"
    assert [event.reason for event in cluster.events()].count("NO_MEMORY") == 1
    await cluster.eventually(lambda: runs(cluster) and phase(cluster) == GUEST_PHASE_RUNNING)


@pytest.mark.parametrize("how", ["a start", "a change"])
async def test_pauses_between_starts_begin_anew_when_the_user_did_something_about_it(
    cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    await create(gugus)
    await done(gugus, await gugus.guests.stop("web"))

    async def broken(name: str, generation: int) -> None:
        raise resource_exhausted("NO_MEMORY", "the host has no memory left.")

    pauses: list[int] = []

    def an_hour(failures: int) -> float:
        pauses.append(failures)
        return 3600.0

    monkeypatch.setattr(guests_controller, "backoff_s", an_hour)
    with monkeypatch.context() as patch:
        patch.setattr(hypervisor, "start", broken)
        for _ in range(2):
            assert await failed(gugus, await gugus.guests.start("web")) == "NO_MEMORY"
    assert pauses == [1, 1], "an hour was not waited for, and counted anew"
    if how == "a start":
        await done(gugus, await gugus.guests.start("web"))
    else:
        await gugus.guests.change("web", lambda spec: setattr(spec, "notes", "now there is memory"))
    await cluster.eventually(lambda: runs(cluster) and phase(cluster) == GUEST_PHASE_RUNNING)
    assert not cluster.peek(Guest, "web").status.failures  # type: ignore[union-attr]


async def test_task_about_a_guest_whose_node_is_away_ends_when_the_node_is_back(
    cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor
) -> None:
    await create(gugus)
    await cluster.stop_agent()
    stop = await gugus.guests.stop("web")
    assert runs(cluster)
    cluster.start_agent("n1", hypervisor)
    await done(gugus, stop)
    assert not runs(cluster)


def overcommitted(cluster: ClusterObject) -> ClusterObject:
    """Let any number of guests run on the few CPUs of this machine."""
    cluster.settings.cpu_overcommit_percent = 100_000
    return cluster


async def test_node_whose_guests_do_not_start_holds_up_no_other_node(
    cluster: Cluster, gugus: Gugus, tmp_path: Path
) -> None:
    stuck = Hypervisor(tmp_path / "n2")
    stuck.may_start.clear()
    await cluster.add_node("n2", stuck)
    await cluster.store.update(ClusterObject, "test", overcommitted)
    waiting = []
    for number in range(SLOTS + 1):
        spec = guest_spec()
        spec.pinned_node = "n2"
        waiting.append(await gugus.guests.create(f"stuck-{number}", spec))
    await cluster.eventually(lambda: len(stuck.asked) == SLOTS)
    spec = guest_spec()
    spec.pinned_node = "n1"
    await done(gugus, await gugus.guests.create("web", spec))
    assert runs(cluster)
    stuck.may_start.set()
    for task in waiting:
        await done(gugus, task)


async def test_what_another_boot_of_a_node_says_is_no_news_of_its_guests(cluster: Cluster, gugus: Gugus) -> None:
    """They did not end by themselves: their node was off, and recovery decides about them."""
    await create(gugus)
    node = cluster.peek(Node, "n1")
    assert node is not None
    work = cluster.managers["n1"]._work
    assert work is not None
    controller = GuestController(cluster.managers["n1"]._context, work.placing)
    assert controller._news.heard_as(node)
    node.status.boot_id = "an earlier one"
    assert not controller._news.heard_as(node)
