"""Power of guests beyond on and off, ends that are their own, boots of their hosts, and names."""

import pytest
from gugus.agent.v1.guest_pb2 import (
    GUEST_END_CRASH,
    GUEST_END_POWEROFF,
    GUEST_END_REBOOT,
    GUEST_STATE_PAUSED,
    GuestEnd,
)
from gugus.agent.v1.resources_pb2 import END_POLICY_RESTART, END_POLICY_STOP, Policies
from gugus.cluster.v1.guest_pb2 import (
    BOOT_POLICY_ALWAYS,
    BOOT_POLICY_NEVER,
    BOOT_POLICY_UNSPECIFIED,
    GUEST_PHASE_HIBERNATED,
    GUEST_PHASE_PAUSED,
    GUEST_PHASE_RUNNING,
    GUEST_PHASE_STOPPED,
    POWER_HIBERNATED,
    POWER_OFF,
    POWER_ON,
    POWER_PAUSED,
    BootSpec,
    Guest,
    GuestSpec,
)
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.task_pb2 import Task

from agent.fencing.boot import TOKEN_FILE_NAME
from client.sdk import Gugus
from client.tasks import TaskFailed, check
from common.errors import GugusError, unavailable
from tests.unit.manager.cluster import IMAGE, Cluster, guest_spec
from tests.unit.manager.hypervisor import Hypervisor
from tests.unit.manager.storage import Storage


async def done(gugus: Gugus, task: Task) -> Task:
    return check(await gugus.tasks.wait(task))


async def create(gugus: Gugus, name: str = "web", spec: GuestSpec | None = None) -> Guest:
    await done(gugus, await gugus.guests.create(name, spec or guest_spec()))
    return await gugus.guests.get(name)


def look(cluster: Cluster, name: str = "web") -> Guest:
    found = cluster.peek(Guest, name)
    assert found is not None
    return found


def runs(cluster: Cluster, name: str = "web") -> bool:
    return cluster.record("n1", name).exists()


def reasons(cluster: Cluster) -> list[str]:
    return [event.reason for event in cluster.events()]


# Suspend and resume


async def test_guest_is_held_and_goes_on(cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor) -> None:
    await create(gugus)
    life = cluster.life("n1", "web")
    await done(gugus, await gugus.guests.suspend("web"))
    assert look(cluster).status.phase == GUEST_PHASE_PAUSED
    assert look(cluster).status.observed == GUEST_STATE_PAUSED
    await cluster.beats(2)
    assert look(cluster).status.phase == GUEST_PHASE_PAUSED
    await done(gugus, await gugus.guests.resume("web"))
    assert look(cluster).status.phase == GUEST_PHASE_RUNNING
    assert cluster.life("n1", "web") == life


async def test_guest_that_its_hypervisor_holds_is_told_of_and_resumed_by_hand(
    cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor
) -> None:
    await create(gugus)
    await hypervisor.suspend("web")  # a full pool, for example
    await cluster.eventually(lambda: look(cluster).status.observed == GUEST_STATE_PAUSED)
    assert look(cluster).status.phase == GUEST_PHASE_RUNNING
    await done(gugus, await gugus.guests.resume("web"))
    await cluster.eventually(lambda: look(cluster).status.observed != GUEST_STATE_PAUSED)


async def test_held_guest_that_dies_is_started_and_held_again(
    cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor
) -> None:
    await create(gugus)
    await done(gugus, await gugus.guests.suspend("web"))
    await hypervisor.end("web", GUEST_END_CRASH)
    await cluster.eventually(lambda: "GUEST_DOWN" in reasons(cluster))
    await cluster.eventually(lambda: look(cluster).status.phase == GUEST_PHASE_PAUSED and runs(cluster))


async def test_what_does_not_run_is_neither_held_nor_reset_nor_hibernated(gugus: Gugus, cluster: Cluster) -> None:
    await create(gugus, spec=guest_spec(POWER_OFF))
    guests = gugus.guests
    for call in (guests.suspend, guests.resume, guests.reset, guests.reboot, guests.hibernate):
        with pytest.raises(GugusError) as caught:
            await call("web")
        assert caught.value.reason == "GUEST_NOT_RUNNING", call


# Reboot and reset


async def test_reboot_is_another_life_and_takes_up_what_was_pending(
    cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor
) -> None:
    await create(gugus)
    life = cluster.life("n1", "web")
    task = await done(gugus, await gugus.guests.reboot("web"))
    assert "rebooted" in task.log[-1].text
    assert cluster.life("n1", "web") != life
    assert look(cluster).status.phase == GUEST_PHASE_RUNNING
    assert hypervisor.asked == ["start web", "shutdown web", "start web"]
    await cluster.beats(2)
    assert "GUEST_DOWN" not in reasons(cluster)


async def test_reboot_of_a_guest_that_does_not_shut_down_says_that_it_was_killed(
    cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor
) -> None:
    await create(gugus)
    hypervisor.obeys = False
    task = await done(gugus, await gugus.guests.reboot("web", timeout_s=0.2))
    assert "did not shut down within 0.2 s (shutdown_timeout); killed" in {line.text for line in task.log}


