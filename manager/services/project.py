"""The project service: groups of guests that share quotas."""

from gugus.cluster.v1 import project_pb2, project_pb2_grpc
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.project_pb2 import Project

from common import validate
from common.errors import GugusError, aborted, already_exists, invalid, precondition, several
from manager.controllers.context import Context
from manager.events import record
from manager.guests.quota import used
from manager.guests.rules.words import label_faults
from manager.services.forward import actor
from manager.services.requests import upon_latest
from manager.store import Conflict, Txn
from manager.store.kinds import new

MAX_NOTES_BYTES = 1024


class ProjectService(project_pb2_grpc.ProjectServiceServicer):
    """Serves `gugus project`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store

    async def CreateProject(self, request: project_pb2.CreateProjectRequest, context: object) -> Project:
        """Make a project."""
        faults = [invalid("name", f"{message}.")] if (message := validate.name(request.name)) else []
        faults += [*_spec_faults(request.spec), *label_faults(request.labels)]
        if faults:
            raise several(faults)
        project = new(Project, request.name, labels=dict(request.labels))
        project.spec.CopyFrom(request.spec)
        key = f"{actor()} project/{request.name} {request.request_id}" if request.request_id else ""
        txn = Txn(key, spare_reserve=True).put(project, expect_absent=True)
        record(txn, f"project/{request.name}", "PROJECT_CREATED", f"created by {actor()}")
        try:
            await self._store.txn(txn)
        except Conflict:
            raise already_exists("project", request.name, remedy="Choose another name.") from None
        return self._with_use(await self._store.require(Project, request.name))

    async def GetProject(self, request: project_pb2.GetProjectRequest, context: object) -> Project:
        """Return one project with what it uses."""
        return self._with_use(await self._store.require(Project, request.name))

    async def ListProjects(
        self, request: project_pb2.ListProjectsRequest, context: object
    ) -> project_pb2.ListProjectsResponse:
        """Return all projects with what they use."""
        projects = [self._with_use(project) for project in await self._store.list(Project)]
        return project_pb2.ListProjectsResponse(projects=projects)

    async def UpdateProject(self, request: project_pb2.UpdateProjectRequest, context: object) -> Project:
        """Change a project; what its guests have is not looked at, for nothing is taken away from them."""
        if faults := _spec_faults(request.spec):
            raise several(faults)

        def change(project: Project) -> Project:
            if request.revision and request.revision != project.meta.revision:
                raise aborted(
                    "CONFLICT",
                    f"project {request.name} was changed meanwhile.",
                    remedy="Read it again and repeat the change.",
                )
            project.spec.CopyFrom(request.spec)
            return project

        async with self._context.admission:
            return self._with_use(await self._store.update(Project, request.name, change))

    async def DeleteProject(
        self, request: project_pb2.DeleteProjectRequest, context: object
    ) -> project_pb2.DeleteProjectResponse:
        """Delete a project that no guest is in."""

        async def change() -> None:
            project = await self._store.get(Project, request.name)
            if project is None:
                return
            inside = [g.meta.name for g in self._store.peek_all(Guest) if g.spec.project == request.name]
            if inside:
                raise precondition(
                    "PROJECT_IN_USE",
                    f"project {request.name} still has {', '.join(inside)}.",
                    remedy="Delete these guests, or give them another project.",
                )
            txn = Txn().delete(Project, request.name, expect_revision=project.meta.revision)
            await self._store.txn(record(txn, f"project/{request.name}", "PROJECT_DELETED", f"deleted by {actor()}"))

        async with self._context.admission:
            await upon_latest(change)
        return project_pb2.DeleteProjectResponse()

    def _with_use(self, project: Project) -> Project:
        project.used.CopyFrom(used(project.meta.name, self._store.peek_all(Guest)).message())
        return project


def _spec_faults(spec: project_pb2.ProjectSpec) -> list[GugusError]:
    size = len(spec.notes.encode())
    if size > MAX_NOTES_BYTES:
        return [invalid("spec.notes", f"has {size:,} bytes; at most {MAX_NOTES_BYTES:,}.")]
    return []
