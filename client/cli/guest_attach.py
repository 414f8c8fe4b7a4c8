"""`gugus guest disk`, `nic` and `cdrom`: the parts of guests come and go; what cannot while they run is told as pending."""

from typing import Annotated, Any

import typer
from gugus.cluster.v1.guest_pb2 import Guest, GuestSpec

from client.cli import guest_devices
from client.cli.confirm import Yes, confirm
from client.cli.guest_app import Name, Wait, cdrom_app, disk_app, nic_app
from client.cli.guest_change import run_change, run_update
from client.cli.output import Format, Output
from client.cli.words import size
from common.errors import invalid, not_found


@disk_app.command("add")
def disk_add(
    ctx: typer.Context,
    name: Name,
    text: Annotated[str, typer.Argument(metavar="DISK", help="Like size=10GiB,pool=local,name=data,bus=scsi.")],
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Give a guest another disk; volume=VOLUME takes up one that it had."""
    wanted = guest_devices.disk(text, "DISK")

    def alter(guest: Guest) -> None:
        disk = guest_devices.taken_up(guest, wanted) if wanted.volume else wanted
        disks = guest.spec.disks
        disks.add(name=disk.name or guest_devices.free_name(disks, "disk")).MergeFrom(disk)

    run_update(ctx, output, name, lambda gugus: gugus.guests.change_guest(name, alter), wait=wait)


@disk_app.command("remove")
def disk_remove(
    ctx: typer.Context,
    name: Name,
    disk: Annotated[str, typer.Argument(metavar="DISK", help="Its name within the guest.")],
    delete: Annotated[bool, typer.Option("--delete", help="Delete what is on it, too.")] = False,
    yes: Yes = False,
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Take a disk from a guest; its volume is kept unless --delete is given."""
    if delete:
        confirm(f"Delete the disk {disk} of guest {name} and everything on it?", yes)
    run_change(
        ctx, output, name, lambda spec: _remove(spec.disks, "disk", disk), wait=wait, delete_removed_disks=delete
    )


@disk_app.command("resize")
def disk_resize(
    ctx: typer.Context,
    name: Name,
    disk: Annotated[str, typer.Argument(metavar="DISK", help="Its name within the guest.")],
    to: Annotated[str, typer.Argument(metavar="SIZE", help="Like 20GiB, or +10GiB for so much more.")],
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Let a disk grow; it never shrinks."""
    more, bytes_ = to.startswith("+"), size("SIZE", to.removeprefix("+"))
    if not bytes_:
        raise invalid("SIZE", f'"{to}" is no size to grow to.', remedy="Like 20GiB, or +10GiB for so much more.")

    def alter(spec: GuestSpec) -> None:
        found = _find(spec.disks, "disk", disk)
        if more and not found.size_bytes:
            raise invalid("SIZE", f"the present size of {disk} is its image's.", remedy="Give the size as a whole.")
        found.size_bytes = bytes_ + (found.size_bytes if more else 0)

    run_change(ctx, output, name, alter, wait=wait)


@nic_app.command("add")
def nic_add(
    ctx: typer.Context,
    name: Name,
    text: Annotated[str, typer.Argument(metavar="NIC", help="Like network=lan,model=e1000,rate=10MiB/s.")],
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Give a guest another network interface."""
    nic = guest_devices.nic(text, "NIC")

    def alter(spec: GuestSpec) -> None:
        spec.nics.add(name=nic.name or guest_devices.free_name(spec.nics, "eth")).MergeFrom(nic)

    run_change(ctx, output, name, alter, wait=wait)


@nic_app.command("remove")
def nic_remove(
    ctx: typer.Context,
    name: Name,
    nic: Annotated[str, typer.Argument(metavar="NIC", help="Its name within the guest.")],
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Take a network interface from a guest."""
    run_change(ctx, output, name, lambda spec: _remove(spec.nics, "interface", nic), wait=wait)


@nic_app.command("link")
def nic_link(
    ctx: typer.Context,
    name: Name,
    nic: Annotated[str, typer.Argument(metavar="NIC", help="Its name within the guest.")],
    down: Annotated[bool, typer.Option("--down", help="Pull the cable; without: plug it in.")] = False,
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Plug the cable of a network interface in, or pull it."""

    def alter(spec: GuestSpec) -> None:
        found = _find(spec.nics, "interface", nic)
        if found.settings.link_down != down:
            found.settings.link_down = down

    run_change(ctx, output, name, alter, wait=wait)


@cdrom_app.command("insert")
def cdrom_insert(
    ctx: typer.Context,
    name: Name,
    disc: Annotated[str, typer.Argument(metavar="POOL/IMAGE")],
    drive: Annotated[str, typer.Option(metavar="DRIVE", help="Its name within the guest.")] = "cd0",
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Put a disc into a drive, and make the drive if there is none."""
    new = guest_devices.cdrom(disc)

    def alter(spec: GuestSpec) -> None:
        cdroms = spec.virtual_machine.cdroms
        names = [item.name or f"cd{place}" for place, item in enumerate(cdroms)]
        found = cdroms[names.index(drive)] if drive in names else cdroms.add(name=drive)
        found.pool, found.image = new.pool, new.image

    run_change(ctx, output, name, alter, wait=wait)


@cdrom_app.command("eject")
def cdrom_eject(
    ctx: typer.Context,
    name: Name,
    drive: Annotated[str, typer.Option(metavar="DRIVE", help="Its name within the guest.")] = "cd0",
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Take the disc out of a drive."""

    def alter(spec: GuestSpec) -> None:
        found = _find(spec.virtual_machine.cdroms, "drive", drive)
        found.pool = found.image = ""

    run_change(ctx, output, name, alter, wait=wait)


def _find(items: Any, kind: str, name: str) -> Any:
    for item in items:
        if item.name == name:
            return item
    error = not_found(kind, name, remedy=f"It has {', '.join(item.name for item in items) or 'none'}.")
    raise error


def _remove(items: Any, kind: str, name: str) -> None:
    items.remove(_find(items, kind, name))
