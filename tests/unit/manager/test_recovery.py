"""Whole clusters that are lost and go on: recovered on a surviving voter, or restored from a backup on another host."""

import argparse
import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from gugus.cluster.v1.cluster_pb2 import Cluster as ClusterObject
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, GUEST_PHASE_UNKNOWN, Guest, GuestSpec, HaSpec
from gugus.cluster.v1.node_pb2 import NODE_STATE_JOINING, NODE_STATE_ONLINE, Node
from gugus.cluster.v1.pool_pb2 import Image, Pool

from agent import departure
from agent.compute.simulated import DRIVER
from agent.join import JoinOptions, join
from client.backup import seal
from client.backup.contents import look
from client.backup.file import inspect
from client.backup.restore import check as may_restore
from client.backup.restore import restore
from client.backup.take import take
from client.first_host import FirstHost
from client.sdk import Gugus
from client.tasks import check
from common.config import dump, load_manager
from common.errors import GugusError
from common.held_lease import held_s
from common.identity.ca import key_of
from common.identity.names import Role
from common.identity.store import Pki
from common.identity.tokens import JoinToken
from manager.daemon import Manager
from manager.recovery.command import command
from manager.recovery.rebirth import STEP
from tests.unit.manager.cluster import POOL, Cluster, guest_spec
from tests.unit.manager.storage import Storage

LEASE_MS = 3000
SURELY_FENCED_S = 7.0
"""Longer than a lease of LEASE_MS, the kill budget and the margin."""

PASSPHRASE = "correct horse battery"


@pytest.fixture(autouse=True)
def cheap_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deriving keys is slow on purpose, and not what is tested."""
    monkeypatch.setattr(seal, "COST", 2**4)


async def begin(cluster: Cluster, *nodes: str) -> None:
    """Start managers and agents; every node is known by its key, and leases are short."""
    for voter in cluster.voters:
        cluster.start_manager(voter)
        (cluster.folder / voter / "manager.yaml").write_text(dump(cluster.manager_config(voter)))
    await cluster.eventually(lambda: cluster.acting and cluster.store.peek_all(Node))
    founder = cluster.store.peek_all(Node)[0].meta.name
    cluster.start_agent(founder)
    await cluster.online(founder)
    for node in nodes:
        if node != founder:
            await cluster.add_node(node)
    for node in nodes:
        key = key_of(cluster.pki(node, Role.NODE).crt(Role.NODE).read_bytes())
        await cluster.store.update(Node, node, lambda found, key=key: _keyed(found, key))  # type: ignore[misc]
        (cluster.folder / node / "agent.yaml").write_text(dump(cluster.agent_config(node)))
    await cluster.store.update(ClusterObject, "test", _short_leases)


def _keyed(node: Node, key: bytes) -> Node:
    node.status.key_sha256 = key
    return node


def _short_leases(found: ClusterObject) -> ClusterObject:
    found.settings.node_lease_ms = LEASE_MS
    return found


def spec(node: str, *, ha: bool = False) -> GuestSpec:
    made = guest_spec()
    made.preferred_node, made.ha.enabled = node, ha
    return made


async def make(gugus: Gugus, cluster: Cluster, name: str, node: str, *, ha: bool = False) -> None:
    await cluster.eventually(lambda: POOL.name in (cluster.peek(Node, node) or Node()).status.facts.pools)
    check(await gugus.tasks.wait(await gugus.guests.create(name, spec(node, ha=ha))))
    assert copies(cluster, name) == [node]


def copies(cluster: Cluster, guest: str) -> list[str]:
    """Return the nodes that a guest runs on."""
    return sorted(path.parts[-4] for path in cluster.folder.glob(f"*/run/{DRIVER}/{guest}.json"))


def guest(cluster: Cluster, name: str) -> Guest:
    return cluster.store.peek(Guest, name) or Guest()


def node(cluster: Cluster, name: str) -> Node:
    return cluster.store.peek(Node, name) or Node()


def runs(cluster: Cluster, name: str, on: str) -> bool:
    found = guest(cluster, name)
    settled = (found.status.phase, found.status.node, found.status.inherited) == (GUEST_PHASE_RUNNING, on, False)
    return settled and found.meta.generation > STEP and copies(cluster, name) == [on]


def told(cluster: Cluster, reason: str) -> list[str]:
    return [event.message for event in cluster.events() if event.reason == reason]


def become(cluster: Cluster, config_file: Path) -> None:
    """Have the helper speak of the cluster as it is after its recovery."""
    config = load_manager(config_file)
    cluster.cluster_id, cluster.authority = config.cluster_id, Pki(config.pki_dir).load_ca()
    cluster.voters = (config.name,)
    shutil.rmtree(cluster.folder / "operator", ignore_errors=True)


async def rejoin(cluster: Cluster, gugus: Gugus, name: str) -> None:
    """Do on a host what its operator would: stop the agent, join anew, start it."""
    token = JoinToken.parse((await gugus.cluster.create_token(node=name)).token)
    path = cluster.folder / name / "agent.yaml"
    options = JoinOptions(path, address=cluster.address(name), rejoin=True, base=cluster.agent_config(name))
    if name in cluster.agents:
        with pytest.raises(GugusError) as caught:
            await join(token, options)
        assert caught.value.reason == "DAEMONS_RUN"
        await cluster.stop_agent(name)
    await join(token, options)
    cluster.start_agent(name)


@pytest.fixture
async def three(tmp_path: Path, storage: Storage) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path, voters=3) as cluster:
        await begin(cluster, "n1", "n2", "n3")
        yield cluster


async def lose(cluster: Cluster) -> None:
    """Stop all managers; the agents' leases end."""
    for name in list(cluster.managers):
        await cluster.stop_manager(name)
    await asyncio.sleep(LEASE_MS / 1000 + 0.5)


