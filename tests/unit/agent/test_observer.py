"""Many hypervisors, one observer: the fault of one neither hides nor saves the guests of another."""

from collections.abc import Callable, Collection
from typing import Any

import pytest
from gugus.agent.v1 import guest_pb2

from agent.changes import Changes
from agent.compute.hypervisor import KillReport, Observation
from agent.observer import Observer, Seen
from common.errors import GugusError


class Hypervisor:
    """In the part of a driver."""

    kinds = ()

    def __init__(self, name: str, broken: Exception | None = None) -> None:
        self.name, self.broken = name, broken
        self.killed: list[str] = []

    async def emergency_kill(self, names: Collection[str]) -> KillReport:
        if self.broken:
            raise self.broken
        self.killed += names
        return KillReport(frozenset(names))

    async def observe(self, name: str) -> Observation | None:
        if self.broken:
            raise self.broken
        return None


def observing(*hypervisors: Any) -> Observer:
    return Observer(hypervisors, Changes())


async def test_a_hypervisor_that_fails_to_kill_stops_no_other_and_nothing_counts_as_gone() -> None:
    broken, sound = Hypervisor("kvm", RuntimeError("no such field")), Hypervisor("lxc")
    report = await observing(broken, sound).emergency_kill(["web", "db"])
    assert sound.killed == ["web", "db"]
    assert not report.gone
    assert report.alive.keys() == {"web", "db"}
    assert "kvm" in report.alive["web"]


@pytest.mark.parametrize("fault", [RuntimeError("libvirt says no"), OSError(24, "Too many open files")])
async def test_whatever_a_look_fails_with_is_told_as_an_error_of_this_project(fault: Exception) -> None:
    hypervisor: Any = Hypervisor("kvm", fault)
    with pytest.raises(GugusError):
        await observing(hypervisor).look("web", hypervisor)


async def test_what_a_look_saw_before_another_one_began_and_failed_is_old() -> None:
    """It may tell of a time before a start, and the start's outcome is what was to be seen."""

    class Slow(Hypervisor):
        meanwhile: Callable[[], Any]

        async def observe_all(self) -> dict[str, Observation]:
            await self.meanwhile()
            return {"web": Observation(guest_pb2.GUEST_STATE_STOPPED)}

    slow: Any = Slow("kvm", RuntimeError())
    observer = observing(slow)
    told: list[Seen | None] = []
    observer.listen(lambda _name, seen: told.append(seen))

    async def look() -> None:
        with pytest.raises(GugusError):
            await observer.look("web", slow)

    slow.meanwhile = look
    await observer.refresh()
    assert not told
