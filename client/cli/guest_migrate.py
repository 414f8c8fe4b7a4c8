"""`gugus guest migrate`: moves guests to other nodes, while they run if they can."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from gugus.agent.v1.migration_pb2 import MigrationCompression, MigrationMode, MigrationPolicy, MigrationTimeoutAction
from gugus.cluster.v1.migration_pb2 import MigrationCheck

from client.bulk import Selection
from client.cli.confirm import Yes
from client.cli.guest_app import app
from client.cli.many import PARALLEL, Names, Parallel, Wait, run_many
from client.cli.output import Format, Output, plain, table, write
from client.cli.selectors import Filters, with_filters
from client.cli.session import complete_node, run
from client.cli.words import duration, enum_word, size
from common.errors import invalid
from common.units import format_size


class Compression(StrEnum):
    """How memory travels."""

    NONE = "none"
    XBZRLE = "xbzrle"
    ZSTD = "zstd"


class TimeoutAction(StrEnum):
    """What becomes of a migration that takes too long."""

    ABORT = "abort"
    SUSPEND = "suspend"
    POST_COPY = "post-copy"


_COMPRESSIONS = {
    Compression.NONE: MigrationCompression.MIGRATION_COMPRESSION_NONE,
    Compression.XBZRLE: MigrationCompression.MIGRATION_COMPRESSION_XBZRLE,
    Compression.ZSTD: MigrationCompression.MIGRATION_COMPRESSION_ZSTD,
}
_ACTIONS = {
    TimeoutAction.ABORT: MigrationTimeoutAction.MIGRATION_TIMEOUT_ACTION_ABORT,
    TimeoutAction.SUSPEND: MigrationTimeoutAction.MIGRATION_TIMEOUT_ACTION_SUSPEND,
    TimeoutAction.POST_COPY: MigrationTimeoutAction.MIGRATION_TIMEOUT_ACTION_POST_COPY,
}
_COLUMNS = ("guest", "to", "how", "copied", "in the way")


@app.command()
@with_filters
def migrate(
    ctx: typer.Context,
    names: Names = None,
    *,
    filters: Filters,
    to: Annotated[
        str, typer.Option(metavar="NODE", help="Where to (the best of the others).", autocompletion=complete_node)
    ] = "",
    check: Annotated[bool, typer.Option("--check", help="Only tell what is in the way.")] = False,
    bandwidth: Annotated[str, typer.Option(metavar="SIZE", help="Most bytes a second, for example 100MiB.")] = "",
    downtime: Annotated[str, typer.Option(metavar="TIME", help="Longest time it may stand still (300ms).")] = "",
    auto_converge: Annotated[
        bool, typer.Option(help="Slow it down when it changes memory faster than that can be sent.")
    ] = True,
    post_copy: Annotated[
        bool, typer.Option("--post-copy", help="Let it go over before its memory did. A failure from then on ends it.")
    ] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Have containers go over as they run, by CRIU, not by a stop and a start.")
    ] = False,
    compression: Annotated[Compression | None, typer.Option(help="How memory travels.")] = None,
    channels: Annotated[int, typer.Option(min=0, max=16, help="Connections for memory; 0: as is best.")] = 0,
    timeout: Annotated[str, typer.Option(metavar="TIME", help="After so long, --timeout-action is taken.")] = "",
    timeout_action: Annotated[TimeoutAction, typer.Option(help="What happens then.")] = TimeoutAction.ABORT,
    shutdown_timeout: Annotated[
        str, typer.Option(metavar="TIME", help="How long a container may take to shut down (60s).")
    ] = "",
    to_cluster: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG", help="Into the cluster of this client.yaml; the options below are for that."),
    ] = None,
    stop: Annotated[
        bool, typer.Option("--stop", help="Shut it down, copy it through here, and start it there.")
    ] = False,
    pool: Annotated[list[str] | None, typer.Option(metavar="OURS=THEIRS", help="A pool's name there.")] = None,
    network: Annotated[list[str] | None, typer.Option(metavar="OURS=THEIRS", help="A network's name there.")] = None,
    new_name: Annotated[str, typer.Option("--name", metavar="NAME", help="Its name there.")] = "",
    keep: Annotated[bool, typer.Option("--keep", help="Do not delete it here.")] = False,
    drop_snapshots: Annotated[bool, typer.Option("--drop-snapshots", help="Go without its snapshots.")] = False,
    scratch: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where its disks pass through, one by one (TMPDIR).")
    ] = None,
    take_back: Annotated[
        bool,
        typer.Option(
            "--take-back", help="It was sent to a cluster that is gone for good: start it here, from its disks."
        ),
    ] = False,
    sure: Yes = False,
    parallel: Parallel = PARALLEL,
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Move guests to other nodes: virtual machines while they run, containers by a short stop; or one to another cluster."""
    policy = MigrationPolicy(
        auto_converge=auto_converge,
        post_copy=post_copy,
        compression=_COMPRESSIONS[compression]
        if compression
        else MigrationCompression.MIGRATION_COMPRESSION_UNSPECIFIED,
        channels=channels,
        bandwidth_bytes_per_s=_bandwidth(bandwidth),
        downtime_limit_ms=_ms("--downtime", downtime),
        timeout_s=_ms("--timeout", timeout) // 1000,
        timeout_action=_ACTIONS[timeout_action],
        shutdown_timeout_ms=_ms("--shutdown-timeout", shutdown_timeout),
        checkpoint=live,
    )
    if take_back:
        from client.cli import guest_across

        if not names or len(names) != 1 or to_cluster is not None:
            raise invalid(
                "--take-back", "is for one guest, which was sent to another cluster.", remedy="Name it alone."
            )
        guest_across.take_back(ctx, names[0], sure=sure, output=output)
        return
    if to_cluster is not None:
        from client.cli import guest_across  # here: a move within the cluster starts faster without

        if live:
            raise invalid("--live", "is for containers within one cluster.", remedy="Leave it out.")
        if not names or len(names) != 1 or not wait:
            raise invalid(
                "--to-cluster", "moves one guest, and waits for its end.", remedy="Name it, without --no-wait."
            )
        wishes = guest_across.wishes(
            names[0], new_name, to, pool or [], network or [], shutdown_timeout, stop, keep, drop_snapshots
        )
        guest_across.migrate(ctx, to_cluster, wishes, policy, scratch, check=check, sure=sure, output=output)
        return
    if stop or pool or network or new_name or keep or drop_snapshots or scratch:
        raise invalid("--to-cluster", "is missing: an option was given that is only for another cluster.")
    chosen = filters.selection(names)
    if check:
        _check(ctx, chosen, to, policy, output)
        return
    run_many(
        ctx,
        output,
        chosen,
        lambda gugus, name: gugus.migrations.migrate(name, to, policy=policy),
        "guest {} has moved.",
        parallel=parallel,
        wait=wait,
    )