async def recover(cluster: Cluster, name: str) -> None:
    file = cluster.folder / name / "manager.yaml"
    await asyncio.to_thread(command, argparse.Namespace(config=file, cluster="test", yes=True, no_start=True))
    become(cluster, file)
    await cluster.stop_agent(name)
    cluster.start_manager(name)
    cluster.start_agent(name)
    await cluster.online(name)


async def test_one_of_three_goes_on_and_no_guest_runs_twice(three: Cluster) -> None:
    cluster = three
    old_manager = cluster.manager_config("n2")
    async with cluster.client() as gugus, cluster.client() as old_operator:
        await cluster.make_image(gugus)
        await make(gugus, cluster, "web", "n2", ha=True)
        await make(gugus, cluster, "db", "n3")
        await make(gugus, cluster, "own", "n1")
        before = cluster.record("n3", "db").read_bytes(), cluster.record("n1", "own").read_bytes()
        generation, epoch = (
            guest(cluster, "web").meta.generation,
            cluster.managers[cluster.acting]._context.acting.epoch,
        )
        await lose(cluster)
        assert copies(cluster, "web") == [], "its host has no lease"
        await recover(cluster, "n1")
        old_operator._caller.timeout_s = 1.0
        with pytest.raises(GugusError):
            await old_operator.cluster.get()
    assert cluster.managers["n1"]._context.acting.epoch > epoch + STEP
    await cluster.eventually(lambda: runs(cluster, "own", "n1"))
    await asyncio.gather(old_members_are_refused(cluster, old_manager), asyncio.sleep(SURELY_FENCED_S))
    web = guest(cluster, "web")
    assert (web.status.phase, web.status.node, web.meta.generation) == (GUEST_PHASE_UNKNOWN, "n2", generation + STEP)
    assert copies(cluster, "web") == []
    for name in ("n2", "n3"):
        assert (node(cluster, name).status.state, node(cluster, name).status.former) == (NODE_STATE_JOINING, True)
    async with cluster.client() as gugus:
        with pytest.raises(GugusError) as caught:
            await gugus.nodes.remove("n2")
        assert caught.value.reason == "NODE_MAY_BE_ON"
        await rejoin(cluster, gugus, "n3")
        await cluster.eventually(lambda: runs(cluster, "db", "n3"))
        await cluster.eventually(lambda: not node(cluster, "n3").status.former)
        assert copies(cluster, "web") == [], "n2 may run it"
        assert not (cluster.folder / "n3" / "manager.yaml").exists()
        await gugus.nodes.remove("n2", off=True)
        await cluster.eventually(lambda: copies(cluster, "web"))
        await cluster.eventually(lambda: runs(cluster, "web", copies(cluster, "web")[0]))
        assert guest(cluster, "web").meta.generation > generation + STEP
        await rejoin(cluster, gugus, "n2")
        await cluster.online("n2")
        await new_guest_is_made_and_moves(cluster, gugus)
    assert len(copies(cluster, "web")) == 1
    assert (cluster.record("n3", "db").read_bytes(), cluster.record("n1", "own").read_bytes()) == before, (
        "never stopped"
    )


async def old_members_are_refused(cluster: Cluster, config: object) -> None:
    """A manager of before that starts after all reaches nobody, and nobody reaches it."""
    old = Manager(config)  # type: ignore[arg-type]
    running = asyncio.create_task(old.run())
    await asyncio.sleep(3)
    view = old._consensus.leadership()
    assert view.leader is None
    assert not any(peer.connected for peer in view.peers)
    assert cluster.acting == "n1"
    assert len(cluster.managers["n1"]._consensus.leadership().voters) == 1
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def new_guest_is_made_and_moves(cluster: Cluster, gugus: Gugus) -> None:
    """HA works in the new cluster as ever."""
    await make(gugus, cluster, "new", "n2", ha=True)
    assert guest(cluster, "new").meta.generation > STEP
    await cluster.stop_agent("n2")
    cluster.record("n2", "new").unlink()  # the host went down
    await cluster.eventually(lambda: copies(cluster, "new") not in ([], ["n2"]))


