"""`gugus guest`: virtual machines and containers. Their power, settings and parts are in modules beside this one."""

import base64
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any

import typer
from gugus.agent.v1.guest_pb2 import GUEST_STATE_PAUSED, GUEST_STATE_RUNNING, GuestUsage
from gugus.cluster.v1.guest_pb2 import DiskSpec, Guest, GuestSpec, HaSpec, NicSpec, Power

from client.cli import guest_devices
from client.cli.confirm import Yes, confirm
from client.cli.faults import Faults, each
from client.cli.guest_app import Name, Wait, app
from client.cli.guest_settings import Setting, apply_settings, with_settings
from client.cli.guest_views import COLUMNS, explanation, fields, row, usage_fields
from client.cli.output import Format, Output, plain, show, show_list, write
from client.cli.selectors import KINDS, Kind, Label, OfKind, OfProject, OnNode, Tag
from client.cli.session import complete_network, complete_node, complete_pool, run, run_task
from client.cli.words import labels, size
from client.sdk import Gugus
from common.errors import GugusError, invalid
from common.validate import name as check_name
from common.validate import require

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Any field of the spec by its path; may be repeated."),
]
BootFrom = Annotated[str, typer.Option(metavar="NAMES", help="Boots from these, in order, like cd0,disk0,eth0.")]


@app.command()
@with_settings
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    kind: Annotated[Kind, typer.Option(help="Virtual machine or container.")],
    pool: Annotated[str, typer.Option(metavar="POOL", help="Where its disk is.", autocompletion=complete_pool)] = "",
    image: Annotated[str, typer.Option(metavar="IMAGE", help="What its disk is made from.")] = "",
    disk_size: Annotated[str, typer.Option(metavar="SIZE", help="Size of that disk (the image's).")] = "",
    disk: Annotated[
        list[str] | None,
        typer.Option(metavar="DISK", help="Like size=10GiB,pool=local,bus=scsi, or SIZE/POOL/IMAGE; may be repeated."),
    ] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(metavar="NETWORK", help="An interface in it; may be repeated.", autocompletion=complete_network),
    ] = None,
    nic: Annotated[
        list[str] | None,
        typer.Option(metavar="NIC", help="Like network=lan,model=e1000,rate=10MiB/s; may be repeated."),
    ] = None,
    cdrom: Annotated[
        list[str] | None, typer.Option(metavar="POOL/IMAGE", help="A drive with this disc, or empty; may be repeated.")
    ] = None,
    boot_from: BootFrom = "",
    ha: Annotated[bool, typer.Option("--ha", help="Restart elsewhere when its host is lost.")] = False,
    node: Annotated[str, typer.Option(metavar="NODE", help="Only ever there.", autocompletion=complete_node)] = "",
    prefer: Annotated[
        str, typer.Option(metavar="NODE", help="There at first, if it fits.", autocompletion=complete_node)
    ] = "",
    id_: Annotated[int, typer.Option("--id", min=0, help="Its number; 0 takes a free one.")] = 0,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="May be repeated.")] = None,
    set_: Set = None,
    start: Annotated[bool, typer.Option(help="Start it when it is made.")] = True,
    wait: Wait = True,
    output: Format = Output.TABLE,
    *,
    settings: Mapping[Setting, Any],
) -> None:
    """Make a guest from an image and start it.

    gugus guest create web --kind vm --pool local --image debian --memory 1GiB --network lan --ha
    """
    faults = Faults()
    spec = GuestSpec(
        kind=KINDS[kind],
        id=id_,
        cpus=1,
        nics=[NicSpec(network=item) for item in network or ()],
        power=Power.POWER_ON if start else Power.POWER_OFF,
        ha=HaSpec(enabled=ha),
        pinned_node=node,
        preferred_node=prefer,
    )
    with faults.gathered():
        spec.disks.extend(_disks(pool, image, disk_size, disk or []))
    with faults.gathered():
        spec.nics.extend(each(guest_devices.nic, nic or ()))
    if cdrom:
        with faults.gathered():
            spec.virtual_machine.cdroms.extend(each(guest_devices.cdrom, cdrom))
    if faults.found:
        boot_from = ""  # it would miss those parts
    with faults.gathered():
        change(spec, settings, set_ or (), boot_from)
    with faults.gathered():
        require("NAME", check_name(name))
    with faults.gathered():
        _one_place(node, prefer)
    tags = dict[str, str]()
    with faults.gathered():
        tags = labels(label or ())
    faults.tell()
    done = f"guest {name} {'runs' if start else 'is made'}."
    run_task(ctx, output, lambda gugus: gugus.guests.create(name, spec, labels=tags), done, wait=wait)


