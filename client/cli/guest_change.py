"""`gugus guest set`, `edit` and their like: changes of a guest's spec. What cannot be changed while it runs is told as pending."""

import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from gugus.cluster.v1.guest_pb2 import Guest, GuestSpec
from gugus.cluster.v1.task_pb2 import Task

from client.cli.guest import BootFrom, Set, change
from client.cli.guest_app import Name, Wait, app, tag_app
from client.cli.guest_settings import Setting, with_settings
from client.cli.guest_views import pending
from client.cli.output import Format, Output, say, show_done
from client.cli.session import begun, follow, run, run_task, timeout_of
from client.sdk import Gugus
from client.tasks import check
from common.errors import invalid
from common.validate import name as check_name
from common.validate import require


@app.command("set")
@with_settings
def set_command(
    ctx: typer.Context,
    name: Name,
    set_: Set = None,
    boot_from: BootFrom = "",
    ha: Annotated[bool | None, typer.Option("--ha/--no-ha", help="Restart elsewhere when its host is lost.")] = None,
    node: Annotated[str | None, typer.Option(metavar="NODE", help='Only ever there; "" for anywhere.')] = None,
    prefer: Annotated[str | None, typer.Option(metavar="NODE", help='There if it fits; "" for anywhere.')] = None,
    wait: Wait = True,
    output: Format = Output.TABLE,
    *,
    settings: Mapping[Setting, Any],
) -> None:
    """Change settings of a guest; an empty value is the default.

    gugus guest set web --memory 2GiB --set virtual_machine.cpu.model=host
    """

    def alter(spec: GuestSpec) -> None:
        change(spec, settings, set_ or (), boot_from)
        if ha is not None and ha != spec.ha.enabled:
            spec.ha.enabled = ha
        if node is not None:
            spec.pinned_node = node
        if prefer is not None:
            spec.preferred_node = prefer

    if not (settings or set_ or boot_from or ha is not None or node is not None or prefer is not None):
        raise invalid(
            "--set", "is missing: nothing is to be changed.", remedy="`gugus guest set --help` lists what can be."
        )
    run_change(ctx, output, name, alter, wait=wait)


@app.command()
def rename(
    ctx: typer.Context,
    name: Name,
    new_name: Annotated[str, typer.Argument(metavar="NEW_NAME")],
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Give a stopped guest another name."""
    require("NEW_NAME", check_name(new_name))
    done = f"guest {name} is {new_name} now."
    run_task(ctx, output, lambda gugus: gugus.guests.rename(name, new_name), done, wait=wait)


@app.command()
def protect(
    ctx: typer.Context,
    name: Name,
    off: Annotated[bool, typer.Option("--off", help="Allow it again.")] = False,
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Refuse to delete a guest or its disks."""
    run_change(ctx, output, name, lambda spec: setattr(spec, "protected", not off), wait=wait)


@app.command()
def export(ctx: typer.Context, name: Name) -> None:
    """Write a guest as a document for `gugus apply`."""
    from client.apply.documents import of_guest  # here: other commands start faster without it

    print(of_guest(run(ctx, lambda gugus: gugus.guests.get(name))), end="")


@app.command()
def edit(ctx: typer.Context, name: Name, wait: Wait = True, output: Format = Output.TABLE) -> None:
    """Change a guest in $EDITOR, as a document; what the file leaves out gets its default."""
    from client.apply.documents import of_guest, parse
    from client.apply.plan import wanted_spec

    before = of_guest(run(ctx, lambda gugus: gugus.guests.get(name)))
    after = _edited(before, f"{name}.yaml")
    if after == before or not after.strip():
        say("nothing was changed.")
        return
    documents = parse(after, f"{name}.yaml")
    if [document.target for document in documents] != [f"guest/{name}"]:
        raise invalid(
            "name", f"the file is to hold the guest {name} and nothing else.", remedy="`rename` renames guests."
        )

    async def begin(gugus: Gugus) -> Task | None:
        guest = await gugus.guests.get(name)
        spec, labels = wanted_spec(documents[0], guest, exact=True), documents[0].labels or {}
        if "pinned_node" not in documents[0].patch:
            spec.pinned_node = ""
        if spec == guest.spec and labels == dict(guest.meta.labels):
            return None
        return await gugus.guests.update(name, spec, spec_number=guest.spec_number, labels=labels)

    run_update(ctx, output, name, begin, wait=wait)


@tag_app.command("add")
def tag_add(
    ctx: typer.Context,
    name: Name,
    tags: Annotated[list[str], typer.Argument(metavar="TAG...")],
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Give a guest tags."""

    def alter(spec: GuestSpec) -> None:
        spec.tags.extend(tag for tag in dict.fromkeys(tags) if tag not in spec.tags)

    run_change(ctx, output, name, alter, wait=wait)


@tag_app.command("remove")
def tag_remove(
    ctx: typer.Context,
    name: Name,
    tags: Annotated[list[str], typer.Argument(metavar="TAG...")],
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Take tags from a guest."""

    def alter(spec: GuestSpec) -> None:
        spec.tags[:] = [tag for tag in spec.tags if tag not in tags]

    run_change(ctx, output, name, alter, wait=wait)


def run_change(
    ctx: typer.Context,
    output: Output,
    name: str,
    alter: Callable[[GuestSpec], None],
    *,
    wait: bool = True,
    delete_removed_disks: bool = False,
) -> None:
    """Let `alter` change the spec of a guest, follow the task, and say what waits for its next start. Raises GugusError."""

    async def begin(gugus: Gugus) -> Task | None:
        return await gugus.guests.change(name, alter, delete_removed_disks=delete_removed_disks)

    run_update(ctx, output, name, begin, wait=wait)


def run_update(
    ctx: typer.Context,
    output: Output,
    name: str,
    begin: Callable[[Gugus], Coroutine[Any, Any, Task | None]],
    *,
    wait: bool,
) -> None:
    """Begin a change of a guest (None: there is nothing to do), and go on as `run_change` does."""

    async def work(gugus: Gugus) -> tuple[Task | None, Guest | None]:
        task = await begun(gugus, begin)
        if task is None or not wait:
            return task, None
        return check(await follow(gugus, task, timeout_of(ctx))), await gugus.guests.get(name)

    task, guest = run(ctx, work)
    if task is None:
        show_done(None, output, f"guest {name} is so already.")
    elif guest is None:
        say(f"begun; `gugus task follow {task.meta.name}` follows it.")
        if output is Output.TABLE:
            print(task.meta.name)
        else:
            show_done(task, output, "")
    else:
        waiting = pending(guest)
        show_done(task, output, f"guest {name} is changed.")
        if waiting and output is Output.TABLE:
            say(f"after its next start (`gugus guest reboot {name}`):\n  " + "\n  ".join(waiting))


def _edited(text: str, file_name: str) -> str:
    """Return a text as a person leaves it in their editor. Raises GugusError when the editor fails."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory(prefix="gugus-edit-") as folder:
        file = Path(folder, file_name)
        file.write_text(text)
        try:
            code = subprocess.run([*shlex.split(editor), str(file)], check=False).returncode
        except (OSError, ValueError) as error:
            raise invalid(
                "EDITOR", f"{editor} cannot be started: {getattr(error, 'strerror', None) or error}."
            ) from None
        if code:
            raise invalid("EDITOR", f"{editor} ended with {code}; nothing was changed.")
        return file.read_text()
