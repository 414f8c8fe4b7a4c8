"""Tasks as stored objects: making one from a request, finding the open ones, writing their log, ending them."""

import uuid

from google.protobuf.message import Message
from gugus.agent.v1.task_pb2 import (
    TASK_STATE_CANCELLED,
    TASK_STATE_FAILED,
    TASK_STATE_PENDING,
    TASK_STATE_RUNNING,
    TASK_STATE_SUCCEEDED,
    TaskState,
)
from gugus.cluster.v1.task_pb2 import Task

from manager.store import Store
from manager.store.kinds import new

ENDED = frozenset({TASK_STATE_SUCCEEDED, TASK_STATE_FAILED, TASK_STATE_CANCELLED})

HA = "ha"
"""Who asks for what HA does."""

LOG_LINES = 100
"""Lines of a task's log that are kept."""

LOG_LINE_CHARS = 300
"""Longest line of a log, so that a full log stays far below the store's limit of 40 KiB for an object."""

KEPT = 1_000
"""Ended tasks that stay in the state; older ones are trimmed by the acting manager."""

_NAMESPACE = uuid.UUID("5b0f5c3e-3b0c-4a57-9d0e-7a4a3d1f6f10")


def task_id(kind: str, target: str, actor: str, request_id: str) -> str:
    """Return the id of the task that a request makes: the same for the same work, actor and idempotency key, else a new one."""
    return str(uuid.uuid5(_NAMESPACE, f"{actor} {kind} {target} {request_id}")) if request_id else str(uuid.uuid4())


def new_task(kind: str, target: str, actor: str, request_id: str, request: Message) -> Task:
    """Return a task that carries out a request."""
    task = new(Task, task_id(kind, target, actor, request_id))
    task.kind, task.target, task.actor = kind, target, actor
    task.state = TASK_STATE_PENDING
    task.request = request.SerializeToString()
    return task


def active(store: Store, target: str) -> list[Task]:
    """Return the tasks about an object that have not ended, oldest first."""
    tasks = [task for task in store.peek_all(Task) if task.target == target and task.state not in ENDED]
    return sorted(tasks, key=lambda task: (task.meta.created_at.ToNanoseconds(), task.meta.name))


def log_line(task: Task, text: str) -> bool:
    """Add a line to a task's log unless it says what the last one says. Returns whether it was added."""
    text = text[:LOG_LINE_CHARS]
    if not text or (task.log and task.log[-1].text == text):
        return False
    line = task.log.add(text=text)
    line.at.GetCurrentTime()
    del task.log[:-LOG_LINES]
    if task.state == TASK_STATE_PENDING:
        task.state = TASK_STATE_RUNNING
    return True


def remark(task: Task, text: str) -> None:
    """Add a line to a task's log without saying that work on it has begun."""
    line = task.log.add(text=text[:LOG_LINE_CHARS])
    line.at.GetCurrentTime()


def finish(task: Task, state: TaskState.ValueType, text: str) -> None:
    """End a task."""
    log_line(task, text)
    task.state = state
    if state == TASK_STATE_SUCCEEDED:
        task.progress_percent = 100
    task.ended_at.GetCurrentTime()
