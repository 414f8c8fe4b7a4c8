"""`gugus guest snapshot`: take, show as a tree, go back to, delete."""

from collections.abc import Iterable
from typing import Annotated

import typer
from gugus.agent.v1.snapshot_pb2 import SnapshotConsistency
from gugus.cluster.v1.snapshot_pb2 import Snapshot, SnapshotState

from client.cli.confirm import Yes, confirm
from client.cli.guest_app import Name, app
from client.cli.many import PARALLEL, Parallel, Wait, run_many
from client.cli.output import Format, Output, show, show_list
from client.cli.selectors import Filters, with_filters
from client.cli.session import run, run_task
from client.cli.words import enum_word, moment, short, yes
from common.units import format_size

COLUMNS = ("name", "taken", "memory", "consistency", "state", "description")

snapshot_app = typer.Typer(no_args_is_help=True, help="What guests were at a moment, to go back to.")
app.add_typer(snapshot_app, name="snapshot")

Of = Annotated[str, typer.Argument(metavar="SNAPSHOT", help="Its name.")]


@snapshot_app.command()
@with_filters
def create(
    ctx: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(metavar="[GUEST]... SNAPSHOT", help="Guests, and last the snapshot's name.", show_default=False),
    ],
    memory: Annotated[
        bool, typer.Option("--memory", help="Hold the memory, too; the guest stands still meanwhile.")
    ] = False,
    description: Annotated[str, typer.Option("--description", "-d", metavar="TEXT", help="Words for people.")] = "",
    no_freeze: Annotated[
        bool, typer.Option("--no-freeze", help="Do not have the guest agent freeze its file systems.")
    ] = False,
    *,
    filters: Filters,
    parallel: Parallel = PARALLEL,
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Take a snapshot of a guest, or of each of several, named or selected by --tag and the like."""
    *guests, snapshot = words
    chosen = filters.selection(guests)
    run_many(
        ctx,
        output,
        chosen,
        lambda gugus, one: gugus.snapshots.create(
            one, snapshot, memory=memory, description=description, no_freeze=no_freeze
        ),
        f"snapshot {snapshot} of {{}} is taken.",
        parallel=parallel,
        wait=wait,
    )


@snapshot_app.command("list")
def list_(ctx: typer.Context, guest: Name, output: Format = Output.TABLE) -> None:
    """List a guest's snapshots as a tree; "*" marks the one that it stems from now."""
    found = run(ctx, lambda gugus: gugus.snapshots.list(guest))
    depths = depths_of(found)
    show_list(found, output, COLUMNS, lambda one: _row(one, depths[one.name]), none=f"{guest} has no snapshots.")


@snapshot_app.command("show")
def show_(ctx: typer.Context, guest: Name, name: Of, output: Format = Output.TABLE) -> None:
    """Show a snapshot."""
    show(run(ctx, lambda gugus: gugus.snapshots.get(guest, name)), output, _fields)


@snapshot_app.command()
def delete(
    ctx: typer.Context, guest: Name, name: Of, sure: Yes = False, wait: Wait = True, output: Format = Output.TABLE
) -> None:
    """Delete a snapshot; those that were taken after it stay."""
    confirm(f"Nobody can go back to {name} of {guest} any more. Delete it?", sure)
    done = f"snapshot {name} of {guest} is deleted."
    run_task(ctx, output, lambda gugus: gugus.snapshots.delete(guest, name), done, wait=wait)


@snapshot_app.command()
def rollback(
    ctx: typer.Context,
    guest: Name,
    name: Of,
    start: Annotated[bool, typer.Option("--start", help="Start it afterwards, also without memory.")] = False,
    sure: Yes = False,
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Make a guest what it was: disks, hardware, and memory if it was kept. What it wrote since is lost."""
    confirm(f"Everything that {guest} has written since {name} is lost. Go back?", sure)
    done = f"{guest} is as in {name}."
    run_task(ctx, output, lambda gugus: gugus.snapshots.rollback(guest, name, start=start), done, wait=wait)


def depths_of(snapshots: Iterable[Snapshot]) -> dict[str, int]:
    """Return how deep in the tree each snapshot is, by name; each comes after its parent."""
    depths: dict[str, int] = {}
    for snapshot in snapshots:
        depths[snapshot.name] = depths.get(snapshot.parent, -1) + 1
    return depths


def _row(snapshot: Snapshot, depth: int) -> tuple[str, ...]:
    branch = f"└{'──' * (depth - 1)} " if depth else ""  # no blanks: tables that no width cuts have none at the front
    return (
        f"{branch}{snapshot.name}{' *' if snapshot.current else ''}",
        moment(snapshot.meta.created_at),
        format_size(snapshot.memory_bytes) if snapshot.memory else "",
        enum_word(SnapshotConsistency, snapshot.consistency, "SNAPSHOT_CONSISTENCY_"),
        enum_word(SnapshotState, snapshot.state, "SNAPSHOT_STATE_"),
        short(snapshot.description),
    )


def _fields(snapshot: Snapshot) -> list[tuple[str, str]]:
    disks = [f"{disk.name}: {disk.volume} in {disk.pool}, {format_size(disk.size_bytes)}" for disk in snapshot.disks]
    return [
        ("guest", snapshot.guest),
        ("name", snapshot.name),
        ("state", enum_word(SnapshotState, snapshot.state, "SNAPSHOT_STATE_")),
        ("stems from", snapshot.parent),
        ("current", yes(snapshot.current)),
        ("taken", moment(snapshot.meta.created_at)),
        ("consistency", enum_word(SnapshotConsistency, snapshot.consistency, "SNAPSHOT_CONSISTENCY_")),
        ("memory", format_size(snapshot.memory_bytes) if snapshot.memory else ""),
        ("stood still", f"{snapshot.paused_ms} ms" if snapshot.paused_ms else ""),
        ("disks", "\n".join(disks)),
        ("cpus", str(snapshot.spec.cpus)),
        ("ram", format_size(snapshot.spec.memory_bytes)),
        ("description", snapshot.description),
    ]
