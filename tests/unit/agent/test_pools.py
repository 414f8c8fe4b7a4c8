"""Pools of a host whose file system hangs: the agent starts, beats and says so, and tries again until it answers.

What HA guests wrote to a shared pool must have reached it before the host says that they are dead.
"""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from gugus.agent.v1 import node_pb2, volume_pb2
from gugus.cluster.v1.node_pb2 import HOST_EXIT_POWER_OFF

from agent import pools as agent_pools
from agent import shutdown
from agent.fencing import record
from agent.fencing.lease import Phase
from agent.pools import Pools
from agent.state import AgentState
from agent.storage import flush, registry
from common.config import AgentConfig
from common.errors import precondition
from common.identity.credentials import Credentials
from tests.unit.agent.conftest import Manager, Pool, eventually, running_agent, start_guest


class Mount:
    """A file system that answers when it is told to."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()
        self.missing = False
        self.tries = 0


@pytest.fixture
async def mount(monkeypatch: pytest.MonkeyPatch) -> Mount:
    made = Mount()

    class OnMount(Pool):
        async def activate(self) -> None:
            made.tries += 1
            await made.answers.wait()
            if made.missing:
                raise precondition("PATH_MISSING", "its path does not exist.")

    monkeypatch.setattr(registry, "create", lambda spec: (OnMount if spec.name == "nfs" else Pool)(spec))
    monkeypatch.setattr(agent_pools, "ACTIVATE_TIMEOUT_S", 0.05)
    return made


@pytest.fixture
def state(tmp_path: Path) -> AgentState:
    made = AgentState(tmp_path / "records")
    for name in ("nfs", "healthy"):
        made.save_pool(volume_pb2.PoolSpec(name=name, dir=volume_pb2.DirPool(path=f"/srv/{name}", shared=True)))
    return made


async def ready(pools: Pools) -> dict[str, bool]:
    return {pool.spec.name: pool.ready for pool in await pools.statuses()}


async def test_a_pool_that_hangs_is_not_ready_until_it_answers(state: AgentState, mount: Mount) -> None:
    pools = Pools(state)
    await pools.open()
    for _ in range(3):
        assert await ready(pools) == {"healthy": True, "nfs": False}
    assert mount.tries == 1, "one that hangs is not begun again"
    assert "does not answer" in {pool.spec.name: pool.reason for pool in await pools.statuses()}["nfs"]
    mount.answers.set()
    await asyncio.sleep(0)
    assert await ready(pools) == {"healthy": True, "nfs": True}


async def test_a_pool_that_failed_at_the_start_is_tried_again(state: AgentState, mount: Mount) -> None:
    mount.answers.set()
    mount.missing = True
    pools = Pools(state)
    await pools.open()
    assert await ready(pools) == {"healthy": True, "nfs": False}
    mount.missing = False
    assert await ready(pools) == {"healthy": True, "nfs": True}


async def test_a_restarted_agent_beats_although_a_pool_hangs(
    config: AgentConfig, manager_credentials: Credentials, manager: Manager, mount: Mount
) -> None:
    mount.answers.set()
    async with running_agent(config, manager_credentials) as host:
        await start_guest(host, ha=True)
        host.agent.state.save_pool(volume_pb2.PoolSpec(name="nfs", dir=volume_pb2.DirPool(path="/srv/nfs")))
    mount.answers.clear()
    async with running_agent(config, manager_credentials) as host:
        await eventually(lambda: host.agent.guard.remaining_ms > 0)
        assert host.runs("web")
        problems = (await host.node.GetHealth(node_pb2.GetHealthRequest())).problems
        assert any("pool nfs is not ready" in problem for problem in problems)


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The server that dirty pages of all file systems go to; it is gone until it is set."""
    event = threading.Event()
    monkeypatch.setattr(flush, "syncfs", lambda _: event.wait())
    monkeypatch.setattr(agent_pools, "FLUSH_WAIT_S", 0.05)
    yield event
    event.set()


@pytest.fixture
def shared_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool of the guests of these tests is shared, whatever is asked for."""

    class Shared(Pool):
        def __init__(self, spec: volume_pb2.PoolSpec) -> None:
            spec.dir.shared = True
            super().__init__(spec)

    monkeypatch.setattr(registry, "create", Shared)


async def test_a_guest_dies_at_once_and_is_not_dead_while_its_writes_hang(
    unreachable: threading.Event,
    config: AgentConfig,
    manager_credentials: Credentials,
    manager: Manager,
    shared_pool: None,
) -> None:
    async with running_agent(config, manager_credentials) as host:
        await start_guest(host)
        manager.fenced = True
        await eventually(lambda: not host.runs("web"))
        for _ in range(10):
            assert host.agent.guard.phase is Phase.LAPSING
            assert host.agent.state.lapse.number == 0
            promised = record.read(config.run_dir)
            assert promised is not None
            assert promised.starting == ("web",), "the watchdog would take a process that is gone for proof"
            await asyncio.sleep(0.05)
        unreachable.set()
        await eventually(lambda: host.agent.state.lapse.number == 1)
        assert list(host.agent.state.lapse.killed) == ["web"]


async def test_a_guest_on_a_pool_of_this_host_alone_is_dead_when_its_process_is(
    unreachable: threading.Event,
    config: AgentConfig,
    manager_credentials: Credentials,
    manager: Manager,
    fake_pools: None,
) -> None:
    async with running_agent(config, manager_credentials) as host:
        await start_guest(host)
        manager.fenced = True
        await eventually(lambda: host.agent.state.lapse.number == 1)


async def test_a_guest_that_stopped_for_a_shutdown_is_not_dead_while_its_writes_hang(
    unreachable: threading.Event,
    config: AgentConfig,
    manager_credentials: Credentials,
    shared_pool: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def off() -> int:
        return HOST_EXIT_POWER_OFF

    monkeypatch.setattr(shutdown, "system_exit", off)
    monkeypatch.setattr(shutdown, "ORDER_TIMEOUT_S", 0.3)
    monkeypatch.setattr(shutdown, "FLUSH_TIMEOUT_S", 0.1)
    monkeypatch.setattr(shutdown, "EMPTY_TIMEOUT_S", 0.5)
    async with running_agent(config, manager_credentials) as host:
        await start_guest(host)
    assert not host.runs("web")
    assert host.agent.state.lapse.number == 0
    promised = record.read(config.run_dir)
    assert promised is not None
    assert promised.guarded