def change(spec: GuestSpec, settings: Mapping[Setting, Any], set_: Any, boot_from: str) -> None:
    """Change a spec as the options of `create` and `set` say. Raises GugusError naming every option at fault."""
    faults = Faults()
    with faults.gathered():
        apply_settings(spec, settings)
    for text in set_:
        from client.apply.paths import set_field  # here: other commands start faster without it

        with faults.gathered():
            set_field(spec, text)
    if boot_from:
        with faults.gathered():
            guest_devices.boot_from(spec, boot_from)
    faults.tell()


@app.command("list")
def list_(
    ctx: typer.Context,
    node: OnNode = "",
    tag: Tag = None,
    project: OfProject = "",
    label: Label = None,
    kind: OfKind = None,
    output: Format = Output.TABLE,
) -> None:
    """List guests: all, or those that are all of what is given."""
    wanted = labels(label or ())

    async def work(gugus: Gugus) -> list[Guest]:
        found = await gugus.guests.list(node=node, tags=tag or (), labels=wanted, project=project)
        return [guest for guest in found if kind is None or guest.spec.kind == KINDS[kind]]

    show_list(run(ctx, work), output, COLUMNS, row, none="no guests.")


@app.command("show")
def show_(ctx: typer.Context, name: Name, output: Format = Output.TABLE) -> None:
    """Show a guest, what works on it, what waits for its next start, and what it uses."""

    async def work(gugus: Gugus) -> tuple[Guest, GuestUsage]:
        guest, usage = await gugus.guests.get(name), GuestUsage()
        if output is Output.TABLE and guest.status.observed in (GUEST_STATE_RUNNING, GUEST_STATE_PAUSED):
            with suppress(GugusError):  # its node does not answer just now: the rest is known
                usage = await gugus.guests.usage(name)
        return guest, usage

    guest, usage = run(ctx, work)
    used = usage_fields(usage) if usage.ListFields() else []
    show(guest, output, lambda guest: [*fields(guest), *used])


@app.command()
def delete(
    ctx: typer.Context,
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Even if it runs: kill it first.")] = False,
    keep_disks: Annotated[bool, typer.Option("--keep-disks", help="Its disks become images of their pools.")] = False,
    yes: Yes = False,
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Delete a guest and its disks."""
    confirm(f"Delete the guest {name}{' but keep' if keep_disks else ' and'} everything on its disks?", yes)
    done = f"guest {name} is deleted."
    run_task(
        ctx,
        output,
        lambda gugus: gugus.guests.delete(name, force=force, keep_disks=keep_disks),
        done,
        wait=wait,
    )


@app.command()
def explain(ctx: typer.Context, name: Name, output: Format = Output.TABLE) -> None:
    """Explain why a guest is where it is, and where it would be placed now."""
    answer = run(ctx, lambda gugus: gugus.guests.explain(name))
    if output is Output.TABLE:
        explanation(answer)
    else:
        write(plain(answer), output)


@app.command("console-log")
def console_log(
    ctx: typer.Context,
    name: Name,
    bytes_: Annotated[int, typer.Option("--bytes", min=1, max=1 << 20, help="At most so many from the end.")] = 65536,
    output: Format = Output.TABLE,
) -> None:
    """Print the end of a guest's console log, byte for byte (in JSON and YAML: base64)."""
    data = run(ctx, lambda gugus: gugus.guests.console_log(name, max_bytes=bytes_))
    if output is Output.TABLE:
        sys.stdout.buffer.write(data)
    else:
        write({"data": base64.b64encode(data).decode()}, output)


def _disks(pool: str, image: str, disk_size: str, more: list[str]) -> list[DiskSpec]:
    """Return the first disk, of --pool, --image and --disk-size, and those of --disk."""
    disks, faults = list[DiskSpec](), Faults()
    if pool:
        with faults.gathered():
            disks.append(_first_disk(pool, image, disk_size))
    elif image or disk_size or not more:
        with faults.gathered():
            raise invalid(
                "--pool", "is missing: a guest has at least one disk.", remedy="`gugus pool list` lists pools."
            )
    with faults.gathered():
        disks += each(guest_devices.new_disk, more)
    faults.tell()
    return disks


def _first_disk(pool: str, image: str, disk_size: str) -> DiskSpec:
    if not (image or disk_size):
        raise invalid(
            "--image", "is missing: the first disk is made from one.", remedy="`gugus pool images` lists them."
        )
    return DiskSpec(pool=pool, image=image, size_bytes=size("--disk-size", disk_size) if disk_size else 0)


def _one_place(node: str, prefer: str) -> None:
    if node and prefer:
        raise invalid("--prefer", "says nothing beside --node, which pins the guest.", remedy="Give one of them.")
