"""`gugus cluster restore`: makes a new cluster of a backup, on a host that is in none."""

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.backup.passphrase import PassphraseFile, known_passphrase
from client.cli.cluster_backup import sentence
from client.cli.cluster_init import start_services
from client.cli.confirm import Yes
from client.cli.first_host import (
    DEFAULT_STATE,
    DEFAULT_WATCHDOG,
    UNITS_ETC,
    Address,
    Drivers,
    Etc,
    NodeName,
    Run,
    Start,
    State,
    Watchdog,
    first_host,
)
from client.cli.output import Format, Output, say, write
from common.config import DEFAULT_RUN_DIR
from common.errors import invalid

if TYPE_CHECKING:
    from client.backup.contents import Contents
    from client.backup.file import Inspection
    from client.first_host import FirstHost


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the cluster in the backup.")],
    address: Address,
    node: NodeName = "",
    takes_over: Annotated[
        bool,
        typer.Option("--takes-over", help="This host is, or replaces for good, the node of its name in the backup."),
    ] = False,
    passphrase_file: PassphraseFile = "",
    hypervisor: Drivers = None,
    etc: Etc = UNITS_ETC,
    state: State = DEFAULT_STATE,
    run_dir: Run = DEFAULT_RUN_DIR,
    watchdog: Watchdog = DEFAULT_WATCHDOG,
    start: Start = None,
    yes_: Yes = False,
    output: Format = Output.TABLE,
) -> None:
    """Make this host the first of a new cluster that goes on from a backup. May be repeated: it finishes what was begun."""
    from client.backup.contents import look  # here: every other command starts faster without them
    from client.backup.file import inspect
    from client.backup.restore import check
    from client.backup.restore import restore as carry_out

    host = first_host(name, address, node, hypervisor, etc, state, run_dir, watchdog)
    found = inspect(file)
    if found.header.backup.cluster_name != name:
        raise invalid("--name", f'the backup is of the cluster "{found.header.backup.cluster_name}", not "{name}".')
    passphrase = known_passphrase(passphrase_file)
    contents = look(file, passphrase)
    check(host, contents, takes_over=takes_over)
    say(_question(host, file, found, contents))
    _agreed(name, yes_)
    made = asyncio.run(carry_out(host, file, passphrase, found, contents))
    say(f"The cluster {name} is {made.cluster_id} now, and {host.node} is its only voter.")
    started = asyncio.run(start_services(host, start))
    if not started:
        say(f"Now start gugus-manager --config {made.manager}, gugus-watchdog and gugus-agent --config {made.agent}.")
    _next(contents, host)
    if output is not Output.TABLE:
        facts = {"cluster_name": name, "cluster_id": made.cluster_id, "node": host.node, "changed": made.changed}
        write({**facts, "former_nodes": sorted(contents.nodes), "started": started}, output)


def _question(host: "FirstHost", file: Path, found: "Inspection", contents: "Contents") -> str:
    others = ", ".join(sorted(set(contents.nodes) - {host.node})) or "none"
    lines = [
        f"{file}: {sentence(found.header.backup)}.",
        "",
        "This makes a new cluster of it:",
        f"  only voter     {host.node} at {host.address}",
        f"  to join anew   {others}",
        f"  guests         {contents.guests}, of which {contents.given} are given to nodes",
        "",
        "Do it only when the old cluster is lost for ever: what changed after the backup is lost. Guests from before are started, moved or",
        "deleted only when each node has joined anew (`gugus-agent join --rejoin`), or was said to be off for good",
        "(`gugus node remove NODE --off`). Guests that were made since are left alone where they run.",
    ]
    if answering := contents.answering():
        lines.append(
            f"\nWARNING: {', '.join(answering)} answer at their Raft ports: the old cluster may live. Stop gugus-manager there first."
        )
    return "\n".join(lines)


def _agreed(name: str, yes: bool) -> None:
    """Return when it may be done. Raises GugusError."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise invalid("--yes", "there is no terminal to ask on.", remedy="Repeat the command with --yes.")
    if typer.prompt("\nType the cluster's name to go on", default="", show_default=False, err=True) != name:
        say("nothing was changed.")
        raise typer.Exit(1)


def _next(contents: "Contents", host: "FirstHost") -> None:
    say("Next:")
    say("  1. `gugus node list` shows which nodes are from before and were not taken in yet.")
    if set(contents.nodes) - {host.node}:
        say(
            "  2. For each that can be reached: `gugus cluster token create --node NODE`, and on it `gugus-agent join --rejoin`."
        )
        say("  3. For each that is off for good: `gugus node remove NODE --off`.")
    say("  4. `gugus cluster promote NODE` until there are three voters, then `gugus cluster backup FILE`.")
