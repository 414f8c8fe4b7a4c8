"""Projects: groups of guests whose quota is kept at the door."""

import asyncio

import pytest
from gugus.cluster.v1.guest_pb2 import POWER_OFF, GuestSpec
from gugus.cluster.v1.project_pb2 import (
    CreateProjectRequest,
    DeleteProjectRequest,
    GetProjectRequest,
    ListProjectsRequest,
    Project,
    ProjectSpec,
    ProjectUse,
    UpdateProjectRequest,
)

from client.sdk import Gugus
from client.tasks import check
from common.errors import GugusError
from manager.services.project import ProjectService
from tests.unit.manager.cluster import Cluster, guest_spec

MIB = 2**20


@pytest.fixture
async def service(cluster: Cluster, gugus: Gugus, monkeypatch: pytest.MonkeyPatch) -> ProjectService:
    """The service itself: its calls need no client. The project "shop" may have two guests with 40 MiB together."""
    monkeypatch.setattr("manager.services.project.actor", lambda: "test")
    made = ProjectService(cluster.managers["n1"]._context)
    limits = ProjectUse(guests=2, memory_bytes=40 * MIB)
    await made.CreateProject(CreateProjectRequest(name="shop", spec=ProjectSpec(limits=limits)), None)
    return made


def member() -> GuestSpec:
    spec = guest_spec(POWER_OFF)
    spec.project = "shop"
    return spec


async def refused(awaited: object) -> GugusError:
    with pytest.raises(GugusError) as caught:
        await awaited  # type: ignore[misc]
    return caught.value


async def get(service: ProjectService) -> Project:
    return await service.GetProject(GetProjectRequest(name="shop"), None)


async def test_guests_beyond_the_quota_are_refused_at_the_door(service: ProjectService, gugus: Gugus) -> None:
    for name in ("one", "two"):
        check(await gugus.tasks.wait(await gugus.guests.create(name, member())))
    error = await refused(gugus.guests.create("three", member()))
    assert error.reason == "QUOTA_EXCEEDED"
    assert "guests: 2 of 2 used" in error.message
    assert "memory_bytes" in error.message
    assert (await get(service)).used == ProjectUse(cpus=2, memory_bytes=32 * MIB, guests=2, disk_bytes=2 * MIB)
    check(await gugus.tasks.wait(await gugus.guests.delete("one")))
    await gugus.guests.create("three", member())


async def test_guests_asked_for_at_once_do_not_exceed_it_together(service: ProjectService, gugus: Gugus) -> None:
    answers = await asyncio.gather(
        *(gugus.guests.create(f"g{number}", member()) for number in range(5)), return_exceptions=True
    )
    assert sum(isinstance(answer, GugusError) for answer in answers) == 3


async def test_growth_beyond_the_quota_is_refused(service: ProjectService, gugus: Gugus) -> None:
    check(await gugus.tasks.wait(await gugus.guests.create("one", member())))
    error = await refused(gugus.guests.change("one", lambda spec: setattr(spec, "memory_bytes", 64 * MIB)))
    assert error.reason == "QUOTA_EXCEEDED"
    await gugus.guests.change("one", lambda spec: setattr(spec, "memory_bytes", 32 * MIB))


async def test_limits_can_be_changed_and_lowered_below_what_is_used(service: ProjectService, gugus: Gugus) -> None:
    await gugus.guests.create("one", member())
    lower = UpdateProjectRequest(name="shop", spec=ProjectSpec(limits=ProjectUse(memory_bytes=MIB)))
    assert (await service.UpdateProject(lower, None)).spec.limits.memory_bytes == MIB
    await gugus.guests.change("one", lambda spec: setattr(spec, "notes", "still fine"))
    stale = UpdateProjectRequest(name="shop", revision=1)
    assert (await refused(service.UpdateProject(stale, None))).reason == "CONFLICT"


async def test_project_with_guests_stays(service: ProjectService, gugus: Gugus) -> None:
    await gugus.guests.create("one", member())
    error = await refused(service.DeleteProject(DeleteProjectRequest(name="shop"), None))
    assert error.reason == "PROJECT_IN_USE"
    check(await gugus.tasks.wait(await gugus.guests.delete("one", force=True)))
    await service.DeleteProject(DeleteProjectRequest(name="shop"), None)
    await service.DeleteProject(DeleteProjectRequest(name="shop"), None)
    assert not (await service.ListProjects(ListProjectsRequest(), None)).projects
    assert (await refused(gugus.guests.create("two", member()))).reason == "PROJECT_NOT_FOUND"


async def test_project_with_a_bad_name_or_a_taken_one_is_refused(service: ProjectService) -> None:
    bad = CreateProjectRequest(name="My Shop", spec=ProjectSpec(notes="x" * 1025))
    error = await refused(service.CreateProject(bad, None))
    assert {violation.field for violation in error.violations} == {"name", "spec.notes"}
    taken = CreateProjectRequest(name="shop")
    assert (await refused(service.CreateProject(taken, None))).reason == "PROJECT_ALREADY_EXISTS"


async def test_guests_of_what_is_no_node_or_project_are_a_slip(
    cluster: Cluster, gugus: Gugus, service: ProjectService
) -> None:
    assert list(await gugus.guests.list(node="n1", project="shop")) == []
    for asked, said in ((gugus.guests.list(node="n9"), "n9"), (gugus.guests.list(project="shpo"), "shpo")):
        with pytest.raises(GugusError, match=said) as caught:
            await asked
        assert caught.value.reason.endswith("_NOT_FOUND")
