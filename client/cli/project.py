"""`gugus project`: groups of guests that share quotas."""

from typing import Annotated

import typer
from gugus.cluster.v1.project_pb2 import Project, ProjectSpec

from client.cli.confirm import Yes, confirm
from client.cli.output import Format, Output, show, show_done, show_list
from client.cli.session import complete_project, run
from client.cli.words import MAX_UINT32, labels, moment, short, size
from client.sdk import Gugus
from common.errors import invalid
from common.units import format_size
from common.validate import name as check_name
from common.validate import require

app = typer.Typer(no_args_is_help=True, help="Groups of guests that share quotas.")

Name = Annotated[str, typer.Argument(metavar="PROJECT", autocompletion=complete_project)]
Cpus = Annotated[int | None, typer.Option(min=0, max=MAX_UINT32, help="Most CPUs together; 0: any number.")]
Memory = Annotated[str | None, typer.Option(metavar="SIZE", help="Most memory together, like 64GiB; 0: any amount.")]
Disk = Annotated[str | None, typer.Option(metavar="SIZE", help="Most disk together; 0: any amount.")]
Count = Annotated[int | None, typer.Option("--guests", min=0, max=MAX_UINT32, help="Most guests; 0: any number.")]
Notes = Annotated[str | None, typer.Option(metavar="TEXT", help="Notes for people.")]
COLUMNS = ("name", "cpus", "memory", "disk", "guests", "notes")


@app.command()
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    cpus: Cpus = None,
    memory: Memory = None,
    disk: Disk = None,
    guests: Count = None,
    notes: Notes = None,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="May be repeated.")] = None,
    output: Format = Output.TABLE,
) -> None:
    """Make a project. Guests are put into it by `gugus guest create|set --project`."""
    require("NAME", check_name(name))
    spec, words = ProjectSpec(), labels(label or ())
    _change(spec, cpus, memory, disk, guests, notes)
    project = run(ctx, lambda gugus: gugus.projects.create(name, spec, labels=words))
    show_done(project, output, f"project {name} is made.")


@app.command("list")
def list_(ctx: typer.Context, output: Format = Output.TABLE) -> None:
    """List projects: what their guests have together, of what they may have."""
    show_list(run(ctx, lambda gugus: gugus.projects.list()), output, COLUMNS, _row, none="no projects.")


@app.command("show")
def show_(ctx: typer.Context, name: Name, output: Format = Output.TABLE) -> None:
    """Show a project."""
    show(run(ctx, lambda gugus: gugus.projects.get(name)), output, _fields)


@app.command("set")
def set_(
    ctx: typer.Context,
    name: Name,
    cpus: Cpus = None,
    memory: Memory = None,
    disk: Disk = None,
    guests: Count = None,
    notes: Notes = None,
    output: Format = Output.TABLE,
) -> None:
    """Change a project. Limits below what is used are allowed: then nothing more is given."""
    if cpus is None and memory is None and disk is None and guests is None and notes is None:
        raise invalid(
            "--cpus", "is missing: nothing is to be changed.", remedy=f"`gugus project show {name}` shows it."
        )

    async def work(gugus: Gugus) -> Project:
        project = await gugus.projects.get(name)
        _change(project.spec, cpus, memory, disk, guests, notes)
        return await gugus.projects.update(name, project.spec, revision=project.meta.revision)

    show_done(run(ctx, work), output, f"project {name} is changed.")


@app.command()
def delete(ctx: typer.Context, name: Name, yes: Yes = False, output: Format = Output.TABLE) -> None:
    """Delete a project that has no guests."""
    confirm(f"Delete the project {name}?", yes)
    run(ctx, lambda gugus: gugus.projects.delete(name))
    show_done(None, output, f"project {name} is deleted.")


def _change(
    spec: ProjectSpec, cpus: int | None, memory: str | None, disk: str | None, guests: int | None, notes: str | None
) -> None:
    limits = spec.limits
    if cpus is not None:
        limits.cpus = cpus
    if memory is not None:
        limits.memory_bytes = size("--memory", memory)
    if disk is not None:
        limits.disk_bytes = size("--disk", disk)
    if guests is not None:
        limits.guests = guests
    if notes is not None:
        spec.notes = notes


def _row(project: Project) -> tuple[str, ...]:
    used, limits = project.used, project.spec.limits
    return (
        project.meta.name,
        _of(str(used.cpus), str(limits.cpus or "")),
        _of(format_size(used.memory_bytes), _size(limits.memory_bytes)),
        _of(format_size(used.disk_bytes), _size(limits.disk_bytes)),
        _of(str(used.guests), str(limits.guests or "")),
        short(project.spec.notes),
    )


def _fields(project: Project) -> list[tuple[str, str]]:
    named = list(zip(COLUMNS, _row(project), strict=True))[:5]
    words = ", ".join(f"{key}={value}" for key, value in sorted(project.meta.labels.items()))
    return [*named, ("labels", words), ("notes", project.spec.notes), ("created", moment(project.meta.created_at))]


def _of(used: str, limit: str) -> str:
    return f"{used} of {limit}" if limit else used


def _size(bytes_: int) -> str:
    return format_size(bytes_) if bytes_ else ""
