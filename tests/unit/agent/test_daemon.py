"""A whole agent: what a manager sees of it, and what happens to guests when leases end and daemons restart."""

import asyncio
import threading
import time
from collections.abc import Collection
from pathlib import Path

import grpc
import pytest
from gugus.agent.v1 import guest_pb2, node_pb2, volume_pb2

from agent.compute.hypervisor import KillReport, Observation
from agent.compute.simulated import SimulatedHypervisor
from agent.daemon import EMPTYING_TIMEOUT_S, Agent
from agent.fencing import boot
from agent.fencing.record import FILE_NAME, read
from agent.pools import Pools
from agent.storage import registry
from common.config import AgentConfig
from common.errors import GugusError, from_rpc_error
from common.identity.ca import CertificateAuthority
from common.identity.credentials import Credentials
from common.identity.names import Identity, Role, any_of
from common.rpc.channel import open_channel
from tests.unit.agent.conftest import Host, Manager, Pool, eventually, running_agent, running_manager, spec, start_guest

RUNNING, STOPPED = guest_pb2.GUEST_STATE_RUNNING, guest_pb2.GUEST_STATE_STOPPED


async def refused(call: object) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return from_rpc_error(caught.value).reason


async def start_again(host: Host, generation: int) -> None:
    grant = guest_pb2.Grant(generation=generation)
    await host.guests.StartGuest(guest_pb2.StartGuestRequest(epoch=1, name="web", grant=grant))


async def test_guest_lives_from_creation_to_deletion(host: Host, manager: Manager) -> None:
    guest = await start_guest(host, ha=False, generation=3)
    assert (guest.state, guest.generation, guest.mode) == (RUNNING, 3, "simulated")
    await eventually(lambda: any(g.state == RUNNING for g in manager.beats[-1].guests))
    assert await refused(host.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(epoch=1, name="web"))) == "GUEST_RUNNING"
    guest = await host.guests.StopGuest(guest_pb2.StopGuestRequest(epoch=1, name="web", timeout_ms=1000))
    assert guest.state == STOPPED
    await host.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(epoch=1, name="web"))
    assert not (await host.guests.ListGuests(guest_pb2.ListGuestsRequest())).guests


async def test_ha_guest_dies_at_lease_end_and_the_report_renews_the_lease(host: Host, manager: Manager) -> None:
    await start_guest(host)
    await start_guest(host, "plain", ha=False)
    manager.silent = True
    await eventually(lambda: not host.runs("web"))
    assert host.runs("plain")
    manager.silent = False
    await eventually(lambda: manager.beats[-1].HasField("lapse"))
    assert list(manager.beats[-1].lapse.killed) == ["web"]
    await eventually(lambda: host.agent.guard.remaining_ms > 0)
    await eventually(lambda: not manager.beats[-1].HasField("lapse"))


async def test_a_host_that_is_heard_again_late_gets_its_lease_back_before_it_ends(host: Host, manager: Manager) -> None:
    manager.lease_ms = 4000
    await start_guest(host)
    beats = len(manager.beats)
    await eventually(lambda: len(manager.beats) > beats)  # by its own rhythm from here on: a beat a second
    manager.withheld = 5
    await eventually(lambda: not manager.withheld)
    await eventually(lambda: host.agent.guard.remaining_ms > 3500)
    assert host.runs("web")
    assert not any(beat.HasField("lapse") for beat in manager.beats)


async def test_ha_guest_dies_although_the_event_loop_is_blocked(host: Host, manager: Manager) -> None:
    await start_guest(host)
    deadline = time.monotonic() + host.agent.guard.remaining_ms / 1000
    died: list[float] = []

    def look() -> None:
        while host.runs("web"):
            time.sleep(0.01)
        died.append(time.monotonic())

    watcher = threading.Thread(target=look)
    watcher.start()
    time.sleep(4)  # noqa: ASYNC251 (the one event loop stands still, twice as long as the lease)
    watcher.join(1)
    assert died
    assert -0.1 < died[0] - deadline < 0.5


async def test_ha_start_without_a_lease_is_refused(host: Host, manager: Manager) -> None:
    await start_guest(host)
    manager.silent = True
    await eventually(lambda: not host.runs("web"))
    start = guest_pb2.StartGuestRequest(epoch=1, name="web", grant=guest_pb2.Grant(generation=2))
    assert await refused(host.guests.StartGuest(start)) == "LEASE_EXPIRED"
    assert not host.runs("web")


