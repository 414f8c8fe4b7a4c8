"""`gugus task`: work that takes longer than a round trip."""

from typing import Annotated

import typer
from gugus.agent.v1.task_pb2 import TaskState
from gugus.cluster.v1.task_pb2 import Task

from client.cli.output import Format, Output, show, show_done, show_list
from client.cli.session import complete_task, follow, run, timeout_of
from client.cli.words import enum_word, moment, short
from client.sdk import Gugus
from client.tasks import ENDED, check
from common.errors import from_status

app = typer.Typer(no_args_is_help=True, help="Work that is under way or done.")

Id = Annotated[str, typer.Argument(metavar="TASK", autocompletion=complete_task)]
COLUMNS = ("id", "kind", "target", "state", "done", "begun", "ended", "reason")


@app.command("list")
def list_(
    ctx: typer.Context,
    active: Annotated[bool, typer.Option("--active", help="Only those not ended.")] = False,
    target: Annotated[str, typer.Option(metavar="KIND/NAME", help="Only those about this, like guest/web.")] = "",
    output: Format = Output.TABLE,
) -> None:
    """List tasks, newest first."""
    tasks = run(ctx, lambda gugus: gugus.tasks.list(target=target, active=active))
    show_list(tasks, output, COLUMNS, _row, none="no tasks.")


@app.command("show")
def show_(ctx: typer.Context, id_: Id, output: Format = Output.TABLE) -> None:
    """Show a task with its log."""
    show(run(ctx, lambda gugus: gugus.tasks.get(id_)), output, _fields)


@app.command("follow")
def follow_(ctx: typer.Context, id_: Id, output: Format = Output.TABLE) -> None:
    """Follow a task to its end; fails when it does."""

    async def work(gugus: Gugus) -> Task:
        return check(await follow(gugus, id_, timeout_of(ctx)))

    task = run(ctx, work)
    show_done(task, output, f"{task.kind} {task.target} is done.")


@app.command()
def wait(ctx: typer.Context, id_: Id, output: Format = Output.TABLE) -> None:
    """Wait for a task's end without a word; fails when it does."""

    async def work(gugus: Gugus) -> Task:
        return check(await gugus.tasks.wait(id_, timeout_s=timeout_of(ctx)))

    task = run(ctx, work)
    if output is not Output.TABLE:
        show_done(task, output, "")


@app.command()
def cancel(ctx: typer.Context, id_: Id, output: Format = Output.TABLE) -> None:
    """Ask a task to end."""
    task = run(ctx, lambda gugus: gugus.tasks.cancel(id_))
    ended = f"has ended already: {_state(task)}" if task.state in ENDED else "was asked to end"
    show_done(task, output, f"the task {id_} {ended}.")


def _row(task: Task) -> tuple[str, ...]:
    return (
        task.meta.name,
        task.kind,
        task.target,
        _state(task),
        f"{task.progress_percent}%",
        moment(task.meta.created_at),
        moment(task.ended_at),
        short(_why(task)),
    )


def _fields(task: Task) -> list[tuple[str, str]]:
    return [
        ("id", task.meta.name),
        ("kind", task.kind),
        ("target", task.target),
        ("state", _state(task)),
        ("done", f"{task.progress_percent}%"),
        ("reason", _why(task)),
        ("node", task.node),
        ("actor", task.actor),
        ("begun", moment(task.meta.created_at)),
        ("ended", moment(task.ended_at)),
        ("log", "\n".join(f"{moment(line.at)} {line.text}" for line in task.log)),
    ]


def _state(task: Task) -> str:
    asked = task.cancel_requested and task.state in (TaskState.TASK_STATE_PENDING, TaskState.TASK_STATE_RUNNING)
    return enum_word(TaskState, task.state, "TASK_STATE_") + (", asked to end" if asked else "")


def _why(task: Task) -> str:
    return str(from_status(task.error)) if task.state == TaskState.TASK_STATE_FAILED else ""
