"""A host that is shut down in order: its guests stop, the lease is given up, and the acting manager hears of it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from gugus.agent.v1 import guest_pb2, node_pb2
from gugus.cluster.v1 import heartbeat_pb2
from gugus.cluster.v1.cluster_pb2 import SHUTDOWN_POLICY_FAIL_OVER, SHUTDOWN_POLICY_MIGRATE
from gugus.cluster.v1.node_pb2 import HOST_EXIT_POWER_OFF, HOST_EXIT_REBOOT, HOST_EXIT_UNSPECIFIED

from agent import shutdown
from agent.compute.simulated import SimulatedHypervisor
from agent.farewell import Farewell
from agent.fencing import record
from common.config import AgentConfig
from common.identity.credentials import Credentials
from manager.controllers.context import TRANSIENT_REASONS
from tests.unit.agent.conftest import Manager, eventually, running_agent, spec, start_guest
from tests.unit.agent.test_daemon import refused

UNITS = Path(__file__).parents[3] / "systemd"
LAPSE = heartbeat_pb2.LapseReport(number=4)


class Obstinate(SimulatedHypervisor):
    """Its guests do not hear when they are asked to shut down, unless `hears`: so often they have to be asked."""

    hears = 0  # never
    asked = 0

    async def shutdown(self, name: str) -> None:
        self.asked += 1
        if self.asked == self.hears:
            await self.kill(name)


class Listing(SimulatedHypervisor):
    """Notes in which order its guests were asked to shut down."""

    def __init__(self, config: AgentConfig) -> None:
        super().__init__(config.state_dir, config.run_dir)
        self.asked: list[str] = []

    async def shutdown(self, name: str) -> None:
        self.asked.append(name)
        await self.kill(name)


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole system is being stopped, and nobody has long to wait for."""

    async def off() -> int:
        return HOST_EXIT_POWER_OFF

    monkeypatch.setattr(shutdown, "system_exit", off)
    monkeypatch.setattr(shutdown, "ORDER_TIMEOUT_S", 0.3)
    for name in ("HA_GRACE_S", "OTHERS_GRACE_S", "FAREWELL_TIMEOUT_S"):
        monkeypatch.setattr(shutdown, name, 1.0)


