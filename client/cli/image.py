"""`gugus image`: images, from which guests' disks are made; brought in, made, taken out, deleted."""

from pathlib import Path
from typing import Annotated

import typer
from gugus.agent.v1.volume_pb2 import Volume, VolumeFormat, VolumeKind
from gugus.cluster.v1.pool_pb2 import Image
from gugus.cluster.v1.task_pb2 import Task

from client.cli.bytes_bar import BytesBar
from client.cli.confirm import Yes, confirm
from client.cli.output import Format, Output, say, show, show_done, show_list
from client.cli.session import complete_guest, complete_node, complete_pool, follow, run, run_task, timeout_of
from client.cli.words import enum_word
from client.local_files import require_folder
from client.sdk import Gugus
from client.tasks import check
from common.errors import invalid, not_found
from common.units import format_size
from common.validate import name as check_name
from common.validate import require

app = typer.Typer(no_args_is_help=True, help="Images, from which guests' disks are made.")

PoolName = Annotated[str, typer.Argument(metavar="POOL", autocompletion=complete_pool)]
ImageName = Annotated[str, typer.Argument(metavar="IMAGE", help="Name of the image.")]
Node = Annotated[str, typer.Option(metavar="NODE", help="Who reads it.", autocompletion=complete_node)]
Sha256 = Annotated[str, typer.Option(metavar="HEX", help="Expected SHA-256 of the source.")]
Wait = Annotated[bool, typer.Option(help="Wait until it is done.")]

SOURCES = ("/", "https://", "http://", "docker://", "oci:/", "oci-archive:/", "docker-archive:/")
EXPORTS = ("qcow2", "raw", "vmdk", "vdi", "vhdx", "vpc", "tar")
VOLUME_COLUMNS = ("name", "format", "size", "used", "backing")
COLUMNS = ("pool", "image", "kind", "node", "format", "size", "used", "sha256")


