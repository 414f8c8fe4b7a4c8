"""Work of one agent that a cluster task stands for: begun under the task's id, followed, cancelled when the task is to end."""

import asyncio
from collections.abc import Awaitable, Callable

from gugus.agent.v1 import task_pb2 as agent_task
from gugus.agent.v1.task_pb2 import TASK_STATE_CANCELLED, TASK_STATE_FAILED
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.task_pb2 import Task

from common.errors import from_status
from manager.agents import Agent
from manager.controllers.context import Context
from manager.store import Txn
from manager.tasks import ENDED, finish, log_line

PROGRESS_STEP = 5
"""Progress is stored when it moved by at least so many percent."""


async def put(context: Context, task: Task) -> Task:
    """Store a task and return it with its new revision. Raises Conflict."""
    result = await context.store.txn(Txn().put(task, expect_revision=task.meta.revision))
    task.meta.revision = result.revision
    return task


async def assign(context: Context, task: Task, node: Node, words: str) -> Task:
    """Write down which node works on a task, once."""
    if task.node == node.meta.name:
        return task
    task.node = node.meta.name
    log_line(task, words)
    return await put(context, task)


async def carry(
    context: Context, task: Task, node: Node, begin: Callable[[Agent, int], Awaitable[agent_task.Task]], poll_s: float
) -> Task | None:
    """Let an agent do the work of a task and follow it. Returns the task as it is when the work is done; None when it was cancelled.

    `begin` starts the work under the task's id, or finds it under way. Raises what the agent raises, and the work's own error.
    """
    work = await context.tell(node, begin)
    while work.state not in ENDED:
        await asyncio.sleep(poll_s)
        task = await _follow(context, task, node, work)
        ask = agent_task.GetTaskRequest(id=work.id)
        work = await context.tell(node, lambda agent, _, ask=ask: agent.tasks.GetTask(ask))  # type: ignore[misc]
    task = context.store.peek(Task, task.meta.name) or task
    if work.state == TASK_STATE_CANCELLED:
        finish(task, TASK_STATE_CANCELLED, "cancelled; nothing was left behind")
        await put(context, task)
        return None
    if work.state == TASK_STATE_FAILED:
        raise from_status(work.error)
    return task


async def _follow(context: Context, task: Task, node: Node, work: agent_task.Task) -> Task:
    current = context.store.peek(Task, task.meta.name) or task
    if current.cancel_requested:
        await context.tell(node, lambda agent, _: agent.tasks.CancelTask(agent_task.CancelTaskRequest(id=work.id)))
    if work.progress_percent < current.progress_percent + PROGRESS_STEP:
        return current
    current.progress_percent = work.progress_percent
    log_line(current, work.message)
    return await put(context, current)