def _check(ctx: typer.Context, chosen: Selection, to: str, policy: MigrationPolicy, output: Output) -> None:
    """Tell what is in the way of one guest; exit code 1 when no node can take it."""
    if len(chosen.names) != 1:
        raise invalid("--check", "is for one guest.", remedy="Name it.")
    name = chosen.names[0]
    checks = run(ctx, lambda gugus: gugus.migrations.check(name, to, policy=policy))
    if output is Output.TABLE:
        table(_COLUMNS, [(name, *_row(one)) for one in checks])
    else:
        write([plain(one) for one in checks], output)
    if not any(not one.obstacles for one in checks):
        raise typer.Exit(1)


def _row(check: MigrationCheck) -> tuple[str, str, str, str]:
    how = enum_word(MigrationMode, check.mode, "MIGRATION_MODE_")
    copied = f"{', '.join(check.copied_disks)} ({format_size(check.copied_bytes)})" if check.copied_disks else ""
    words = [
        f"{one.subject}: {one.message}" if one.subject not in ("", f"node/{check.target}") else one.message
        for one in check.obstacles
    ]
    return check.target, how, copied, " ".join(words) or "nothing"


def _ms(option: str, text: str) -> int:
    return round(duration(option, text) * 1000) if text else 0


def _bandwidth(text: str) -> int:
    """Read --bandwidth; 0 when it is not given. Raises GugusError."""
    bytes_per_s = size("--bandwidth", text) if text else 0
    if text and not bytes_per_s:
        raise invalid("--bandwidth", "nothing moves at 0 bytes a second.", remedy="Leave it out for no limit.")
    return bytes_per_s
