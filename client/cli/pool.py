"""`gugus pool`: pools of volumes, and the images in them."""

from typing import Annotated

import typer
from gugus.agent.v1.volume_pb2 import DirPool, PoolAbility, PoolSpec, VolumeFormat
from gugus.agent.v1.volume_pb2 import Pool as AgentPool
from gugus.cluster.v1.pool_pb2 import CheckPoolResponse, Pool

from client.cli import image
from client.cli.confirm import Yes, confirm
from client.cli.image import VOLUME_COLUMNS, volume_row
from client.cli.output import Format, Output, plain, say, show, show_done, show_list, table, write
from client.cli.session import complete_node, complete_pool, run
from client.cli.words import enum_word, short, yes
from common.errors import invalid
from common.units import format_size, parse_duration
from common.validate import name as check_name
from common.validate import require

app = typer.Typer(no_args_is_help=True, help="Pools of volumes, and the images in them.")

Name = Annotated[str, typer.Argument(metavar="POOL", autocompletion=complete_pool)]
COLUMNS = ("name", "driver", "path", "shared", "nodes", "ready", "free", "reason")


@app.command()
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="POOL")],
    dir_: Annotated[str, typer.Option("--dir", metavar="PATH", help="Folder that holds it on each node.")] = "",
    btrfs: Annotated[
        str,
        typer.Option(metavar="PATH", help="Folder on btrfs that holds it on each node: containers can be snapshotted."),
    ] = "",
    shared: Annotated[bool, typer.Option("--shared", help="Every node sees the same files there.")] = False,
    node: Annotated[
        list[str] | None,
        typer.Option(metavar="NODE", help="Only there; may be repeated.", autocompletion=complete_node),
    ] = None,
    output: Format = Output.TABLE,
) -> None:
    """Make a pool: a folder on every node, or on some, on any file system or on btrfs."""
    require("POOL", check_name(name))
    option, path = ("--btrfs", btrfs) if btrfs else ("--dir", dir_)
    if bool(dir_) == bool(btrfs):
        raise invalid(option, "give one of --dir and --btrfs.")
    if not path.startswith("/"):
        raise invalid(option, f'"{path}" is not an absolute path, like /var/lib/gugus/pools/{name}.')
    if btrfs and shared:
        raise invalid("--shared", "a btrfs file system belongs to one node.")
    spec = PoolSpec(name=name)
    if btrfs:
        spec.btrfs.path = btrfs
    else:
        spec.dir.CopyFrom(DirPool(path=dir_, shared=shared))
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


app.command("import")(image.import_)


app.command("images")(image.list_)


@app.command()
def volumes(
    ctx: typer.Context,
    pool: Name,
    node: Annotated[str, typer.Option(metavar="NODE", help="Only there.", autocompletion=complete_node)] = "",
    output: Format = Output.TABLE,
) -> None:
    """List the volumes of a pool: what each node has, unless it is shared."""
    found = run(ctx, lambda gugus: gugus.pools.list_volumes(pool, node=node))
    nodes = found.nodes or [node] * len(found.volumes)  # a manager of the release before asked one node only
    pairs = list(zip(found.volumes, nodes, strict=True))
    if output is not Output.TABLE:
        write([{**plain(volume), "node": where} for volume, where in pairs], output)
    elif pairs:
        table(("node", *VOLUME_COLUMNS), [(where or "all", *volume_row(volume)) for volume, where in pairs])
    else:
        say("no volumes.")
    for where, reason in sorted(found.unasked_nodes.items()):
        say(f"not asked: {where}: {reason}")


app.command("image-delete")(image.delete)


