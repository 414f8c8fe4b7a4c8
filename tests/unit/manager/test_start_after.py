"""Guests that start after others, through the whole manager: started together, circles, and new names."""

import pytest
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, POWER_OFF, Guest

from client.sdk import Gugus
from client.tasks import check
from common.errors import GugusError
from manager.controllers import guest_retries
from tests.unit.manager.cluster import Cluster, guest_spec
from tests.unit.manager.hypervisor import Hypervisor


def status(cluster: Cluster, name: str) -> tuple[int, str]:
    found = cluster.peek(Guest, name) or Guest()
    return found.status.phase, found.status.reason


async def make(gugus: Gugus, name: str, *after: str) -> None:
    spec = guest_spec(POWER_OFF)
    spec.boot.after.extend(after)
    check(await gugus.tasks.wait(await gugus.guests.create(name, spec)))


async def test_it_starts_once_the_one_it_needs_runs(cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor) -> None:
    await make(gugus, "db")
    await make(gugus, "web", "db")
    hypervisor.asked.clear()
    hypervisor.may_start.clear()
    first = await gugus.guests.start("db")
    await cluster.eventually(lambda: "start db" in hypervisor.asked)
    second = await gugus.guests.start("web")
    await cluster.eventually(lambda: "it starts after db" in status(cluster, "web")[1])
    hypervisor.may_start.set()
    check(await gugus.tasks.wait(first))
    check(await gugus.tasks.wait(second))
    assert hypervisor.asked == ["start db", "start web"]


async def test_it_starts_alone_when_the_one_it_needs_is_not_to_run(cluster: Cluster, gugus: Gugus) -> None:
    await make(gugus, "db")
    await make(gugus, "web", "db")
    check(await gugus.tasks.wait(await gugus.guests.start("web")))
    assert status(cluster, "web")[0] == GUEST_PHASE_RUNNING


async def test_it_does_not_wait_for_ever(
    cluster: Cluster, gugus: Gugus, hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_retries, "WAIT_LIMIT_S", 1.0)
    await make(gugus, "db")
    await make(gugus, "web", "db")
    hypervisor.may_start.clear()
    await gugus.guests.start("db")
    await cluster.eventually(lambda: "start db" in hypervisor.asked)
    await gugus.guests.start("web")
    await cluster.eventually(lambda: "start web" in hypervisor.asked)
    hypervisor.may_start.set()
    await cluster.eventually(lambda: status(cluster, "web")[0] == GUEST_PHASE_RUNNING)
    told = [event.message for event in cluster.events() if event.about == "guest/web"]
    assert any("did not wait any longer: it starts after db" in message for message in told)


async def test_circles_are_refused_and_names_follow(gugus: Gugus) -> None:
    await make(gugus, "db")
    await make(gugus, "web", "db")
    spec = (await gugus.guests.get("db")).spec
    spec.boot.after.append("web")
    with pytest.raises(GugusError, match="db after web after db"):
        await gugus.guests.update("db", spec)
    check(await gugus.tasks.wait(await gugus.guests.rename("db", "store")))
    assert list((await gugus.guests.get("web")).spec.boot.after) == ["store"]
