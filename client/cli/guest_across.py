"""`gugus guest migrate --to-cluster`: a guest goes to another cluster, of which CONFIG is the client's configuration."""

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer
from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER
from gugus.agent.v1.migration_pb2 import MIGRATION_PRESENCE_ABSENT, MigrationPolicy
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, Guest
from gugus.cluster.v1.task_pb2 import Task

from client import config
from client.across.live import SEND, is_sent
from client.across.move import Move
from client.across.obstacles import remarks
from client.across.plan import Wishes, fitting_nodes, is_live
from client.across.side import Bytes, Side
from client.cli.bytes_bar import BytesBar
from client.cli.confirm import confirm
from client.cli.output import Output, say, show_done, table, write
from client.cli.progress import Progress
from client.cli.session import Options, open_cluster, run
from client.cli.words import duration
from client.sdk import Gugus
from client.tasks import ENDED
from common.errors import invalid, precondition
from common.units import format_size

COLUMNS = ("guest", "to", "how", "copied", "in the way")


class Talk:
    """Says on stderr how far it is: sentences, and between them a bar on a terminal."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def say(self, text: str) -> None:
        """Say a sentence."""
        self.end()
        say(text)

    def task(self, task: Task) -> None:
        """Show a task until it has ended."""
        if self._progress is None:
            self._progress = Progress()
            self._progress.__enter__()
        self._progress.show(task)
        if task.state in ENDED:
            self.end()

    @contextmanager
    def bytes(self, words: str) -> Iterator[Bytes]:
        """Show how far a file is on its way."""
        self.end()
        with BytesBar(words) as bar:
            yield bar.show

    def end(self) -> None:
        """Take a bar away. May be repeated."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    """Read OURS=THEIRS, which may be repeated. Raises GugusError."""
    found = dict[str, str]()
    for text in texts:
        ours, equals, theirs = text.partition("=")
        if not (ours and equals and theirs):
            raise invalid(option, f'"{text}" is not OURS=THEIRS.', remedy=f"Like {option} fast=local.")
        if ours in found:
            raise invalid(option, f"{ours} is given twice.")
        found[ours] = theirs
    return found


def wishes(
    name: str,
    new_name: str,
    node: str,
    pools: Sequence[str],
    networks: Sequence[str],
    shutdown_timeout: str,
    stop: bool,
    keep: bool,
    drop_snapshots: bool,
) -> Wishes:
    """Read the options. Raises GugusError."""
    return Wishes(
        name,
        new_name,
        node,
        pairs("--pool", pools),
        pairs("--network", networks),
        stop=stop,
        stop_timeout_s=duration("--shutdown-timeout", shutdown_timeout) if shutdown_timeout else 0,
        keep=keep,
        drop_snapshots=drop_snapshots,
    )


def migrate(
    ctx: typer.Context,
    file: Path,
    wishes: Wishes,
    policy: MigrationPolicy,
    scratch: Path | None,
    *,
    check: bool,
    sure: bool,
    output: Output,
) -> None:
    """Move a guest, or tell what is in the way (exit code 1 if anything is). Raises GugusError."""
    if policy.post_copy:
        what = "is not for another cluster: a guest whose memory is in two clusters is lost with either."
        raise invalid("--post-copy", what)
    if not (check or wishes.keep):
        confirm(f"Delete the guest {wishes.name} and everything on its disks here once it has moved?", sure)
    options = ctx.find_root().obj
    options = options if isinstance(options, Options) else Options()
    folder, talk = scratch or Path(tempfile.gettempdir()), Talk()

    async def main() -> Guest | bool:
        ours, theirs = config.load(options.config), config.load(file)
        async with open_cluster(options) as here, Gugus.connect(theirs) as there:
            move = Move(
                Side(here, ours.cluster_id, ours.cluster_name, talk),
                Side(there, theirs.cluster_id, theirs.cluster_name, talk),
                wishes,
                folder,
                talk,
                policy,
            )
            return await _check(move, wishes, output) if check else await move.run()

    try:
        done = asyncio.run(main())
    finally:
        talk.end()
    if isinstance(done, Guest):
        kept = " It is kept here, stopped: start only one of the two." if wishes.keep else ""
        show_done(done, output, f"guest {wishes.name} has moved; it is {done.meta.name} there.{kept}")
    elif not done:
        raise typer.Exit(1)


def take_back(ctx: typer.Context, name: str, *, sure: bool, output: Output) -> None:
    """Take a guest back whose other cluster can never be asked any more: a person says that it does not run there. Raises GugusError."""
    question = (
        f"Start {name} here from its disks? If it runs in the other cluster after all, it runs twice from then on."
    )
    confirm(question, sure)

    async def work(gugus: Gugus) -> Guest:
        guest = await gugus.guests.get(name)
        if not is_sent(guest):
            raise precondition("NOT_SENT", f"guest {name} is not on its way to another cluster.")
        sending = next(t for t in await gugus.tasks.list(target=f"guest/{name}", active=True) if t.kind == SEND)
        await gugus.migrations.tell(name, guest.status.migration.task, MIGRATION_PRESENCE_ABSENT)
        with Progress() as progress:
            await gugus.tasks.wait(sending, progress.show)
        return await gugus.guests.get(name)

    show_done(run(ctx, work), output, f"guest {name} is here again.")


async def _check(move: Move, wishes: Wishes, output: Output) -> bool:
    """Write what would be done and what is in the way; return whether nothing is."""
    here, there, found = await move.look()
    guest, nodes = here.guest, fitting_nodes(here.guest, there, wishes)
    runs = guest.status.phase == GUEST_PHASE_RUNNING
    stopped = "shut down, copied, started" if runs else "copied"
    row = {
        "guest": guest.meta.name,
        "to": f"{wishes.name_there} in {there.cluster_name}" + (f" ({nodes[0]})" if nodes else ""),
        "how": "while it runs" if is_live(guest, wishes) else stopped,
        "copied": ", ".join(_disk(guest, disk.name, disk.size_bytes) for disk in guest.spec.disks),
    }
    if output is Output.TABLE:
        words = [f"{one.field}: {one.message}" for one in found]
        table(COLUMNS, [(*row.values(), " ".join(words) or "nothing")])
        for remark in remarks(guest, wishes):
            say(f"note: {remark}")
    else:
        told = [{"subject": one.field, "message": one.message} for one in found]
        write({**row, "obstacles": told, "remarks": remarks(guest, wishes)}, output)
    return not found


def _disk(guest: Guest, name: str, size_bytes: int) -> str:
    if guest.spec.kind == GUEST_KIND_CONTAINER or not size_bytes:
        return name
    return f"{name} ({format_size(size_bytes)})"