@app.command()
def check(
    ctx: typer.Context,
    name: Name,
    repair: Annotated[bool, typer.Option("--repair", help="Delete what nobody knows, after asking.")] = False,
    older_than: Annotated[
        str, typer.Option(metavar="TIME", help="With --repair: only what was made at least so long ago.")
    ] = "10m",
    yes_: Yes = False,
    output: Format = Output.TABLE,
) -> None:
    """Look for volumes that no guest, image, snapshot or running task knows, and for missing ones.

    Exit code 1 when something is wrong still.
    """
    least_age_s = _age(older_than)
    found = run(ctx, lambda gugus: gugus.pools.check(name))
    if output is Output.TABLE:
        _tell(found)
    if repair and found.orphans:
        old = [stray for stray in found.orphans if stray.age_s >= least_age_s]
        size = format_size(sum(stray.volume.used_bytes for stray in old))
        if old:
            confirm(f"Delete {len(old)} volumes that nobody knows ({size})?", yes_)
        done = run(ctx, lambda gugus: gugus.pools.repair(name, found.orphans, least_age_s=least_age_s))
        for label, reason in sorted(done.left.items()):
            say(f"left {label}: {reason}")
        gone = {(stray.node, stray.volume.name) for stray in done.deleted}
        say(f"deleted {len(gone)} volumes.")
        left = [stray for stray in found.orphans if (stray.node, stray.volume.name) not in gone]
        del found.orphans[:]
        found.orphans.extend(left)
    if output is not Output.TABLE:
        show(found, output, lambda _: [])
    if found.orphans or found.missing or found.unchecked_nodes:
        raise typer.Exit(1)


def _age(text: str) -> int:
    try:
        return max(1, round(parse_duration(text)))
    except ValueError as error:
        raise invalid("--older-than", f"{error}.") from None


def _tell(found: CheckPoolResponse) -> None:
    rows = [
        ("nobody's", stray.node, stray.volume.name, format_size(stray.volume.used_bytes), f"{stray.age_s} s old")
        for stray in found.orphans
    ]
    rows += [("missing", stray.node, stray.volume.name, "", f"of {stray.owner}") for stray in found.missing]
    if rows:
        table(("what", "node", "volume", "used", "detail"), rows)
    for node, reason in sorted(found.unchecked_nodes.items()):
        say(f"not checked on {node}: {reason}")
    if not rows:
        say(f"Of {found.checked} volumes, each is known and where it belongs.")


def _row(pool: Pool) -> tuple[str, ...]:
    states = pool.status.nodes
    unready = [f"{name}: {state.reason}" for name, state in sorted(states.items()) if not state.ready]
    free = [state.available_bytes for state in states.values() if state.ready]
    driver = pool.spec.WhichOneof("driver")
    return (
        pool.meta.name,
        driver or "",
        getattr(pool.spec, driver).path if driver else "",
        yes(pool.spec.dir.shared),
        ", ".join(pool.nodes) or "all",
        f"{len(states) - len(unready)}/{len(states)}",
        format_size(min(free) if pool.spec.dir.shared else sum(free)) if free else "",
        short("; ".join(unready)),
    )


def _fields(pool: Pool) -> list[tuple[str, str]]:
    lines, abilities, cannot = list[str](), list[str](), list[str]()
    for name, state in sorted(pool.status.nodes.items()):
        room = f"{format_size(state.available_bytes)} of {format_size(state.capacity_bytes)} free"
        lines.append(f"{name}: {'ready, ' + room if state.ready else 'not ready: ' + state.reason}")
        abilities = abilities or [enum_word(PoolAbility, ability, "POOL_ABILITY_") for ability in state.abilities]
        cannot = cannot or _refusals(state)
    named = list(zip(COLUMNS, _row(pool), strict=True))[:5]
    return [
        *named,
        ("can", ", ".join(abilities)),
        ("cannot", "\n".join(cannot)),
        *_proof(pool),
        ("on nodes", "\n".join(lines) or "not told yet"),
    ]


def _proof(pool: Pool) -> list[tuple[str, str]]:
    """Return whether a shared pool keeps a second writer from a disk (docs/fencing.md), a line for each node."""
    told = {name: state.writer_proof for name, state in pool.status.nodes.items() if state.HasField("writer_proof")}
    lines = [f"{name}: {yes(proof.proven)}, {proof.reason}" for name, proof in sorted(told.items())]
    return [("proves writers", "\n".join(lines))] if lines else []


def _refusals(state: AgentPool) -> list[str]:
    """Return what a pool cannot do with volumes of each format, a line each."""
    return [
        f"{enum_word(PoolAbility, item.ability, 'POOL_ABILITY_')} of "
        f"{enum_word(VolumeFormat, known.format, 'VOLUME_FORMAT_')}: {item.reason}"
        for known in state.formats
        for item in known.refusals
    ]