async def test_start_in_flight_when_the_lease_ends_leaves_nothing_running(
    config: AgentConfig, manager_credentials: Credentials, manager: Manager, fake_pools: None
) -> None:
    slow = SimulatedHypervisor(config.state_dir, config.run_dir, start_delay_s=3.5)
    async with running_agent(config, manager_credentials, slow) as host:
        await eventually(lambda: host.agent.guard.remaining_ms > 0)
        starting = asyncio.create_task(start_guest(host))
        await asyncio.sleep(0.3)
        manager.silent = True
        assert await refused(starting) == "LEASE_EXPIRED"
        assert not host.runs("web")
        await eventually(lambda: host.agent.state.lapse.number == 1)
        assert list(host.agent.state.lapse.killed) == ["web"]


async def test_a_fenced_node_kills_at_once_and_reports(host: Host, manager: Manager) -> None:
    manager.lease_ms = 30_000
    await start_guest(host)
    await eventually(lambda: host.agent.guard.remaining_ms > 5_000)
    manager.fenced = True
    await eventually(lambda: not host.runs("web"), 2)
    await eventually(lambda: manager.beats[-1].lapse.number == 1, 2)


async def test_old_epochs_and_old_generations_are_refused(host: Host, manager: Manager) -> None:
    await start_guest(host, ha=False, generation=5)
    start = guest_pb2.StartGuestRequest(epoch=4, name="web", grant=guest_pb2.Grant(generation=4))
    assert await refused(host.guests.StartGuest(start)) == "STALE_GENERATION"
    kill = guest_pb2.KillGuestRequest(epoch=3, name="web")
    assert await refused(host.guests.KillGuest(kill)) == "STALE_EPOCH"
    kill.epoch = 0
    assert await refused(host.guests.KillGuest(kill)) == "INVALID_ARGUMENT"
    assert host.runs("web")


async def test_generation_outlives_the_guest(host: Host, manager: Manager) -> None:
    await start_guest(host, ha=False, generation=5)
    await host.guests.KillGuest(guest_pb2.KillGuestRequest(epoch=1, name="web"))
    await host.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(epoch=1, name="web"))
    assert await refused(start_guest(host, ha=False, generation=4)) == "STALE_GENERATION"


async def test_restarted_agent_adopts_guests_and_lease(
    config: AgentConfig, manager_credentials: Credentials, manager: Manager, fake_pools: None
) -> None:
    manager.lease_ms = 10_000
    async with running_agent(config, manager_credentials) as host:
        await start_guest(host, generation=7)
        boot_id = manager.beats[-1].boot_id
        began = time.monotonic()
    assert time.monotonic() - began < 2
    async with running_agent(config, manager_credentials) as host:
        assert host.runs("web")
        guest = await host.guests.InspectGuest(guest_pb2.InspectGuestRequest(name="web"))
        assert (guest.state, guest.generation) == (RUNNING, 7)
        assert (await host.node.GetFacts(node_pb2.GetFactsRequest())).boot_id == boot_id
        assert host.agent.guard.remaining_ms > 0


async def test_agent_that_was_away_longer_than_its_lease_kills_before_it_serves(
    config: AgentConfig, manager_credentials: Credentials, manager: Manager, fake_pools: None
) -> None:
    async with running_agent(config, manager_credentials) as host:
        await start_guest(host)
    await asyncio.sleep(2.1)
    manager.silent = True
    async with running_agent(config, manager_credentials) as host:
        assert not host.runs("web")
        assert host.agent.state.lapse.number == 1


