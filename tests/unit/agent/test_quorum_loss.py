"""Guests that end before the lease does: asked while no manager renews it, and never a reason to outlive it."""

import pytest
from gugus.agent.v1 import guest_pb2

from agent import quorum_loss
from agent.compute.simulated import SimulatedHypervisor
from agent.early_ends import EarlyEnds
from agent.fencing.lease import LeaseKeeper, Phase
from common.config import AgentConfig
from common.identity.credentials import Credentials
from common.leases import NS_PER_MS
from tests.unit.agent.conftest import Host, Manager, eventually, running_agent, spec, start_guest

LEASE_MS = 10_000


class Listening(SimulatedHypervisor):
    """Guests shut down when they are asked to, unless they are deaf; it is noted who was asked, and when the lease had how much left."""

    deaf = False

    def __init__(self, config: AgentConfig) -> None:
        super().__init__(config.state_dir, config.run_dir)
        self.asked: list[str] = []

    async def shutdown(self, name: str) -> None:
        self.asked.append(name)
        if not self.deaf:
            await self.kill(name)


def granted(lease_ms: int = LEASE_MS) -> LeaseKeeper:
    keeper = LeaseKeeper()
    keeper.beat_sent(1, 0)
    assert keeper.beat_answered(1, lease_ms, fenced=False, now_ns=0)
    return keeper


@pytest.mark.parametrize("lease_ms", [3_000, 10_000, 60_000])
def test_a_lease_is_endangered_after_two_fifths_without_a_renewal_and_until_its_end(lease_ms: int) -> None:
    keeper, part = granted(lease_ms), lease_ms * NS_PER_MS // 100
    assert not keeper.endangered(39 * part)
    assert keeper.endangered(41 * part)
    assert keeper.endangered(99 * part)
    keeper.beat_sent(2, 50 * part)
    keeper.beat_answered(2, lease_ms, fenced=False, now_ns=50 * part)
    assert not keeper.endangered(51 * part)
    assert keeper.tick(151 * part) is Phase.LAPSING
    assert not keeper.endangered(151 * part)


def test_without_a_lease_or_its_length_nothing_is_endangered() -> None:
    assert not LeaseKeeper().endangered(0)
    taken_over = LeaseKeeper()
    taken_over.resume(LEASE_MS * NS_PER_MS, 0)
    assert not taken_over.endangered(LEASE_MS * NS_PER_MS * 9 // 10)


async def stop_on_loss(host: Host, name: str) -> None:
    wanted = spec(name)
    wanted.stop_on_quorum_loss = True
    await host.guests.CreateGuest(guest_pb2.CreateGuestRequest(epoch=1, spec=wanted))


async def test_only_who_wants_to_ends_before_the_lease(
    config: AgentConfig, manager_credentials: Credentials, manager: Manager, fake_pools: None
) -> None:
    hypervisor = Listening(config)
    async with running_agent(config, manager_credentials, hypervisor) as host:
        await start_guest(host, "db")
        await start_guest(host, "web")
        await stop_on_loss(host, "db")
        manager.silent = True
        await eventually(lambda: not host.runs("db"))
        assert host.agent.guard.phase is Phase.HELD
        assert host.runs("web")
        await eventually(lambda: host.agent.state.lapse.number == 1)
        assert list(host.agent.state.lapse.killed) == ["web"]
        assert hypervisor.asked == ["db"]


async def test_who_does_not_hear_dies_at_the_end_of_the_lease_as_any_other(
    config: AgentConfig, manager_credentials: Credentials, manager: Manager, fake_pools: None
) -> None:
    hypervisor = Listening(config)
    hypervisor.deaf = True
    async with running_agent(config, manager_credentials, hypervisor) as host:
        await start_guest(host, "db")
        await stop_on_loss(host, "db")
        manager.silent = True
        await eventually(lambda: host.agent.state.lapse.number == 1)
        assert list(host.agent.state.lapse.killed) == ["db"]
        assert hypervisor.asked == ["db"]


async def test_an_end_for_want_of_a_manager_is_not_the_guests_own(
    config: AgentConfig,
    manager_credentials: Credentials,
    manager: Manager,
    fake_pools: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quorum_loss, "LOOK_S", 0.05)
    manager.lease_ms = 6_000
    async with running_agent(config, manager_credentials, Listening(config)) as host:
        await start_guest(host, "db")
        await stop_on_loss(host, "db")
        manager.silent = True
        await eventually(lambda: not host.runs("db"))
        manager.silent = False
        await eventually(lambda: manager.beats[-1].guests and manager.beats[-1].guests[0].ended)
        assert manager.beats[-1].guests[0].ended == guest_pb2.GUEST_END_HOST
        assert host.agent.state.lapse.number == 0
        await start_guest(host, "db")
        await eventually(lambda: not manager.beats[-1].guests[0].ended)


def test_whoever_does_not_end_is_asked_again_and_who_needs_no_lease_never() -> None:
    early, running = EarlyEnds(), [spec("db"), spec("web"), spec("free")]
    for one in running[::2]:
        one.stop_on_quorum_loss = True
    running[0].ha = running[1].ha = True
    running[2].ha = False
    assert early.due(running, 10.0, endangered=False) == []
    assert early.due(running, 11.0, endangered=True) == ["db"]
    assert early.due(running, 15.9, endangered=True) == []
    assert early.due(running, 16.0, endangered=True) == ["db"]
    assert early.due(running, 17.0, endangered=False) == []
    assert early.due(running, 18.0, endangered=True) == ["db"]
