"""`gugus pool`: pools of volumes, and the images in them."""

from typing import Annotated

import typer
from gugus.agent.v1.volume_pb2 import DirPool, PoolAbility, PoolSpec, Volume, VolumeFormat
from gugus.cluster.v1.pool_pb2 import Image, Pool

from client.cli.confirm import Yes, confirm
from client.cli.output import Format, Output, show, show_done, show_list
from client.cli.session import complete_node, complete_pool, run, run_task
from client.cli.words import enum_word, short, yes
from common.errors import invalid
from common.units import format_size
from common.validate import name as check_name
from common.validate import require

app = typer.Typer(no_args_is_help=True, help="Pools of volumes, and the images in them.")

Name = Annotated[str, typer.Argument(metavar="POOL", autocompletion=complete_pool)]
ImageName = Annotated[str, typer.Argument(metavar="IMAGE", help="Name of the image.")]
Wait = Annotated[bool, typer.Option(help="Wait until it is done.")]
COLUMNS = ("name", "driver", "path", "shared", "nodes", "ready", "free", "reason")
VOLUME_COLUMNS = ("name", "format", "size", "used", "backing")


@app.command()
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="POOL")],
    dir_: Annotated[str, typer.Option("--dir", metavar="PATH", help="Folder that holds it on each node.")],
    shared: Annotated[bool, typer.Option("--shared", help="Every node sees the same files there.")] = False,
    node: Annotated[
        list[str] | None,
        typer.Option(metavar="NODE", help="Only there; may be repeated.", autocompletion=complete_node),
    ] = None,
    output: Format = Output.TABLE,
) -> None:
    """Make a pool: a folder on every node, or on some."""
    require("POOL", check_name(name))
    if not dir_.startswith("/"):
        raise invalid("--dir", f'"{dir_}" is not an absolute path, like /var/lib/gugus/pools/{name}.')
    spec = PoolSpec(name=name, dir=DirPool(path=dir_, shared=shared))
    pool = run(ctx, lambda gugus: gugus.pools.create(spec, nodes=node or ()))
    show_done(pool, output, f"pool {name} is made.")


@app.command("list")
def list_(ctx: typer.Context, output: Format = Output.TABLE) -> None:
    """List all pools."""
    show_list(run(ctx, lambda gugus: gugus.pools.list()), output, COLUMNS, _row, none="no pools.")


@app.command("show")
def show_(ctx: typer.Context, name: Name, output: Format = Output.TABLE) -> None:
    """Show a pool and how it is on each node."""
    show(run(ctx, lambda gugus: gugus.pools.get(name)), output, _fields)


@app.command()
def delete(ctx: typer.Context, name: Name, yes_: Yes = False, output: Format = Output.TABLE) -> None:
    """Forget a pool that no guest uses; what is stored in it stays."""
    confirm(f"Forget the pool {name}? What is stored in it stays.", yes_)
    run(ctx, lambda gugus: gugus.pools.delete(name))
    show_done(None, output, f"pool {name} is forgotten.")


@app.command("import")
def import_(
    ctx: typer.Context,
    pool: Name,
    image: ImageName,
    source: Annotated[str, typer.Option("--from", metavar="SOURCE", help="Path on a node, or an http(s) address.")],
    sha256: Annotated[str, typer.Option(metavar="HEX", help="Expected SHA-256 of the source.")] = "",
    node: Annotated[str, typer.Option(metavar="NODE", help="Who reads it.", autocompletion=complete_node)] = "",
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Bring an image into a pool: a disk image, or an archive of a container's root."""
    require("IMAGE", check_name(image))
    if not source.startswith(("/", "https://", "http://")):
        raise invalid("--from", f'"{source}" is neither an absolute path on a node nor an http(s) address.')
    if sha256 and (len(sha256) != 64 or not all(c in "0123456789abcdef" for c in sha256.lower())):
        raise invalid("--sha256", f'"{sha256}" is not a SHA-256 of 64 hexadecimal digits, as sha256sum prints it.')
    run_task(
        ctx,
        output,
        lambda gugus: gugus.pools.import_image(pool, image, source, sha256=sha256.lower(), node=node),
        f"image {image} is in pool {pool}.",
        wait=wait,
    )


@app.command()
def images(
    ctx: typer.Context,
    pool: Annotated[str, typer.Argument(metavar="[POOL]", autocompletion=complete_pool)] = "",
    output: Format = Output.TABLE,
) -> None:
    """List images, of one pool or of all."""
    found = run(ctx, lambda gugus: gugus.pools.images(pool=pool))
    columns = ("pool", "image", "node", "format", "size", "used", "sha256")
    show_list(found, output, columns, _image_row, none="no images; `gugus pool import` brings one in.")


@app.command()
def volumes(
    ctx: typer.Context,
    pool: Name,
    node: Annotated[str, typer.Option(metavar="NODE", help="As seen there.", autocompletion=complete_node)] = "",
    output: Format = Output.TABLE,
) -> None:
    """List the volumes of a pool."""
    found = run(ctx, lambda gugus: gugus.pools.volumes(pool, node=node))
    show_list(found, output, VOLUME_COLUMNS, _volume_row, none="no volumes.")


@app.command("image-delete")
def image_delete(
    ctx: typer.Context,
    pool: Name,
    image: ImageName,
    yes_: Yes = False,
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Delete an image."""
    confirm(f"Delete the image {image} of the pool {pool}?", yes_)
    done = f"image {image} is deleted."
    run_task(ctx, output, lambda gugus: gugus.pools.delete_image(pool, image), done, wait=wait)


def _row(pool: Pool) -> tuple[str, ...]:
    states = pool.status.nodes
    unready = [f"{name}: {state.reason}" for name, state in sorted(states.items()) if not state.ready]
    free = [state.available_bytes for state in states.values() if state.ready]
    return (
        pool.meta.name,
        pool.spec.WhichOneof("driver") or "",
        pool.spec.dir.path,
        yes(pool.spec.dir.shared),
        ", ".join(pool.nodes) or "all",
        f"{len(states) - len(unready)}/{len(states)}",
        format_size(min(free) if pool.spec.dir.shared else sum(free)) if free else "",
        short("; ".join(unready)),
    )


def _fields(pool: Pool) -> list[tuple[str, str]]:
    lines, abilities = list[str](), list[str]()
    for name, state in sorted(pool.status.nodes.items()):
        room = f"{format_size(state.available_bytes)} of {format_size(state.capacity_bytes)} free"
        lines.append(f"{name}: {'ready, ' + room if state.ready else 'not ready: ' + state.reason}")
        abilities = abilities or [enum_word(PoolAbility, ability, "POOL_ABILITY_") for ability in state.abilities]
    named = list(zip(COLUMNS, _row(pool), strict=True))[:5]
    return [*named, ("can", ", ".join(abilities)), ("on nodes", "\n".join(lines) or "not told yet")]


def _volume_row(volume: Volume) -> tuple[str, ...]:
    return (
        volume.name,
        enum_word(VolumeFormat, volume.format, "VOLUME_FORMAT_"),
        format_size(volume.size_bytes) if volume.size_bytes else "",
        format_size(volume.used_bytes),
        volume.backing,
    )


def _image_row(image: Image) -> tuple[str, ...]:
    name, *rest = _volume_row(image.volume)
    return (image.pool, name, image.node or "all", *rest[:3], image.volume.sha256[:12])