async def test_host_that_holds_a_lease_may_not_leave(tmp_path: Path, storage: Storage) -> None:
    async with Cluster(tmp_path) as cluster:
        await begin(cluster, "n1")
        await cluster.eventually(lambda: held_s(cluster.agent_config("n1").run_dir) > 0)
        with pytest.raises(GugusError) as caught:
            departure.check(cluster.agent_config("n1"))
        assert caught.value.reason == "LEASE_HELD"
        await lose(cluster)
        departure.check(cluster.agent_config("n1"))


async def restored(cluster: Cluster, file: Path) -> None:
    """Restore a backup on a fresh host, n9, and start its daemons."""
    folder = cluster.folder / "n9"
    host = FirstHost(
        cluster_name="test", address=cluster.address("n9"), node="n9", etc=folder, state=folder, run=folder / "run",
        hypervisors=(DRIVER,), watchdog_device="",
    )  # fmt: skip
    contents = look(file, PASSPHRASE)
    may_restore(host, contents, takes_over=False)
    first = await restore(host, file, PASSPHRASE, inspect(file), contents)
    again = await restore(host, file, PASSPHRASE, inspect(file), contents)
    assert (first.changed, again.changed, first.cluster_id) == (True, False, again.cluster_id)
    become(cluster, folder / "manager.yaml")
    cluster.start_manager("n9")
    cluster.start_agent("n9")
    await cluster.online("n9")


async def test_backup_is_restored_on_a_fresh_host(tmp_path: Path, storage: Storage) -> None:
    file = tmp_path / "backup"
    async with Cluster(tmp_path) as cluster:
        await begin(cluster, "n1", "n2")
        async with cluster.client() as gugus:
            await cluster.make_image(gugus)
            await make(gugus, cluster, "web", "n1", ha=True)
            await make(gugus, cluster, "db", "n1")
            await take(gugus, file, PASSPHRASE)
            kept = [cluster.store.peek_all(kind) for kind in (Pool, Image)]
            specs = {name: guest(cluster, name).spec for name in ("web", "db")}
            await make(gugus, cluster, "late", "n1")
        late = cluster.record("n1", "late").read_bytes()
        await lose(cluster)
        await restored(cluster, file)
        assert [obj.meta.uid for kind in (Pool, Image) for obj in cluster.store.peek_all(kind)] == [
            obj.meta.uid for objects in kept for obj in objects
        ]
        assert {name: guest(cluster, name).spec for name in ("web", "db")} == specs
        assert cluster.peek(Guest, "late") is None
        assert told(cluster, "CLUSTER_RESTORED")
        assert (copies(cluster, "web"), copies(cluster, "db")) == ([], ["n1"])
        async with cluster.client() as gugus:
            await rejoin(cluster, gugus, "n1")
            await cluster.eventually(lambda: runs(cluster, "db", "n1"))
            await cluster.eventually(lambda: told(cluster, "UNKNOWN_GUEST_LEFT"))
            assert copies(cluster, "web") == [], "n2 was a node, too"
            await gugus.nodes.remove("n2", off=True)
            await cluster.eventually(lambda: runs(cluster, "web", "n1"))
            await cluster.beats(5, "n1")
        assert cluster.record("n1", "late").read_bytes() == late, "what the backup does not know runs on"


async def test_guest_that_was_moved_after_the_backup_stays_where_it_runs(tmp_path: Path, storage: Storage) -> None:
    file = tmp_path / "backup"
    async with Cluster(tmp_path) as cluster:
        await begin(cluster, "n1", "n2", "n3")
        async with cluster.client() as gugus:
            await cluster.make_image(gugus)
            await make(gugus, cluster, "web", "n2", ha=True)
            await take(gugus, file, PASSPHRASE)
            await cluster.stop_agent("n2")
            cluster.record("n2", "web").unlink()  # the host went down
            await cluster.eventually(lambda: copies(cluster, "web") in (["n1"], ["n3"]))
            (home,) = copies(cluster, "web")
            await cluster.eventually(lambda: guest(cluster, "web").status.phase == GUEST_PHASE_RUNNING)
            await gugus.guests.set_ha("web", HaSpec(enabled=False))
            await cluster.eventually(lambda: not guest(cluster, "web").status.ha_armed)
        await cluster.beats(3, home)
        life = cluster.life(home, "web")
        await lose(cluster)
        await restored(cluster, file)
        (other,) = {"n1", "n3"} - {home}
        async with cluster.client() as gugus:
            await rejoin(cluster, gugus, "n2")
            await cluster.eventually(lambda: not node(cluster, "n2").status.former)
            await gugus.nodes.remove(other, off=True)
            await asyncio.sleep(2)
            assert copies(cluster, "web") == [home], "the state says n2, but its present host was not heard yet"
            await rejoin(cluster, gugus, home)
            await cluster.eventually(lambda: runs(cluster, "web", home))
            assert told(cluster, "GUEST_ADOPTED")
            assert node(cluster, "n2").status.state == NODE_STATE_ONLINE
        assert cluster.life(home, "web") == life