async def test_a_start_that_hangs_in_storage_holds_up_no_lapse(
    host: Host, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start_guest(host)
    await host.guests.KillGuest(guest_pb2.KillGuestRequest(epoch=1, name="web"))
    answers = asyncio.Event()

    async def hang(self: Pool, name: str) -> Path:
        await answers.wait()
        return Path("/nowhere") / name

    monkeypatch.setattr(Pool, "path_of", hang)
    starting = asyncio.create_task(start_again(host, 2))
    await eventually(lambda: host.agent.state.generation(spec().uid) == 2)
    manager.silent = True
    await eventually(lambda: host.agent.state.lapse.number == 1)
    answers.set()
    assert await refused(starting) == "LEASE_EXPIRED"


async def test_a_start_whose_look_fails_for_whatever_reason_is_under_way_until_one_succeeds(
    config: AgentConfig, manager_credentials: Credentials, manager: Manager, fake_pools: None
) -> None:
    class Unsteady(SimulatedHypervisor):
        broken = False

        async def start(self, name: str, generation: int) -> None:
            await super().start(name, generation)
            self.broken = True

        async def observe_all(self) -> dict[str, Observation]:
            if self.broken:
                raise RuntimeError("cannot acquire state change lock")
            return await super().observe_all()

    unsteady = Unsteady(config.state_dir, config.run_dir)
    async with running_agent(config, manager_credentials, unsteady) as host:
        await start_guest(host)
        manager.silent = True
        await eventually(lambda: not host.runs("web"))
        assert host.agent.state.lapse.number == 0
        unsteady.broken = False
        await eventually(lambda: host.agent.state.lapse.number == 1)


class Unkillable(SimulatedHypervisor):
    """Guests that hang in the kernel."""

    mortal = False

    async def emergency_kill(self, names: Collection[str]) -> KillReport:
        if self.mortal:
            return await super().emergency_kill(names)
        return KillReport(frozenset(), dict.fromkeys(names, "hangs in the kernel"))


async def test_a_host_has_no_other_boot_id_before_its_ha_guests_are_dead(
    config: AgentConfig, manager_credentials: Credentials, manager: Manager, fake_pools: None
) -> None:
    async with running_agent(config, manager_credentials) as host:
        await start_guest(host)
    for file in (boot.TOKEN_FILE_NAME, FILE_NAME):
        (config.run_dir / file).unlink()
    monkey = Unkillable(config.state_dir, config.run_dir)
    agent = Agent(config, config.pki_dir.parent / "agent.yaml", hypervisors=(monkey,))
    running = asyncio.create_task(agent.run())
    await asyncio.sleep(EMPTYING_TIMEOUT_S + 0.5)
    assert not boot.known(config.run_dir)
    assert not (config.run_dir / FILE_NAME).exists()
    monkey.mortal = True
    await eventually(lambda: boot.known(config.run_dir))
    assert not host.runs("web")
    agent.stop()
    await asyncio.wait_for(running, 5)


async def test_an_agent_that_waits_for_the_end_of_ha_guests_can_be_stopped(
    config: AgentConfig, manager_credentials: Credentials, manager: Manager, fake_pools: None
) -> None:
    async with running_agent(config, manager_credentials) as host:
        await start_guest(host)
    (config.run_dir / boot.TOKEN_FILE_NAME).unlink()
    monkey = Unkillable(config.state_dir, config.run_dir)
    agent = Agent(config, config.pki_dir.parent / "agent.yaml", hypervisors=(monkey,))
    agent.stop()
    with pytest.raises(GugusError, match="cannot be killed"):
        await asyncio.wait_for(agent.run(), EMPTYING_TIMEOUT_S + 5)
    assert not boot.known(config.run_dir)


async def test_a_damaged_lease_record_is_no_lease_and_ends_no_agent(
    config: AgentConfig, manager_credentials: Credentials, manager: Manager, fake_pools: None
) -> None:
    manager.lease_ms = 30_000
    async with running_agent(config, manager_credentials) as host:
        await start_guest(host)
    (config.run_dir / FILE_NAME).write_text("{")
    async with running_agent(config, manager_credentials) as host:
        assert not host.runs("web")
        assert host.agent.state.lapse.number == 1
        assert read(config.run_dir) is not None


async def test_agent_follows_the_hint_to_the_acting_manager(
    config: AgentConfig, manager_credentials: Credentials, manager: Manager, fake_pools: None
) -> None:
    async with running_manager(manager_credentials) as other:
        manager.acting = other.endpoint
        async with running_agent(config, manager_credentials) as host:
            await eventually(lambda: host.agent.guard.remaining_ms > 0)
            await eventually(lambda: any(beat.HasField("facts") for beat in other.beats))


async def test_death_of_the_acting_manager_is_survived_within_the_lease(
    config: AgentConfig, manager_credentials: Credentials, manager: Manager, fake_pools: None
) -> None:
    async with running_manager(manager_credentials, lease_ms=10_000) as second:
        manager.lease_ms = 10_000
        two = AgentConfig(**{f: getattr(config, f) for f in config.__slots__ if f != "managers"},
                          managers=(manager.endpoint, second.endpoint))  # fmt: skip
        async with running_agent(two, manager_credentials) as host:
            await start_guest(host)
            manager.silent = True
            await eventually(lambda: bool(second.beats) and host.agent.guard.remaining_ms > 9_000, 8)
            assert host.runs("web")


async def test_an_agent_whose_start_takes_long_renews_its_lease_and_reports_its_guests_meanwhile(
    config: AgentConfig, manager_credentials: Credentials, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow pool, a busy host: HA guests have no longer than what is left of the lease."""
    monkeypatch.setattr(registry, "create", Pool)
    async with running_agent(config, manager_credentials) as host:
        await start_guest(host)
    usable = asyncio.Event()
    open_pools = Pools.open

    async def slow(pools: Pools) -> None:
        await usable.wait()
        await open_pools(pools)

    monkeypatch.setattr(Pools, "open", slow)
    agent, before = Agent(config, config.pki_dir.parent / "agent.yaml"), len(manager.beats)
    running = asyncio.create_task(agent.run())
    await eventually(lambda: len(manager.beats) > before + 2)
    early = manager.beats[before]
    assert [(guest.name, guest.state) for guest in early.guests] == [("web", RUNNING)]
    assert not any(beat.HasField("facts") for beat in manager.beats[before:]), "they are not known yet"
    assert agent.guard.remaining_ms > 0
    usable.set()
    await eventually(lambda: any(beat.HasField("facts") for beat in manager.beats[before:]))
    agent.stop()
    await running


async def test_an_agent_that_can_serve_nobody_keeps_no_lease(
    config: AgentConfig, manager_credentials: Credentials, manager: Manager, host: Host
) -> None:
    """Its port is taken: started again and again, it must not renew a lease for guests that nobody can reach."""
    settings = {name: getattr(config, name) for name in config.__slots__} | {"port": host.agent.ports[0]}
    other = Agent(AgentConfig(**settings), config.pki_dir.parent / "agent.yaml")
    with pytest.raises(GugusError, match="cannot listen"):
        await other.run()
    assert other._beating is None


async def test_a_restarted_agent_asks_the_manager_first_that_renewed_its_lease_last(
    config: AgentConfig, manager_credentials: Credentials, manager: Manager, fake_pools: None
) -> None:
    """Its lease runs out while it looks for the one that acts."""
    async with running_manager(manager_credentials, lease_ms=10_000) as second:
        manager.acting, second.managers = second.endpoint, sorted([manager.endpoint, second.endpoint])
        for _ in range(2):
            beats = len(second.beats)
            async with running_agent(config, manager_credentials) as host:
                await eventually(lambda beats=beats: len(second.beats) > beats)
                await eventually(lambda: host.agent.state.managers[:1] == (second.endpoint,))
        assert (manager.streams, second.streams) == (1, 2)


async def test_other_roles_may_not_command_an_agent(host: Host, ca: CertificateAuthority) -> None:
    operator = ca.issue(Identity(ca.cluster_id, Role.OPERATOR, "root"))
    endpoint = f"127.0.0.1:{host.agent.ports[0]}"
    async with open_channel(endpoint, operator, verify=any_of(Role.NODE, ca.cluster_id)) as channel:
        answer = Host(host.agent, channel).guests.ListGuests(guest_pb2.ListGuestsRequest())
        assert await refused(answer) == "ROLE_NOT_ALLOWED"


async def test_guest_with_missing_volume_or_network_is_refused_with_what_is_missing(host: Host) -> None:
    request = guest_pb2.CreateGuestRequest(epoch=1, spec=spec())
    assert await refused(host.guests.CreateGuest(request)) == "VOLUME_MISSING"
    pool = volume_pb2.PoolSpec(name="local", dir=volume_pb2.DirPool(path="/srv/local"))
    await host.volumes.EnsurePool(volume_pb2.EnsurePoolRequest(epoch=1, spec=pool))
    request.spec.nics.add(name="eth0", network="lan", mac="52:54:00:00:00:01")
    assert await refused(host.guests.CreateGuest(request)) == "NETWORK_MISSING"
    request.spec.name = "../x"
    assert await refused(host.guests.CreateGuest(request)) == "INVALID_ARGUMENT"


async def test_health_says_that_no_watchdog_guards_ha_guests(host: Host) -> None:
    await start_guest(host)
    health = await host.node.GetHealth(node_pb2.GetHealthRequest())
    assert not health.healthy
    assert any("watchdog" in problem for problem in health.problems)
