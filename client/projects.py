"""The projects of a cluster: groups of guests that share quotas."""

from collections.abc import Mapping, Sequence

from gugus.cluster.v1 import project_pb2, project_pb2_grpc

from client.caller import Caller, new_request_id


class Projects:
    """Groups of guests with quotas."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = project_pb2_grpc.ProjectServiceStub

    async def create(
        self,
        name: str,
        spec: project_pb2.ProjectSpec,
        *,
        labels: Mapping[str, str] | None = None,
        request_id: str = "",
    ) -> project_pb2.Project:
        """Make a project. Raises INVALID_ARGUMENT, ALREADY_EXISTS."""
        request = project_pb2.CreateProjectRequest(
            name=name, spec=spec, labels=labels or {}, request_id=request_id or new_request_id()
        )
        return await self._caller.call(self._stub, "CreateProject", request, project_pb2.Project)

    async def get(self, name: str) -> project_pb2.Project:
        """Return a project with what its guests use. Raises NOT_FOUND."""
        request = project_pb2.GetProjectRequest(name=name)
        return await self._caller.call(self._stub, "GetProject", request, project_pb2.Project)

    async def list(self) -> Sequence[project_pb2.Project]:
        """Return all projects by name, with what their guests use."""
        request = project_pb2.ListProjectsRequest()
        return (await self._caller.call(self._stub, "ListProjects", request, project_pb2.ListProjectsResponse)).projects

    async def update(self, name: str, spec: project_pb2.ProjectSpec, *, revision: int = 0) -> project_pb2.Project:
        """Give a project another spec, as a whole; only if it is at `revision` still (0: any). Raises NOT_FOUND, ABORTED."""
        request = project_pb2.UpdateProjectRequest(name=name, spec=spec, revision=revision)
        return await self._caller.call(self._stub, "UpdateProject", request, project_pb2.Project)

    async def delete(self, name: str) -> None:
        """Delete a project without guests. Idempotent. Raises FAILED_PRECONDITION (PROJECT_IN_USE)."""
        request = project_pb2.DeleteProjectRequest(name=name)
        await self._caller.call(self._stub, "DeleteProject", request, project_pb2.DeleteProjectResponse)
