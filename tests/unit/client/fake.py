"""A cluster of fake managers that share one small state, over real mutual TLS; they run on a loop of their own thread."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from gugus.agent.v1.guest_pb2 import GUEST_STATE_RUNNING, GuestUsage
from gugus.agent.v1.task_pb2 import TaskState
from gugus.cluster.v1 import (
    cluster_pb2,
    cluster_pb2_grpc,
    event_pb2,
    event_pb2_grpc,
    guest_pb2,
    guest_pb2_grpc,
    migration_pb2,
    migration_pb2_grpc,
    network_pb2,
    network_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    plan_pb2,
    plan_pb2_grpc,
    pool_pb2,
    pool_pb2_grpc,
    project_pb2,
    project_pb2_grpc,
    task_pb2,
    task_pb2_grpc,
)

from common.cluster_settings import Table
from common.errors import aborted, already_exists, not_found, resource_exhausted, to_status, unavailable
from common.identity.credentials import Credentials
from common.identity.names import Role
from common.rpc.interceptors import only
from common.rpc.server import RunningServer, Service, start_server
from planner.settings import Policy
from planner.weights import defaults_of

T = TypeVar("T")


class State:
    """What the managers replicate, and which of them misbehave how."""

    def __init__(self) -> None:
        self.guests: dict[str, guest_pb2.Guest] = {}
        self.tasks: dict[str, task_pb2.Task] = {}
        self.requests: list[Any] = []
        self.pools: dict[str, pool_pb2.Pool] = {}
        self.volumes = pool_pb2.ListVolumesResponse()
        self.cpu = node_pb2.GetClusterCpuResponse()
        self.networks: dict[str, network_pb2.Network] = {}
        self.projects: dict[str, project_pb2.Project] = {}
        self.quicker: list[Callable[[guest_pb2.Guest], None]] = []
        self.lose_answers: set[int] = set()
        self.forget_outcome: set[int] = set()
        self.cancel: set[int] = set()
        self.no_leader: set[int] = set()
        self.break_watches: set[int] = set()
        self.watched: list[int] = []
        self.hold = False
        self.status = unwell()
        self.plan = plan_pb2.WhatIf()
        self.transfers: list[cluster_pb2.TransferLeadershipRequest] = []
        self.cluster = cluster_pb2.Cluster()


class Manager:
    """One manager. Servicers of all services in one object; its index tells who misbehaves."""

    def __init__(self, index: int, state: State) -> None:
        self.index = index
        self.state = state

    async def WhatIf(self, request: plan_pb2.WhatIfRequest, context: Any) -> plan_pb2.WhatIf:
        self.state.requests.append(request)
        return self.state.plan

    async def Balance(self, request: plan_pb2.BalanceRequest, context: Any) -> task_pb2.Task:
        self.state.requests.append(request)
        self.state.tasks[request.request_id] = self._task("balance-cluster", "demo")
        return self.state.tasks[request.request_id]

    async def ListVolumes(self, request: pool_pb2.ListVolumesRequest, context: Any) -> pool_pb2.ListVolumesResponse:
        return self.state.volumes

    async def GetClusterCpu(
        self, request: node_pb2.GetClusterCpuRequest, context: Any
    ) -> node_pb2.GetClusterCpuResponse:
        return self.state.cpu

    async def CreateGuest(self, request: guest_pb2.CreateGuestRequest, context: Any) -> task_pb2.Task:
        self.state.requests.append(request)
        if self.index in self.state.no_leader:
            raise unavailable("NO_LEADER", "there is no leader.", remedy="Start more managers.")
        if request.request_id not in self.state.tasks:
            if request.name in self.state.guests:
                raise already_exists("guest", request.name, remedy="Choose another name.")
            guest = guest_pb2.Guest(spec=request.spec, spec_number=1)
            guest.meta.name = request.name
            guest.meta.labels.update(request.labels)
            guest.spec.memory_bytes = guest.spec.memory_bytes or 512 << 20
            guest.spec.cpus = guest.spec.cpus or 1
            for place, disk in enumerate(guest.spec.disks):
                disk.name = disk.name or f"disk{place}"
                disk.volume = f"{request.name}-{disk.name}"
            for place, nic in enumerate(guest.spec.nics):
                nic.name, nic.mac = nic.name or f"eth{place}", nic.mac or f"52:54:00:00:00:0{place}"
            guest.status.phase = guest_pb2.GUEST_PHASE_RUNNING
            guest.status.node = "n1"
            guest.status.observed = GUEST_STATE_RUNNING
            self.state.guests[request.name] = guest
            self.state.tasks[request.request_id] = self._task("create-guest", request.name)
        if self.index in self.state.forget_outcome:
            raise aborted("OUTCOME_UNKNOWN", "the change may or may not have been made.")
        if self.index in self.state.lose_answers:
            raise unavailable("STOPPING", "this manager stops.")
        if self.index in self.state.cancel:
            await context.abort(grpc.StatusCode.CANCELLED, "")
        return self.state.tasks[request.request_id]

    def _task(self, kind: str, name: str) -> task_pb2.Task:
        state = TaskState.TASK_STATE_RUNNING
        task = task_pb2.Task(kind=kind, target=f"guest/{name}", state=state, progress_percent=40)
        task.meta.name = f"t{len(self.state.tasks) + 1}"
        task.log.add(text="making volumes")
        return task

    async def UpdateGuest(self, request: guest_pb2.UpdateGuestRequest, context: Any) -> task_pb2.Task:
        self.state.requests.append(request)
        if self.state.quicker:
            self.state.quicker.pop()(self.state.guests[request.name])
            self.state.guests[request.name].spec_number += 1
        guest = await self.GetGuest(guest_pb2.GetGuestRequest(name=request.name), context)
        if request.spec_number not in (0, guest.spec_number):
            raise aborted("SPEC_CHANGED", "the spec has another number.")
        before = guest.spec.virtual_machine.cpu.sockets
        guest.spec.CopyFrom(request.spec)
        if request.set_labels:
            guest.meta.labels.clear()
            guest.meta.labels.update(request.labels)
        guest.spec_number += 1
        if guest.spec.virtual_machine.cpu.sockets != before:
            guest.status.pending.add(
                field="virtual_machine.cpu.sockets", present=str(before), wanted="2", reason="not hotplugged"
            )
        return self._begun("update-guest", request)

    async def _power(self, kind: str, request: Any, context: Any) -> task_pb2.Task:
        self.state.requests.append(request)
        await self.GetGuest(guest_pb2.GetGuestRequest(name=request.name), context)
        return self._begun(kind, request)

    def _begun(self, kind: str, request: Any) -> task_pb2.Task:
        if request.request_id not in self.state.tasks:
            self.state.tasks[request.request_id] = self._task(kind, request.name)
        return self.state.tasks[request.request_id]

    async def StartGuest(self, request: Any, context: Any) -> task_pb2.Task:
        return await self._power("start-guest", request, context)

    async def StopGuest(self, request: Any, context: Any) -> task_pb2.Task:
        return await self._power("stop-guest", request, context)

    async def SuspendGuest(self, request: Any, context: Any) -> task_pb2.Task:
        return await self._power("suspend-guest", request, context)

    async def ResumeGuest(self, request: Any, context: Any) -> task_pb2.Task:
        return await self._power("resume-guest", request, context)

    async def RebootGuest(self, request: Any, context: Any) -> task_pb2.Task:
        return await self._power("reboot-guest", request, context)

    async def ResetGuest(self, request: Any, context: Any) -> task_pb2.Task:
        return await self._power("reset-guest", request, context)

    async def HibernateGuest(self, request: Any, context: Any) -> task_pb2.Task:
        return await self._power("hibernate-guest", request, context)

    async def RenameGuest(self, request: guest_pb2.RenameGuestRequest, context: Any) -> task_pb2.Task:
        return await self._power("rename-guest", request, context)

    async def DeleteGuest(self, request: guest_pb2.DeleteGuestRequest, context: Any) -> task_pb2.Task:
        task = await self._power("delete-guest", request, context)
        del self.state.guests[request.name]
        return task

    async def MigrateGuest(self, request: migration_pb2.MigrateGuestRequest, context: Any) -> task_pb2.Task:
        return await self._power("migrate-guest", request, context)

    async def CheckMigration(self, request: Any, context: Any) -> migration_pb2.CheckMigrationResponse:
        self.state.requests.append(request)
        answer = migration_pb2.CheckMigrationResponse()
        answer.checks.add(target="n2").obstacles.add(
            reason="CPU_INCOMPATIBLE", subject="node/n2", message="It lacks avx."
        )
        return answer

    async def ListPools(self, request: Any, context: Any) -> pool_pb2.ListPoolsResponse:
        return pool_pb2.ListPoolsResponse(pools=self.state.pools.values())

    async def CreatePool(self, request: pool_pb2.CreatePoolRequest, context: Any) -> pool_pb2.Pool:
        self.state.requests.append(request)
        pool = pool_pb2.Pool(spec=request.spec, nodes=request.nodes)
        pool.meta.name = request.spec.name
        return self.state.pools.setdefault(pool.meta.name, pool)

    async def ListNetworks(self, request: Any, context: Any) -> network_pb2.ListNetworksResponse:
        return network_pb2.ListNetworksResponse(networks=self.state.networks.values())

    async def CreateNetwork(self, request: network_pb2.CreateNetworkRequest, context: Any) -> network_pb2.Network:
        self.state.requests.append(request)
        network = network_pb2.Network(spec=request.spec, nodes=request.nodes)
        network.meta.name = request.spec.name
        return self.state.networks.setdefault(network.meta.name, network)

    async def ListProjects(self, request: Any, context: Any) -> project_pb2.ListProjectsResponse:
        return project_pb2.ListProjectsResponse(projects=self.state.projects.values())

    async def GetProject(self, request: Any, context: Any) -> project_pb2.Project:
        if request.name not in self.state.projects:
            raise not_found("project", request.name)
        return self.state.projects[request.name]

    async def CreateProject(self, request: project_pb2.CreateProjectRequest, context: Any) -> project_pb2.Project:
        self.state.requests.append(request)
        project = project_pb2.Project(spec=request.spec)
        project.meta.name, project.meta.revision = request.name, 1
        project.used.cpus = 3
        return self.state.projects.setdefault(request.name, project)

    async def UpdateProject(self, request: project_pb2.UpdateProjectRequest, context: Any) -> project_pb2.Project:
        self.state.requests.append(request)
        project = await self.GetProject(request, context)
        if request.revision not in (0, project.meta.revision):
            raise aborted("CONFLICT", "another revision.")
        project.spec.CopyFrom(request.spec)
        project.meta.revision += 1
        return project

    async def DeleteProject(self, request: Any, context: Any) -> project_pb2.DeleteProjectResponse:
        self.state.projects.pop(request.name, None)
        return project_pb2.DeleteProjectResponse()

    async def GetGuest(self, request: guest_pb2.GetGuestRequest, context: Any) -> guest_pb2.Guest:
        if request.name not in self.state.guests:
            raise not_found("guest", request.name)
        return self.state.guests[request.name]

    async def GetGuestUsage(self, request: Any, context: Any) -> GuestUsage:
        usage = GuestUsage(cpu_time_ns=2_500_000_000, memory_bytes=64 << 20, balloon_bytes=32 << 20)
        usage.disks.add(name="disk0", read_bytes=1024, written_bytes=2048)
        usage.nics.add(name="eth0", received_bytes=10, sent_bytes=20)
        return usage

    async def ListGuests(self, request: Any, context: Any) -> guest_pb2.ListGuestsResponse:
        found = [guest for guest in self.state.guests.values() if set(request.tags) <= set(guest.spec.tags)]
        return guest_pb2.ListGuestsResponse(guests=found)

    async def ExplainGuest(self, request: Any, context: Any) -> guest_pb2.ExplainGuestResponse:
        answer = guest_pb2.ExplainGuestResponse()
        answer.decided.node = "n1"
        answer.decided.reason = "n1 has the most free memory."
        answer.decided.verdicts.add(node="n1", fits=True, score=1.5, scores={"memory": 1.0, "spread": 0.5})
        answer.decided.verdicts.add(node="n2", refusals=["state: n2 is fenced."])
        answer.now.weights.update({"memory": 2.0, "spread": 0.5, "calm": 0.0})
        return answer

    async def GetTask(self, request: task_pb2.GetTaskRequest, context: Any) -> task_pb2.Task:
        return self._find(request.id)

    async def ListTasks(self, request: Any, context: Any) -> task_pb2.ListTasksResponse:
        return task_pb2.ListTasksResponse(tasks=self.state.tasks.values())

    async def WatchTask(self, request: Any, context: Any) -> AsyncIterator[task_pb2.Task]:
        self.state.watched.append(self.index)
        task = self._find(request.id)
        yield task
        if self.index in self.state.break_watches:
            raise unavailable("STOPPING", "this manager stops.")
        while self.state.hold:  # noqa: ASYNC110 (set by another thread)
            await asyncio.sleep(0.02)
        task.progress_percent = 100
        if task.target == "guest/doomed":
            task.state = TaskState.TASK_STATE_FAILED
            error = resource_exhausted("NO_SPACE", "pool local is full.", remedy="Delete something.")
            task.error.CopyFrom(to_status(error))
        else:
            task.state = TaskState.TASK_STATE_SUCCEEDED
        yield task

    def _find(self, id_: str) -> task_pb2.Task:
        for task in self.state.tasks.values():
            if task.meta.name == id_:
                return task
        raise not_found("task", id_)

    async def GetStatus(self, request: Any, context: Any) -> cluster_pb2.ClusterStatus:
        return self.state.status

    async def GetCluster(self, request: Any, context: Any) -> cluster_pb2.Cluster:
        return self.state.cluster

    async def UpdateSettings(self, request: cluster_pb2.UpdateSettingsRequest, context: Any) -> cluster_pb2.Cluster:
        self.state.requests.append(request)
        table = Table(defaults_of(Policy.SPREAD))
        after = table.changed(self.state.cluster.settings, request.settings, list(request.update_mask.paths))
        self.state.cluster.settings.CopyFrom(after)
        return self.state.cluster

    async def TransferLeadership(
        self, request: cluster_pb2.TransferLeadershipRequest, context: Any
    ) -> cluster_pb2.ClusterStatus:
        self.state.transfers.append(request)
        if self.index in self.state.lose_answers:
            raise unavailable("STOPPING", "this manager stops.")
        self.state.status.acting = request.to or "n2"
        return self.state.status

    async def ListNodes(self, request: Any, context: Any) -> node_pb2.ListNodesResponse:
        node = node_pb2.Node()
        node.meta.name = "n1"
        node.spec.address = "127.0.0.1"
        node.status.state = node_pb2.NODE_STATE_ONLINE
        node.status.facts.hypervisors.add(driver="kvm", ready=True, mode="tcg")
        return node_pb2.ListNodesResponse(nodes=[node])

    async def GetNode(self, request: node_pb2.GetNodeRequest, context: Any) -> node_pb2.Node:
        node = node_pb2.Node()
        node.meta.name = request.name
        node.status.state, node.status.reason = node_pb2.NODE_STATE_SUSPECT, "no heartbeat for 3.0 s"
        node.status.boot_id, node.status.lapse_number = "boot-7", 3
        node.spec.fence.devices.add(
            name="ipmi", agent="fence_ipmilan", parameters={"ip": "::1"}, secret_names=["password"]
        )
        return node

    async def ConfirmNodeOff(self, request: node_pb2.ConfirmNodeOffRequest, context: Any) -> node_pb2.Node:
        self.state.requests.append(request)
        return node_pb2.Node()

    async def SetFenceDevice(self, request: node_pb2.SetFenceDeviceRequest, context: Any) -> node_pb2.Node:
        self.state.requests.append(request)
        return node_pb2.Node()

    async def TestFence(self, request: node_pb2.TestFenceRequest, context: Any) -> node_pb2.TestFenceResponse:
        found = [node_pb2.FenceTest(device="ipmi", level=1, problem="no route to host", took_ms=7)]
        return node_pb2.TestFenceResponse(devices=found, asked_from="n2")

    async def ListEvents(self, request: Any, context: Any) -> event_pb2.ListEventsResponse:
        return event_pb2.ListEventsResponse(events=[_event("e1", 5)])

    async def Watch(self, request: event_pb2.WatchRequest, context: Any) -> AsyncIterator[event_pb2.WatchResponse]:
        for revision in (6, 7):
            if revision > request.from_revision:
                value = _event(f"e{revision - 4}", revision).SerializeToString()
                yield event_pb2.WatchResponse(revision=revision, key=f"event/e{revision - 4}", value=value)
            if revision == 6 and self.index in self.state.break_watches:
                raise unavailable("STOPPING", "this manager stops.")
        await asyncio.sleep(60)


def unwell() -> cluster_pb2.ClusterStatus:
    """Return the status of two managers, one of which does not answer."""
    status = cluster_pb2.ClusterStatus(name="demo", answered_by="n1", leader="n1", acting="n1", epoch=3, term=2)
    status.problems.append("n2 is away. Bring it back.")
    status.findings.add(
        reason="MEMBER_AWAY", about="node/n2", severity=event_pb2.SEVERITY_WARNING, sentence="n2 is away.",
        remedy="Bring it back.", since=Timestamp(seconds=int(time.time()) - 90),
    )  # fmt: skip
    status.findings.add(reason="TAIL_CUT", severity=event_pb2.SEVERITY_INFO, sentence="n1 cut 9B off its journal.")
    n1 = status.voters.add(name="n1", address="127.0.0.1", port=7443, leader=True, connected=True, lag_entries=0)
    n1.status.role, n1.status.term, n1.status.applied_index = cluster_pb2.MEMBER_ROLE_LEADER, 2, 70
    n1.status.version = "0.1.0"
    disk = n1.status.disk
    disk.journal_bytes, disk.snapshot_bytes, disk.syncs, disk.sync_p99_us = 1 << 20, 2048, 500, 1234
    disk.free_bytes, disk.total_bytes = 5 << 30, 9 << 30
    disk.snapshot_at.FromSeconds(int(time.time()) - 7200)
    status.voters.add(name="n2", address="127.0.0.2", port=7443, lag_entries=1234, silence="Connection refused")
    return status


def _event(name: str, revision: int) -> event_pb2.Event:
    event = event_pb2.Event(at=Timestamp(seconds=1_700_000_000), reason="NODE_FENCED", about="node/n2", message=name)
    event.meta.name, event.meta.revision = name, revision
    return event


class Cluster:
    """Fake managers on free ports of 127.0.0.1."""

    def __init__(self, credentials: Credentials, managers: int) -> None:
        self.state = State()
        self._credentials = credentials
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.servers: list[RunningServer] = [self._do(partial(self._serve, i)) for i in range(managers)]

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(f"127.0.0.1:{server.port}" for server in self.servers)

    def kill(self, index: int) -> None:
        self._do(lambda: self.servers[index].stop(0))

    def close(self) -> None:
        for server in self.servers:
            self._do(partial(server.stop, 0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _do(self, work: Callable[[], Awaitable[T]]) -> T:
        async def run() -> T:
            return await work()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    async def _serve(self, index: int) -> RunningServer:
        manager = Manager(index, self.state)
        adders: dict[str, Any] = {
            "Guest": guest_pb2_grpc.add_GuestServiceServicer_to_server,
            "Task": task_pb2_grpc.add_TaskServiceServicer_to_server,
            "Cluster": cluster_pb2_grpc.add_ClusterServiceServicer_to_server,
            "Node": node_pb2_grpc.add_NodeServiceServicer_to_server,
            "Event": event_pb2_grpc.add_EventServiceServicer_to_server,
            "Pool": pool_pb2_grpc.add_PoolServiceServicer_to_server,
            "Network": network_pb2_grpc.add_NetworkServiceServicer_to_server,
            "Migration": migration_pb2_grpc.add_MigrationServiceServicer_to_server,
            "Project": project_pb2_grpc.add_ProjectServiceServicer_to_server,
            "Plan": plan_pb2_grpc.add_PlanServiceServicer_to_server,
        }
        bases = {
            "Guest": guest_pb2_grpc.GuestServiceServicer,
            "Task": task_pb2_grpc.TaskServiceServicer,
            "Cluster": cluster_pb2_grpc.ClusterServiceServicer,
            "Node": node_pb2_grpc.NodeServiceServicer,
            "Event": event_pb2_grpc.EventServiceServicer,
            "Pool": pool_pb2_grpc.PoolServiceServicer,
            "Network": network_pb2_grpc.NetworkServiceServicer,
            "Migration": migration_pb2_grpc.MigrationServiceServicer,
            "Project": project_pb2_grpc.ProjectServiceServicer,
            "Plan": plan_pb2_grpc.PlanServiceServicer,
        }
        services = [
            Service(
                add, type(name, (Manager, bases[name]), {})(index, manager.state), f"gugus.cluster.v1.{name}Service"
            )
            for name, add in adders.items()
        ]
        return await start_server(services, "127.0.0.1", 0, self._credentials, authorise=only(Role.OPERATOR))