@app.command("import")
def import_(
    ctx: typer.Context,
    pool: PoolName,
    image: ImageName,
    source: Annotated[
        str,
        typer.Option(
            "--from", metavar="SOURCE", help="Path on a node, an http(s) address, docker://IMAGE or oci:/FOLDER."
        ),
    ],
    sha256: Sha256 = "",
    node: Node = "",
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Bring an image into a pool: a disk (qcow2, raw, vmdk, vdi, vhd, vhdx), an OVA, an ISO, or a container's root."""
    require("IMAGE", check_name(image))
    if not source.startswith(SOURCES):
        what = f'"{source}" is neither an absolute path on a node nor an address.'
        raise invalid("--from", what, remedy="A file of this machine is sent by `gugus image upload`.")
    _check_sha256(sha256)
    run_task(
        ctx,
        output,
        lambda gugus: gugus.images.import_(pool, image, source, sha256=sha256.lower(), node=node),
        f"image {image} is in pool {pool}.",
        wait=wait,
    )


@app.command()
def upload(
    ctx: typer.Context,
    pool: PoolName,
    image: ImageName,
    file: Annotated[
        Path, typer.Option("--from", metavar="FILE", help="File of this machine.", exists=True, dir_okay=False)
    ],
    sha256: Sha256 = "",
    node: Annotated[str, typer.Option(metavar="NODE", help="Who receives it.", autocompletion=complete_node)] = "",
    output: Format = Output.TABLE,
) -> None:
    """Send an image from this machine. Broken off, the same command goes on where it was."""
    require("IMAGE", check_name(image))
    _check_sha256(sha256)
    if file.is_file() and not file.stat().st_size:
        raise invalid("--from", f"{file} is empty.", remedy="Give a disk image, an OVA, or a tar archive of a root.")

    async def work(gugus: Gugus) -> Task:
        with BytesBar(f"sending {file.name}") as bar:
            task = await gugus.images.upload(pool, image, file, sha256=sha256.lower(), node=node, progress=bar.show)
        return check(await follow(gugus, task, timeout_of(ctx)))

    show_done(run(ctx, work), output, f"image {image} is in pool {pool}.")


@app.command()
def create(
    ctx: typer.Context,
    pool: PoolName,
    image: ImageName,
    guest: Annotated[str, typer.Option("--from-guest", metavar="GUEST", autocompletion=complete_guest)],
    disk: Annotated[str, typer.Option(metavar="DISK", help="Which of its disks; the first if not given.")] = "",
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Make an image from the disk of a guest that does not run; the guest keeps its disk."""
    require("IMAGE", check_name(image))
    done = f"image {image} is in pool {pool}."
    run_task(ctx, output, lambda gugus: gugus.images.create(pool, image, guest, disk=disk), done, wait=wait)


@app.command()
def export(
    ctx: typer.Context,
    pool: PoolName,
    volume: Annotated[str, typer.Argument(metavar="IMAGE", help="Name of the image, or of any other volume.")],
    file: Annotated[Path, typer.Option("--to", metavar="FILE", help="File of this machine to write.", dir_okay=False)],
    format_: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help=f"{', '.join(EXPORTS)}; as it is stored if not given.")
    ] = "",
    node: Annotated[str, typer.Option(metavar="NODE", help="Who has it.", autocompletion=complete_node)] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Take an image, or another volume that no running guest writes to, out into a file of this machine."""
    if format_ and format_ not in EXPORTS:
        raise invalid("--format", f'"{format_}" is none of {", ".join(EXPORTS)}.')
    if file.exists() and not force:
        raise invalid("--to", f"{file} is there already.", remedy="Choose another file, or give --force.")
    require_folder("--to", file)

    async def work(gugus: Gugus) -> str:
        task = await gugus.images.export(pool, volume, format_=format_, node=node)
        check(await follow(gugus, task, timeout_of(ctx)))
        with BytesBar(f"receiving {file.name}") as bar:
            return await gugus.images.download(task.meta.name, file, progress=bar.show)

    sha256 = run(ctx, work)
    say(f"{file} is written, SHA-256 {sha256}.")


@app.command("list")
def list_(
    ctx: typer.Context,
    pool: Annotated[str, typer.Argument(metavar="[POOL]", autocompletion=complete_pool)] = "",
    output: Format = Output.TABLE,
) -> None:
    """List images, of one pool or of all."""
    found = run(ctx, lambda gugus: gugus.images.list(pool=pool))
    show_list(found, output, COLUMNS, _row, none="no images; `gugus image import` brings one in.")


@app.command("show")
def show_(ctx: typer.Context, pool: PoolName, image: ImageName, output: Format = Output.TABLE) -> None:
    """Show an image."""
    found = run(ctx, lambda gugus: gugus.images.list(pool=pool))
    item = next((item for item in found if item.volume.name == image), None)
    if item is None:
        raise not_found("image", image, remedy=f"Pool {pool} has {', '.join(i.volume.name for i in found) or 'none'}.")
    show(item, output, _fields)


@app.command()
def delete(
    ctx: typer.Context,
    pool: PoolName,
    image: ImageName,
    yes_: Yes = False,
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Delete an image that nothing reads from."""
    confirm(f"Delete the image {image} of the pool {pool}?", yes_)
    done = f"image {image} is deleted."
    run_task(ctx, output, lambda gugus: gugus.images.delete(pool, image), done, wait=wait)


def volume_row(volume: Volume) -> tuple[str, ...]:
    """Return the columns of a volume."""
    return (
        volume.name,
        enum_word(VolumeFormat, volume.format, "VOLUME_FORMAT_"),
        format_size(volume.size_bytes) if volume.size_bytes else "",
        format_size(volume.used_bytes),
        volume.backing,
    )


def _row(image: Image) -> tuple[str, ...]:
    name, *rest = volume_row(image.volume)
    kind = enum_word(VolumeKind, image.volume.kind, "VOLUME_KIND_") if image.volume.kind else "image"
    return (image.pool, name, kind, image.node or "all", *rest[:3], image.volume.sha256[:12])


def _fields(image: Image) -> list[tuple[str, str]]:
    made = image.volume.created_at.ToJsonString() if image.volume.HasField("created_at") else ""
    named = list(zip(COLUMNS, _row(image), strict=True))[:-1]
    return [*named, ("sha256", image.volume.sha256), ("came with", image.volume.part_of), ("made", made)]


def _check_sha256(sha256: str) -> None:
    if sha256 and (len(sha256) != 64 or not all(c in "0123456789abcdef" for c in sha256.lower())):
        raise invalid("--sha256", f'"{sha256}" is not a SHA-256 of 64 hexadecimal digits, as sha256sum prints it.')