async def test_reboot_goes_on_under_the_next_manager(cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor) -> None:
    await create(gugus)
    hypervisor.may_start.clear()
    task = await gugus.guests.reboot("web")
    await cluster.eventually(lambda: hypervisor.asked.count("start web") == 2)
    await cluster.stop_manager()
    cluster.start_manager()
    hypervisor.may_start.set()
    check(await cluster.ended(task))
    assert runs(cluster)


async def test_reset_is_done_once(cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor) -> None:
    await create(gugus)
    life = cluster.life("n1", "web")
    await done(gugus, await gugus.guests.reset("web"))
    assert cluster.life("n1", "web") != life
    assert hypervisor.asked.count("reset web") == 1


async def test_reset_of_unknown_outcome_is_not_repeated(
    cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(gugus)

    async def lost(name: str) -> None:
        hypervisor.asked.append(f"reset {name}")
        raise unavailable("RPC_UNAVAILABLE", "the answer was lost.")

    monkeypatch.setattr(hypervisor, "reset", lost)
    with pytest.raises(TaskFailed) as caught:
        await done(gugus, await gugus.guests.reset("web"))
    assert caught.value.reason == "RESET_UNKNOWN"
    assert hypervisor.asked.count("reset web") == 1
    assert not look(cluster).status.HasField("lock")


# Hibernation


async def test_hibernated_guest_is_woken_where_it_was(cluster: Cluster, gugus: Gugus, storage: Storage) -> None:
    await create(gugus)
    await done(gugus, await gugus.guests.hibernate("web"))
    asleep = look(cluster)
    assert (asleep.status.phase, asleep.spec.power) == (GUEST_PHASE_HIBERNATED, POWER_HIBERNATED)
    assert not runs(cluster)
    assert asleep.status.hibernation_volume in storage.names()
    await cluster.beats(2)
    assert look(cluster).status.phase == GUEST_PHASE_HIBERNATED
    await done(gugus, await gugus.guests.start("web"))
    await cluster.eventually(lambda: not look(cluster).status.leaving_disks)
    assert not look(cluster).status.hibernation_volume
    assert storage.names() == {IMAGE, look(cluster).spec.disks[0].volume}


async def test_stop_throws_the_memory_of_a_hibernated_guest_away(
    cluster: Cluster, gugus: Gugus, storage: Storage
) -> None:
    await create(gugus)
    await done(gugus, await gugus.guests.hibernate("web"))
    await done(gugus, await gugus.guests.stop("web"))
    await cluster.eventually(lambda: look(cluster).status.phase == GUEST_PHASE_STOPPED)
    await cluster.eventually(lambda: storage.names() == {IMAGE, look(cluster).spec.disks[0].volume})


async def test_deleted_guest_leaves_no_memory_behind(cluster: Cluster, gugus: Gugus, storage: Storage) -> None:
    await create(gugus)
    await done(gugus, await gugus.guests.hibernate("web"))
    await done(gugus, await gugus.guests.delete("web"))
    assert storage.names() == {IMAGE}


# Ends that are the guest's own


@pytest.mark.parametrize(
    ("ended", "policies", "stays_down"),
    [
        (GUEST_END_POWEROFF, Policies(), True),
        (GUEST_END_POWEROFF, Policies(on_shutdown=END_POLICY_RESTART), False),
        (GUEST_END_REBOOT, Policies(), False),
        (GUEST_END_CRASH, Policies(on_crash=END_POLICY_STOP), True),
    ],
)
async def test_guest_that_ends_by_itself_stays_down_or_not_by_its_policies(
    cluster: Cluster,
    gugus: Gugus,
    hypervisor: Hypervisor,
    ended: GuestEnd.ValueType,
    policies: Policies,
    stays_down: bool,
) -> None:
    spec = guest_spec()
    spec.policies.CopyFrom(policies)
    await create(gugus, spec=spec)
    await hypervisor.end("web", ended)
    if stays_down:
        await cluster.eventually(lambda: "GUEST_ENDED" in reasons(cluster))
        await cluster.beats(2)
        assert (look(cluster).spec.power, look(cluster).status.phase) == (POWER_OFF, GUEST_PHASE_STOPPED)
        assert not runs(cluster)
        await done(gugus, await gugus.guests.start("web"))
    else:
        await cluster.eventually(lambda: "GUEST_DOWN" in reasons(cluster))
        await cluster.eventually(lambda: runs(cluster))
        assert look(cluster).spec.power == POWER_ON


# Boots of the host


async def host_boots(cluster: Cluster, hypervisor: Hypervisor, *names: str) -> None:
    """End guests and the agent of their host, and start the agent in another boot."""
    node = cluster.peek(Node, "n1")
    assert node is not None
    before, lapses = node.status.boot_id, node.status.lapse_number
    await cluster.stop_agent()
    for name in names:
        await hypervisor.end(name)
    (cluster.folder / "n1" / "run" / TOKEN_FILE_NAME).unlink()  # a boot begins with an empty /run
    cluster.start_agent("n1", hypervisor)
    await cluster.eventually(lambda: (node := cluster.peek(Node, "n1")) and node.status.boot_id != before)
    node = cluster.peek(Node, "n1")
    assert node is not None
    assert node.status.lapse_number == lapses, "the boot is proof enough: a lapse would have the node fenced once more"


async def test_boot_policies(cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor) -> None:
    for name, power, policy in (
        ("never", POWER_ON, BOOT_POLICY_NEVER),
        ("always", POWER_OFF, BOOT_POLICY_ALWAYS),
        ("as-it-was", POWER_ON, BOOT_POLICY_UNSPECIFIED),
    ):
        spec = guest_spec(power)
        spec.boot.CopyFrom(BootSpec(policy=policy))
        await create(gugus, name, spec)
    await host_boots(cluster, hypervisor, "never", "always", "as-it-was")
    await cluster.eventually(lambda: runs(cluster, "always") and runs(cluster, "as-it-was"))
    await cluster.eventually(lambda: look(cluster, "never").spec.power == POWER_OFF)
    await cluster.eventually(lambda: look(cluster, "never").status.phase == GUEST_PHASE_STOPPED)
    assert look(cluster, "always").spec.power == POWER_ON
    await done(gugus, await gugus.guests.stop("always"))
    await cluster.beats(2)
    assert not runs(cluster, "always"), "ALWAYS is once for each boot"


async def test_guests_start_in_their_order(cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor) -> None:
    for name, order in (("last", 0), ("db", 1), ("web", 2)):
        spec = guest_spec()
        spec.boot.CopyFrom(BootSpec(order=order))
        await create(gugus, name, spec)
    names = ("last", "web", "db")
    hypervisor.asked.clear()
    await host_boots(cluster, hypervisor, *names)
    await cluster.eventually(lambda: all(runs(cluster, name) for name in names))
    starts = list(dict.fromkeys(what for what in hypervisor.asked if what.startswith("start ")))
    assert starts.index("start db") < starts.index("start web") < starts.index("start last")


async def test_the_delay_after_a_guest_of_the_boot_order_counts_from_its_start_in_the_state(
    cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor
) -> None:
    """A manager that has just begun to act knows from nowhere else for how long the first one has been running."""
    for name, order in (("db", 1), ("web", 2)):
        spec = guest_spec()
        spec.boot.CopyFrom(BootSpec(order=order, delay_s=1000))
        await create(gugus, name, spec)
    await host_boots(cluster, hypervisor, "web", "db")
    await cluster.eventually(lambda: runs(cluster, "db") and "1000 s" in look(cluster, "web").status.reason)

    def long_ago(guest: Guest) -> Guest:
        guest.status.started_at.FromSeconds(guest.status.started_at.seconds - 1001)
        return guest

    assert not runs(cluster, "web")
    await cluster.store.update(Guest, "db", long_ago)
    await cluster.eventually(lambda: runs(cluster, "web"))


# Names


async def test_renamed_guest_is_the_same_one(cluster: Cluster, gugus: Gugus, storage: Storage) -> None:
    before = await create(gugus)
    await done(gugus, await gugus.guests.stop("web"))
    task = await gugus.guests.rename("web", "shop")
    await done(gugus, task)
    after = look(cluster, "shop")
    assert cluster.peek(Guest, "web") is None
    assert (after.meta.uid, after.spec.id, after.spec.disks) == (before.meta.uid, before.spec.id, before.spec.disks)
    assert {(t.kind, t.target) for t in cluster.store.peek_all(Task) if t.target.startswith("guest/")} == {
        (kind, "guest/shop") for kind in ("create-guest", "stop-guest", "rename-guest")
    }
    await cluster.eventually(lambda: set(cluster.agents["n1"].state.guests) == {"shop"})
    await done(gugus, await gugus.guests.start("shop"))
    assert runs(cluster, "shop")
    await done(gugus, await gugus.guests.delete("shop", force=True))
    assert storage.names() == {IMAGE}


async def test_only_a_stopped_guest_gets_another_name_and_only_a_free_one(cluster: Cluster, gugus: Gugus) -> None:
    await create(gugus)
    with pytest.raises(GugusError) as caught:
        await gugus.guests.rename("web", "shop")
    assert caught.value.reason == "GUEST_RUNNING"
    await done(gugus, await gugus.guests.stop("web"))
    await create(gugus, "shop", guest_spec(POWER_OFF))
    with pytest.raises(GugusError) as caught:
        await gugus.guests.rename("web", "shop")
    assert caught.value.reason == "GUEST_ALREADY_EXISTS"


async def test_paused_guest_that_is_created_so(cluster: Cluster, gugus: Gugus) -> None:
    await create(gugus, spec=guest_spec(POWER_PAUSED))
    assert look(cluster).status.phase == GUEST_PHASE_PAUSED
