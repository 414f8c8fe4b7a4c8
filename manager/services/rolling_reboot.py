"""What `gugus node reboot` asks for."""

from gugus.agent.v1.task_pb2 import TASK_STATE_SUCCEEDED
from gugus.cluster.v1.cluster_pb2 import Cluster
from gugus.cluster.v1.node_pb2 import Node, RebootNodesRequest, RollingReboot
from gugus.cluster.v1.task_pb2 import Task

from common.errors import invalid, precondition
from manager.controllers.context import Context
from manager.controllers.reboots import KIND
from manager.ha import rolling
from manager.services.forward import actor
from manager.services.requests import begin, begun, known_nodes
from manager.store import Store, Txn
from manager.tasks import ENDED, new_task


async def begin_rolling(context: Context, request: RebootNodesRequest) -> Task:
    """Write the task down, with the turns of its hosts. Raises INVALID_ARGUMENT, NOT_FOUND, REBOOT_UNDER_WAY."""
    store = context.store
    if request.parallel > rolling.MAX_PARALLEL:
        raise invalid("parallel", f"{request.parallel} is out of range: 1 to {rolling.MAX_PARALLEL} hosts at a time.")
    await store.list(Node)  # a read barrier
    target = f"cluster/{store.peek_all(Cluster)[0].meta.name}"
    if done := await begun(store, KIND, target, request.request_id):
        return done
    names = sorted(set(request.nodes))
    known_nodes(store, names)
    if other := next((t for t in store.peek_all(Task) if t.kind == KIND and t.state not in ENDED), None):
        raise precondition(
            "REBOOT_UNDER_WAY",
            f"hosts are being rebooted already (task {other.meta.name}).",
            remedy=f"Wait for its end, or `gugus task cancel {other.meta.name}`.",
        )
    nodes = [node for node in store.peek_all(Node) if not names or node.meta.name in names]
    earlier = None if request.anew else _broken_off(store, {node.meta.name for node in nodes})
    task = new_task(KIND, target, str(actor()), request.request_id, request)
    task.step_notes = rolling.planned(nodes, context.acting.holder(), earlier).SerializeToString()
    return await begin(store, task, Txn())


def _broken_off(store: Store, names: set[str]) -> RollingReboot | None:
    """Return the notes of the last rolling reboot if it was of the same nodes and did not come to its end."""
    ended = [task for task in store.peek_all(Task) if task.kind == KIND and task.state in ENDED]
    last = max(ended, key=lambda task: task.ended_at.ToNanoseconds(), default=None)
    if last is None or last.state == TASK_STATE_SUCCEEDED:
        return None
    return rolling.of_the_same(RollingReboot.FromString(last.step_notes), names)
