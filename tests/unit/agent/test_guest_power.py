"""Guests are held, reset, hibernated and changed through the agent's API, and what waits is told."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from gugus.agent.v1 import guest_pb2, task_pb2, task_pb2_grpc, volume_pb2

from agent.compute.simulated import SimulatedHypervisor
from agent.storage import registry
from agent.storage.pool import VolumeRequest
from common.config import AgentConfig
from common.errors import GugusError, from_status, not_found
from common.identity.credentials import Credentials
from tests.unit.agent.conftest import Host, Pool, eventually, running_agent, spec, start_guest
from tests.unit.agent.test_daemon import refused


class FilePool(Pool):
    """A pool with real files, in `folder`."""

    folder = Path()
    grown: dict[str, tuple[int, bool]]

    async def create_volume(self, request: VolumeRequest) -> volume_pb2.Volume:
        (self.folder / request.name).touch()
        return await self.get_volume(request.name)

    async def path_of(self, name: str) -> Path:
        if name.startswith("memory") and not (self.folder / name).exists():
            raise not_found("volume", name)
        return self.folder / name

    async def get_volume(self, name: str) -> volume_pb2.Volume:
        size = self.grown.get(name, (1 << 20, False))[0]
        return volume_pb2.Volume(name=name, format=volume_pb2.VOLUME_FORMAT_RAW, size_bytes=size)

    async def delete_volume(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    async def resize_volume(self, name: str, size_bytes: int, *, done_by_guest: bool = False) -> volume_pb2.Volume:
        self.grown[name] = (size_bytes, done_by_guest)
        return await self.get_volume(name)


class Full(SimulatedHypervisor):
    """Has no room for memories."""

    async def hibernate(self, name: str, path: Path, progress: object) -> None:
        raise GugusError(grpc.StatusCode.RESOURCE_EXHAUSTED, "NO_SPACE", "there is no room.")


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[FilePool]:
    FilePool.folder, FilePool.grown = tmp_path / "pool", {}
    FilePool.folder.mkdir()
    monkeypatch.setattr(registry, "create", FilePool)
    return FilePool


@pytest.fixture
async def host(config: AgentConfig, manager_credentials: Credentials, pool: type[FilePool]) -> AsyncIterator[Host]:
    async with running_agent(config, manager_credentials) as running:
        yield running


async def ended(host: Host, task: task_pb2.Task) -> task_pb2.Task:
    stub = task_pb2_grpc.TaskServiceStub(host.channel)
    async for seen in stub.WatchTask(task_pb2.WatchTaskRequest(id=task.id)):
        task = seen
    return task


def hibernation(task_id: str) -> guest_pb2.HibernateGuestRequest:
    return guest_pb2.HibernateGuestRequest(epoch=1, name="web", pool="local", volume="memory-web", task_id=task_id)


async def test_a_guest_is_held_and_goes_on(host: Host) -> None:
    await start_guest(host)
    for _ in range(2):
        held = await host.guests.SuspendGuest(guest_pb2.SuspendGuestRequest(epoch=1, name="web"))
        assert held.state == guest_pb2.GUEST_STATE_PAUSED
    again = await host.guests.ResumeGuest(guest_pb2.ResumeGuestRequest(epoch=1, name="web"))
    assert again.state == guest_pb2.GUEST_STATE_RUNNING
    await host.guests.ResetGuest(guest_pb2.ResetGuestRequest(epoch=1, name="web"))
    await host.guests.KillGuest(guest_pb2.KillGuestRequest(epoch=1, name="web"))
    for call, request in (
        (host.guests.SuspendGuest, guest_pb2.SuspendGuestRequest(epoch=1, name="web")),
        (host.guests.ResumeGuest, guest_pb2.ResumeGuestRequest(epoch=1, name="web")),
        (host.guests.ResetGuest, guest_pb2.ResetGuestRequest(epoch=1, name="web")),
    ):
        assert await refused(call(request)) == "GUEST_NOT_RUNNING"


async def test_a_hibernated_guest_is_gone_and_its_memory_kept(host: Host, pool: type[FilePool]) -> None:
    await start_guest(host)
    for task_id in ("one", "two"):  # the second one repeats what an agent before this one did
        task = await ended(host, await host.guests.HibernateGuest(hibernation(task_id)))
        assert task.state == task_pb2.TASK_STATE_SUCCEEDED, task.message
        guest = await host.guests.InspectGuest(guest_pb2.InspectGuestRequest(name="web"))
        assert guest.state == guest_pb2.GUEST_STATE_STOPPED
    assert (pool.folder / "memory-web").exists()


async def test_a_guest_that_does_not_run_has_no_memory(host: Host, pool: type[FilePool]) -> None:
    await start_guest(host)
    await host.guests.KillGuest(guest_pb2.KillGuestRequest(epoch=1, name="web"))
    task = await ended(host, await host.guests.HibernateGuest(hibernation("one")))
    assert from_status(task.error).reason == "GUEST_NOT_RUNNING"
    assert not (pool.folder / "memory-web").exists()


async def test_a_hibernation_that_fails_leaves_no_volume(
    config: AgentConfig, manager_credentials: Credentials, pool: type[FilePool]
) -> None:
    async with running_agent(config, manager_credentials, Full(config.state_dir, config.run_dir)) as host:
        await start_guest(host)
        task = await ended(host, await host.guests.HibernateGuest(hibernation("one")))
        assert from_status(task.error).reason == "NO_SPACE"
        assert not (pool.folder / "memory-web").exists()
        guest = await host.guests.InspectGuest(guest_pb2.InspectGuestRequest(name="web"))
        assert guest.state == guest_pb2.GUEST_STATE_RUNNING


async def test_a_running_guest_is_changed_and_what_waits_is_told(host: Host, pool: type[FilePool]) -> None:
    await start_guest(host)
    wanted = spec()
    wanted.cpus = 2
    wanted.virtual_machine.tpm = True
    wanted.disks[0].size_bytes = 1 << 21
    pool.grown["web-root"] = (1 << 21, False)  # as QEMU would have done it
    changed = await host.guests.CreateGuest(guest_pb2.CreateGuestRequest(epoch=1, spec=wanted))
    assert [change.field for change in changed.pending] == ["virtual_machine.tpm"]
    assert pool.grown["web-root"] == (1 << 21, True)
    await host.guests.KillGuest(guest_pb2.KillGuestRequest(epoch=1, name="web"))
    wanted.disks[0].size_bytes = 1 << 22
    stopped = await host.guests.CreateGuest(guest_pb2.CreateGuestRequest(epoch=1, spec=wanted))
    assert not stopped.pending
    assert pool.grown["web-root"] == (1 << 22, False)


async def test_a_guest_may_be_started_in_another_way(host: Host) -> None:
    await start_guest(host)
    await host.guests.KillGuest(guest_pb2.KillGuestRequest(epoch=1, name="web"))
    begun: list[tuple[str, int]] = []

    async def boot(name: str, generation: int) -> None:
        begun.append((name, generation))

    await host.agent.guests.start(1, "web", 5, boot)
    await host.agent.guests.arrive("web", 6, boot)
    assert begun == [("web", 5), ("web", 6)]
    await eventually(lambda: not host.runs("web"))