@pytest.fixture
def fencing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What becomes of the node with a manager that fences it by its report, and takes it back by the same in a later beat."""
    told: list[str] = []

    async def beats(manager: Manager, requests: Any, _context: Any) -> AsyncIterator[heartbeat_pb2.HeartbeatResponse]:
        async for beat in requests:
            manager.beats.append(beat)
            reports, was_fenced = beat.HasField("lapse"), manager.fenced
            if reports:
                told.append("taken back" if was_fenced else "fenced")
                manager.fenced = not was_fenced
            yield heartbeat_pb2.HeartbeatResponse(
                sequence=beat.sequence, lease_ms=0 if reports or was_fenced else 2000, epoch=1, fenced=was_fenced
            )

    monkeypatch.setattr(Manager, "Heartbeat", beats)
    return told


async def test_a_host_that_is_shut_down_ends_its_guests_and_says_so_once(
    fencing: list[str], config: AgentConfig, manager_credentials: Credentials, stopping: None, fake_pools: None
) -> None:
    async with running_agent(config, manager_credentials) as host:
        await start_guest(host)
        await start_guest(host, "plain", ha=False)
    assert not host.runs("web")
    assert not host.runs("plain")
    assert host.agent.state.lapse.number == 1
    assert fencing == ["fenced"]


async def test_a_host_that_is_shut_down_leaves_the_watchdog_nothing_to_guard(
    config: AgentConfig, manager_credentials: Credentials, stopping: None, fake_pools: None
) -> None:
    async with running_agent(config, manager_credentials) as host:
        await start_guest(host)
        before = record.read(config.run_dir)
    after = record.read(config.run_dir)
    assert before is not None
    assert after is not None
    assert (before.guarded, after.guarded) == (True, False)


async def test_a_host_serves_on_while_its_guests_move_away(
    config: AgentConfig, manager_credentials: Credentials, manager: Manager, stopping: None, fake_pools: None
) -> None:
    async with running_agent(config, manager_credentials) as host:
        await start_guest(host)
        manager.shutdown = SHUTDOWN_POLICY_MIGRATE
        host.agent.stop()
        await eventually(lambda: manager.beats[-1].exit == HOST_EXIT_POWER_OFF)
        await host.guests.KillGuest(guest_pb2.KillGuestRequest(epoch=1, name="web"))  # as if it had moved
        assert host.agent.guard.remaining_ms > 0
        manager.shutdown = SHUTDOWN_POLICY_FAIL_OVER
    assert host.agent.state.lapse.number == 1
    assert not host.agent.state.lapse.killed


async def test_a_host_is_shut_down_without_any_manager(
    config: AgentConfig, manager_credentials: Credentials, manager: Manager, stopping: None, fake_pools: None
) -> None:
    async with running_agent(config, manager_credentials) as host:
        await start_guest(host)
        manager.silent = True
    assert not host.runs("web")
    assert host.agent.state.lapse.number == 1


async def test_guests_that_do_not_shut_down_are_killed(
    config: AgentConfig, manager_credentials: Credentials, stopping: None, fake_pools: None
) -> None:
    deaf = Obstinate(config.state_dir, config.run_dir)
    async with running_agent(config, manager_credentials, deaf) as host:
        await start_guest(host)
        await start_guest(host, "plain", ha=False)
    assert not host.runs("web")
    assert not host.runs("plain")
    assert list(host.agent.state.lapse.killed) == ["web"]


async def test_guests_end_in_the_reverse_of_their_boot_order(
    config: AgentConfig, manager_credentials: Credentials, stopping: None, fake_pools: None
) -> None:
    listing = Listing(config)
    async with running_agent(config, manager_credentials, listing) as host:
        for name, order in (("first", 1), ("any", 0), ("last", 7)):
            await start_guest(host, name, ha=False)
            wanted = spec(name, ha=False)
            wanted.boot_order, wanted.shutdown_timeout_ms = order, 500
            await host.guests.CreateGuest(guest_pb2.CreateGuestRequest(epoch=1, spec=wanted))
    assert listing.asked == ["any", "last", "first"]


async def test_guests_end_before_those_that_they_start_after(
    config: AgentConfig, manager_credentials: Credentials, stopping: None, fake_pools: None
) -> None:
    listing = Listing(config)
    async with running_agent(config, manager_credentials, listing) as host:
        for name, order, after in (("db", 0, ()), ("app", 1, ("db",)), ("web", 2, ("app", "away"))):
            await start_guest(host, name, ha=False)
            wanted = spec(name, ha=False)
            wanted.boot_order, wanted.shutdown_timeout_ms = order, 500
            wanted.after.extend(after)
            await host.guests.CreateGuest(guest_pb2.CreateGuestRequest(epoch=1, spec=wanted))
    assert listing.asked == ["web", "app", "db"]


async def test_a_guest_that_was_still_booting_is_asked_again(
    config: AgentConfig,
    manager_credentials: Credentials,
    stopping: None,
    fake_pools: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutdown, "ASK_AGAIN_S", 0.1)
    booting = Obstinate(config.state_dir, config.run_dir)
    booting.hears = 2
    async with running_agent(config, manager_credentials, booting) as host:
        await start_guest(host)
    assert not host.runs("web")
    assert not host.agent.state.lapse.killed


async def test_what_is_asked_of_a_host_that_is_shut_down_is_refused_for_the_moment(
    config: AgentConfig, manager_credentials: Credentials, stopping: None, fake_pools: None
) -> None:
    deaf = Obstinate(config.state_dir, config.run_dir)
    async with running_agent(config, manager_credentials, deaf) as host:
        await start_guest(host)
        await start_guest(host, "plain", ha=False)
        await host.guests.KillGuest(guest_pb2.KillGuestRequest(epoch=1, name="plain"))
        host.agent.stop()
        await eventually(lambda: deaf.asked)
        start = guest_pb2.StartGuestRequest(epoch=1, name="plain", grant=guest_pb2.Grant(generation=2))
        assert await refused(host.guests.StartGuest(start)) in TRANSIENT_REASONS
    assert not host.runs("plain")


@pytest.mark.parametrize("ha", [True, False])
async def test_a_start_under_way_leaves_nothing_running(
    config: AgentConfig, manager_credentials: Credentials, stopping: None, fake_pools: None, ha: bool
) -> None:
    slow = SimulatedHypervisor(config.state_dir, config.run_dir, start_delay_s=0.5)
    async with running_agent(config, manager_credentials, slow) as host:
        await eventually(lambda: host.agent.guard.remaining_ms > 0)
        starting = asyncio.create_task(start_guest(host, ha=ha))
        await eventually(lambda: "web" in host.agent.turns.under_way("guest"))
        await asyncio.sleep(0.1)
    assert not host.runs("web")
    starting.cancel()


async def test_an_agent_that_is_stopped_on_a_running_system_leaves_its_guests(
    config: AgentConfig, manager_credentials: Credentials, fake_pools: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutdown, "SYSTEM_STATE", told(("shutdown.target", NO)))
    async with running_agent(config, manager_credentials) as host:
        await start_guest(host)
    assert host.runs("web")
    assert host.agent.state.lapse.number == 0


NO, YES = "ActiveState=inactive\nJob=\n", "ActiveState=inactive\nJob=1234\n"


def told(*units: tuple[str, str]) -> tuple[str, ...]:
    """A program that says of units what systemctl would."""
    return "printf", "\n".join(f"Id={name}\n{state}" for name, state in units)


@pytest.mark.parametrize(
    ("command", "way"),
    [
        (told(("shutdown.target", NO), ("reboot.target", NO)), HOST_EXIT_UNSPECIFIED),
        (told(("shutdown.target", NO.replace("Job=", "Job=0"))), HOST_EXIT_UNSPECIFIED),
        (told(("shutdown.target", YES), ("reboot.target", NO)), HOST_EXIT_POWER_OFF),
        (told(("shutdown.target", "ActiveState=active\nJob=\n")), HOST_EXIT_POWER_OFF),
        (told(("shutdown.target", YES), ("reboot.target", YES)), HOST_EXIT_REBOOT),
        (told(("shutdown.target", YES), ("reboot.target", NO), ("kexec.target", YES)), HOST_EXIT_REBOOT),
        (told(("shutdown.target", YES), ("soft-reboot.target", "ActiveState=active\nJob=\n")), HOST_EXIT_REBOOT),
        (told(("shutdown.target", NO), ("reboot.target", YES)), HOST_EXIT_UNSPECIFIED),
        (("false",), HOST_EXIT_UNSPECIFIED),
        (("no-such-command",), HOST_EXIT_UNSPECIFIED),
    ],
)
async def test_a_reboot_is_told_from_a_shutdown_and_both_from_a_stop_of_the_agent(
    monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], way: int
) -> None:
    monkeypatch.setattr(shutdown, "SYSTEM_STATE", command)
    assert await shutdown.system_exit() == way


async def test_a_host_reboots_when_it_is_told_to_end_this_boot(
    config: AgentConfig, manager_credentials: Credentials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "rebooted"
    monkeypatch.setattr(shutdown, "REBOOT", ("touch", str(mark)))
    async with running_agent(config, manager_credentials) as host:
        boot_id = (await host.node.GetFacts(node_pb2.GetFactsRequest())).boot_id
        await host.node.RebootHost(node_pb2.RebootHostRequest(epoch=1, boot_id="another"))
        assert not mark.exists()
        await host.node.RebootHost(node_pb2.RebootHostRequest(epoch=1, boot_id=boot_id))
        assert mark.exists()
        monkeypatch.setattr(shutdown, "REBOOT", ("false",))
        again = host.node.RebootHost(node_pb2.RebootHostRequest(epoch=1, boot_id=boot_id))
        assert await refused(again) == "REBOOT_REFUSED"


def test_the_report_is_carried_until_it_was_taken_in() -> None:
    farewell = Farewell()
    assert farewell.sent(1, None) is None, "guests are still being killed"
    assert not farewell.answered(1, 10_000, fenced=False)
    assert farewell.sent(2, LAPSE) == LAPSE
    assert farewell.answered(2, 0, fenced=False), "the beat that does not ask to be taken back must follow at once"
    assert farewell.sent(3, LAPSE) is None
    assert not farewell.over
    farewell.answered(3, 0, fenced=True)
    assert farewell.over


def test_a_report_that_the_manager_lost_is_carried_again() -> None:
    farewell = Farewell()
    assert farewell.sent(1, LAPSE)
    farewell.answered(1, 0, fenced=False)
    assert farewell.sent(2, LAPSE) is None
    farewell.answered(2, 10_000, fenced=False)
    assert farewell.sent(3, LAPSE)
    assert not farewell.over


def test_beats_that_nobody_answers_all_carry_the_report() -> None:
    farewell = Farewell()
    assert all(farewell.sent(sequence, LAPSE) for sequence in range(5))


def values(unit: str, key: str) -> list[str]:
    """All words of a setting of a unit."""
    lines = (UNITS / f"gugus-{unit}.service").read_text().splitlines()
    return [word for line in lines if line.startswith(f"{key}=") for word in line.split("=", 1)[1].split()]


def test_what_the_agent_needs_to_leave_is_stopped_after_it() -> None:
    needed = {"gugus-manager.service", "gugus-watchdog.service", "libvirtd.service", "virtlogd.service"}
    needed |= {"network.target", "network-online.target", "remote-fs.target", "virt-guest-shutdown.target"}
    assert needed <= set(values("agent", "After"))
    assert "virt-guest-shutdown.target" in values("agent", "Wants"), "an order holds among units that are active"


def test_systemd_waits_until_the_agent_has_left() -> None:
    assert float(values("agent", "TimeoutStopSec")[0].removesuffix("s")) > shutdown.LONGEST_S


def test_the_agent_outlives_a_tool_that_the_kernel_kills_for_want_of_memory() -> None:
    assert values("agent", "OOMPolicy") == ["continue"]
