"""`gugus guest`: virtual machines and containers."""

import base64
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from gugus.agent.v1.boot_pb2 import FirstBoot
from gugus.agent.v1.guest_pb2 import GuestKind
from gugus.cluster.v1.guest_pb2 import DiskSpec, GuestSpec, HaSpec, NicSpec, Power

from client.cli.confirm import Yes, confirm
from client.cli.guest_views import COLUMNS, explanation, fields, row
from client.cli.output import Format, Output, plain, show, show_done, show_list, write
from client.cli.session import complete_guest, complete_network, complete_node, complete_pool, run, run_task
from client.cli.words import cpu_milli, duration, labels, size, ssh_keys
from client.cli.words import disk as read_disk
from common.errors import invalid
from common.validate import name as check_name
from common.validate import require

app = typer.Typer(no_args_is_help=True, help="Virtual machines and containers.")
ha_app = typer.Typer(no_args_is_help=True, help="Restart elsewhere when the host is lost, or not.")
app.add_typer(ha_app, name="ha")


class Kind(StrEnum):
    """What a guest is."""

    VM = "vm"
    CONTAINER = "container"


_KINDS = {Kind.VM: GuestKind.GUEST_KIND_VIRTUAL_MACHINE, Kind.CONTAINER: GuestKind.GUEST_KIND_CONTAINER}

Name = Annotated[str, typer.Argument(metavar="GUEST", autocompletion=complete_guest)]
Wait = Annotated[bool, typer.Option(help="Wait until it is done.")]


@app.command()
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    kind: Annotated[Kind, typer.Option(help="Virtual machine or container.")],
    pool: Annotated[str, typer.Option(metavar="POOL", help="Where its disk is.", autocompletion=complete_pool)] = "",
    image: Annotated[str, typer.Option(metavar="IMAGE", help="What its disk is made from.")] = "",
    disk_size: Annotated[str, typer.Option(metavar="SIZE", help="Size of that disk (the image's).")] = "",
    disk: Annotated[
        list[str] | None, typer.Option(metavar="SIZE/POOL[/IMAGE]", help="One more disk; may be repeated.")
    ] = None,
    cpus: Annotated[int, typer.Option(min=1, max=1024)] = 1,
    cpu_limit: Annotated[
        str, typer.Option(metavar="CPUS", help="CPU time it may use, like 0.5 (all of its CPUs).")
    ] = "",
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Like 2GiB (vm: 512MiB, container: 256MiB).")] = "",
    network: Annotated[
        list[str] | None,
        typer.Option(metavar="NETWORK", help="An interface in it; may be repeated.", autocompletion=complete_network),
    ] = None,
    ha: Annotated[bool, typer.Option("--ha", help="Restart elsewhere when its host is lost.")] = False,
    node: Annotated[str, typer.Option(metavar="NODE", help="Only ever there.", autocompletion=complete_node)] = "",
    prefer: Annotated[
        str, typer.Option(metavar="NODE", help="There at first, if it fits.", autocompletion=complete_node)
    ] = "",
    ssh_key: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Public keys to let in; may be repeated.")
    ] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="May be repeated.")] = None,
    start: Annotated[bool, typer.Option(help="Start it when it is made.")] = True,
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Make a guest from an image and start it.

    gugus guest create web --kind vm --pool local --image debian --memory 1GiB --network lan --ha
    """
    require("NAME", check_name(name))
    if node and prefer:
        raise invalid("--prefer", "says nothing beside --node, which pins the guest.", remedy="Give one of them.")
    spec = GuestSpec(
        kind=_KINDS[kind],
        cpus=cpus,
        cpu_limit_milli=cpu_milli("--cpu-limit", cpu_limit) if cpu_limit else 0,
        memory_bytes=size("--memory", memory) if memory else 0,
        disks=_disks(pool, image, disk_size, disk or []),
        nics=[NicSpec(network=item) for item in network or ()],
        power=Power.POWER_ON if start else Power.POWER_OFF,
        ha=HaSpec(enabled=ha),
        first_boot=FirstBoot(ssh_authorized_keys=ssh_keys(ssh_key or ())),
        pinned_node=node,
        preferred_node=prefer,
    )
    tags = labels(label or ())
    done = f"guest {name} {'runs' if start else 'is made'}."
    run_task(ctx, output, lambda gugus: gugus.guests.create(name, spec, labels=tags), done, wait=wait)


@app.command("list")
def list_(
    ctx: typer.Context,
    node: Annotated[str, typer.Option(metavar="NODE", help="Only there.", autocompletion=complete_node)] = "",
    output: Format = Output.TABLE,
) -> None:
    """List guests."""
    show_list(run(ctx, lambda gugus: gugus.guests.list(node=node)), output, COLUMNS, row, none="no guests.")


@app.command("show")
def show_(ctx: typer.Context, name: Name, output: Format = Output.TABLE) -> None:
    """Show a guest."""
    show(run(ctx, lambda gugus: gugus.guests.get(name)), output, fields)


@app.command()
def start(ctx: typer.Context, name: Name, wait: Wait = True, output: Format = Output.TABLE) -> None:
    """Start a guest."""
    run_task(ctx, output, lambda gugus: gugus.guests.start(name), f"guest {name} runs.", wait=wait)


@app.command()
def stop(
    ctx: typer.Context,
    name: Name,
    timeout: Annotated[str, typer.Option(metavar="TIME", help="How long it may take before it is killed.")] = "60s",
    force: Annotated[bool, typer.Option("--force", help="Kill it at once.")] = False,
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Shut a guest down."""
    timeout_s = duration("--timeout", timeout)
    if timeout_s <= 0:
        raise invalid("--timeout", "must be more than 0.", remedy="To kill the guest at once, use --force.")
    run_task(
        ctx,
        output,
        lambda gugus: gugus.guests.stop(name, timeout_s=timeout_s, force=force),
        f"guest {name} is stopped.",
        wait=wait,
    )


@app.command()
def delete(
    ctx: typer.Context,
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Even if it runs: kill it first.")] = False,
    yes: Yes = False,
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Delete a guest and its disks."""
    confirm(f"Delete the guest {name} and everything on its disks?", yes)
    done = f"guest {name} is deleted."
    run_task(ctx, output, lambda gugus: gugus.guests.delete(name, force=force), done, wait=wait)


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


@ha_app.command("on")
def ha_on(ctx: typer.Context, name: Name, output: Format = Output.TABLE) -> None:
    """Restart a guest elsewhere when its host is lost."""
    show_done(run(ctx, lambda gugus: gugus.guests.set_ha(name, True)), output, f"guest {name} is under HA.")


@ha_app.command("off")
def ha_off(ctx: typer.Context, name: Name, output: Format = Output.TABLE) -> None:
    """Leave a guest where it is when its host is lost."""
    guest = run(ctx, lambda gugus: gugus.guests.set_ha(name, False))
    show_done(guest, output, f"guest {name} is not under HA.")


def _disks(pool: str, image: str, disk_size: str, more: list[str]) -> list[DiskSpec]:
    """Return the first disk, of --pool, --image and --disk-size, and those of --disk."""
    disks = [read_disk(text) for text in more]
    if pool:
        if not (image or disk_size):
            raise invalid(
                "--image", "is missing: the first disk is made from one.", remedy="`gugus pool images` lists them."
            )
        first = DiskSpec(pool=pool, image=image, size_bytes=size("--disk-size", disk_size) if disk_size else 0)
        return [first, *disks]
    if image or disk_size or not disks:
        raise invalid("--pool", "is missing: a guest has at least one disk.", remedy="`gugus pool list` lists pools.")
    return disks
